//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

const validatedServers = `
domain: example.org
datacenter: ci
servers: {join: [server1.example.org, 192.0.2.22, "2001:db8::23"], nomad: VERSION}
dns: {upstream: [192.0.2.53]}
secrets: {consul_encrypt: env://ENCRYPT, nomad_encrypt: env://ENCRYPT}
`

const serverTokens = "secrets: {consul_encrypt: env://ENCRYPT, nomad_encrypt: env://ENCRYPT, consul_agent_token: env://TOKEN, consul_default_token: env://TOKEN, nomad_consul_token: env://TOKEN, nomad_vault_token: env://TOKEN, vault_consul_token: env://TOKEN}\n"

// TestServersTakeTheirFiles has the real programs check what servers get of every
// kind of site. TestServersFromNothing looks at what they make of it.
func TestServersTakeTheirFiles(t *testing.T) {
	t.Parallel()
	const tlsBlock = "tls: {verify_server_hostname: true}\n"
	for _, c := range []struct {
		name, version, site, host string
		tokens                    bool
		has                       map[string]string // file: what it holds
		hasNot                    map[string]string
	}{
		{"before there are tokens", "1.10.5", tlsBlock, "advertise: 192.0.2.21", false,
			map[string]string{
				"consul.d/consul.hcl": "bootstrap_expect = 3", "nomad.d/nomad.hcl": "default_identity {", "vault.d/vault.hcl": `leader_api_addr = "https://[2001:db8::23]:8200"`,
			},
			map[string]string{"consul.d/consul.hcl": "tokens {", "nomad.d/nomad.hcl": "token =", "vault.d/vault.env": "CONSUL_HTTP_TOKEN"}},
		{"with tokens", "1.10.5", tlsBlock, "advertise: 192.0.2.21", true,
			map[string]string{"consul.d/consul.hcl": "agent = \"token-value\"", "nomad.d/nomad.hcl": `token = "token-value"`, "vault.d/vault.env": "\nCONSUL_HTTP_TOKEN=token-value\n"},
			map[string]string{"vault.d/vault.hcl": "token-value"}},
		{"token roles, without a token", "1.9.7", tlsBlock, "advertise: 192.0.2.21", false, nil, map[string]string{"nomad.d/nomad.hcl": "vault {"}},
		{"token roles", "1.9.7", tlsBlock, "advertise: 192.0.2.21", true, map[string]string{"nomad.d/nomad.hcl": `create_from_role = "nomad"`}, nil},
		{"no TLS", "1.10.5", "", "advertise: 192.0.2.21", true, map[string]string{"vault.d/vault.hcl": "tls_disable = true"}, map[string]string{"consul.d/consul.hcl": "tls {", "nomad.d/nomad.hcl": "ca_file", "vault.d/vault.hcl": "https://server"}},
		{"IPv6", "1.10.5", tlsBlock, `advertise: "2001:db8::21"`, false, map[string]string{"vault.d/vault.hcl": `"[2001:db8::21]:8201"`, "consul.d/consul.hcl": `dns = "127.0.0.1 2001:db8::21"`}, nil},
		{"an address chosen on the host", "1.10.5", tlsBlock, "advertise: {network: 127.0.0.0/8}\n  vars: {bind_addr: 0.0.0.0}", false, map[string]string{"vault.d/vault.hcl": `"https://{{ GetAllInterfaces`}, nil},
		{"all addresses", "1.10.5", tlsBlock, "advertise: 192.0.2.21\n  vars: {bind_addr: 0.0.0.0, bootstrap_expect: 5}", false,
			map[string]string{"consul.d/consul.hcl": `dns = "0.0.0.0"`, "nomad.d/nomad.hcl": "bootstrap_expect = 5"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			sitefile := strings.Replace(validatedServers, "VERSION", c.version, 1)
			if c.tokens {
				sitefile = sitefile[:strings.Index(sitefile, "secrets:")] + serverTokens
			}
			s := site(t, map[string]string{"site.yaml": sitefile + c.site, "hosts.yaml": "- name: server1\n  profile: server\n  " + c.host + "\n"})
			p, err := hostPlan(t, s, "server1").WithSecrets(t.Context(), known{"env://ENCRYPT": gossipKey, "env://TOKEN": "token-value"})
			if err != nil {
				t.Fatal(err)
			}
			for file, want := range c.has {
				if text := string(content(t, p.Host.Files, "/etc/"+file)); !strings.Contains(text, want) {
					t.Errorf("%s has no %s:\n%s", file, want, text)
				}
			}
			for file, not := range c.hasNot {
				if text := string(content(t, p.Host.Files, "/etc/"+file)); strings.Contains(text, not) {
					t.Errorf("%s has %s:\n%s", file, not, text)
				}
			}
			validate(t, p)
		})
	}
}

// validate has each program judge its files.
func validate(t *testing.T, p *plan.Plan) {
	t.Helper()
	dir := t.TempDir()
	ca := newAuthority(t)
	own := issued(t, ca, "server1.example.org")
	place(t, filepath.Join(dir, "ca.pem"), string(ca.PEM))
	place(t, filepath.Join(dir, "hostcert.pem"), string(own.Cert))
	place(t, filepath.Join(dir, "hostkey.pem"), string(own.Key))
	for _, name := range []string{"consul", "nomad", "vault"} {
		path := "/etc/" + name + ".d/" + name + ".hcl"
		text := strings.ReplaceAll(string(content(t, p.Host.Files, path)), `"/etc/grid-security/`, `"`+dir+"/")
		place(t, filepath.Join(dir, path), strings.ReplaceAll(text, `"/build/vault"`, `"`+dir+`"`))
	}
	for _, argv := range [][]string{
		{hashicorp(t, "consul"), "validate", filepath.Join(dir, "etc/consul.d")},
		{hashicorp(t, "nomad"), "config", "validate", filepath.Join(dir, "etc/nomad.d")},
	} {
		if out, err := quiet(exec.CommandContext(t.Context(), argv[0], argv[1:]...)); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	}
	// Vault has no validation; its diagnosis goes on to what isn't there, and fails.
	out, _ := quiet(exec.CommandContext(t.Context(), hashicorp(t, "vault"), "operator", "diagnose", "-format=json", "-skip=listener", "-config="+filepath.Join(dir, "etc/vault.d")))
	var result diagnosis
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("vault operator diagnose: %v\n%s", err, out)
	}
	for _, name := range []string{"Parse Configuration", "Create Storage Backend"} {
		if got := result.find(name); got == nil || got.Status != "ok" {
			t.Errorf("vault operator diagnose: %s: %+v", name, got)
		}
	}
}

// diagnosis is what Vault says of a part of its configuration. What it doesn't know
// is a warning.
type diagnosis struct {
	Name, Status, Message string
	Warnings              []string
	Children              []diagnosis
}

func (d *diagnosis) find(name string) *diagnosis {
	if d.Name == name {
		return d
	}
	for i := range d.Children {
		if found := d.Children[i].find(name); found != nil {
			return found
		}
	}
	return nil
}

// quiet runs a program without this machine's own certificates, and returns what
// it says.
func quiet(cmd *exec.Cmd) (string, error) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_CA_BUNDLE=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
