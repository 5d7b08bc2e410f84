//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

const validatedSite = `
domain: example.org
datacenter: ci
servers: {join: [server1.example.org, 192.0.2.3], nomad: VERSION}
dns: {upstream: [192.0.2.53]}
secrets: {consul_encrypt: env://ENCRYPT, consul_agent_token: env://TOKEN, consul_default_token: env://TOKEN, nomad_consul_token: env://TOKEN, nomad_vault_token: env://TOKEN}
`

// TestAgentsTakeTheirFiles has the real programs check what is rendered for
// every kind of site and host. They let much through: TestHostComesToLife looks
// at what agents make of it.
func TestAgentsTakeTheirFiles(t *testing.T) {
	consul, nomad := hashicorp(t, "consul"), hashicorp(t, "nomad")
	const tlsBlock = "tls: {directory: /etc/grid-security, verify_server_hostname: true}\n"
	for _, c := range []struct {
		name, version, site, host string
		has, hasNot               []string // in nomad.hcl
	}{
		{"workload identity", "1.10.5", tlsBlock, "advertise: 192.0.2.11",
			[]string{"default_identity {", `jwt_auth_backend_path = "jwt-nomad"`, "verify_server_hostname = true", `host_volume "grid"`}, []string{"create_from_role", "token-value\"\n  address"}},
		{"token roles", "1.9.7", tlsBlock, "advertise: 192.0.2.11", []string{`create_from_role = "nomad"`, "token = \"token-value\""}, []string{"default_identity", "jwt_auth_backend_path"}},
		{"first with identities", "1.10.0-rc.1", "", "advertise: 192.0.2.11", []string{"default_identity {"}, []string{"create_from_role"}},
		{"no TLS", "1.10.5", "", "advertise: 192.0.2.11", nil, []string{"tls {", "host_volume", "ca_file"}},
		{"IPv6", "1.10.5", tlsBlock, `advertise: "2001:db8::11"`, []string{`bind_addr  = "2001:db8::11"`}, nil},
		{"an address chosen on the host", "1.10.5", tlsBlock, "advertise: {network: 127.0.0.0/8}", []string{`bind_addr  = "{{ `}, nil},
		{"floating address", "1.10.5", tlsBlock, "advertise: 192.0.2.11\n  vars: {bind_addr: 0.0.0.0}", []string{`bind_addr  = "0.0.0.0"`, `http = "192.0.2.11"`}, nil},
		{"drivers and their like", "1.10.5", tlsBlock,
			"advertise: 192.0.2.11\n  vars: {docker: false, raw_exec: true, node_class: big, node_pool: ci, nomad_acl: true, network_interface: lo, verify_https_client: false, vault_tls_server_name: vault.example.org, nomad_meta: {gpu: 2, on: true}}",
			[]string{`plugin "raw_exec"`, `"gpu" = "2"`, `"on" = "true"`, `node_pool = "ci"`, "verify_https_client    = false", "tls_server_name = \"vault.example.org\""}, []string{`plugin "docker"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := site(t, map[string]string{
				"site.yaml":  strings.Replace(validatedSite, "VERSION", c.version, 1) + c.site,
				"hosts.yaml": "- name: build01\n  profile: plain\n  " + c.host + "\n",
			})
			p, err := hostPlan(t, s, "build01").WithSecrets(t.Context(), known{"env://ENCRYPT": gossipKey, "env://TOKEN": "token-value"})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			layOut(t, dir, p.Host.Files)
			text := string(content(t, p.Host.Files, "/etc/nomad.d/nomad.hcl"))
			for _, want := range c.has {
				if !strings.Contains(text, want) {
					t.Errorf("nomad.hcl has no %s:\n%s", want, text)
				}
			}
			for _, not := range c.hasNot {
				if strings.Contains(text, not) {
					t.Errorf("nomad.hcl has %s:\n%s", not, text)
				}
			}
			// Consul looks for the files; Nomad only does when it starts.
			ca := newAuthority(t)
			own := issued(t, ca, "build01.example.org")
			consulFile := filepath.Join(dir, "etc/consul.d/consul.hcl")
			place(t, consulFile, strings.ReplaceAll(string(content(t, p.Host.Files, "/etc/consul.d/consul.hcl")), `"/etc/grid-security/`, `"`+dir+"/"))
			place(t, filepath.Join(dir, "ca.pem"), string(ca.PEM))
			place(t, filepath.Join(dir, "hostcert.pem"), string(own.Cert))
			place(t, filepath.Join(dir, "hostkey.pem"), string(own.Key))
			for _, argv := range [][]string{
				{consul, "validate", filepath.Dir(consulFile)},
				{nomad, "config", "validate", filepath.Join(dir, "etc/nomad.d")},
			} {
				cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
				// This machine's own certificates aren't Nomad's business.
				for _, v := range os.Environ() {
					if !strings.HasPrefix(v, "AWS_CA_BUNDLE=") {
						cmd.Env = append(cmd.Env, v)
					}
				}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
				}
			}
		})
	}
}

// TestPlainsHalves: what an image must not hold, and what a host must.
func TestPlainsHalves(t *testing.T) {
	p := hostPlan(t, clusterSite(t), "build01")
	for _, f := range p.Image.Files {
		if len(f.Content.Unresolved()) > 0 || strings.HasPrefix(f.Path, "/etc/nomad.d/") || strings.HasPrefix(f.Path, "/etc/consul.d/") {
			t.Errorf("%s is in the image", f.Path)
		}
	}
	for path, want := range map[string]string{"/etc/nomad.d/nomad.hcl": "root root 0600", "/etc/consul.d/consul.hcl": "root consul 0640"} {
		found := ""
		for _, f := range p.Host.Files {
			if f.Path == path {
				found = fmt.Sprintf("%s %s %04o", f.Owner, f.Group, uint32(f.Mode))
			}
		}
		if found != want {
			t.Errorf("%s: %s, not %s", path, found, want)
		}
	}
	var directories []string
	for _, d := range p.Image.Directories {
		directories = append(directories, d.Path+" "+d.Owner)
		if d.Path == "/opt" || strings.HasPrefix(d.Path, "/opt/") {
			t.Errorf("%s: other things are mounted at /opt", d.Path)
		}
	}
	if got := strings.Join(directories, ","); got != "/build root,/build/consul consul,/build/nomad root" {
		t.Errorf("directories: %s", got)
	}
	last := p.Image.Units[len(p.Image.Units)-3:]
	if last[0].Name != "kiln-resolv.path" || last[1].Name != "consul.service" || last[2].Name != "nomad.service" || last[2].State != plan.UnitEnabled {
		t.Errorf("the agents aren't started last, in this order: %v", p.Image.Units)
	}
}
