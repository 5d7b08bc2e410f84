package profiles

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// hostData of the tests: maps as templates see them.
func testData(vars map[string]any, host map[string]any) map[string]any {
	data := map[string]any{
		"site": map[string]any{"domain": "example.org", "tls": nil, "servers": map[string]any{"nomad": "1.9.7", "join": []string{"a", "b"}}},
		"vars": vars, "release": map[string]any{"codename": "bookworm"}, "profile": "p",
	}
	if host != nil {
		data["host"] = host
	}
	return data
}

func TestTemplateFunctions(t *testing.T) {
	vars := map[string]any{"s": "a b", "n": 5, "l": []any{"x", 1, true}, "empty": "", "no": false, "f": 0.5, "m": map[string]any{"k": "v"}}
	for text, want := range map[string]string{
		`{{ .vars.s | line }} {{ .vars.n | line }} {{ .vars.f | line }}`:                     "a b 5 0.5",
		`{{ .vars.s | sh }} {{ .vars.l | sh }} {{ .vars.s | systemd }}`:                      `'a b' 'x' '1' 'true' "a b"`,
		`{{ .vars.m | hcl }} {{ .vars.m | json }} {{ .vars.l | yaml }}`:                      `{"k" = "v"} {"k": "v"} ["x", 1, true]`,
		`{{ join "," .vars.l }} {{ join " " .site.servers.join }}`:                           "x,1,true a b",
		`{{ default "d" .vars.empty }} {{ .vars.no | default "d" }} {{ default 1 .vars.n }}`: "d d 5",
		`{{ versionBefore .site.servers.nomad "1.10.0" }} {{ versionBefore "" "1.10.0" }} {{ versionBefore "1.10.0-rc.1" "1.10.0" }} {{ versionBefore "1.10.0+ent" "1.10.1" }}`: "true false false true",
		`{{ hostPort "192.0.2.1" 80 }} {{ hostPort "2001:db8::1" 8200 }} {{ hostPort "a.example.org" .vars.n }}`:                                                                "192.0.2.1:80 [2001:db8::1]:8200 a.example.org:5",
		`{{ if .site.tls }}x{{ else }}none{{ end }}`:                                                            "none",
		`{{ with $.vars.m }}{{ .k }}{{ $.profile }}{{ end }}`:                                                   "vp",
		`{{ define "t" }}<{{ . }}>{{ end }}{{ template "t" .vars.s }}{{ block "b" .vars.n }}[{{ . }}]{{ end }}`: "<a b>[5]",
		`{{ range $i, $x := .vars.l }}{{ if $i }},{{ end }}{{ $x }}{{ end }}`:                                   "x,1,true",
		`{{ $x := .vars.s }}{{ $x = "c" }}{{ $x }}{{/* nothing */}}`:                                            "c",
		`{{ if index .vars "gone" }}x{{ end }}{{ hasSecret "own" }} {{ hasSecret "gone" }} {{ secret "own" }}`:  "true false kiln-secret:pass://own",
		``:                             "",
		`{{ define "only" }}{{ end }}`: "",
	} {
		if got, p := rendered(text, "/etc/a.conf", vars); p != nil || got != want {
			t.Errorf("%s\n gives %q, %v\n   not %q", text, got, p, want)
		}
	}
}

// rendered runs a template of the host half.
func rendered(text, target string, vars map[string]any) (string, error) {
	var problems problem.List
	t := parseTemplate("a.tmpl", target, text, [2]string{"{{", "}}"}, false, &problems)
	if t == nil {
		return "", problems
	}
	sc := &scope{secrets: func(name string) (plan.Ref, problem.Position, bool) {
		return "pass://own", problem.Position{}, name == "own"
	}}
	var buf bytes.Buffer
	if p := execute(t.tmpl.Funcs(functions(sc)), t.name, testData(vars, map[string]any{"name": "one"}), &buf); p != nil {
		return "", p
	}
	c, p := t.content(buf.Bytes(), "p", sc)
	if p != nil {
		return "", p
	}
	b, err := c.Bytes()
	return string(b), err
}

