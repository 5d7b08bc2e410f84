package profiles

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/parser"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
)

// VaultSettings is what a site wants Vault to be set to, in the order that was
// written. What is nil in it, or empty where that is said, the site leaves alone.
type VaultSettings struct {
	Tune       *VaultTune
	TokenRoles []VaultTokenRole
	Policies   []VaultPolicy
	Mounts     []VaultMount
}

// VaultTune is how long tokens of the token mount live: unless they say
// otherwise, and at most.
type VaultTune struct{ Default, Max *time.Duration }

// VaultTokenRole is what tokens can be made through.
type VaultTokenRole struct {
	Name                                string
	AllowedPolicies, DisallowedPolicies []string
	Orphan, Renewable                   *bool
	Period, ExplicitMaxTTL              *time.Duration
}

// VaultPolicy is an ACL policy. AccessorPlaceholder in its text stands for the
// accessor of the site's only mount of the JWT method.
type VaultPolicy struct {
	Name, File, Text string
}

// AccessorPlaceholder is what Nomad's documentation writes in a policy where the
// accessor of the JWT mount has to stand, which Vault chooses.
const AccessorPlaceholder = "AUTH_METHOD_ACCESSOR"

// VaultMount is a mount of the JWT method, which Nomad's workloads log in at.
type VaultMount struct {
	Path          string
	JWKSURL       string
	JWKSCA        string   // PEM; empty: those that Vault's machine trusts
	SupportedAlgs []string // empty: left alone
	DefaultRole   string   // empty: left alone
	Roles         []VaultJWTRole
}

// VaultJWTRole says which workloads can log in, and what their tokens may.
type VaultJWTRole struct {
	Name                                string
	BoundAudiences                      []string
	UserClaim                           string
	UserClaimJSONPointer                bool
	ClaimMappings                       map[string]string
	TokenPolicies                       []string
	TokenType                           string // empty: left alone
	TTL, MaxTTL, Period, ExplicitMaxTTL *time.Duration
}

// Nomad takes tokens of a token role before the first of these versions, and
// its tasks have identities of their own from the second on.
const (
	noTokenRolesFrom = "1.10.0"
	identitiesFrom   = "1.7.0"
)

// longLived is the life of a token that deserves a warning.
const longLived = 366 * 24 * time.Hour

// Vault is what the site wants of Vault, nil where it says nothing of it; and
// what is wrong with that, or deserves a warning. It reads the files that are
// named there.
func (s *Site) Vault() (*VaultSettings, problem.List) {
	f := s.File.Vault
	if f == nil {
		return nil, nil
	}
	c := &vaultChecker{site: s}
	c.nomad(f)
	v := &VaultSettings{Tune: c.tune(f.TokenTune)}
	for _, e := range f.TokenRoles {
		v.TokenRoles = append(v.TokenRoles, c.tokenRole(&e))
	}
	for _, e := range f.JWT {
		v.Mounts = append(v.Mounts, c.mount(&e))
	}
	for _, e := range f.Policies {
		v.Policies = append(v.Policies, c.policy(&e, len(f.JWT)))
	}
	c.problems.Sort()
	return v, c.problems
}

// vaultChecker gathers what is wrong with a site's settings of Vault.
type vaultChecker struct {
	site     *Site
	problems problem.List
}

// nomad compares the settings with the version of Nomad that shall use them.
func (c *vaultChecker) nomad(f *VaultFile) {
	said := c.site.File.Servers.Nomad
	if said.Set() && !version().MatchString(said.V) {
		return // which is a problem of its own
	}
	before := func(v string) bool {
		is, err := versionBefore(said.V, v)
		return err == nil && is
	}
	if len(f.TokenRoles) > 0 && !before(noTokenRolesFrom) {
		why := "the site's servers.nomad is " + said.V
		fix := "let tasks log in with their own identity (vault.jwt), and remove token_roles; kiln leaves the roles in Vault alone: delete them once no token of theirs is in use"
		if !said.Set() {
			why, fix = "the site doesn't say which Nomad runs, so it is the newest", "write servers.nomad if it is an older one; else "+fix
		}
		c.problems.Addf(f.TokenRoles[0].Pos, fix, "from Nomad 1.10 on nothing takes a token of a token role (%s)", why)
	}
	if len(f.JWT) > 0 && before(identitiesFrom) {
		c.problems.Warnf(f.JWT[0].Pos, "upgrade Nomad first, or keep token_roles beside it until then", "Nomad %s has no identities for its tasks, which begin with 1.7: nobody can log in here yet", said.V)
	}
}

