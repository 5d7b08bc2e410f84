package profiles

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/plan"
)

const hostile = "\"}${HOME}{{key}}%{`'$(exit 1)\\\n# - a: b\t\u0085é\U0001F525"

// TestHostileValues writes a value full of every format's own characters
// through templates: parsers of these formats read it back.
func TestHostileValues(t *testing.T) {
	quoted, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	// To YAML this is a line break.
	quoted = bytes.ReplaceAll(quoted, []byte("\u0085"), []byte(`\u0085`))
	plans := resolveAll(t, writeFiles(t, archive(t, `
-- hosts.yaml --
- name: one
  profile: hostile
  vars:
    v: `+string(quoted)+`
    list: [`+string(quoted)+`, 1, true]
    map: {`+string(quoted)+": "+string(quoted)+`}
-- profiles/hostile/profile.yaml --
host: {units: {}}
-- profiles/hostile/host/etc/a.hcl.tmpl --
v = {{ .vars.v | hcl }}
list = {{ .vars.list | hcl }}
host = {{ .host.name | hcl }}
-- profiles/hostile/host/etc/a.yaml.tmpl --
v: {{ .vars.v | yaml }}
list: {{ .vars.list | yaml }}
map: {{ .vars.map | yaml }}
-- profiles/hostile/host/etc/a.json.tmpl --
{"v": {{ .vars.v | json }}, "list": {{ .vars.list | json }}, "map": {{ .vars.map | json }}}
-- profiles/hostile/host/etc/a.sh.tmpl --
set -- {{ .vars.list | sh }}
printf '%s\0' "$#" {{ .vars.v | sh }} "$@"
`)))
	files := contents(t, plans["one"].Host.Layer)
	list := []any{hostile, 1, true}
	got := map[string]any{}
	if err := hcl.Decode(&got, files["/etc/a.hcl"]); err != nil {
		t.Fatalf("HCL: %v\n%s", err, files["/etc/a.hcl"])
	}
	if d := cmp.Diff(map[string]any{"v": hostile, "list": list, "host": "one.example.org"}, got); d != "" {
		t.Errorf("HCL (-want +got):\n%s", d)
	}
	want := map[string]any{"v": hostile, "list": list, "map": map[string]any{hostile: hostile}}
	got = nil
	if err := yaml.Unmarshal([]byte(files["/etc/a.yaml"]), &got); err != nil {
		t.Fatalf("YAML: %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("YAML (-want +got):\n%s", d)
	}
	got = nil
	if err := json.Unmarshal([]byte(files["/etc/a.json"]), &got); err != nil {
		t.Fatalf("JSON: %v", err)
	}
	want["list"] = []any{hostile, 1.0, true}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
	out, err := exec.Command("sh", "-c", files["/etc/a.sh"]).CombinedOutput()
	if err != nil {
		t.Fatalf("sh: %v: %s", err, out)
	}
	if d := cmp.Diff("3\x00"+hostile+"\x00"+hostile+"\x001\x00true\x00", string(out)); d != "" {
		t.Errorf("sh (-want +got):\n%s", d)
	}
}

// TestHostileSecret is the same for a secret's value, which lands in the text
// after the templates have run.
func TestHostileSecret(t *testing.T) {
	plans := resolveAll(t, writeFiles(t, archive(t, `
-- hosts.yaml --
- {name: one, profile: keeper, secrets: {token: pass://own}}
- {name: two, profile: keeper}
-- site.yaml --
domain: example.org
secrets: {token: pass://site}
-- profiles/keeper/profile.yaml --
host: {units: {}}
-- profiles/keeper/host/etc/a.hcl.tmpl --
v = {{ secret "token" | hcl }}
-- profiles/keeper/host/etc/a.conf.tmpl --
{{ if hasSecret "token" }}v {{ secret "token" }}{{ end }}
`)))
	if got := contents(t, plans["one"].Host.Layer)["/etc/a.conf"]; got != "v kiln-secret:pass://own\n" {
		t.Errorf("without its secrets: %q", got)
	}
	for name, ref := range map[string]plan.Ref{"one": "pass://own", "two": "pass://site"} {
		resolved, err := plans[name].WithSecrets(context.Background(), values{ref: "plain"})
		if err != nil {
			t.Fatal(err)
		}
		if got := contents(t, resolved.Host.Layer)["/etc/a.conf"]; got != "v plain\n" {
			t.Errorf("the secret of %s: %q", name, got)
		}
		_, err = plans[name].WithSecrets(context.Background(), values{ref: hostile})
		if err == nil || strings.Contains(err.Error(), "HOME") || !strings.Contains(err.Error(), string(ref)) {
			t.Errorf("a line can't hold a newline: %v", err)
		}
	}
	p := plans["one"]
	p.Host.Files = p.Host.Files[1:]
	resolved, err := p.WithSecrets(context.Background(), values{"pass://own": hostile})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	if err := hcl.Decode(&got, contents(t, resolved.Host.Layer)["/etc/a.hcl"]); err != nil || got["v"] != hostile {
		t.Errorf("the secret came back as %q: %v", got["v"], err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", resolved, resolved, resolved.Host.Files, resolved.Host.Files[0].Content); strings.Contains(s, "HOME") {
		t.Errorf("a resolved secret shows: %s", s)
	}
}

type values map[plan.Ref]string

func (v values) Resolve(_ context.Context, ref plan.Ref) (plan.Secret, error) {
	s, ok := v[ref]
	if !ok {
		return plan.Secret{}, fmt.Errorf("there is no %s", ref)
	}
	return plan.NewSecret(s), nil
}

// TestByteForByte carries every byte through a file that is no template: into
// the plan, and through user-data.
func TestByteForByte(t *testing.T) {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	bodies := map[string]string{
		"bytes": string(all), "empty": "", "braces": "{{ .host.name }} ${x} %{y} <%= @z %>\n", "crlf": "a\r\nb\r\n", "no-newline": "a", "bom": "\ufeffa\n",
		"space": "  a \n\n\n", "yaml": "- |\n  a: !x\n---\n...\n", "newlines": "\n\n", "shell": "#!/bin/sh\necho '`$'\n", "tmpl.txt": "{{", "mime": "MIME-Version: 1.0\n",
	}
	files := map[string]string{"hosts.yaml": "- {name: one, profile: raw}\n", "profiles/raw/profile.yaml": "description: raw\n"}
	for name, body := range bodies {
		files["profiles/raw/image/etc/raw/"+name] = body
		files["profiles/raw/host/etc/raw-host/"+name] = body
	}
	p := resolveAll(t, writeFiles(t, files))["one"]
	userData, err := render.CloudInit(p, render.Options{Target: render.Stock})
	if err != nil {
		t.Fatal(err)
	}
	delivered := writtenFiles(t, userData)
	image, host := contents(t, p.Image.Layer), contents(t, p.Host.Layer)
	for name, body := range bodies {
		for file, got := range map[string]map[string]string{"/etc/raw/" + name: image, "/etc/raw-host/" + name: host} {
			if got[file] != body {
				t.Errorf("%s is %q in the plan", file, got[file])
			}
			if delivered[file] != body {
				t.Errorf("%s is %q in user-data", file, delivered[file])
			}
		}
	}
}

// writtenFiles reads write_files as cloud-init does.
func writtenFiles(t *testing.T, userData []byte) map[string]string {
	t.Helper()
	var config struct {
		Files []struct {
			Path, Encoding string
			Content        string
		} `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(userData, &config); err != nil {
		t.Fatalf("the user-data is no YAML: %v\n%s", err, userData)
	}
	files := map[string]string{}
	for _, f := range config.Files {
		files[f.Path] = decoded(t, f.Encoding, f.Content)
	}
	return files
}

// decoded undoes one of cloud-init's encodings.
func decoded(t *testing.T, encoding, content string) string {
	t.Helper()
	switch encoding {
	case "":
		return content
	case "b64", "base64":
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(content), ""))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	t.Fatalf("an encoding called %s", encoding)
	return ""
}