// What a template of each kind must look like to be folded, and to be left.
var foldTemplates = []string{
	`a {{ .host.name }} b`, `{{ .vars.s }}{{ .vars.own }}`, `{{ if .vars.s }}{{ .host.name }}{{ else }}no{{ end }}`,
	`{{ if .host.big }}{{ .vars.s }}{{ else if .vars.s }}{{ .vars.own }}{{ end }}`, `{{ $x := .vars.s }}{{ if .vars.s }}{{ $x = .host.name }}{{ end }}{{ $x }}`,
	`{{ if .vars.s }}{{ $x := .host.name }}{{ $x }}{{ end }}`, `{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ .host.name }}{{ end }}{{ $x }}`,
	`{{ with .vars.m }}{{ .k }}{{ $.host.name }}{{ end }}`, `{{ with .vars.m }}{{ .k }}{{ end }}`, `{{ range .vars.l }}{{ . }}{{ end }}`,
	`{{ range .vars.l }}{{ $.host.name }}{{ . }}{{ else }}none{{ end }}`, `{{ range $k, $v := .vars }}{{ $k }}{{ end }}`, `{{ len .vars }}{{ len $.vars }}{{ len . }}{{ len $ }}`,
	`{{ define "t" }}{{ .host.name }}{{ end }}{{ template "t" . }}{{ template "t" $ }}`, `{{ define "t" }}{{ . }}{{ end }}{{ template "t" .vars.s }}`,
	`{{ with . }}{{ .host.name }}{{ end }}`, `{{ with $x := . }}{{ $x.host.name }}{{ end }}`, `{{ if hasSecret "own" }}{{ secret "own" }}{{ end }}`,
	`{{ if hasSecret "site" }}{{ secret "site" | line }}{{ end }}`, `{{ index . "host" | len }}`, `{{ index .vars "own" }}`, `{{ (index .vars "m").k }}`,
	`{{ .vars.missing }}`, `{{ fail "no" }}`, `{{ if .host.big }}{{ fail "no" }}{{ end }}`, `{{ and .vars.s .host.name }}{{ or .vars.s .host.name }}`,
	`{{ if eq .host.name "one" }}{{ .vars.missing }}{{ end }}`, `{{ printf "%v" .host }}`, `{{ range .vars.l }}{{ if eq . 1 }}{{ break }}{{ end }}{{ . }}{{ end }}`,
	`{{- .vars.s -}} x {{ .site.domain }}
`, `{{ if .vars.none }}{{ .host.name }}{{ end }}`, `{{ if not .vars.none }}a{{ else }}{{ .host.name }}{{ end }}`, `{{ range .vars }}{{ end }}{{ .host.name }}`,
	`{{ template "late" .vars.s }}{{ define "late" }}{{ . }}{{ end }}`, `{{ secret "own" }}`, `{{ secret .vars.which }}`, `{{ $ | len }}{{ .vars | len }}`,
}

// TestFold: folded or not, a template gives the same, whatever hosts have of
// their own.
func TestFold(t *testing.T) {
	for _, text := range foldTemplates {
		foldsAlike(t, text)
	}
}

func foldsAlike(t *testing.T, text string) {
	t.Helper()
	var problems problem.List
	ft := parseTemplate("a.tmpl", "/etc/a.conf", text, [2]string{"{{", "}}"}, false, &problems)
	if ft == nil {
		return
	}
	site := &Site{secrets: map[string]reference{"site": {ref: "pass://site"}}}
	site.data = testData(nil, nil)["site"].(map[string]any)
	shared := map[string]any{"s": "x", "own": "shared", "l": []any{"a", 1}, "m": map[string]any{"k": "v"}, "none": []any{}, "which": "site"}
	for _, ownVars := range []strictyaml.Map[any]{nil, {{Key: "own", Value: "host"}}, {{Key: "new", Value: "host"}, {Key: "s", Value: ""}}} {
		for _, own := range []map[string]reference{nil, {"own": {ref: "pass://own"}}, {"site": {ref: "pass://other"}}} {
			for _, known := range []bool{true, false} {
				data := testData(hostVars(shared, ownVars), map[string]any{"name": "one", "big": true})
				sc := &scope{secrets: site.secretsOver(own)}
				var plain, folded bytes.Buffer
				clone, err := ft.tmpl.Clone()
				if err != nil {
					t.Fatal(err)
				}
				wantProblem := execute(clone.Funcs(functions(sc)), ft.name, data, &plain)
				want, wantContent := ft.content(plain.Bytes(), "p", sc)

				p := &prepared{vars: shared, dynamic: []*hostFile{{template: ft, profile: "p"}}}
				p.image.Profile, p.image.Release.Codename = "p", "bookworm"
				k := &kind{}
				site.makeKind(k, p, ownVars, known, len(own) > 0)
				var got plan.Content
				var gotProblem, gotContent *problem.Problem
				if k.shared[0] != nil {
					got = *k.shared[0]
				} else {
					r := newRunner(p, k)
					r.scope.secrets = sc.secrets
					if gotProblem = execute(r.templates[0], ft.name, data, &folded); gotProblem == nil {
						got, gotContent = ft.content(folded.Bytes(), "p", &r.scope)
					}
				}
				if (wantProblem == nil) != (gotProblem == nil) || wantProblem != nil && *wantProblem != *gotProblem {
					t.Errorf("%s\n with %v, %v: %v\n folded: %v", text, ownVars, own, wantProblem, gotProblem)
				}
				if wantProblem != nil {
					continue
				}
				if (wantContent == nil) != (gotContent == nil) || fmt.Sprint(want) != fmt.Sprint(got) {
					t.Errorf("%s\n with %v, %v: %q %v\n folded: %q %v", text, ownVars, own, want, wantContent, got, gotContent)
				}
			}
		}
	}
}

