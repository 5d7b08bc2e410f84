package profiles

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// vaultOf is what a site of that text wants of Vault.
func vaultOf(t *testing.T, site string, files map[string]string) *VaultSettings {
	t.Helper()
	all := map[string]string{"site.yaml": site}
	for name, text := range files {
		all[name] = text
	}
	s, problems, err := Open(writeFiles(t, all))
	if err != nil || problems.Err() != nil {
		t.Fatal(err, problems)
	}
	v, problems := s.Vault()
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVaultOfTheSeed: the settings of the seed document, exactly, and nothing beside
// them.
func TestVaultOfTheSeed(t *testing.T) {
	century, day, yes := 3155760000*time.Second, 24*time.Hour, true
	got := vaultOf(t, `
servers: {nomad: 1.9.7}
vault:
  token_roles:
    nomad-server: {allowed_policies: [default, Nomad, nomad-server, nomad], orphan: true}
    nomad: {allowed_policies: [nomad, default], orphan: true, token_period: 1d}
  token_tune: {default_lease_ttl: 3155760000s, max_lease_ttl: 3155760000}
`, nil)
	want := &VaultSettings{
		Tune: &VaultTune{Default: &century, Max: &century},
		TokenRoles: []VaultTokenRole{
			{Name: "nomad-server", AllowedPolicies: []string{"default", "nomad", "nomad-server"}, Orphan: &yes},
			{Name: "nomad", AllowedPolicies: []string{"default", "nomad"}, Orphan: &yes, Period: &day},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestVaultIdentities: what a role doesn't say is what Nomad's identities have.
func TestVaultIdentities(t *testing.T) {
	half := 30 * time.Minute
	got := vaultOf(t, `
servers: {nomad: 1.10.5}
vault:
  policies: {nomad-workloads: vault/p.hcl}
  jwt:
    jwt-nomad:
      jwks_url: https://nomad1.example.org:4646/.well-known/jwks.json
      jwt_supported_algs: [RS256, EdDSA, RS256]
      roles:
        plain: {token_policies: [B, a], token_period: 30m}
        own: {user_claim: sub, bound_audiences: [z, b, z], claim_mappings: {nomad_task: task}, token_policies: []}
`, map[string]string{"vault/p.hcl": "path \"a\" {}\n"})
	want := &VaultSettings{
		Policies: []VaultPolicy{{Name: "nomad-workloads", File: "vault/p.hcl", Text: "path \"a\" {}\n"}},
		Mounts: []VaultMount{{
			Path: "jwt-nomad", JWKSURL: "https://nomad1.example.org:4646/.well-known/jwks.json", SupportedAlgs: []string{"EdDSA", "RS256"},
			Roles: []VaultJWTRole{
				{
					Name: "plain", BoundAudiences: []string{"vault.io"}, UserClaim: "/nomad_job_id", UserClaimJSONPointer: true, TokenPolicies: []string{"a", "b"}, Period: &half,
					ClaimMappings: map[string]string{"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task"},
				},
				{Name: "own", BoundAudiences: []string{"b", "z"}, UserClaim: "sub", ClaimMappings: map[string]string{"nomad_task": "task"}, TokenPolicies: []string{}},
			},
		}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if v := vaultOf(t, "domain: example.org\n", nil); v != nil {
		t.Errorf("a site without the section wants %+v", v)
	}
}

func TestVaultDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "1": time.Second, "90s": 90 * time.Second, "1d": 24 * time.Hour, "1h30m": 90 * time.Minute, "3155760000s": 3155760000 * time.Second,
		"106751d": 106751 * 24 * time.Hour, "106752d": -1, "9223372037": -1, "-9223372037": -1, "-1": -1, "1.5s": -1, "1.5h": 90 * time.Minute, "": -1, "d": -1, "1 d": -1, "1w": -1,
		"-106752d": -1, "+1": time.Second, "9223372036s": 9223372036 * time.Second, "9223372037s": -1,
	} {
		got, err := parseVaultDuration(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %s, want %s (%v)", text, got, want, err)
		}
	}
}
