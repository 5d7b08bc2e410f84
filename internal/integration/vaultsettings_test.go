//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// seedSettings are those of the seed document, "Vault settings applied to our
// cluster".
const seedSettings = `
servers: {nomad: 1.9.7}
vault:
  token_tune: {default_lease_ttl: 3155760000s, max_lease_ttl: 3155760000s}
  token_roles:
    nomad-server: {allowed_policies: [default, nomad, nomad-server], orphan: true}
    nomad: {allowed_policies: [default, nomad], orphan: true, token_period: 1d}
`

// vaultSite is a real Vault, and a site whose kiln sets it.
type vaultSite struct {
	*vaultServer
	dir, kiln, audit string
	tokens           []string // which kiln must never show
}

func newVaultSite(t *testing.T) *vaultSite {
	t.Helper()
	s := &vaultSite{dir: t.TempDir()}
	s.kiln, s.audit = filepath.Join(s.dir, "kiln"), filepath.Join(s.dir, "audit")
	build := exec.Command("go", "build", "-o", s.kiln, "./cmd/kiln")
	build.Dir = repository(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.vaultServer = newVault(t)
	s.initialise(t)
	s.use(t, s.root.Token())
	write(t, filepath.Join(s.dir, "hosts.yaml"), "[]\n")
	write(t, filepath.Join(s.dir, "site.yaml"), seedSettings)
	return s
}

// unseal also has Vault write down who asks for what.
func (s *vaultSite) unseal(t *testing.T) {
	t.Helper()
	if _, err := s.root.Sys().Unseal(s.key); err != nil {
		t.Fatal(err)
	}
	if err := s.root.Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": s.audit}}); err != nil {
		t.Fatal(err)
	}
}

// use has kiln use a token.
func (s *vaultSite) use(t *testing.T, token string) {
	t.Helper()
	t.Setenv("VAULT_TOKEN", token)
	s.tokens = append(s.tokens, token)
}

// run runs kiln in the site, which has to end with a status, and to show no token.
func (s *vaultSite) run(t *testing.T, status int, input string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.kiln, args...)
	cmd.Dir, cmd.Stdin = s.dir, strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Fatalf("kiln %s: exit status %d, not %d\n%s", strings.Join(args, " "), got, status, out)
	}
	for _, token := range s.tokens {
		if bytes.Contains(out, []byte(token)) {
			t.Errorf("kiln %s shows a token", strings.Join(args, " "))
		}
	}
	return string(out)
}

// says runs kiln, which has to say all of these.
func (s *vaultSite) says(t *testing.T, status int, args string, want ...string) {
	t.Helper()
	out := s.run(t, status, "", strings.Fields(args)...)
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("kiln %s doesn't say %q:\n%s", args, w, out)
		}
	}
}

// written are the paths that were written to while f ran, as Vault tells.
func (s *vaultSite) written(t *testing.T, f func()) []string {
	t.Helper()
	before := len(s.writes(t))
	f()
	return s.writes(t)[before:]
}

func (s *vaultSite) writes(t *testing.T) (paths []string) {
	t.Helper()
	file, err := os.Open(s.audit)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var e struct {
			Type    string
			Request struct{ Operation, Path string }
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "request" && e.Request.Operation != "read" && e.Request.Operation != "list" {
			paths = append(paths, e.Request.Path)
		}
	}
	return paths
}