// TestFoldFolds: what asks for no host is run once.
func TestFoldFolds(t *testing.T) {
	for text, want := range map[string]string{
		`a {{ .vars.s }} {{ .site.domain }} {{ .host.name }} {{ .vars.s }}`:                   "a x example.org {{.host.name | write}} x",
		`{{ if .vars.s }}a {{ .host.name }} {{ .vars.s }}{{ else }}b{{ end }}`:                "a {{.host.name | write}} x",
		`{{ if .host.name }}{{ .vars.s }}{{ end }}`:                                           "{{if .host.name}}x{{end}}",
		`{{ if hasSecret "site" }}s{{ end }}{{ range .vars.l }}{{ . }}{{ end }}{{ .host.x }}`: "sa1{{.host.x | write}}",
	} {
		var problems problem.List
		ft := parseTemplate("a.tmpl", "/etc/a.conf", text, [2]string{"{{", "}}"}, false, &problems)
		site := &Site{secrets: map[string]reference{"site": {ref: "pass://site"}}, data: testData(nil, nil)["site"].(map[string]any)}
		k := &kind{}
		site.makeKind(k, &prepared{vars: map[string]any{"s": "x", "l": []any{"a", 1}}, dynamic: []*hostFile{{template: ft}}}, nil, true, false)
		if got := k.trees[0].Root.String(); got != want {
			t.Errorf("%s\n folds to %s\n     not %s", text, got, want)
		}
	}
}

// FuzzTemplate: no template takes Kiln down, and folding changes none.
func FuzzTemplate(f *testing.F) {
	for _, text := range foldTemplates {
		f.Add(text, "/etc/a.conf", false)
	}
	f.Add("a = {{ .vars.s | hcl }}", "/etc/a.hcl", true)
	f.Add(`{{ "\x00line own\x00" }}`, "/etc/a", true)
	f.Add(`{{ secret "own" | sh | sh }}{{ hasSecret }}`, "/etc/a.sh", true)
	f.Fuzz(func(t *testing.T, text, target string, image bool) {
		// A range over a number that writes nothing isn't bounded, and needn't be.
		if strings.Contains(text, "range") && strings.ContainsAny(text, "0123456789") {
			return
		}
		var problems problem.List
		ft := parseTemplate("a.tmpl", target, text, [2]string{"{{", "}}"}, image, &problems)
		if (ft == nil) == (len(problems) == 0) {
			t.Fatalf("%v, and the problems are %v", ft, problems)
		}
		if ft == nil {
			return
		}
		if image {
			var list problem.List
			b := builder{site: &Site{data: testData(nil, nil)["site"].(map[string]any)}, p: &prepared{vars: map[string]any{"s": "x"}, composed: &composed{}}, problems: &list}
			var file plan.File
			if b.renderImage(ft, "p", &file) != (len(list) == 0) {
				t.Errorf("problems: %v", list)
			}
			if len(file.Content.Unresolved()) > 0 {
				t.Errorf("an image with a secret: %v", file.Content)
			}
			return
		}
		foldsAlike(t, text)
	})
}