func (c *vaultChecker) tune(f *VaultTuneFile) *VaultTune {
	if f == nil {
		return nil
	}
	t := &VaultTune{Default: c.duration(f.DefaultLeaseTTL), Max: c.duration(f.MaxLeaseTTL)}
	longest := f.MaxLeaseTTL
	for _, v := range []struct {
		said text
		d    *time.Duration
	}{{f.DefaultLeaseTTL, t.Default}, {f.MaxLeaseTTL, t.Max}} {
		if v.d != nil && *v.d == 0 {
			c.problems.Addf(v.said.Pos, "write how long tokens may live: 768h is Vault's own default", "Vault would take 0 for its own default, and never show it")
		}
		if !longest.Set() {
			longest = v.said
		}
	}
	if d, err := parseVaultDuration(longest.V); err == nil && d > longLived {
		c.problems.Warnf(longest.Pos, "periodic tokens (token_period), renewed by who uses them, need no such life; tasks with identities (vault.jwt) need none",
			"tokens can live for %s: who gets hold of one has it that long, unless somebody revokes it (kiln vault revoke)", years(d))
	}
	if t.Default != nil && t.Max != nil && *t.Default > *t.Max {
		c.problems.Addf(f.DefaultLeaseTTL.Pos, "write at most that", "default_lease_ttl is longer than max_lease_ttl, %s", f.MaxLeaseTTL.V)
	}
	return t
}

// years is a long time in words.
func years(d time.Duration) string {
	const day = 24 * time.Hour
	if n := (d + 183*day) / (365*day + 6*time.Hour); n > 1 {
		return fmt.Sprintf("%d years", n)
	}
	return fmt.Sprintf("%d days", d/day)
}

func (c *vaultChecker) tokenRole(e *strictyaml.Entry[VaultTokenRoleFile]) VaultTokenRole {
	c.name(e.Key, e.Pos, "token role", roleName)
	f := &e.Value
	r := VaultTokenRole{
		Name: e.Key, AllowedPolicies: c.policies(f.AllowedPolicies), DisallowedPolicies: c.policies(f.DisallowedPolicies),
		Orphan: pointer(f.Orphan), Renewable: pointer(f.Renewable), Period: c.duration(f.TokenPeriod), ExplicitMaxTTL: c.duration(f.TokenExplicitMaxTTL),
	}
	if slices.Contains(r.AllowedPolicies, "root") {
		c.problems.Addf(e.Pos, "name policies that allow what is needed", "the token role %s would hand out root, which may do everything", e.Key)
	}
	return r
}