func (s *vaultSite) set(t *testing.T, path string, data map[string]any) *api.Secret {
	t.Helper()
	secret, err := s.root.Logical().Write(path, data)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (s *vaultSite) get(t *testing.T, path string) map[string]any {
	t.Helper()
	secret, err := s.root.Logical().Read(path)
	if err != nil || secret == nil {
		t.Fatalf("%s: %v, %v", path, secret, err)
	}
	return secret.Data
}

// token makes a token of the operator's.
func (s *vaultSite) token(t *testing.T, r *api.TokenCreateRequest) string {
	t.Helper()
	secret, err := s.root.Auth().Token().Create(r)
	if err != nil {
		t.Fatal(err)
	}
	s.tokens = append(s.tokens, secret.Auth.ClientToken)
	return secret.Auth.ClientToken
}

// alive tells whether Vault knows a token.
func (s *vaultSite) alive(token string) bool {
	_, err := s.root.Auth().Token().Lookup(token)
	return err == nil
}

func TestVaultSettings(t *testing.T) {
	s := newVaultSite(t)
	s.says(t, 2, "vault plan", "is sealed: unseal it (vault operator unseal)")
	s.unseal(t)
	t.Run("from nothing", s.fromNothing)
	t.Run("tokens behave", s.tokensBehave)
	t.Run("set by hand", s.setByHand)
	t.Run("drifted", s.drifted)
	t.Run("weak tokens", s.weakTokens)
	t.Run("out of reach", s.outOfReach)
	t.Run("identities", s.identities)
	t.Run("revoked", s.revoked)
	t.Run("on a terminal", s.terminal)
}

func (s *vaultSite) fromNothing(t *testing.T) {
	paths := s.written(t, func() {
		s.says(t, 1, "vault plan", "warning: tokens can live for 100 years", "32d (2764800s) → 36525d (3155760000s)", "+ token role nomad-server", "2 to create, 1 to change, 0 as the site wants it")
		s.says(t, 2, "vault apply", "there is no terminal to ask on")
	})
	if len(paths) > 0 {
		t.Errorf("a plan has written to %q", paths)
	}
	want := []string{"sys/auth/token/tune", "auth/token/roles/nomad-server", "auth/token/roles/nomad"}
	if paths := s.written(t, func() { s.says(t, 0, "vault apply --yes", "done: token role nomad-server") }); !slices.Equal(paths, want) {
		t.Errorf("it was applied by writing to %q", paths)
	}
	if paths := s.written(t, func() { s.says(t, 0, "vault apply --yes", "0 to create, 0 to change, 3 as the site wants it") }); len(paths) > 0 {
		t.Errorf("a second apply has written to %q", paths)
	}
	s.says(t, 0, "vault plan --json", `"same": true`)
	for path, want := range map[string]string{
		"sys/auth/token/tune":           "map[default_lease_ttl:3155760000 max_lease_ttl:3155760000]",
		"auth/token/roles/nomad-server": "map[allowed_policies:[default nomad nomad-server] orphan:true token_period:0]",
		"auth/token/roles/nomad":        "map[allowed_policies:[default nomad] orphan:true token_period:86400]",
	} {
		got := s.get(t, path)
		for name := range got {
			if !strings.Contains(want, name+":") || name == "period" {
				delete(got, name)
			}
		}
		if text := fmt.Sprint(got); text != want {
			t.Errorf("%s is %s, not %s", path, text, want)
		}
	}
}

// tokensBehave: a server's token gets one of the role nomad, which outlives it, as
// the seed document wants.
func (s *vaultSite) tokensBehave(t *testing.T) {
	if err := s.root.Sys().PutPolicy("nomad-server", `path "auth/token/create/nomad" { capabilities = ["update"] }`); err != nil {
		t.Fatal(err)
	}
	if err := s.root.Sys().PutPolicy("nomad", `path "kv/*" { capabilities = ["read"] }`); err != nil {
		t.Fatal(err)
	}
	server := s.set(t, "auth/token/create/nomad-server", map[string]any{"policies": []string{"nomad-server"}}).Auth
	client, err := s.root.CloneWithHeaders()
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(server.ClientToken)
	made, err := client.Auth().Token().CreateWithRole(&api.TokenCreateRequest{Policies: []string{"nomad"}}, "nomad")
	if err != nil {
		t.Fatal(err)
	}
	s.tokens = append(s.tokens, server.ClientToken, made.Auth.ClientToken)
	if server.LeaseDuration != 3155760000 || !server.Orphan {
		t.Errorf("the server's token lives for %d s, orphan: %v", server.LeaseDuration, server.Orphan)
	}
	if made.Auth.LeaseDuration != 86400 || !made.Auth.Orphan || !made.Auth.Renewable {
		t.Errorf("the client's token lives for %d s, orphan: %v, renewable: %v", made.Auth.LeaseDuration, made.Auth.Orphan, made.Auth.Renewable)
	}
	if _, err := client.Auth().Token().CreateWithRole(&api.TokenCreateRequest{Policies: []string{"nomad-server"}}, "nomad"); err == nil {
		t.Error("a token of the role nomad can have the policy nomad-server")
	}
	s.run(t, 0, server.ClientToken, "vault", "revoke")
	if s.alive(server.ClientToken) || !s.alive(made.Auth.ClientToken) {
		t.Error("once the server's token is revoked, the client's has to be left")
	}
}

// setByHand: what the seed document's commands make is right already.
func (s *vaultSite) setByHand(t *testing.T) {
	for _, role := range []string{"nomad", "nomad-server"} {
		if _, err := s.root.Logical().Delete("auth/token/roles/" + role); err != nil {
			t.Fatal(err)
		}
	}
	s.says(t, 1, "vault plan", "+ token role nomad ", "+ token role nomad-server", "= tune of the mount token")
	s.set(t, "auth/token/roles/nomad-server", map[string]any{"allowed_policies": "default, nomad, nomad-server", "orphan": "true"})
	s.set(t, "auth/token/roles/nomad", map[string]any{"allowed_policies": "default, nomad", "orphan": "true", "token_period": "1d"})
	s.set(t, "sys/auth/token/tune", map[string]any{"default_lease_ttl": "3155760000s", "max_lease_ttl": "3155760000s"})
	s.says(t, 0, "vault plan", "3 as the site wants it")
}

// drifted: each difference is found, nothing else is, and what the site doesn't name
// stays.
func (s *vaultSite) drifted(t *testing.T) {
	s.set(t, "auth/token/roles/nomad", map[string]any{"allowed_policies": "default", "token_period": "1h", "renewable": false, "token_num_uses": 7})
	s.set(t, "sys/auth/token/tune", map[string]any{"default_lease_ttl": "768h", "max_lease_ttl": "800h", "description": "kept"})
	s.says(t, 1, "vault plan",
		"default_lease_ttl  32d (2764800s) → 36525d", "max_lease_ttl      800h (2880000s) → 36525d",
		"= token role nomad-server", "allowed_policies  default → default, nomad", "token_period      1h (3600s) → 1d (86400s)", "0 to create, 2 to change, 1 as the site wants it")
	s.says(t, 0, "vault apply --yes --json", `"done": true`)
	s.says(t, 0, "vault plan")
	role := s.get(t, "auth/token/roles/nomad")
	if role["renewable"] != false || fmt.Sprint(role["token_num_uses"]) != "7" || role["orphan"] != true {
		t.Errorf("what the site doesn't name has changed: %v", role)
	}
	if tune := s.get(t, "sys/auth/token/tune"); tune["description"] != "kept" {
		t.Errorf("what the site doesn't name has changed: %v", tune)
	}
	// Each alone; of the times, both are sent.
	s.set(t, "sys/auth/token/tune", map[string]any{"default_lease_ttl": "800h"})
	s.says(t, 1, "vault plan", "default_lease_ttl  800h (2880000s) → 36525d", "0 to create, 1 to change")
	s.says(t, 0, "vault apply --yes")
	s.set(t, "auth/token/roles/nomad-server", map[string]any{"orphan": false, "allowed_policies": "Nomad-Server,default,nomad,nomad"})
	s.says(t, 1, "vault plan", "orphan  false → true", "0 to create, 1 to change")
	s.says(t, 0, "vault apply --yes")
}

// weakTokens: what a token may not do is reported with the path, and what was done
// before that.
func (s *vaultSite) weakTokens(t *testing.T) {
	for name, policy := range map[string]string{
		"blind":  `path "auth/token/roles/*" { capabilities = ["read"] }`,
		"reader": "path \"auth/token/roles/*\" { capabilities = [\"read\"] }\npath \"sys/auth/token/tune\" { capabilities = [\"read\", \"sudo\"] }",
		"half":   "path \"auth/token/roles/*\" { capabilities = [\"read\"] }\npath \"auth/token/roles/nomad-server\" { capabilities = [\"read\", \"update\", \"create\"] }\npath \"sys/auth/token/tune\" { capabilities = [\"read\", \"update\", \"sudo\"] }",
	} {
		if err := s.root.Sys().PutPolicy(name, policy); err != nil {
			t.Fatal(err)
		}
	}
	as := func(policy string) { s.use(t, s.token(t, &api.TokenCreateRequest{Policies: []string{policy}})) }
	defer s.use(t, s.root.Token())
	s.set(t, "sys/auth/token/tune", map[string]any{"default_lease_ttl": "800h"})
	s.set(t, "auth/token/roles/nomad-server", map[string]any{"orphan": false})
	s.set(t, "auth/token/roles/nomad", map[string]any{"orphan": false})
	as("blind")
	s.says(t, 2, "vault plan", "doesn't let the token read sys/auth/token/tune (403): give one of its policies the capabilities read and sudo on that path")
	as("reader")
	s.says(t, 1, "vault plan", "0 to create, 3 to change")
	s.says(t, 1, "vault apply --yes", "doesn't let the token update sys/auth/token/tune (403): give one of its policies the capabilities update and sudo", "not done: tune of the mount token, token role nomad-server, token role nomad")
	as("half")
	s.says(t, 1, "vault apply --yes", "done: tune of the mount token\ndone: token role nomad-server\n", "doesn't let the token update auth/token/roles/nomad (403)", "not done: token role nomad: another kiln vault apply goes on from there")
	s.use(t, s.root.Token())
	if paths := s.written(t, func() { s.says(t, 0, "vault apply --yes", "done: token role nomad\n") }); !slices.Equal(paths, []string{"auth/token/roles/nomad"}) {
		t.Errorf("the rest was done by writing to %q", paths)
	}
	s.use(t, "hvs.canary")
	s.says(t, 2, "vault plan", "doesn't know the token, or it has expired: run vault login")
	t.Setenv("VAULT_TOKEN", "")
	s.says(t, 2, "vault plan", "wants a token: run vault login")
}

func (s *vaultSite) outOfReach(t *testing.T) {
	for _, c := range []struct{ variable, value, want string }{
		{"VAULT_CACERT", "", "name the CA that its certificate is of in VAULT_CACERT"},
		{"VAULT_CACERT", otherCA(t), "name the CA that its certificate is of in VAULT_CACERT"},
		{"VAULT_TLS_SERVER_NAME", "other.example.org", "its certificate is for another name"},
		{"VAULT_ADDR", "https://127.0.0.1:1", "nobody answers there: does it run, and is VAULT_ADDR right?"},
		{"VAULT_ADDR", "http" + strings.TrimPrefix(s.address, "https"), "with https:// or http:// as it speaks"},
		{"VAULT_ADDR", "https://nowhere.invalid:8200", "its name isn't known to DNS here"},
	} {
		t.Run(c.variable+"="+filepath.Base(c.value), func(t *testing.T) {
			t.Setenv(c.variable, c.value)
			s.says(t, 2, "vault plan", c.want)
		})
	}
}

// revoked: by token, by accessor, without the children; each is gone then, and who
// asks for a token that isn't there is told so.
func (s *vaultSite) revoked(t *testing.T) {
	child := func(parent string) string {
		client, err := s.root.CloneWithHeaders()
		if err != nil {
			t.Fatal(err)
		}
		client.SetToken(parent)
		secret, err := client.Auth().Token().Create(&api.TokenCreateRequest{TTL: "1h"})
		if err != nil {
			t.Fatal(err)
		}
		s.tokens = append(s.tokens, secret.Auth.ClientToken)
		return secret.Auth.ClientToken
	}
	if err := s.root.Sys().PutPolicy("parent", `path "auth/token/create" { capabilities = ["update"] }`); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		orphan bool
		revoke func(token, accessor string) string
	}{
		{"by itself", false, func(token, _ string) string { return s.run(t, 0, token+"\n", "vault", "revoke") }},
		{"by its accessor", false, func(_, accessor string) string {
			return s.run(t, 0, "", "vault", "revoke", "--accessor", accessor, "--json")
		}},
		{"without its children", true, func(token, _ string) string { return s.run(t, 0, token, "vault", "revoke", "--orphan") }},
	} {
		token := s.token(t, &api.TokenCreateRequest{Policies: []string{"parent"}, DisplayName: "leaked"})
		below := child(token)
		info, err := s.root.Auth().Token().Lookup(token)
		if err != nil {
			t.Fatal(err)
		}
		accessor, _ := info.Data["accessor"].(string)
		if out := c.revoke(token, accessor); !strings.Contains(out, accessor) || !strings.Contains(out, "token-leaked") {
			t.Errorf("%s: it says\n%s", c.name, out)
		}
		if s.alive(token) || s.alive(below) != c.orphan {
			t.Errorf("%s: the token lives: %v, its child: %v", c.name, s.alive(token), s.alive(below))
		}
		for _, out := range []string{s.run(t, 1, token, "vault", "revoke"), s.run(t, 1, token, "vault", "revoke", "--orphan"), s.run(t, 1, "", "vault", "revoke", "--accessor", accessor)} {
			if !strings.Contains(out, "no token is revoked, since Vault knows none like that") {
				t.Errorf("%s, once more: it says\n%s", c.name, out)
			}
		}
	}
	s.revokedByTheWeak(t)
}

