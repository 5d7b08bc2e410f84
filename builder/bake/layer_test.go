package bake

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
)

var someEntries = []disk.Entry{
	{Path: "/", Type: fs.ModeDir, Mode: 0o755},
	{Path: "/etc/a", Mode: 0o4640, UID: 1, GID: 70000, Content: []byte("a\n"), Extended: map[string][]byte{"security.capability": {1, 0, 0, 2}}},
	{Path: "/etc/empty", Mode: 0o600},
	{Path: "/etc/gone", Type: disk.Gone},
	{Path: "/etc/l", Type: fs.ModeSymlink, Mode: 0o777, Target: "../a"},
	{Path: "/srv", Type: disk.Gone},
	{Path: "/srv", Type: fs.ModeDir, Mode: 0o1777},
	{Path: "/srv/" + strings.Repeat("long/", 60) + "ünï \"code\"", Mode: 0o644, Content: []byte("x")},
}

func TestLayerIsWhatWasWritten(t *testing.T) {
	data, err := encodeLayer(someEntries, 1700000000)
	if err != nil {
		t.Fatal(err)
	}
	again, err := encodeLayer(someEntries, 1700000000)
	if err != nil || !bytes.Equal(data, again) {
		t.Error("the same layer has other bytes", err)
	}
	got, err := decodeLayer(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if len(got[i].Content) == 0 {
			got[i].Content = nil
		}
	}
	if !reflect.DeepEqual(got, someEntries) {
		t.Errorf("got\n%+v\nwant\n%+v", got, someEntries)
	}
}

func FuzzDecodeLayer(f *testing.F) {
	data, err := encodeLayer(someEntries, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = decodeLayer(data) })
}

// TestContentsWith: an image has what its base has, as the layer changes it.
func TestContentsWith(t *testing.T) {
	var c contents
	for _, p := range []string{"/", "/etc", "/etc/a", "/etc/gone", "/etc/stays", "/srv", "/srv/old", "/srv/old/x"} {
		c.Files = append(c.Files, images.File{Path: p, Type: "base"})
	}
	var got []string
	for _, f := range c.with(someEntries) {
		if len(f.Path) > 50 {
			f.Path = "/srv/long"
		}
		got = append(got, f.Path+" "+f.Type)
	}
	want := []string{"/ directory", "/etc base", "/etc/a file", "/etc/empty file", "/etc/l link", "/etc/stays base", "/srv directory", "/srv/long file"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestDiffering: what has changed in a step is named, and nothing else.
func TestDiffering(t *testing.T) {
	h := func(c string) string { return strings.Repeat(c, 64) }
	was := []Input{{"base", h("a")}, {"file /etc/a", "root:root 644 " + h("b")}, {"packages", "acl curl"}, {"unit", "enable a"}, {"unit", "enable b"}, {"old", "1"}}
	now := []Input{{"base", h("c")}, {"file /etc/a", "root:ops 640 " + h("b")}, {"packages", "acl jq"}, {"unit", "enable b"}, {"unit", "enable c"}, {"new", ""}}
	want := []string{"base changed", "file /etc/a: +root:ops +640 -root:root -644", "packages: +jq -curl", "unit: +c -a", "old is gone: 1", "new is new"}
	if got := differing(was, now); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := differing(was, was); got != nil {
		t.Errorf("nothing changed, but %q", got)
	}
	if got := differing(was[3:5], []Input{was[4], was[3]}); len(got) != 1 || !strings.Contains(got[0], "order") {
		t.Errorf("the order changed: %q", got)
	}
}

// TestRemembered: an answer counts as long as its files are the same.
func TestRemembered(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "conf.d/a")
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := &Cache{Dir: filepath.Join(dir, "cache")}
	asked := 0
	ask := func() string {
		t.Helper()
		answer, err := c.remembered("what", []string{filepath.Dir(file)}, func() ([]byte, error) { asked++; return os.ReadFile(file) })
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	for _, text := range []string{"one", "another"} {
		write(text)
		for range 2 {
			if got := ask(); got != text {
				t.Errorf("got %s, not %s", got, text)
			}
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}
