package profiles

import (
	"maps"
	"testing"
	"testing/fstest"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// FuzzSite: no site.yaml takes Kiln down, and each problem has its place.
func FuzzSite(f *testing.F) {
	f.Add("domain: example.org\nservers: {join: [a, 192.0.2.1], nomad: 1.9.7}\ntls: {ca: /a/b}\n")
	f.Add("admins: [{name: a, ssh_keys: [x], uid: -1}]\nsecrets: {a: teigi://b}\nadvertise: {network: 192.0.2.0/24}\n")
	f.Add("apt: {sources: {a: {uris: [x]}}}\nadvertise: 192.0.2.1\ndns: {consul: [\"192.0.2.1#8600\"]}\nvars: {a: [1, {b: c}]}\n")
	f.Add("servers: {nomad: 1.6.0}\nvault: {token_tune: {max_lease_ttl: 1d}, policies: {a: b}, jwt: {m: {jwks_url: 'http://x/', default_role: r, roles: {r: {token_policies: [a]}}}}}\n")
	f.Add("vault: {token_roles: {nomad: {allowed_policies: [], orphan: true, token_period: 9223372036854775807d}}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var problems problem.List
		s := &Site{Dir: "none", prepared: map[preparedKey]*prepared{}}
		strictyaml.Decode([]byte(text), "site.yaml", 0, &s.File, &problems)
		s.check(&problems)
		_, found := s.Vault()
		problems = append(problems, found...)
		problems.Sort()
		for _, p := range problems {
			if p.File != "site.yaml" || p.Line < 1 || p.Column < 1 {
				t.Errorf("no place: %s", p.Error())
			}
		}
	})
}

// FuzzProfile: no profile.yaml takes Kiln down, whatever it extends; nor does a
// host of it.
func FuzzProfile(f *testing.F) {
	f.Add("extends: [alissandra]\nimage: {packages: [a], remove: {files: [/etc/x]}}\nhost: {reserve: 0.5}\n", "name: one\nprofile: fuzzed\n", "{{ .vars }}")
	f.Add("delimiters: [\"<\", \">\"]\nvars: {a: 1}\nimage: {files: {/etc/x: {link: /a}, /etc/y: {content: a}}}\n", "name: one\nprofile: fuzzed\nvars: {a: 2}\n", "<.host.name>")
	f.Add("image: {apt_sources: {a: {uris: [file:///a], suites: [b/]}}, users: {a: {uid: 1}}, units: {a.service: masked}}\n", "interfaces: {e: {addresses: [192.0.2.1/24]}}\ndisks: [{mount: /a, disk: {min_size: 1TB}}]\n", "")
	var problems problem.List
	base := map[string]*profile{}
	if err := loadProfileFolders(shipped, "kiln:profiles", true, base, &problems); err != nil || len(problems) > 0 {
		f.Fatal(err, problems)
	}
	definitions, err := images.Load("none", &problems)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, host, template string) {
		var problems problem.List
		p := &profile{name: "fuzzed", dir: "fuzzed", fsys: fstest.MapFS{
			"profile.yaml": {Data: []byte(text)}, "image/etc/x": {Data: []byte(template)}, "host/etc/y.hcl.tmpl": {Data: []byte(template)},
		}}
		if err := p.load(&problems); err != nil {
			t.Fatal(err)
		}
		all := maps.Clone(base)
		all["fuzzed"] = p
		s := &Site{Dir: t.TempDir(), profiles: all, definitions: definitions, prepared: map[preparedKey]*prepared{}}
		s.check(&problems)
		if h := (entry{file: "hosts.yaml", text: []byte("- " + host)}).decode(&problems); h != nil {
			plan, list := s.resolve(h)
			if plan == nil && list.Err() == nil {
				t.Error("neither a plan nor a problem")
			}
		}
		problems = append(problems, s.checkProfile("fuzzed", &varUse{})...)
		for _, p := range problems {
			if p.File == "" {
				t.Errorf("no place: %s", p.Error())
			}
		}
	})
}