// revokedByTheWeak: an operator's token that may revoke but not look up, one that may
// neither, and one that revokes itself.
func (s *vaultSite) revokedByTheWeak(t *testing.T) {
	for name, policy := range map[string]string{"revoker": `path "auth/token/revoke" { capabilities = ["update"] }`, "nobody": `path "kv/x" { capabilities = ["read"] }`} {
		if err := s.root.Sys().PutPolicy(name, policy); err != nil {
			t.Fatal(err)
		}
	}
	defer s.use(t, s.root.Token())
	revoker := s.token(t, &api.TokenCreateRequest{Policies: []string{"revoker"}})
	s.use(t, revoker)
	token := s.token(t, &api.TokenCreateRequest{Policies: []string{"default"}})
	if s.run(t, 0, token, "vault", "revoke"); s.alive(token) {
		t.Error("a token that only itself may look up lives on")
	}
	if out := s.run(t, 1, token, "vault", "revoke"); !strings.Contains(out, "no token is revoked") {
		t.Errorf("it says\n%s", out)
	}
	silent := s.token(t, &api.TokenCreateRequest{Policies: []string{"nobody"}, NoDefaultPolicy: true})
	if out := s.run(t, 1, silent, "vault", "revoke"); !strings.Contains(out, "doesn't let the token update auth/token/lookup (403)") || !s.alive(silent) {
		t.Errorf("it says\n%s", out)
	}
	if out := s.run(t, 1, silent, "vault", "revoke", "--accessor", "unknown"); !strings.Contains(out, "doesn't let the token update auth/token/lookup-accessor (403)") {
		t.Errorf("it says\n%s", out)
	}
	if s.run(t, 0, revoker, "vault", "revoke"); s.alive(revoker) {
		t.Error("the operator's own token lives on")
	}
	s.use(t, s.root.Token())
	nobody := s.token(t, &api.TokenCreateRequest{Policies: []string{"nobody"}})
	s.use(t, nobody)
	target := s.token(t, &api.TokenCreateRequest{Policies: []string{"default"}})
	if out := s.run(t, 1, target, "vault", "revoke", "--orphan"); !strings.Contains(out, "doesn't let the token update auth/token/revoke-orphan (403)") || !s.alive(target) {
		t.Errorf("it says\n%s", out)
	}
	batch := s.token(t, &api.TokenCreateRequest{Policies: []string{"default"}, Type: "batch"})
	s.use(t, s.root.Token())
	if out := s.run(t, 1, batch, "vault", "revoke"); !strings.Contains(out, "batch tokens cannot be revoked") {
		t.Errorf("it says\n%s", out)
	}
	// By the accessor of what it uses itself.
	own := s.token(t, &api.TokenCreateRequest{Policies: []string{"root"}})
	info, err := s.root.Auth().Token().Lookup(own)
	if err != nil {
		t.Fatal(err)
	}
	s.use(t, own)
	if s.run(t, 0, "", "vault", "revoke", "--accessor", fmt.Sprint(info.Data["accessor"])); s.alive(own) {
		t.Error("the operator's own token lives on")
	}
}

