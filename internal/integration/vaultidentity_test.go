//go:build integration

package integration

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/vault/api"

	"github.com/alisw/kiln/internal/lab"
)

// identitySettings let tasks log in; the token roles of before stay during the
// migration.
const identitySettings = `
  policies: {nomad-workloads: nomad-workloads.hcl}
  jwt:
    jwt-nomad:
      jwks_url: %s
      jwt_supported_algs: [RS256, EdDSA]
      default_role: nomad-workloads
      roles:
        nomad-workloads: {token_policies: [nomad-workloads], token_type: service, token_period: 30m}
`

// workloadPolicy lets a job read what is kept for it.
const workloadPolicy = `path "kv/data/{{identity.entity.aliases.AUTH_METHOD_ACCESSOR.metadata.nomad_namespace}}/{{identity.entity.aliases.AUTH_METHOD_ACCESSOR.metadata.nomad_job_id}}/*" {
  capabilities = ["read"]
}
`

// issuer signs as Nomad does, and serves its keys with a certificate of its CA.
type issuer struct {
	url    string
	signer jose.Signer
}

func newIssuer(t *testing.T, authority *lab.Authority) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	own, err := issued(t, authority, "localhost").TLS()
	if err != nil {
		t.Fatal(err)
	}
	public := jose.JSONWebKey{Key: key.Public(), KeyID: "one", Algorithm: string(jose.RS256), Use: "sig"}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
	server.StartTLS()
	t.Cleanup(server.Close)
	i := &issuer{url: server.URL + "/.well-known/jwks.json"}
	if i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "one"}}, nil); err != nil {
		t.Fatal(err)
	}
	return i
}

