package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
)

// TestTidyInitramfs: a server's disk doesn't fill with what its images once needed.
func TestTidyInitramfs(t *testing.T) {
	store := &images.Store{Dir: filepath.Join(t.TempDir(), "images")}
	work, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer work.Remove()
	m := &images.Manifest{Profile: "tiny", Definition: "debian-12", Created: time.Unix(1_700_000_000, 0)}
	m.ID = m.ContentID()
	if err := store.Put(m, work.Path); err != nil {
		t.Fatal(err)
	}
	s := &servedImages{store: store, dir: t.TempDir(), installer: []byte("program")}
	other := &servedImages{installer: []byte("an older program")}
	old := time.Now().Add(-2 * unfinished)
	kept := []string{s.nameOf(m.ID), ".new-now"}
	for _, name := range append([]string{other.nameOf(m.ID), s.nameOf("0123456789abcdef0123"), ".new-1"}, kept...) {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == ".new-now" {
			continue
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.tidy(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	slices.Sort(kept)
	if !slices.Equal(left, kept) {
		t.Errorf("left are %q, and not %q", left, kept)
	}
}
