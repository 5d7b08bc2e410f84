package importing

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gopkg.in/yaml.v3"
)

const vaultToken = "hvs.CAESIJ0000000000000000000000"

// liveDir is a directory such as a host's /etc/nomad.d.
func liveDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, f := range map[string]struct {
		content string
		mode    fs.FileMode
	}{
		"nomad.hcl":          {"name = \"{{ env }}\"\nvault {\n  token = \"" + vaultToken + "\"\n}\n", 0o640},
		"plain.hcl":          {"datacenter = \"ci\"\n", 0o644},
		"scripts/check.sh":   {"#!/bin/sh\n", 0o755},
		"binary":             {"\x00\xff\xfe\x01", 0o644},
		"late.hcl.tmpl":      {"a = {{ key \"x\" }}\n\ttab: \"quoted\"\n", 0o644},
		"keys/agent.pem":     {"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n", 0o600},
		"keys/binary.x.tmpl": {"\x00", 0o644},
		"left.hcl":           {"\nencrypt = \"%TEIGI__consul_encrypt__%\"\n", 0o644},
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(f.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink("/etc/grid-security/ca.pem", filepath.Join(dir, "ca.pem")),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
		os.Mkdir(filepath.Join(dir, "plugins"), 0o750),
		os.Chmod(filepath.Join(dir, "plugins"), 0o750), // whatever the umask
		os.Chmod(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "odd\nname"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDir(t *testing.T) {
	dir := liveDir(t)
	tree, err := Dir(dir, DirOptions{As: "/etc/nomad.d", Owner: "root", Group: "nomad"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range tree.Files {
		got = append(got, strings.TrimSpace(f.Path+" "+f.Link))
		if f.Owner != "root" || f.Group != "nomad" {
			t.Errorf("%s belongs to %s:%s", f.Path, f.Owner, f.Group)
		}
	}
	want := []string{
		"/etc/nomad.d/binary", "/etc/nomad.d/ca.pem /etc/grid-security/ca.pem", "/etc/nomad.d/keys/agent.pem", "/etc/nomad.d/late.hcl.tmpl",
		"/etc/nomad.d/left.hcl", "/etc/nomad.d/nomad.hcl", "/etc/nomad.d/plain.hcl", "/etc/nomad.d/scripts/check.sh",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the files are %q, not %q", got, want)
	}
	problems := strings.ReplaceAll(tree.Problems.Error(), dir+"/", "")
	for _, want := range []string{
		"nomad.hcl:3: a Vault token stands here as literal text: write {{ secret",
		"keys/agent.pem:1: a private key stands here",
		"pipe: it is a named pipe, which no profile can hold",
		"keys/binary.x.tmpl: a file of a profile that ends in .tmpl is a template",
		"late.hcl.tmpl: warning: its name ends in .tmpl",
		"left.hcl:2: one of Teigi's placeholders",
		`odd\nname": its name has bytes`,
	} {
		if !strings.Contains(problems, want) {
			t.Errorf("the problems don't say %q:\n%s", want, problems)
		}
	}
	if strings.Contains(problems, vaultToken) || len(tree.Problems) != 7 {
		t.Errorf("the %d problems are:\n%s", len(tree.Problems), problems)
	}
}

func TestDirOwners(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := Dir(dir, DirOptions{As: "/etc/x"})
	if err != nil {
		t.Fatal(err)
	}
	// Whoever runs the test has a name, or a problem says that it has none.
	if f := tree.Files[0]; f.Owner == "" || f.Group == "" || f.Mode != 0o600 {
		t.Errorf("the file is %+v", f)
	}
	for _, as := range []string{"etc/x", "/a\nb"} {
		if _, err := Dir(dir, DirOptions{As: as}); err == nil {
			t.Errorf("--as %q was taken", as)
		}
	}
	for _, bad := range []string{filepath.Join(dir, "a"), filepath.Join(dir, "none")} {
		if _, err := Dir(bad, DirOptions{As: "/etc/x"}); err == nil {
			t.Errorf("%s was taken for a directory", bad)
		}
	}
}

func TestLiteralSecrets(t *testing.T) {
	for line, want := range map[string]bool{
		`encrypt = "cGxhY2Vob2xkZXI="`:                        true,
		`  "encrypt": "cGxhY2Vob2xkZXI=",`:                    true,
		`token   = "abc"`:                                     true,
		`agent = "6f9d5a5e-5f3f-4b0a-9d7e-0123456789ab"`:      true,
		`CONSUL_HTTP_TOKEN=abc`:                               true,
		`password: abc`:                                       true,
		`url = "https://user:pw@example.org/"`:                true,
		`t = "s.abcdefghijklmnopqrstuvwx"`:                    true,
		`x = "AKIAABCDEFGHIJKLMNOP"`:                          true,
		`encrypt_verify_incoming = "true"`:                    false,
		`encrypt = ""`:                                        false,
		`token = "%TEIGI__x__%"`:                              false,
		`encrypt = "<%= @x %>"`:                               false,
		`token_file = "/etc/token"`:                           false,
		`secret = "/etc/secret"`:                              false,
		`create_from_role = "nomad"`:                          false,
		`node_id = "6f9d5a5e-5f3f-4b0a-9d7e-0123456789ab"`:    false,
		`key_file = "/etc/grid-security/hostkey.pem"`:         false,
		`address = "https://vault.service.consul:8200"`:       false,
		`token = "kiln-secret:teigi://alibuild/consul_token"`: false,
	} {
		found := literalSecrets("x.hcl", []byte("\n"+line+"\n"))
		if (len(found) == 1) != want || want && found[0].Line != 2 {
			t.Errorf("%s: %v", line, found)
		}
	}
}

// profileYAML is the part of a profile's schema that an import writes.
type profileYAML struct {
	Description string
	Extends     []string
	Delimiters  []string
	Host        struct {
		Directories map[string]fileYAML
		Files       map[string]fileYAML
	}
}

type fileYAML struct{ Owner, Group, Mode, Link, Content string }

func importedProfile(t *testing.T) Profile {
	t.Helper()
	tree, err := Dir(liveDir(t), DirOptions{As: "/etc/nomad.d", Owner: "root", Group: "root"})
	if err != nil {
		t.Fatal(err)
	}
	return Profile{
		Name: "cern", Description: "imported from\nPuppet", Extends: []string{"plain"}, Trees: []Tree{tree},
		Templates: []Template{
			{"/etc/consul.d/consul.hcl", translate(t, "consul.hcl.erb")},
			{"/etc/nomad.d/client.hcl", translate(t, "nomad.hcl.erb")},
		},
	}
}

func TestWrite(t *testing.T) {
	p := importedProfile(t)
	dir := filepath.Join(t.TempDir(), "profiles", "cern")
	if err := Write(dir, p); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "profile.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "profile.yaml", string(raw))
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var y profileYAML
	if err := decoder.Decode(&y); err != nil {
		t.Fatal(err)
	}
	if want := []string{"[%", "%]"}; !slices.Equal(y.Delimiters, want) {
		t.Fatalf("the delimiters are %q", y.Delimiters) // {{ and [[ stand in the templates
	}
	for _, f := range p.Trees[0].Files {
		said := y.Host.Files[f.Path]
		switch {
		case f.Link != "":
			if want := (fileYAML{Link: f.Link}); said != want {
				t.Errorf("%s is %+v", f.Path, said)
			}
			continue
		case strings.HasSuffix(f.Path, ".tmpl"):
			if said.Content != string(f.Data) {
				t.Errorf("%s has %q", f.Path, said.Content)
			}
			continue
		}
		name := filepath.Join(dir, "host", f.Path)
		data, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s has %q (%v)", f.Path, data, err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if f.Secret && info.Mode().Perm()&0o177 != 0 {
			t.Errorf("%s holds a secret and has mode %v", name, info.Mode())
		}
	}
	checkTemplates(t, dir, p)
	before := treeOf(t, filepath.Dir(dir))
	if err := Write(dir, p); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	if after := treeOf(t, filepath.Dir(dir)); !reflect.DeepEqual(before, after) {
		t.Errorf("the refused import changed %v to %v", before, after)
	}
}

// checkTemplates makes sure that both templates have the profile's delimiters.
func checkTemplates(t *testing.T, dir string, p Profile) {
	t.Helper()
	for _, tmpl := range p.Templates {
		text, err := os.ReadFile(filepath.Join(dir, "host", tmpl.Path+".tmpl"))
		if err != nil {
			t.Fatal(err)
		}
		r := tmpl.Result
		r.Text, r.Delimiters = string(text), Delimiters{"[%", "%]"}
		if _, err := render(r, readData(t)); err != nil {
			t.Errorf("%s: %v", tmpl.Path, err)
		}
	}
}

func treeOf(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		names = append(names, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestWriteRefuses(t *testing.T) {
	r := translate(t, "consul.hcl.erb")
	one := Template{"/etc/x/a", r}
	for name, p := range map[string]Profile{
		"a bad name":     {Name: "../x", Templates: []Template{one}},
		"a bad parent":   {Name: "x", Extends: []string{"a b"}, Templates: []Template{one}},
		"no target":      {Name: "x", Templates: []Template{{"", r}}},
		"a target above": {Name: "x", Templates: []Template{{"/etc/../../x", r}}},
		"one file twice": {Name: "x", Templates: []Template{one, one}},
		"file and dir":   {Name: "x", Templates: []Template{one, {"/etc/x", r}}},
	} {
		parent := t.TempDir()
		if err := Write(filepath.Join(parent, "x"), p); err == nil {
			t.Errorf("%s was taken", name)
		}
		if left := treeOf(t, parent); len(left) != 1 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

func TestWriteTemplates(t *testing.T) {
	dir := t.TempDir()
	results := []Result{translate(t, "nomad.hcl.erb"), translate(t, "consul.hcl.erb")}
	if err := os.WriteFile(filepath.Join(dir, "consul.hcl.tmpl"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := treeOf(t, dir)
	if err := WriteTemplates(dir, results); !errors.Is(err, ErrExists) {
		t.Errorf("over an existing file: %v", err)
	}
	if after := treeOf(t, dir); !slices.Equal(before, after) {
		t.Errorf("the refused import left %v", after)
	}
	if err := os.Remove(filepath.Join(dir, "consul.hcl.tmpl")); err != nil {
		t.Fatal(err)
	}
	if err := WriteTemplates(dir, results); err != nil {
		t.Fatal(err)
	}
	if got := treeOf(t, dir); len(got) != 3 {
		t.Errorf("there is %v", got)
	}
}
