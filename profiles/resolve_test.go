package profiles

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

// resolveAll gives the plans of a site that has no problem.
func resolveAll(t testing.TB, dir string) map[string]*plan.Plan {
	t.Helper()
	s, problems, err := Open(dir)
	if err != nil || problems.Err() != nil {
		t.Fatalf("opening the site: %v, %v", err, problems)
	}
	plans := map[string]*plan.Plan{}
	rest, err := s.Plans(context.Background(), func(name string, p *plan.Plan, problems problem.List) bool {
		if p == nil {
			t.Errorf("%s has no plan: %s", name, lines(dir, problems))
			return true
		}
		plans[p.Host.Hostname] = p
		return true
	})
	if err != nil || len(rest) > 0 {
		t.Fatalf("resolving: %v, %v", err, rest)
	}
	return plans
}

// contents are the files of a layer, by path.
func contents(t testing.TB, l plan.Layer) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, f := range l.Files {
		b, err := f.Content.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		files[f.Path] = string(b)
		if f.Target != "" {
			files[f.Path] = "→ " + f.Target
		}
	}
	return files
}

const inheritance = `
-- hosts.yaml --
- {name: one, profile: child}
- {name: two, profile: replaced, vars: {own: host, deep: {x: 1}}}
-- profiles/root/profile.yaml --
vars: {own: root, deep: {a: {b: 1, c: 2}, l: [1]}, list: [1, 2]}
image:
  packages: [{name: vim, creates: {users: [ed]}}, acl]
  kernel_arguments: [quiet]
  units: {a.service: enabled, b.service: enabled, c.service: disabled}
  groups: {g: {gid: 7}}
  users: {u: {uid: 8, groups: [sudo], shell: /bin/sh}}
  directories: {/srv/a: {owner: u, mode: "0700"}}
  apt_sources: {s: {uris: [https://one.example.org], suites: [x/], fingerprint: 0000000000000000000000000000000000000001}}
  files:
    /etc/kept: {owner: u, mode: "0600"}
    /etc/to-link: {group: g}
    /etc/link: {link: /dev/null}
    /etc/content: {content: "root"}
    /etc/gone: {content: ""}
host: {reserve: {cpu: 0.25}}
-- profiles/root/image/etc/kept --
root
-- profiles/root/image/etc/to-link --
root
-- profiles/root/image/usr/lib/kiln/reserve --
measures
-- profiles/root/host/etc/which.tmpl --
{{ .profile }} {{ .vars.own }}
-- profiles/left/profile.yaml --
extends: [root]
vars: {deep: {a: {b: 3}}, list: [3]}
image:
  packages: [vim, left]
  units: {left.service: enabled}
  users: {u: {shell: /bin/bash, groups: [adm, sudo]}}
host: {reserve: {memory: 0.5}}
-- profiles/right/profile.yaml --
extends: [root]
vars: {own: right}
delimiters: ["<%", "%>"]
image:
  packages: [{name: vim, creates: {users: [ex]}}]
  units: {a.service: masked, right.service: enabled}
  directories: {/srv/a: {group: g}}
  apt_sources: {s: {uris: [https://two.example.org]}}
  remove: {files: [/etc/gone], kernel_arguments: [quiet], units: [c.service]}
-- profiles/right/image/etc/kept.tmpl --
<% .vars.own %> {{ stays }}
-- profiles/right/image/etc/link --
a file now
-- profiles/child/profile.yaml --
extends: [left, right, root]
image:
  packages: [{name: acl, creates: {groups: [acl]}}]
  files:
    /etc/to-link: {link: /etc/kept}
    /etc/content: {mode: "0640"}
  remove: {packages: [left]}
  units: {c.service: enabled}
host: {reserve: {disk: 1}}
-- profiles/replaced/profile.yaml --
extends: [alissandra]
-- profiles/alissandra/profile.yaml --
description: the site's own, which replaces the shipped one
extends: [root]
`

