package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/profiles"
)

// object is one thing that can be read from Vault and written to it.
type object struct {
	kind, name, path string
	writes           string // capabilities
	// read gives its settings as Vault has them, nil where it isn't there.
	read   func(context.Context, *Server, *Plan) (map[string]any, error)
	fields func(*Plan) []field
	// complete adds to what is sent what Vault would otherwise forget of what it
	// has, or refuses what can't be done; may be nil.
	complete func(have, send map[string]any) error
}

// field is a setting of an object that the site names.
type field struct {
	name string
	send any
	want any // as form gives it
	form func(any) (any, bool)
	// unlessNew leaves it out of a new object: it is what such a one has.
	unlessNew bool
}

// wanted lists the objects in an order in which they can be made: a policy may
// need the accessor of a mount, and a role the policy.
func wanted(v *profiles.VaultSettings) []*object {
	var all []*object
	for i := range v.Mounts {
		all = append(all, mount(&v.Mounts[i]))
	}
	for i := range v.Policies {
		all = append(all, policy(&v.Policies[i], v.Mounts))
	}
	for i := range v.Mounts {
		m := &v.Mounts[i]
		all = append(all, jwtConfig(m))
		for j := range m.Roles {
			all = append(all, jwtRole(m, &m.Roles[j]))
		}
	}
	if v.Tune != nil {
		all = append(all, tune(v.Tune))
	}
	for i := range v.TokenRoles {
		all = append(all, tokenRole(&v.TokenRoles[i]))
	}
	return all
}

// plain makes an object whose settings are read where they are written.
func plain(kind, name, path, reads, writes string, fields []field) *object {
	return &object{
		kind: kind, name: name, path: path, writes: writes,
		read:   func(ctx context.Context, s *Server, _ *Plan) (map[string]any, error) { return s.read(ctx, reads, path) },
		fields: func(*Plan) []field { return fields },
	}
}

// tune is how long tokens live. Paths below sys/auth/ need sudo.
func tune(t *profiles.VaultTune) *object {
	names := []string{"default_lease_ttl", "max_lease_ttl"}
	o := plain("tune of the mount", "token", "sys/auth/token/tune", "read and sudo", "update and sudo",
		named(duration(names[0], t.Default), duration(names[1], t.Max)))
	o.complete = func(have, send map[string]any) error {
		// Vault compares each that it gets with the other that it has.
		for _, n := range names {
			if _, sent := send[n]; !sent {
				d, ok := seconds(have[n])
				if !ok {
					return fmt.Errorf("%s is %v, which Kiln doesn't understand", n, have[n])
				}
				send[n] = inSeconds(d.(Seconds))
			}
		}
		return nil
	}
	return o
}

func tokenRole(r *profiles.VaultTokenRole) *object {
	return plain("token role", r.Name, "auth/token/roles/"+r.Name, "read", "update", named(
		policySet("allowed_policies", r.AllowedPolicies), policySet("disallowed_policies", r.DisallowedPolicies),
		truth("orphan", r.Orphan), truth("renewable", r.Renewable),
		duration("token_period", r.Period), duration("token_explicit_max_ttl", r.ExplicitMaxTTL),
	))
}

// policy knows the accessor that its text may need once the mount is there.
func policy(w *profiles.VaultPolicy, mounts []profiles.VaultMount) *object {
	path := "sys/policies/acl/" + w.Name
	o := plain("policy", w.Name, path, "read", "update", nil)
	o.fields = func(p *Plan) []field {
		text := w.Text
		if len(mounts) == 1 && p.accessors[mounts[0].Path] != "" {
			text = strings.ReplaceAll(text, profiles.AccessorPlaceholder, p.accessors[mounts[0].Path])
		}
		return []field{{name: "policy", send: text, want: strings.TrimSpace(text), form: func(v any) (any, bool) {
			s, ok := textOf(v)
			return strings.TrimSpace(s), ok
		}}}
	}
	return o
}

// mount is of the JWT method. Who can read the list of mounts needs no sudo.
func mount(m *profiles.VaultMount) *object {
	const list = "sys/auth"
	return &object{
		kind: "mount", name: m.Path, path: "sys/auth/" + m.Path, writes: "update and sudo",
		fields: func(*Plan) []field { return []field{text("type", "jwt")} },
		read: func(ctx context.Context, s *Server, p *Plan) (map[string]any, error) {
			all, err := s.read(ctx, "read", list)
			if err != nil {
				return nil, err
			}
			have, ok := all[m.Path+"/"].(map[string]any)
			if !ok {
				return nil, nil
			}
			kind, _ := textOf(have["type"])
			if kind != "jwt" && kind != "oidc" { // two names of one method
				return nil, fmt.Errorf("the Vault server at %s has a mount %s already, of the type %s: choose another path for the JWT method in site.yaml, and in Nomad's jwt_auth_backend_path", s.Address, m.Path, kind)
			}
			p.accessors[m.Path], _ = textOf(have["accessor"])
			return map[string]any{"type": "jwt"}, nil
		},
	}
}

