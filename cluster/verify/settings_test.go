package verify

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/alisw/kiln/plan"
)

func planWith(files ...string) *plan.Plan {
	p := &plan.Plan{}
	p.Host.Name = "build01.example.org"
	for i := 0; i < len(files); i += 2 {
		p.Host.Files = append(p.Host.Files, plan.File{Path: files[i], Content: plan.Literal([]byte(files[i+1]))})
	}
	return p
}

// TestSettingsAreMerged in the order of the files' names, block by block, as
// Nomad and Consul do.
func TestSettingsAreMerged(t *testing.T) {
	p := planWith(
		"/etc/nomad.d/20.hcl", `client { meta { a = "2" c = 3 } reserved { memory = 7 } } plugin "raw_exec" { config { enabled = true } }`,
		"/etc/nomad.d/10.hcl", "name = \"x\"\nclient {\n  enabled = true\n  meta {\n    a = \"1\"\n    b = true\n  }\n  host_volume \"v\" { path = \"/v\" }\n}\nclient {\n  host_volume \"w\" { path = \"/w\" read_only = true }\n}\nplugin \"docker\" {}\nplugin \"podman\" { config { enabled = false } }\nplugin \"nvidia-gpu\" {}\n",
		"/etc/nomad.d/30.json", `{"datacenter": "ci", "advertise": {"http": "[2001:db8::1]:4646"}}`,
		"/etc/nomad.d/90.hcl.bak", `name = "no"`, "/etc/nomad.d/sub/x.hcl", `name = "no"`,
	)
	// The packaged file of the Image half is replaced by the host's own.
	p.Image.Files = []plan.File{{Path: "/etc/nomad.d/10.hcl", Content: plan.Literal([]byte("server { enabled = true }"))}}
	e, err := expect(p)
	if err != nil {
		t.Fatal(err)
	}
	n := e.nomad
	if n.name != "x" || !n.client || n.datacenter != "ci" || n.region != "global" || n.pool != "default" || n.address.String() != "2001:db8::1" {
		t.Errorf("got %+v", n)
	}
	if want := map[string]string{"a": "2", "b": "true", "c": "3"}; !reflect.DeepEqual(n.meta, want) {
		t.Errorf("meta: %v", n.meta)
	}
	if want := map[string]volume{"v": {"/v", false}, "w": {"/w", true}}; !reflect.DeepEqual(n.volumes, want) {
		t.Errorf("volumes: %v", n.volumes)
	}
	if !slices.Equal(n.drivers, []string{"docker", "raw_exec"}) {
		t.Errorf("drivers: %v", n.drivers)
	}
	if memory, ok := n.reserved.number("memory"); !ok || memory != 7 {
		t.Errorf("reserved: %v", n.reserved)
	}
	if e.consul != nil || e.forward {
		t.Errorf("got %+v", e)
	}
}

func TestAddressesThatOnlyTheHostKnows(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:4646": "192.0.2.1", "::1": "::1", "[::1]": "::1",
		"0.0.0.0": "invalid IP", "{{ GetPublicIP }}": "invalid IP", "host.example.org": "invalid IP", "": "invalid IP",
	} {
		if got := literal(text).String(); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestVersionsAreCompared(t *testing.T) {
	for v, want := range map[string]string{
		"1.10.5": "1.10.5", "1.10.5-1": "1.10.5", "1:1.10.5-1": "1.10.5", "1.10.5+ent": "1.10.5", "1.22.2:7bdbed7e": "1.22.2",
		"1.11.0~beta1-1": "1.11.0-beta1", "1.11.0-beta.1": "1.11.0-beta.1", "1.11.0-rc.1-2": "1.11.0-rc.1",
	} {
		if got := canonical(v); got != want {
			t.Errorf("%s: got %s, want %s", v, got, want)
		}
	}
	if compare("1.9.7", "1.10.0-1") >= 0 || compare("1.10.0-beta.1", "1.10.0") >= 0 || compare("1.10.5+ent", "1.10.5") != 0 {
		t.Error("versions are in a wrong order")
	}
}

func TestNumbers(t *testing.T) {
	for list, want := range map[string]string{
		"": "map[] true", " ": "map[] true", "0-2,8": "map[0:true 1:true 2:true 8:true] true", "3-1": "map[] false", "a": "map[] false", "-1": "map[] false", "1-99999999": "map[] false",
	} {
		set, ok := numbers(list)
		if got := fmt.Sprint(set, ok); got != want {
			t.Errorf("%q: got %s, want %s", list, got, want)
		}
	}
}

// TestSecretsInLines are taken out, whatever they are called.
func TestSecretsInLines(t *testing.T) {
	for line, want := range map[string]string{
		`token = "abc"`:             `token = "[redacted]"`,
		"VAULT_TOKEN=hvs.abc def":   "VAULT_TOKEN=[redacted] def",
		`"encrypt": "a=="`:          `"encrypt": "[redacted]"`,
		"password: x, user: y":      "password: [redacted], user: y",
		"the token is gone":         "the token is gone",
		`secret_id = 'x' node = 1`:  `secret_id = '[redacted]' node = 1`,
		"acl token error=forbidden": "acl token error=forbidden",
	} {
		if got := scrub(line); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}
