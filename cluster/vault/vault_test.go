package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/internal/testvault"
	"github.com/alisw/kiln/profiles"
)

// A real Vault answers in the integration tests: here is what is sent to one,
// and what one doesn't do on demand.

const operator = "hvs.operator-canary"

// serve gives a client of the handler, whatever the environment of the tests says.
func serve(t *testing.T, f http.Handler) *Server {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "VAULT_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("VAULT_TOKEN", operator)
	t.Setenv("VAULT_MAX_RETRIES", "0")
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	s, err := Connect(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pointerTo[T any](v T) *T { return &v }

const century = 3155760000 * time.Second

// seed is what the seed document applies.
func seed() *profiles.VaultSettings {
	return &profiles.VaultSettings{
		Tune: &profiles.VaultTune{Default: pointerTo(century), Max: pointerTo(century)},
		TokenRoles: []profiles.VaultTokenRole{
			{Name: "nomad-server", AllowedPolicies: []string{"default", "nomad", "nomad-server"}, Orphan: pointerTo(true)},
			{Name: "nomad", AllowedPolicies: []string{"default", "nomad"}, Orphan: pointerTo(true), Period: pointerTo(24 * time.Hour)},
		},
	}
}

// identity is what takes its place.
func identity() *profiles.VaultSettings {
	return &profiles.VaultSettings{
		Policies: []profiles.VaultPolicy{{Name: "nomad-workloads", Text: "path \"kv/{{identity.entity.aliases.AUTH_METHOD_ACCESSOR.metadata.nomad_job_id}}\" {}\n"}},
		Mounts: []profiles.VaultMount{{
			Path: "jwt-nomad", JWKSURL: "https://nomad1:4646/.well-known/jwks.json", DefaultRole: "nomad-workloads", SupportedAlgs: []string{"EdDSA", "RS256"},
			Roles: []profiles.VaultJWTRole{{
				Name: "nomad-workloads", BoundAudiences: []string{"vault.io"}, UserClaim: "/nomad_job_id", UserClaimJSONPointer: true,
				ClaimMappings: map[string]string{"nomad_task": "nomad_task"}, TokenPolicies: []string{"nomad-workloads"}, Period: pointerTo(30 * time.Minute),
			}},
		}},
	}
}

// shown is a plan in few words.
func shown(p *Plan) string {
	var b strings.Builder
	for _, s := range p.States {
		fmt.Fprintf(&b, "%s %s\n", s.Action, s.String())
		for _, c := range s.Changes {
			fmt.Fprintf(&b, "  %s %v -> %v\n", c.Setting, c.Before, c.After)
		}
	}
	return b.String()
}

func compare(t *testing.T, s *Server, settings *profiles.VaultSettings) *Plan {
	t.Helper()
	p, err := s.Compare(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func apply(t *testing.T, s *Server, settings *profiles.VaultSettings) {
	t.Helper()
	if err := s.Apply(t.Context(), compare(t, s, settings), func(*State) {}); err != nil {
		t.Fatal(err)
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestSeedFromNothing(t *testing.T) {
	f := testvault.New()
	s := serve(t, f)
	equal(t, "the plan", shown(compare(t, s, seed())), `update tune of the mount token
  default_lease_ttl 32d -> 36525d
  max_lease_ttl 32d -> 36525d
create token role nomad-server
  allowed_policies <nil> -> [default nomad nomad-server]
  orphan <nil> -> true
create token role nomad
  allowed_policies <nil> -> [default nomad]
  orphan <nil> -> true
  token_period <nil> -> 1d
`)
	if len(f.Wrote) > 0 {
		t.Errorf("comparing has written %q", f.Wrote)
	}
	apply(t, s, seed())
	equal(t, "what was written", strings.Join(f.Wrote, "\n"), `sys/auth/token/tune {"default_lease_ttl":"3155760000s","max_lease_ttl":"3155760000s"}
auth/token/roles/nomad-server {"allowed_policies":["default","nomad","nomad-server"],"orphan":true}
auth/token/roles/nomad {"allowed_policies":["default","nomad"],"orphan":true,"token_period":"86400s"}`)
	f.Wrote = nil
	p := compare(t, s, seed())
	apply(t, s, seed())
	if !p.Same() || len(f.Wrote) > 0 {
		t.Errorf("a second apply: %s, %q", shown(p), f.Wrote)
	}
}

// TestSendsWhatDiffers: no more, but both times of a tune; what the site doesn't
// name stays.
func TestSendsWhatDiffers(t *testing.T) {
	f := testvault.New()
	f.Data["sys/auth/token/tune"]["max_lease_ttl"] = 3155760000
	f.Data["auth/token/roles/nomad-server"] = map[string]any{"allowed_policies": []string{"Nomad-Server", "nomad", "default", "nomad"}, "orphan": true, "token_period": 60, "renewable": false}
	f.Data["auth/token/roles/nomad"] = map[string]any{"allowed_policies": []string{"nomad"}, "orphan": false, "token_period": 86400, "renewable": false}
	s := serve(t, f)
	apply(t, s, seed())
	equal(t, "what was written", strings.Join(f.Wrote, "\n"), `sys/auth/token/tune {"default_lease_ttl":"3155760000s","max_lease_ttl":"3155760000s"}
auth/token/roles/nomad {"allowed_policies":["default","nomad"],"orphan":true}`)
	if r := f.Data["auth/token/roles/nomad"]; r["renewable"] != false || r["token_period"] != 86400 {
		t.Errorf("what the site doesn't name was changed: %v", r)
	}
}

func TestIdentity(t *testing.T) {
	f := testvault.New()
	s := serve(t, f)
	equal(t, "the plan", shown(compare(t, s, identity())), `create mount jwt-nomad
  type <nil> -> jwt
create policy nomad-workloads
  policy <nil> -> path "kv/{{identity.entity.aliases.AUTH_METHOD_ACCESSOR.metadata.nomad_job_id}}" {}
create configuration of the mount jwt-nomad
  jwks_url <nil> -> https://nomad1:4646/.well-known/jwks.json
  jwt_supported_algs <nil> -> [EdDSA RS256]
  default_role <nil> -> nomad-workloads
create role of the mount jwt-nomad/nomad-workloads
  role_type <nil> -> jwt
  bound_audiences <nil> -> [vault.io]
  user_claim <nil> -> /nomad_job_id
  user_claim_json_pointer <nil> -> true
  claim_mappings <nil> -> map[nomad_task:nomad_task]
  token_policies <nil> -> [nomad-workloads]
  token_period <nil> -> 30m
`)
	apply(t, s, identity())
	if got := f.Data["sys/policies/acl/nomad-workloads"]["policy"]; got != "path \"kv/{{identity.entity.aliases.auth_jwt-nomad.metadata.nomad_job_id}}\" {}\n" {
		t.Errorf("the policy has no accessor: %v", got)
	}
	if p := compare(t, s, identity()); !p.Same() {
		t.Errorf("after it was applied:\n%s", shown(p))
	}
}

// TestWhatVaultForgets: what a write would reset is sent along.
func TestWhatVaultForgets(t *testing.T) {
	f := testvault.New()
	s := serve(t, f)
	apply(t, s, identity())
	config, role := f.Data["auth/jwt-nomad/config"], f.Data["auth/jwt-nomad/role/nomad-workloads"]
	config["bound_issuer"], config["provider_config"], config["jwks_pairs"], config["default_role"] = "nomad", map[string]any{}, nil, "other"
	config["jwt_validation_pubkeys"], config["jwks_url"] = []string{"PEM"}, ""
	role["bound_claims_type"], role["token_period"], role["bound_claims"] = "glob", 60, map[string]any{"nomad_namespace": "ci-*"}
	f.Wrote = nil
	equal(t, "the plan", shown(compare(t, s, identity())), `keep mount jwt-nomad
keep policy nomad-workloads
update configuration of the mount jwt-nomad
  jwks_url  -> https://nomad1:4646/.well-known/jwks.json
  default_role other -> nomad-workloads
  jwt_validation_pubkeys [PEM] -> []
update role of the mount jwt-nomad/nomad-workloads
  token_period 1m -> 30m
`)
	apply(t, s, identity())
	equal(t, "what was written", strings.Join(f.Wrote, "\n"), `auth/jwt-nomad/config {"bound_issuer":"nomad","default_role":"nomad-workloads","jwks_url":"https://nomad1:4646/.well-known/jwks.json","jwt_supported_algs":["EdDSA","RS256"],"jwt_validation_pubkeys":[],"provider_config":{}}
auth/jwt-nomad/role/nomad-workloads {"bound_claims_type":"glob","role_type":"jwt","token_period":"1800s"}`)
}

// TestMountOfOthers: neither is taken over, nor changed.
func TestMountOfOthers(t *testing.T) {
	f := testvault.New()
	f.Data["sys/auth/jwt-nomad"] = map[string]any{"type": "userpass"}
	s := serve(t, f)
	if _, err := s.Compare(t.Context(), identity()); err == nil || !strings.Contains(err.Error(), "has a mount jwt-nomad already, of the type userpass: choose another path") {
		t.Errorf("of another type: %v", err)
	}
	f.Data["sys/auth/jwt-nomad"] = map[string]any{"type": "oidc"}
	f.Data["auth/jwt-nomad/config"] = map[string]any{"oidc_client_id": "kiln", "oidc_discovery_url": "https://sso.example.org"}
	if _, err := s.Compare(t.Context(), identity()); err == nil || !strings.Contains(err.Error(), "people log in there by OIDC") {
		t.Errorf("of people's logins: %v", err)
	}
	if len(f.Wrote) > 0 {
		t.Errorf("it has written %q", f.Wrote)
	}
}

func TestCA(t *testing.T) {
	const a, b = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nBAUG\n-----END CERTIFICATE-----\n"
	settings := identity()
	settings.Mounts[0].JWKSCA = "of the Grid\n" + a
	f := testvault.New()
	s := serve(t, f)
	apply(t, s, settings)
	f.Data["auth/jwt-nomad/config"]["jwks_ca_pem"] = strings.TrimSpace(a)
	if p := compare(t, s, settings); !p.Same() {
		t.Errorf("the same certificate:\n%s", shown(p))
	}
	f.Data["auth/jwt-nomad/config"]["jwks_ca_pem"] = b
	if p := compare(t, s, settings); p.Same() || !strings.Contains(shown(p), "jwks_ca_pem [SHA-256 787c798e39a5") {
		t.Errorf("another certificate:\n%s", shown(p))
	}
}

// TestFailures: each says what it is, at which path, and the way out; and shows no
// token.
func TestFailures(t *testing.T) {
	const role = "auth/token/roles/nomad-server"
	for _, c := range []struct {
		name, method string
		answer       func(http.ResponseWriter)
		want         string
	}{
		{"may not read", "GET", func(w http.ResponseWriter) { testvault.Refuse(w, 403, "1 error occurred:\n\t* permission denied\n\n") }, "reading the token role nomad-server: the Vault server at %s doesn't let the token read auth/token/roles/nomad-server (403): give one of its policies the capability read on that path"},
		{"may not write", "PUT", func(w http.ResponseWriter) { testvault.Refuse(w, 403, "permission denied") }, "the token role nomad-server: the Vault server at %s doesn't let the token update auth/token/roles/nomad-server (403): give one of its policies the capability update on that path"},
		{"unknown token", "GET", func(w http.ResponseWriter) { testvault.Refuse(w, 403, "permission denied", "invalid token") }, "doesn't know the token, or it has expired: run vault login"},
		{"sealed", "GET", func(w http.ResponseWriter) { testvault.Refuse(w, 503, "Vault is sealed") }, "is sealed: unseal it"},
		{"broken", "PUT", func(w http.ResponseWriter) { testvault.Refuse(w, 500, "internal error") }, "answers 500 Internal Server Error: internal error"},
		{"repeats the token", "PUT", func(w http.ResponseWriter) { testvault.Refuse(w, 400, "what is "+operator+"?") }, "answers 400 Bad Request: what is [redacted]?"},
		{"a page of somebody else's", "GET", func(w http.ResponseWriter) { w.WriteHeader(502); _, _ = io.WriteString(w, "<html>"+operator) }, "answers Bad Gateway, and not as Vault does"},
		{"nonsense", "GET", func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"data": {"orphan": "maybe"}}`) }, "says orphan is maybe, which Kiln doesn't understand"},
		{"hangs up", "PUT", func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, "whether Vault has written it isn't known: kiln vault plan tells"},
		{"ignores it", "PUT", func(w http.ResponseWriter) { w.WriteHeader(204) }, "took what it was sent, and still has another allowed_policies, orphan"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := testvault.New()
			f.Before = func(w http.ResponseWriter, r *http.Request, path string) bool {
				if path == role && r.Method == c.method {
					c.answer(w)
					return true
				}
				return false
			}
			s := serve(t, f)
			p, err := s.Compare(t.Context(), seed())
			var done []string
			if err == nil {
				err = s.Apply(t.Context(), p, func(s *State) { done = append(done, s.String()) })
				if unsure := c.name == "hangs up" || c.name == "ignores it"; p.States[1].Unsure != unsure {
					t.Errorf("nobody knows whether it was done: %v, want %v", p.States[1].Unsure, unsure)
				}
				if len(done) != 1 || !p.States[0].Done || p.States[1].Done || p.States[2].Done {
					t.Errorf("done before it failed: %q, %+v", done, p.States)
				}
			}
			if want := strings.ReplaceAll(c.want, "%s", s.Address); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v\nwant %s", err, want)
			} else if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "html") {
				t.Errorf("it shows what it mustn't: %v", err)
			}
			if c.method == "PUT" {
				// What was in the way is gone: another apply finishes it.
				f.Before = nil
				f.Wrote = nil
				apply(t, s, seed())
				if len(f.Wrote) != 2 || !compare(t, s, seed()).Same() {
					t.Errorf("the second apply wrote %q", f.Wrote)
				}
			}
		})
	}
}

// TestChangedMeanwhile: what isn't as it was shown isn't overwritten.
func TestChangedMeanwhile(t *testing.T) {
	f := testvault.New()
	s := serve(t, f)
	p := compare(t, s, seed())
	f.Data["auth/token/roles/nomad-server"] = map[string]any{"orphan": true}
	err := s.Apply(t.Context(), p, func(*State) {})
	if err == nil || !strings.Contains(err.Error(), "the token role nomad-server: somebody else has changed it since it was compared") {
		t.Errorf("got %v", err)
	}
}

// stuck answers nothing to requests for a path until the test is over.
func stuck(t *testing.T, path string, asked func()) http.Handler {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	f := testvault.New()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, path) {
			asked()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		f.ServeHTTP(w, r)
	})
}

func TestSlow(t *testing.T) {
	s := serve(t, stuck(t, "/nomad", func() {}))
	s.SetClientTimeout(50 * time.Millisecond)
	_, err := s.Compare(t.Context(), seed())
	if err == nil || !strings.Contains(err.Error(), "it took too long to answer") {
		t.Errorf("got %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, stuck(t, "/nomad", cancel))
	if _, err := s.Compare(ctx, seed()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestApplyInterrupted: ^C while Vault is being written to says what isn't known.
func TestApplyInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	v, release := testvault.New(), make(chan struct{})
	defer close(release)
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/nomad-server") {
			cancel()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		v.ServeHTTP(w, r)
	}))
	p := compare(t, s, seed())
	err := s.Apply(ctx, p, func(*State) {})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "whether Vault has written it isn't known") {
		t.Errorf("got %v", err)
	}
	if a, b, c := p.States[0], p.States[1], p.States[2]; !a.Done || b.Done || !b.Unsure || c.Done || c.Unsure {
		t.Errorf("the states: %+v", p.States)
	}
}

// TestSomebodyElse: who isn't Vault has nothing that is there, nor that isn't.
func TestSomebodyElse(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusNotFound} {
		for _, page := range []string{"", "<html>canary</html>", "{}"} {
			if page == "{}" && status == http.StatusNotFound {
				continue // as Vault says it
			}
			s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, page)
			}))
			_, err := s.Compare(t.Context(), seed())
			if err == nil || !strings.Contains(err.Error(), "and not as Vault does") || strings.Contains(err.Error(), "canary") {
				t.Errorf("%d %q: comparing: %v", status, page, err)
			}
			if _, err := s.Revoke(t.Context(), Revocation{Token: leaked}); err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("%d %q: revoking: %v", status, page, err)
			}
		}
	}
}