func TestInheritance(t *testing.T) {
	plans := resolveAll(t, writeFiles(t, archive(t, inheritance)))
	p := plans["one"]
	type named struct{ Name, State string }
	var packages []string
	for _, x := range p.Image.Packages {
		packages = append(packages, x.Name)
	}
	var units []named
	for _, u := range p.Image.Units {
		units = append(units, named{u.Name, string(u.State)})
	}
	check := func(what string, want, got any) {
		t.Helper()
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	check("packages, a diamond counting once", []string{"acl", "vim"}, packages)
	check("units, in the order first written", []named{
		{"a.service", "masked"}, {"b.service", "enabled"}, {"left.service", "enabled"}, {"right.service", "enabled"}, {"c.service", "enabled"},
	}, units)
	check("the image's files", map[string]string{
		"/etc/kept": "right {{ stays }}\n", "/etc/link": "a file now\n", "/etc/to-link": "→ /etc/kept", "/etc/content": "root",
		"/usr/lib/kiln/reserve": "measures\n",
	}, contents(t, p.Image.Layer))
	check("the host's files", map[string]string{"/etc/which": "child right\n"}, contents(t, p.Host.Layer))
	for _, f := range p.Image.Files[:4] {
		got := fmt.Sprintf("%s:%s %04o %s", f.Owner, f.Group, f.Mode, f.Origin)
		want := map[string]string{
			"/etc/kept":    "u:root 0600 right DIR/profiles/right/image/etc/kept.tmpl:1:1",
			"/etc/link":    "root:root 0644 right DIR/profiles/right/image/etc/link:1:1",
			"/etc/to-link": "root:g 0644 child DIR/profiles/child/profile.yaml:5:5",
			"/etc/content": "root:root 0640 root DIR/profiles/root/profile.yaml:14:5",
		}[f.Path]
		if dir := filepath.Dir(filepath.Dir(filepath.Dir(p.Image.Users[0].Origin.File))); got != strings.ReplaceAll(want, "DIR", dir) {
			t.Errorf("%s: %s, not %s", f.Path, got, want)
		}
	}
	if u := p.Image.Users[0]; *u.UID != 8 || u.Shell != "/bin/bash" || strings.Join(u.Groups, " ") != "sudo adm" {
		t.Errorf("the user u: %+v", u)
	}
	if d := p.Image.Directories[0]; d.Owner != "u" || d.Group != "g" || d.Mode != 0o700 {
		t.Errorf("the directory: %+v", d)
	}
	if s := p.Image.AptSources[0]; strings.Join(s.URIs, " ") != "https://two.example.org" || s.Suites[0] != "x/" {
		t.Errorf("the apt source: %+v", s)
	}
	if len(p.Image.KernelArguments) > 0 {
		t.Errorf("kernel arguments: %v", p.Image.KernelArguments)
	}
	if r := p.Host.Reserved; r.CPU != 0.25 || r.Memory != 0.5 || r.Disk != 1 || r.Origin.Profile != "child" {
		t.Errorf("the reservation: %+v", r)
	}
	check("a shipped profile, replaced", "replaced host\n", contents(t, plans["two"].Host.Layer)["/etc/which"])

	s, _, err := Open(writeFiles(t, archive(t, inheritance)))
	if err != nil {
		t.Fatal(err)
	}
	check("variables: maps merge, lists append", map[string]any{
		"own": "right", "list": []any{1, 2, 3}, "deep": map[string]any{"a": map[string]any{"b": 3, "c": 2}, "l": []any{1}},
	}, s.prepare("child", "debian-12").vars)
}

// TestOrigins compares where each entry of a plan was written with the line
// that has it in the file.
func TestOrigins(t *testing.T) {
	dir := writeFiles(t, archive(t, inheritance+`
-- profiles/child/host/etc/secret.hcl.tmpl --
a = {{ secret "token" | hcl }}
b = {{ secret "pass://direct" | hcl }}
-- site.yaml --
domain: example.org
secrets:
  token: teigi://a/b
  unused: teigi://a/c
admins:
  - {name: alice, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEJB1yzqrXBYzGRNrZuAuhXzY0MqQqgH1X1TPYQyyo"]}
apt: {sources: {s: {suites: [y/]}}}
`))
	p := resolveAll(t, dir)["one"]
	check := func(o plan.Origin, profile, line string) {
		t.Helper()
		data, err := os.ReadFile(o.File)
		if err != nil {
			t.Fatalf("%v: %v", o, err)
		}
		all := strings.Split(string(data), "\n")
		if o.Line < 1 || o.Line > len(all) || o.Column < 1 || !strings.HasPrefix(all[o.Line-1][o.Column-1:], line) || o.Profile != profile {
			t.Errorf("%v doesn't lead to %q of %q", o, line, profile)
		}
	}
	check(p.Image.Packages[0].Origin, "child", "{name: acl")
	check(p.Image.Packages[1].Origin, "right", "{name: vim")
	check(p.Image.Units[0].Origin, "right", "a.service")
	check(p.Image.Units[1].Origin, "root", "b.service")
	check(p.Image.Groups[0].Origin, "root", "g:")
	check(p.Image.Users[0].Origin, "left", "u:")
	check(p.Image.Directories[0].Origin, "right", "/srv/a")
	check(p.Image.AptSources[0].Origin, "", "s:")
	check(p.Host.Origin, "", "{name: one") // where the host's mapping begins
	check(p.Host.Users[0].Origin, "", "{name: alice")
	check(p.Host.Reserved.Origin, "child", "{disk: 1}")
	refs := p.Host.References()
	if len(refs) != 2 || refs[0].Ref != "teigi://a/b" || refs[1].Ref != "pass://direct" {
		t.Fatalf("the references: %v", refs)
	}
	check(refs[0].Origin, "", "teigi://a/b")
	check(refs[1].Origin, "child", `secret "pass://direct"`)
}

// TestDeterminism resolves twice, on one processor and on several.
func TestDeterminism(t *testing.T) {
	files := archive(t, inheritance)
	var hosts strings.Builder
	for i := range 300 {
		fmt.Fprintf(&hosts, "- {name: h%d, profile: %s, vars: {v%d: 1}}\n", i, []string{"child", "plain", "replaced"}[i%3], i%50)
	}
	files["hosts.yaml"] = hosts.String()
	files["site.yaml"] = "domain: example.org\nadvertise: {interface: eno1}\ndns: {consul: [198.51.100.62], upstream: [192.0.2.53]}\n"
	dir := writeFiles(t, files)
	equal := cmp.Comparer(func(a, b plan.Content) bool {
		x, errX := a.Bytes()
		y, errY := b.Bytes()
		return bytes.Equal(x, y) && errX == nil && errY == nil
	})
	var first []*plan.Plan
	for _, processors := range []int{1, 2, 4} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
		s, _, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		var order []*plan.Plan
		if _, err := s.Plans(context.Background(), func(name string, p *plan.Plan, problems problem.List) bool {
			if p == nil {
				t.Errorf("%s: %v", name, problems)
				return false
			}
			order = append(order, p)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = order
		} else if d := cmp.Diff(first, order, equal, cmpopts.EquateComparable()); d != "" {
			t.Errorf("with %d processors (-first +now):\n%.2000s", processors, d)
		}
	}
	if len(first) != 300 || first[299].Host.Hostname != "h299" {
		t.Errorf("the order of the inventory: %d hosts", len(first))
	}
}

// TestPlansStops ends early: when the caller has enough, and when its context
// is over, which is an error.
func TestPlansStops(t *testing.T) {
	var hosts strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&hosts, "- {name: h%d, profile: tiny}\n", i)
	}
	s, _, err := Open(writeFiles(t, map[string]string{"hosts.yaml": hosts.String()}))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := s.Plans(context.Background(), func(string, *plan.Plan, problem.List) bool { n++; return n < 10 }); err != nil || n != 10 {
		t.Errorf("%d hosts, %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := s.Plans(ctx, func(string, *plan.Plan, problem.List) bool { cancel(); return true }); err != context.Canceled {
		t.Errorf("a cancelled reading gave %v", err)
	}
}

func TestHost(t *testing.T) {
	dir := writeFiles(t, map[string]string{"hosts.yaml": "- {name: one, profile: tiny}\n- {name: \"t\\x77o\", profile: tiny}\n", "hosts/z.yaml": "- {name: three, profile: tiny}\nnonsense\n"})
	s, _, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "ONE.example.org", "two", "three"} {
		p, problems, err := s.Host(context.Background(), name)
		if err != nil || p == nil || !strings.EqualFold(p.Host.Hostname, strings.TrimSuffix(strings.ToLower(name), ".example.org")) {
			t.Errorf("%s: %v, %v, %v", name, p, problems, err)
		}
	}
	if _, problems, err := s.Host(context.Background(), "four"); err != nil || !strings.Contains(lines(dir, problems), "hosts/z.yaml:2:1: ") {
		t.Errorf("what keeps the inventory from being read: %v, %v", problems, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts", "z.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Host(context.Background(), "tow"); err == nil || !strings.Contains(err.Error(), `did you mean "two.example.org"?`) {
		t.Errorf("a misspelled host: %v", err)
	}
}
