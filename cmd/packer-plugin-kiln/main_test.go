package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/packer-plugin-sdk/version"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/builder/packer"
)

// TestVersion has one that Packer installs.
func TestVersion(t *testing.T) {
	if v := version.NewRawVersion(pluginVersion); v.GetVersionPrerelease() != "" || v.GetMetadata() != "" {
		t.Errorf("the version %s is no release's", pluginVersion)
	}
}

// newSite writes a small site.
func newSite(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"site.yaml":                   "domain: example.org\nsecrets: {token: \"env://KILN_TEST_TOKEN\", other: \"env://KILN_TEST_NONE\"}\n",
		"hosts.yaml":                  "- {name: web01, profile: web}\n",
		"profiles/web/profile.yaml":   "description: a test\nimage: {packages: [cron]}\n",
		"profiles/base2/profile.yaml": "description: a test\nabstract: true\n",
		"profiles/web/image/etc/motd": "hello\n",
	} {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSites(t *testing.T) {
	t.Setenv("KILN_TEST_TOKEN", "a-secret-of-the-site")
	dir, ctx := newSite(t), context.Background()
	p, err := sites{}.Host(ctx, dir, "web01")
	if err != nil || p.Host.Name != "web01.example.org" {
		t.Errorf("the host is %v, %v", p, err)
	}
	half, err := sites{}.Half(ctx, dir, "web", "")
	if err != nil || half.Image.Definition != "debian-12" || half.Locked != nil {
		t.Errorf("the half is %v, %v", half, err)
	}
	search, err := sites{}.Search(ctx, dir, "web", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(search.Canaries) != 1 || len(search.Missed) != 1 || !strings.Contains(search.Missed[0], "other") {
		t.Errorf("searched for are %d secrets, not for %q", len(search.Canaries), search.Missed)
	}
	if !search.Allowed("remains", "/etc/motd") || search.Allowed("remains", "/etc/other") {
		t.Error("what the profile puts into images isn't what is allowed")
	}
}

func TestSitesErrors(t *testing.T) {
	dir, ctx := newSite(t), context.Background()
	if err := os.WriteFile(filepath.Join(dir, "kiln.lock"), []byte("kiln_lock: 1\nimages: []\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	half := func(site, profile, definition string) error {
		_, err := sites{}.Half(ctx, site, profile, definition)
		return err
	}
	_, noHost := sites{}.Host(ctx, dir, "web02")
	for want, err := range map[string]error{
		"web02":                            noHost,
		"the site:":                        half(dir+"x", "web", ""),
		`there is no profile "wen"`:        half(dir, "wen", ""),
		"the profile base2 is abstract":    half(dir, "base2", ""),
		"no image definition \"debian-1\"": half(dir, "web", "debian-1"),
		"run kiln lock":                    half(dir, "web", ""),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, and it should have %q", err, want)
		}
	}
}

// TestMessages has what the one inside prints come to the one outside.
func TestMessages(t *testing.T) {
	var b bytes.Buffer
	out := &printer{lines: json.NewEncoder(&b)}
	out.print(message{Event: &bake.Event{Step: "base", State: bake.StateDone}})
	out.print(message{Note: "a note"})
	out.print(message{Image: "4f"})
	var events, notes []string
	var last message
	o := &packer.BakeOptions{Events: func(e bake.Event) { events = append(events, e.Step) }, Note: func(s string) { notes = append(notes, s) }}
	if err := readMessages(&b, o, &last); err != nil || last.Image != "4f" || len(events) != 1 || len(notes) != 1 {
		t.Errorf("%v: %q, %q, %v", err, events, notes, last)
	}
	rest := strings.NewReader("no message\nand more")
	if err := readMessages(rest, o, &last); err == nil || rest.Len() > 0 {
		t.Errorf("with what is no message: %v, %d bytes are left", err, rest.Len())
	}
}