// identity is that of a task of a job.
func (i *issuer) identity(t *testing.T, job, audience string) string {
	t.Helper()
	now := time.Now()
	text, err := jwt.Signed(i.signer).Claims(map[string]any{
		"aud": audience, "sub": "global:default:" + job, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"nomad_namespace": "default", "nomad_job_id": job, "nomad_task": "task",
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// keep puts a secret where the job's tasks may read it.
func (s *vaultSite) keep(t *testing.T, job string) {
	t.Helper()
	// A mount that was just made upgrades itself, and refuses meanwhile.
	eventually(t, "the secret is kept", func() bool {
		_, err := s.root.KVv2("kv").Put(t.Context(), "default/"+job+"/config", map[string]any{"word": "of " + job})
		return err == nil
	})
}

func (s *vaultSite) identities(t *testing.T) {
	if err := s.root.Sys().Mount("kv", &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}); err != nil {
		t.Fatal(err)
	}
	s.keep(t, "one")
	s.keep(t, "two")
	write(t, filepath.Join(s.dir, "nomad-workloads.hcl"), workloadPolicy)
	site := func(url, more string) {
		write(t, filepath.Join(s.dir, "site.yaml"), strings.TrimSuffix(seedSettings, "\n")+strings.TrimSuffix(fmt.Sprintf(identitySettings, url), "\n")+more+"\n")
	}
	authority := newAuthority(t)
	nomad := newIssuer(t, authority)
	write(t, filepath.Join(s.dir, "nomad-ca.pem"), string(authority.PEM))

	// Vault looks at the keys before it takes their address.
	const ca = "\n      jwks_ca: nomad-ca.pem"
	site("https://127.0.0.1:1/.well-known/jwks.json", ca)
	s.says(t, 1, "vault apply --yes", "done: mount jwt-nomad\ndone: policy nomad-workloads\n", "answers 400 Bad Request: error checking jwks URL", "not done: configuration of the mount jwt-nomad, role of the mount jwt-nomad/nomad-workloads: another")
	site(nomad.url, ca)
	s.says(t, 1, "vault apply --yes", "error checking jwks URL") // its certificate is for another name
	url := strings.Replace(nomad.url, "127.0.0.1", "localhost", 1)
	site(url, "")
	s.says(t, 1, "vault apply --yes", "error checking jwks URL") // of a CA that Vault doesn't know
	site(url, ca)
	s.says(t, 1, "vault plan", "jwks_ca_pem ", "SHA-256 ", "2 to create, 0 to change, 5 as the site wants it")
	s.says(t, 0, "vault apply --yes", "done: role of the mount jwt-nomad/nomad-workloads")
	if paths := s.written(t, func() { s.says(t, 0, "vault apply --yes", "7 as the site wants it") }); len(paths) > 0 {
		t.Errorf("a second apply has written to %q", paths)
	}
	s.loggedIn(t, nomad)
	s.identityDrifted(t, nomad)
}

// loggedIn: an identity gets a token that reads its job's secrets, and no others.
func (s *vaultSite) loggedIn(t *testing.T, nomad *issuer) {
	login, err := s.root.Logical().Write("auth/jwt-nomad/login", map[string]any{"jwt": nomad.identity(t, "one", "vault.io")})
	if err != nil {
		t.Fatal(err)
	}
	if a := login.Auth; strings.Join(a.TokenPolicies, " ") != "default nomad-workloads" || a.LeaseDuration != 1800 || !a.Renewable {
		t.Errorf("the token has the policies %q for %d s", a.TokenPolicies, a.LeaseDuration)
	}
	client, err := s.root.CloneWithHeaders()
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(login.Auth.ClientToken)
	if secret, err := client.KVv2("kv").Get(t.Context(), "default/one/config"); err != nil || secret.Data["word"] != "of one" {
		t.Errorf("the job's own secret: %v, %v", secret, err)
	}
	if _, err := client.KVv2("kv").Get(t.Context(), "default/two/config"); err == nil {
		t.Error("a job reads the secret of another")
	}
	if _, err := s.root.Logical().Write("auth/jwt-nomad/login", map[string]any{"jwt": nomad.identity(t, "one", "others")}); err == nil {
		t.Error("an identity that is meant for others logs in")
	}
	if _, err := s.root.Logical().Write("auth/jwt-nomad/login", map[string]any{"jwt": newIssuer(t, newAuthority(t)).identity(t, "one", "vault.io")}); err == nil {
		t.Error("an identity that somebody else has signed logs in")
	}
}

// identityDrifted: what Vault would forget of a mount and its roles is kept.
func (s *vaultSite) identityDrifted(t *testing.T, nomad *issuer) {
	s.set(t, "auth/jwt-nomad/role/nomad-workloads", map[string]any{
		"role_type": "jwt", "bound_claims_type": "glob", "bound_claims": map[string]any{"nomad_namespace": "def*"}, "user_claim": "/nomad_task", "token_period": "1h", "clock_skew_leeway": "30s",
	})
	config := s.get(t, "auth/jwt-nomad/config")
	config["default_role"], config["bound_issuer"], config["jwt_supported_algs"] = "other", "", []string{"RS256"}
	for name, v := range config {
		if v == nil {
			delete(config, name)
		}
	}
	s.set(t, "auth/jwt-nomad/config", config)
	s.set(t, "sys/policies/acl/nomad-workloads", map[string]any{"policy": `path "kv/*" { capabilities = ["read"] }`})
	s.says(t, 1, "vault plan",
		`- path "kv/*" { capabilities = ["read"] }`, `+   capabilities = ["read"]`, "default_role        other → nomad-workloads", "jwt_supported_algs  RS256 → EdDSA, RS256",
		"user_claim    /nomad_task → /nomad_job_id", "token_period  1h (3600s) → 30m (1800s)", "0 to create, 3 to change, 4 as the site wants it")
	s.says(t, 0, "vault apply --yes")
	s.says(t, 0, "vault plan")
	role := s.get(t, "auth/jwt-nomad/role/nomad-workloads")
	if role["bound_claims_type"] != "glob" || fmt.Sprint(role["bound_claims"]) != "map[nomad_namespace:def*]" || fmt.Sprint(role["clock_skew_leeway"]) != "30" {
		t.Errorf("what the site doesn't name has changed: %v", role)
	}
	if ca := s.get(t, "auth/jwt-nomad/config")["jwks_ca_pem"]; ca == "" {
		t.Error("the mount has lost its CA")
	}
	s.loggedIn(t, nomad)
}

// nomadAgent is a real Nomad, server and client in one, whose tasks log in at Vault.
func nomadAgent(t *testing.T, s *vaultSite, path string) *nomad.Client {
	t.Helper()
	dir := t.TempDir()
	var ports [3]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	write(t, filepath.Join(dir, "nomad.hcl"), fmt.Sprintf(`
ports {
  http = %d
  rpc  = %d
  serf = %d
}
bind_addr = "127.0.0.1"
client {
  options = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean", "driver.allowlist" = "raw_exec" }
}
consul {
  auto_advertise   = false
  client_auto_join = false
  server_auto_join = false
}
vault {
  enabled               = true
  address               = %q
  ca_file               = %q
  tls_server_name       = "vault.example.org"
  jwt_auth_backend_path = "jwt-nomad"
  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}
`, ports[0], ports[1], ports[2], s.address, s.ca))
	cmd := exec.Command(path, "agent", "-dev", "-config="+filepath.Join(dir, "nomad.hcl"))
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + dir, "PATH=" + os.Getenv("PATH")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it ends its tasks, and unmounts what it has
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("Nomad's log:\n%s", tail(text, 4000))
		}
	})
	client, err := nomad.NewClient(&nomad.Config{Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0])})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// TestVaultTaskOfNomad: a task of a real Nomad logs in with its identity where kiln