// policies are names of policies, as Vault keeps them: in lower case, each once,
// sorted; nil where none are written.
func (c *vaultChecker) policies(said []text) []string {
	if said == nil {
		return nil
	}
	names := []string{}
	for _, t := range said {
		name := strings.ToLower(strings.TrimSpace(t.V))
		if t.Set() && !policyName().MatchString(name) {
			c.problems.Addf(t.Pos, "use letters, digits, dots, dashes, _ and /", "%q can't name a policy", t.V)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (c *vaultChecker) policy(e *strictyaml.Entry[text], mounts int) VaultPolicy {
	p := VaultPolicy{Name: e.Key, File: e.Value.V}
	switch {
	case e.Key == "root":
		c.problems.Addf(e.Pos, "choose another name", "the policy root is Vault's own, and can't be changed")
	case !policyName().MatchString(e.Key):
		c.problems.Addf(e.Pos, "use lower-case letters, which Vault would make of others, digits, dots, dashes, _ and /", "%q can't name a policy", e.Key)
	}
	p.Text = c.file(e.Value, "policy")
	if p.Text == "" {
		return p
	}
	if _, err := hcl.ParseString(p.Text); err != nil {
		at := problem.Position{File: filepath.Join(c.site.Dir, p.File)}
		if e, ok := errors.AsType[*parser.PosError](err); ok {
			at.Line, at.Column, err = e.Pos.Line, e.Pos.Column, e.Err
		}
		c.problems.Addf(at, "", "this is no policy: %s", err)
	}
	if strings.Contains(p.Text, AccessorPlaceholder) && mounts != 1 {
		c.problems.Addf(e.Value.Pos, "write the accessor itself: vault auth list shows it", "%s says %s, which stands for that of the only mount in vault.jwt, and there are %d", p.File, AccessorPlaceholder, mounts)
	}
	return p
}

// maxVaultFile is far more than a policy or a CA needs.
const maxVaultFile = 1 << 20

// file reads a text file of the site's.
func (c *vaultChecker) file(name text, what string) string {
	if !name.Set() {
		return ""
	}
	if !filepath.IsLocal(name.V) {
		c.problems.Addf(name.Pos, "write a path from there, such as vault/nomad-workloads.hcl", "%q is no file in the site's directory", name.V)
		return ""
	}
	data, err := regular.ReadFile(filepath.Join(c.site.Dir, name.V))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.problems.Addf(name.Pos, "write it", "there is no file %s with the %s", name.V, what)
	case err != nil:
		c.problems.Addf(name.Pos, "", "the %s can't be read: %s", what, err)
	case len(data) > maxVaultFile || !utf8.Valid(data):
		c.problems.Addf(name.Pos, "name another file", "%s is no text, or a very long one", name.V)
	case strings.TrimSpace(string(data)) == "":
		c.problems.Addf(name.Pos, "write it", "%s is empty, where the %s should be", name.V, what)
	default:
		return string(data)
	}
	return ""
}

func (c *vaultChecker) mount(e *strictyaml.Entry[VaultJWTFile]) VaultMount {
	f := &e.Value
	m := VaultMount{Path: e.Key, JWKSURL: f.JWKSURL.V, DefaultRole: f.DefaultRole.V}
	if e.Key == "token" || !mountPath().MatchString(e.Key) {
		c.problems.Addf(e.Pos, "Nomad looks for jwt-nomad", "%q can't name a mount", e.Key)
	}
	c.jwksURL(f, e.Pos)
	if m.JWKSCA = c.file(f.JWKSCA, "CA"); m.JWKSCA != "" && !strings.Contains(m.JWKSCA, "-----BEGIN CERTIFICATE-----") {
		c.problems.Addf(f.JWKSCA.Pos, "name the PEM file of the CA of Nomad's certificates", "%s holds no certificate", f.JWKSCA.V)
	}
	for _, t := range f.JWTSupportedAlgs {
		if t.Set() && !slices.Contains(jwtAlgorithms, t.V) {
			c.problems.Addf(t.Pos, strictyaml.DidYouMean(t.V, jwtAlgorithms), "%q is no algorithm for signatures", t.V)
		}
		m.SupportedAlgs = append(m.SupportedAlgs, t.V)
	}
	slices.Sort(m.SupportedAlgs)
	m.SupportedAlgs = slices.Compact(m.SupportedAlgs)
	var names []string
	for _, r := range f.Roles {
		names = append(names, r.Key)
		m.Roles = append(m.Roles, c.jwtRole(&r))
	}
	if f.DefaultRole.Set() && !slices.Contains(names, f.DefaultRole.V) {
		c.problems.Addf(f.DefaultRole.Pos, strictyaml.DidYouMean(f.DefaultRole.V, names), "the mount %s has no role %q here", e.Key, f.DefaultRole.V)
	}
	return m
}

// jwtAlgorithms are those that Vault knows; Nomad signs with RS256, or EdDSA
// where its keys are older than 1.7.
var jwtAlgorithms = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"}

// jwksURL checks where Vault gets the keys that Nomad signs identities with.
func (c *vaultChecker) jwksURL(f *VaultJWTFile, at problem.Position) {
	const like = "write it as https://nomad1.example.org:4646/.well-known/jwks.json"
	if !f.JWKSURL.Set() {
		c.problems.Addf(at, like, "the mount has no jwks_url, where Vault gets the keys that Nomad signs with")
		return
	}
	u, err := url.Parse(f.JWKSURL.V)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		c.problems.Addf(f.JWKSURL.Pos, like, "jwks_url is no address of Nomad's keys")
		return
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		c.problems.Warnf(f.JWKSURL.Pos, "have Nomad speak TLS, and "+like, "Vault takes Nomad's keys from %s unencrypted: who can change them on their way can log in as any task", net.JoinHostPort(u.Hostname(), u.Port()))
	}
}

func (c *vaultChecker) jwtRole(e *strictyaml.Entry[VaultJWTRoleFile]) VaultJWTRole {
	c.name(e.Key, e.Pos, "role", roleName)
	f := &e.Value
	r := VaultJWTRole{
		Name: e.Key, BoundAudiences: []string{"vault.io"}, UserClaim: f.UserClaim.Or("/nomad_job_id"), TokenPolicies: c.policies(f.TokenPolicies), TokenType: f.TokenType.V,
		ClaimMappings: map[string]string{"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task"},
		TTL:           c.duration(f.TokenTTL), MaxTTL: c.duration(f.TokenMaxTTL), Period: c.duration(f.TokenPeriod), ExplicitMaxTTL: c.duration(f.TokenExplicitMaxTTL),
	}
	r.UserClaimJSONPointer = f.UserClaimJSONPointer.Or(strings.HasPrefix(r.UserClaim, "/"))
	if f.BoundAudiences != nil {
		r.BoundAudiences = slices.Compact(slices.Sorted(slices.Values(texts(f.BoundAudiences))))
	}
	if len(r.BoundAudiences) == 0 {
		c.problems.Addf(e.Pos, "write the aud of Nomad's default_identity: [vault.io]", "the role %s has no bound_audiences: it would take identities that are meant for others", e.Key)
	}
	if f.ClaimMappings != nil {
		r.ClaimMappings = map[string]string{}
	}
	for _, m := range f.ClaimMappings {
		if slices.Contains(slices.Collect(maps.Values(r.ClaimMappings)), m.Value.V) {
			c.problems.Addf(m.Pos, "give each a name of its own", "two claims would be called %q", m.Value.V)
		}
		r.ClaimMappings[m.Key] = m.Value.V
	}
	if r.TokenType != "" && !slices.Contains(vaultTokenTypes, r.TokenType) {
		c.problems.Addf(f.TokenType.Pos, strictyaml.DidYouMean(r.TokenType, vaultTokenTypes), "%q is no type of token", r.TokenType)
	}
	if slices.Contains(r.TokenPolicies, "root") {
		c.problems.Addf(e.Pos, "name policies that allow what is needed", "the role %s would hand out root, which may do everything", e.Key)
	}
	return r
}

var vaultTokenTypes = []string{"service", "batch", "default", "default-service", "default-batch"}

var (
	roleName   = lazyregexp.New(`^\w([\w.-]*\w)?$`)
	policyName = lazyregexp.New(`^[a-z0-9_]([a-z0-9_./-]*[a-z0-9_])?$`)
	mountPath  = lazyregexp.New(`^\w([\w.-]*\w)?(/\w([\w.-]*\w)?)*$`)
)

func (c *vaultChecker) name(name string, at problem.Position, what string, pattern func() *regexp.Regexp) {
	if !pattern().MatchString(name) {
		c.problems.Addf(at, "use letters, digits, dots, dashes and _", "%q can't name a %s", name, what)
	}
}

// duration reads a time as Vault writes it: 1d, 24h, 86400s or, in seconds,
// 86400. It is nil where none is written.
func (c *vaultChecker) duration(said text) *time.Duration {
	if !said.Set() {
		return nil
	}
	d, err := parseVaultDuration(said.V)
	if err != nil {
		c.problems.Addf(said.Pos, "write it as 1d, 24h, 30m, or in seconds", "%q %s", said.V, err)
		return nil
	}
	return &d
}

func parseVaultDuration(s string) (time.Duration, error) {
	unit := time.Second
	digits, days := strings.CutSuffix(s, "d")
	if days {
		unit = 24 * time.Hour
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if limit := math.MaxInt64 / int64(unit); err == nil && (n > limit || n < -limit) {
		return 0, errors.New("is longer than the 292 years that Vault can count")
	}
	d := time.Duration(n) * unit
	if err != nil {
		if d, err = time.ParseDuration(s); err != nil {
			return 0, errors.New("is no time")
		}
	}
	if d < 0 || d%time.Second != 0 {
		return 0, errors.New("is no number of whole seconds")
	}
	return d, nil
}

func pointer(said flag) *bool {
	if !said.Set() {
		return nil
	}
	return &said.V
}
