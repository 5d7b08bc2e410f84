// Package docs has no code: its test runs the examples of the documentation.
package docs

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/profiles"
)

// What an example's site needn't say.
var defaults = map[string]string{
	"site.yaml":                  "domain: example.org\ndns: {consul: [198.51.100.62], upstream: [192.0.2.53]}\nservers: {join: [nomad1.example.org]}\nadvertise: {interface: eno1}\n",
	"hosts.yaml":                 "- {name: example, profile: tiny}\n",
	"profiles/tiny/profile.yaml": "description: next to nothing\n",
}

// Documents of the file formats: each of their blocks is an example.
var formats = []string{"site.md", "hosts.md", "profiles.md", "templates.md", "halves.md", "images.md"}

var (
	fenced   = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	ofFile   = regexp.MustCompile(`^# ((?:site|hosts|hosts/[a-z]+|images/[a-z0-9-]+)\.yaml|profiles/\S+|vault/\S+)\n`)
	rendered = regexp.MustCompile(`^# ([a-z0-9-]+): (/\S+)\n`)
)

// example is a block that names the file that it stands for: one of a site's,
// or one on a host (# HOST: /PATH).
type example struct{ file, host, text string }

func examples(t *testing.T, name string) (all []example, others int) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fenced.FindAllStringSubmatch(string(data), -1) {
		if f := ofFile.FindStringSubmatch(m[2]); f != nil {
			all = append(all, example{file: f[1], text: strings.TrimPrefix(m[2], f[0])})
		} else if r := rendered.FindStringSubmatch(m[2]); r != nil {
			all = append(all, example{file: r[2], host: r[1], text: strings.TrimPrefix(m[2], r[0])})
		} else {
			others++
		}
	}
	return all, others
}

// TestExamples makes a site of each document's examples: it has no problem, and
// its hosts get the files that the document shows.
func TestExamples(t *testing.T) {
	documents, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range documents {
		all, others := examples(t, name)
		for _, f := range formats {
			if f == name && (len(all) == 0 || others > 0) {
				t.Errorf("%s: %d examples, and %d blocks that don't begin with the name of a file", name, len(all), others)
			}
		}
		if len(all) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, all)
			problems, _, err := profiles.Check(context.Background(), dir)
			if err != nil || problems.Err() != nil {
				t.Fatalf("the site of its examples: %v\n%s", err, problems.Error())
			}
			s, _, err := profiles.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				if e.host != "" {
					compare(t, s, e)
				}
			}
		})
	}
}

func write(t *testing.T, dir string, all []example) {
	t.Helper()
	files := map[string]string{}
	for name, text := range defaults {
		files[name] = text
	}
	for _, e := range all {
		if e.host == "" {
			files[e.file] = e.text
		}
	}
	for name, text := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func compare(t *testing.T, s *profiles.Site, e example) {
	t.Helper()
	p, problems, err := s.Host(context.Background(), e.host)
	if err != nil || p == nil {
		t.Fatalf("the host %s: %v, %v", e.host, err, problem.List(problems))
	}
	for _, f := range append(p.Image.Files, p.Host.Files...) {
		if f.Path != e.file {
			continue
		}
		got, err := f.Content.Bytes()
		if err != nil || string(got) != e.text {
			t.Errorf("%s on %s, %v:\n%s\nthe document shows:\n%s", e.file, e.host, err, got, e.text)
		}
		return
	}
	t.Errorf("the host %s has no %s", e.host, e.file)
}
