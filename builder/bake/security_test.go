package bake

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
)

// TestReleaseSecurity: of what is locked, exactly that may move which a security
// suite has a newer version of.
func TestReleaseSecurity(t *testing.T) {
	dir := t.TempDir()
	lists := map[string]string{
		"bookworm-security":        "Package: fixed\nVersion: 1.0-1+deb12u2\n\nPackage: same\nVersion: 2.0-1\n\nPackage: older\nVersion: 2.9-1\n\nPackage: twice\nVersion: 1.1\n\nPackage: unlocked\nVersion: 9\n\n",
		"bookworm":                 "Package: plainly-newer\nVersion: 9.0\n\n",
		"bookworm-security/second": "Package: twice\nVersion: 1.0\n\n",
	}
	var targets strings.Builder
	for release, text := range lists {
		file := filepath.Join(dir, strings.ReplaceAll(release, "/", "_"))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		suite, _, _ := strings.Cut(release, "/")
		targets.WriteString(suite + " " + file + "\n")
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc/apt/preferences.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	runner := func(ctx context.Context, c run.Command) ([]byte, error) {
		if filepath.Base(c.Name) == "apt-get" {
			return []byte(targets.String()), nil
		}
		return c.Output(ctx) // dpkg itself compares
	}
	b := newBuilder(&Options{Definition: images.Definition{SecuritySuites: []string{"bookworm-security"}}, Cache: t.TempDir(), Store: &images.Store{}, Run: runner})
	r := &resolver{b: b, dir: dir, apt: &aptProgress{tell: func(Event) {}}}
	for name, version := range map[string]string{"fixed": "1.0-1+deb12u1", "same": "2.0-1", "older": "3.0-1", "twice": "1.0-9~", "plainly-newer": "1.0", "nowhere": "1"} {
		r.kept = append(r.kept, images.LockedPackage{Name: name, Version: version})
	}
	if err := r.releaseSecurity(t.Context()); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, p := range r.kept {
		kept = append(kept, p.Name)
	}
	slices.Sort(kept)
	if want := []string{"nowhere", "older", "plainly-newer", "same"}; !slices.Equal(kept, want) {
		t.Errorf("kept are %q, not %q", kept, want)
	}
	pins, err := os.ReadFile(filepath.Join(dir, "etc/apt/preferences.d/kept"))
	if err != nil || strings.Contains(string(pins), "Package: fixed\n") || !strings.Contains(string(pins), "Package: same\nPin: version 2.0-1\n") {
		t.Errorf("apt is told: %s, %v", pins, err)
	}
}