// jwtConfig says where the keys of Nomad's are.
func jwtConfig(m *profiles.VaultMount) *object {
	fields := []field{text("jwks_url", m.JWKSURL)}
	if m.JWKSCA != "" {
		want, _ := certificates(m.JWKSCA)
		fields = append(fields, field{name: "jwks_ca_pem", send: m.JWKSCA, want: want, form: certificates})
	}
	if len(m.SupportedAlgs) > 0 {
		fields = append(fields, set("jwt_supported_algs", m.SupportedAlgs))
	}
	if m.DefaultRole != "" {
		fields = append(fields, text("default_role", m.DefaultRole))
	}
	// Keys come one way: Vault refuses a second one.
	for _, other := range []field{text("oidc_discovery_url", ""), set("jwt_validation_pubkeys", []string{}), set("jwks_pairs", []string{})} {
		other.unlessNew = true
		fields = append(fields, other)
	}
	o := plain("configuration of the mount", m.Path, "auth/"+m.Path+"/config", "read", "update", fields)
	o.complete = func(have, send map[string]any) error {
		if client, _ := textOf(have["oidc_client_id"]); client != "" {
			return errors.New("people log in there by OIDC, whose secret would be lost: choose another path for the JWT method in site.yaml, and in Nomad's jwt_auth_backend_path")
		}
		// Vault forgets whatever isn't sent.
		for name, v := range have {
			if _, sent := send[name]; !sent && v != nil {
				send[name] = v
			}
		}
		return nil
	}
	return o
}

func jwtRole(m *profiles.VaultMount, r *profiles.VaultJWTRole) *object {
	const roleType, claimsType = "role_type", "bound_claims_type"
	fields := named(
		policySet("token_policies", r.TokenPolicies), duration("token_ttl", r.TTL), duration("token_max_ttl", r.MaxTTL),
		duration("token_period", r.Period), duration("token_explicit_max_ttl", r.ExplicitMaxTTL),
	)
	fields = append([]field{
		text(roleType, "jwt"), set("bound_audiences", r.BoundAudiences), text("user_claim", r.UserClaim), truth("user_claim_json_pointer", &r.UserClaimJSONPointer)[0],
		{name: "claim_mappings", send: r.ClaimMappings, want: r.ClaimMappings, form: mapOf},
	}, fields...)
	if r.TokenType != "" {
		fields = append(fields, text("token_type", r.TokenType))
	}
	o := plain("role of the mount", m.Path+"/"+r.Name, "auth/"+m.Path+"/role/"+r.Name, "read", "update", fields)
	o.complete = func(have, send map[string]any) error {
		// Vault would take these two for their defaults.
		send[roleType] = "jwt"
		if kind := have[claimsType]; kind != nil {
			send[claimsType] = kind
		}
		return nil
	}
	return o
}

// named joins the settings that the site names.
func named(lists ...[]field) []field { return slices.Concat(lists...) }

// Seconds is a time as Vault reads it back.
type Seconds int64

// String is the time in the largest units that it is a whole number of.
func (s Seconds) String() string {
	for _, u := range []struct {
		n    Seconds
		name string
	}{{24 * 3600, "d"}, {3600, "h"}, {60, "m"}} {
		if s >= u.n && s%u.n == 0 {
			return fmt.Sprintf("%d%s", s/u.n, u.name)
		}
	}
	return inSeconds(s)
}

// inSeconds is the time as it is sent.
func inSeconds(s Seconds) string { return fmt.Sprintf("%ds", int64(s)) }

func duration(name string, d *time.Duration) []field {
	if d == nil {
		return nil
	}
	s := Seconds(*d / time.Second)
	return []field{{name: name, send: inSeconds(s), want: s, form: seconds}}
}

func seconds(v any) (any, bool) {
	switch v := v.(type) {
	case nil:
		return Seconds(0), true
	case json.Number:
		n, err := v.Int64()
		return Seconds(n), err == nil
	}
	return nil, false
}

func truth(name string, b *bool) []field {
	if b == nil {
		return nil
	}
	return []field{{name: name, send: *b, want: *b, form: func(v any) (any, bool) {
		if v == nil {
			return false, true
		}
		b, ok := v.(bool)
		return b, ok
	}}}
}

func text(name, s string) field {
	return field{name: name, send: s, want: s, form: func(v any) (any, bool) {
		s, ok := textOf(v)
		return s, ok
	}}
}

func textOf(v any) (string, bool) {
	if v == nil {
		return "", true
	}
	s, ok := v.(string)
	return s, ok
}

// set is of texts whose order means nothing.
func set(name string, list []string) field {
	return field{name: name, send: list, want: list, form: setOf}
}

// policySet is of names of policies; none where list is nil.
func policySet(name string, list []string) []field {
	if list == nil {
		return nil
	}
	return []field{{name: name, send: list, want: list, form: func(v any) (any, bool) {
		s, ok := setOf(v)
		if !ok {
			return nil, false
		}
		names := s.([]string)
		for i := range names {
			names[i] = strings.ToLower(names[i])
		}
		slices.Sort(names)
		return slices.Compact(names), true
	}}}
}

// setOf is sorted, with each text once. What is no text is shown as JSON.
func setOf(v any) (any, bool) {
	list, ok := v.([]any)
	if !ok && v != nil {
		return nil, false
	}
	all := []string{}
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			b, err := json.Marshal(e)
			if err != nil {
				return nil, false
			}
			s = string(b)
		}
		all = append(all, s)
	}
	slices.Sort(all)
	return slices.Compact(all), true
}

func mapOf(v any) (any, bool) {
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return nil, false
	}
	all := map[string]string{}
	for k := range maps.Keys(m) {
		if all[k], ok = m[k].(string); !ok {
			return nil, false
		}
	}
	return all, true
}

// certificates are told apart by what is in them, whatever stands around it.
func certificates(v any) (any, bool) {
	s, ok := textOf(v)
	if !ok {
		return nil, false
	}
	all := []string{}
	for rest := []byte(s); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all, true
		}
		sum := sha256.Sum256(block.Bytes)
		all = append(all, "SHA-256 "+hex.EncodeToString(sum[:]))
	}
}
