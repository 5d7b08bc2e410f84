package profiles

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/plan"
)

// shippedSites are sites in which hosts of shipped profiles use all that these
// can do, or next to nothing of it.
var shippedSites = map[string]string{
	"full": `
-- site.yaml --
domain: example.org
datacenter: ci
region: alice
servers:
  join: [server1.example.org, server2.example.org, server3.example.org]
  nomad: 1.10.5
  consul: 1.22.2
  vault: 1.19.0
dns: {consul: ["192.0.2.21#8600"], upstream: [192.0.2.53]}
time_servers: [ntp.example.org]
tls: {verify_server_hostname: true}
admins: [{name: alice, uid: 2000, sudo: true, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEJB1yzqrXBYzGRNrZuAuhXzY0MqQqgH1X1TPYQyyo alice"]}]
secrets:
  consul_encrypt: pass://consul/encrypt
  consul_agent_token: pass://consul/agent
  consul_default_token: pass://consul/default
  nomad_consul_token: pass://consul/nomad
  nomad_encrypt: pass://nomad/encrypt
  nomad_vault_token: pass://vault/nomad
  vault_consul_token: pass://consul/vault
vars: {nomad_acl: true}
-- hosts.yaml --
- name: one
  profile: PROFILE
  interfaces: {eno1: {mac: "52:54:00:12:34:56", addresses: [192.0.2.21/24], gateways: [192.0.2.1]}}
  disks: [{mount: /build, disk: {serial: S3X1}}]
`,
	"bare": `
-- site.yaml --
domain: example.org
servers: {join: [server1.example.org], nomad: 1.9.7}
dns: {upstream: [192.0.2.53]}
-- hosts.yaml --
- {name: one, profile: PROFILE, advertise: "2001:db8::21"}
`,
}

// TestShipped holds what hosts of the shipped profiles get against testdata/shipped:
// what is changed in one profile, or in what several extend, shows in all of them.
func TestShipped(t *testing.T) {
	for _, profile := range []string{"plain", "alissandra", "server"} {
		for kind, files := range shippedSites {
			name := profile + "-" + kind
			t.Run(name, func(t *testing.T) {
				got := described(t, shippedPlan(t, strings.ReplaceAll(files, "PROFILE", profile)))
				golden := filepath.Join("testdata/shipped", name+".txt")
				want, err := os.ReadFile(golden)
				if err != nil && !*update {
					t.Fatal(err)
				}
				if d := cmp.Diff(string(want), got); d != "" {
					t.Errorf("%s (-want +got; -update writes it anew):\n%s", golden, d)
				}
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// shippedPlan is the only host of the site in an archive.
func shippedPlan(t *testing.T, files string) *plan.Plan {
	t.Helper()
	dir := writeFiles(t, archive(t, files))
	s, problems, err := Open(dir)
	if err != nil || problems.Err() != nil {
		t.Fatalf("%v\n%s", err, lines(dir, problems))
	}
	p, problems, err := s.Host(context.Background(), "one")
	if err != nil || problems.Err() != nil {
		t.Fatalf("%v\n%s", err, lines(dir, problems))
	}
	return p
}

// described is a plan as text. Files that are copied byte for byte stand in it by
// their names.
func described(t *testing.T, p *plan.Plan) string {
	t.Helper()
	var b strings.Builder
	for _, s := range p.Image.AptSources {
		fmt.Fprintf(&b, "apt source %s: %s %s %s %s %s\n", s.Name, s.URIs, s.Suites, s.Components, s.Fingerprint, s.KeyURL)
	}
	for _, a := range p.Image.Packages {
		fmt.Fprintf(&b, "package %s\n", a.Name)
	}
	for _, a := range p.Image.KernelArguments {
		fmt.Fprintf(&b, "kernel argument %s\n", a.Value)
	}
	fmt.Fprintf(&b, "reservation %+v\n", p.Host.Reserved)
	describeLayer(t, &b, "image", &p.Image.Layer)
	describeLayer(t, &b, "host", &p.Host.Layer)
	return b.String()
}

func describeLayer(t *testing.T, b *strings.Builder, half string, l *plan.Layer) {
	t.Helper()
	number := func(n *int) string {
		if n == nil {
			return "any"
		}
		return fmt.Sprint(*n)
	}
	for _, g := range l.Groups {
		fmt.Fprintf(b, "%s group %s %s system:%t\n", half, g.Name, number(g.GID), g.System)
	}
	for _, u := range l.Users {
		fmt.Fprintf(b, "%s user %s %s %s %s %s %s %q system:%t sudo:%t\n", half, u.Name, number(u.UID), u.Group, u.Groups, u.Home, u.Shell, u.Comment, u.System, u.Sudo)
	}
	for _, d := range l.Directories {
		fmt.Fprintf(b, "%s directory %s %s:%s %04o\n", half, d.Path, d.Owner, d.Group, uint32(d.Mode))
	}
	for _, u := range l.Units {
		fmt.Fprintf(b, "%s unit %s %s\n", half, u.Name, u.State)
	}
	for _, f := range l.Files {
		fmt.Fprintf(b, "%s file %s %s:%s %04o", half, f.Path, f.Owner, f.Group, uint32(f.Mode))
		if f.Target != "" {
			fmt.Fprintf(b, " -> %s", f.Target)
		}
		b.WriteString("\n")
		if !strings.HasSuffix(f.Origin.File, templateSuffix) {
			continue
		}
		content, err := f.Content.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			b.WriteString(strings.TrimRight("    "+line, " \n") + "\n")
		}
	}
}
