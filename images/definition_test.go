package images

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

func TestShipped(t *testing.T) {
	var problems problem.List
	all, err := Load(filepath.Join(t.TempDir(), "none"), &problems)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	if names := strings.Join(Names(all), " "); names != "debian-12 debian-12-cloud ubuntu-24.04" {
		t.Errorf("the shipped definitions: %s", names)
	}
	if d := all[Default]; !d.Shipped || d.Release != (plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"}) || d.Pos.String() != "kiln:images/debian-12.yaml:1:1" {
		t.Errorf("the default: %+v", d)
	}
}

func TestOwn(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"debian-12.yaml": "distribution: debian\nversion: \"12\"\ncodename: bookworm\narchitecture: arm64\n",
		"trixie.yaml":    "description: next\ndistribution: debian\nversion: 13\ncodename: trixie\n",
		"notes.txt":      "no definition",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var problems problem.List
	all, err := Load(dir, &problems)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	if names := strings.Join(Names(all), " "); names != "debian-12 debian-12-cloud trixie ubuntu-24.04" {
		t.Errorf("the definitions: %s", names)
	}
	if d := all["debian-12"]; d.Shipped || d.Release.Architecture != "arm64" {
		t.Errorf("one that replaces a shipped one: %+v", d)
	}
	if d := all["trixie"]; d.Release.Version != "13" || d.Description != "next" || d.Release.Architecture != "amd64" {
		t.Errorf("one of the site's own: %+v", d)
	}
}