// terminal: a token is typed unseen, and apply asks.
func (s *vaultSite) terminal(t *testing.T) {
	program(t, "script")
	env := append(os.Environ(), "KILN="+s.kiln)
	token := s.token(t, &api.TokenCreateRequest{})
	place(t, filepath.Join(s.dir, "call"), `trap : INT; "$KILN" vault revoke; echo "status $?"`)
	if got := onTerminal(t, s.dir, env, "Token to revoke: ", token+"\n", true); !strings.Contains(got, "status 0\r\n") || strings.Contains(got, token) || s.alive(token) {
		t.Errorf("revoking on a terminal says\n%s", strings.ReplaceAll(got, token, "THE TOKEN"))
	}
	write(t, filepath.Join(s.dir, "site.yaml"), seedSettings)
	s.set(t, "auth/token/roles/nomad", map[string]any{"orphan": false})
	place(t, filepath.Join(s.dir, "call"), `trap : INT; "$KILN" vault apply; echo "status $?"`)
	for _, c := range []struct {
		typed, want string
		orphan      bool
	}{{"no\n", "nothing was changed, since the answer wasn't yes\r\nstatus 1", false}, {"\x03", "interrupted", false}, {"yes\n", "done: token role nomad\r\nstatus 0", true}} {
		got := onTerminal(t, s.dir, env, "to that? [y/N] ", c.typed, false)
		if !strings.Contains(got, c.want) || s.get(t, "auth/token/roles/nomad")["orphan"] != c.orphan {
			t.Errorf("%q is answered with\n%s", c.typed, got)
		}
	}
}