// has made it a place, and reads its secret.
func TestVaultTaskOfNomad(t *testing.T) {
	needRoot(t)
	path := hashicorp(t, "nomad") // before HOME is another
	s := newVaultSite(t)
	s.unseal(t)
	if err := s.root.Sys().Mount("kv", &api.MountInput{Type: "kv", Options: map[string]string{"version": "2"}}); err != nil {
		t.Fatal(err)
	}
	s.keep(t, "reader")
	agent := nomadAgent(t, s, path)
	write(t, filepath.Join(s.dir, "nomad-workloads.hcl"), workloadPolicy)
	write(t, filepath.Join(s.dir, "site.yaml"), "servers: {nomad: 1.10.5}\nvault:"+fmt.Sprintf(identitySettings, agent.Address()+"/.well-known/jwks.json"))
	eventually(t, "Nomad has keys", func() bool {
		resp, err := http.Get(agent.Address() + "/.well-known/jwks.json")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(text), `"kid"`)
	})
	s.says(t, 0, "vault apply --yes", "done: role of the mount jwt-nomad/nomad-workloads")

	task := nomad.NewTask("task", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
	task.Vault = &nomad.Vault{}
	text, to := `{{with secret "kv/data/default/reader/config"}}{{.Data.data.word}}{{end}}`, "local/word"
	task.Templates = []*nomad.Template{{EmbeddedTmpl: &text, DestPath: &to}}
	job := nomad.NewBatchJob("reader", "reader", "global", 50).AddDatacenter("dc1").AddTaskGroup(nomad.NewTaskGroup("group", 1).AddTask(task))
	var err error
	eventually(t, "Nomad takes the job", func() bool {
		_, _, err = agent.Jobs().Register(job, nil)
		return err == nil
	})
	eventually(t, "the task has its secret", func() bool { return s.secretOfTask(t, agent) == "of reader" })
}

// secretOfTask is what the task's template has made of the secret.
func (s *vaultSite) secretOfTask(t *testing.T, agent *nomad.Client) string {
	allocs, _, err := agent.Jobs().Allocations("reader", false, nil)
	if err != nil || len(allocs) == 0 {
		return ""
	}
	alloc, _, err := agent.Allocations().Info(allocs[0].ID, nil)
	if err != nil {
		return ""
	}
	if state := alloc.TaskStates["task"]; state != nil && state.State == "dead" {
		for _, e := range state.Events {
			t.Log(e.DisplayMessage)
		}
		t.Fatal("the task has ended")
	}
	file, err := agent.AllocFS().Cat(alloc, "task/local/word", nil)
	if err != nil {
		return ""
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return ""
	}
	return string(text)
}
