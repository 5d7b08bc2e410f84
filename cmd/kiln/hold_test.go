package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// tinySite has one host, build01, that an image of newTinyImage can be installed on.
var tinySite = map[string]string{
	"site.yaml":                  "domain: example.org\n",
	"hosts.yaml":                 "- {name: build01, profile: tiny, interfaces: {lan: {mac: \"52:54:00:00:00:01\"}}}\n",
	"profiles/tiny/profile.yaml": "image: {}\n",
}

// newTinyImage puts an image into a store of its own, which openStore finds from then on.
func newTinyImage(t *testing.T) (*images.Store, *images.Manifest) {
	t.Helper()
	t.Setenv("KILN_CACHE", t.TempDir())
	store, err := baking.OpenStore()
	if err != nil {
		t.Fatal(err)
	}
	work, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer work.Remove()
	m := &images.Manifest{
		Profile: "tiny", Definition: "debian-12", Created: time.Unix(1_700_000_000, 0),
		Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
	}
	for _, name := range []string{"chunks.json", "vmlinuz", "initrd.img"} {
		name = images.NetbootDir + "/" + name
		writeFiles(t, work.Path, map[string]string{name: name})
		a, err := images.NewArtifact(work.Path, name, images.FormatNetboot)
		if err != nil {
			t.Fatal(err)
		}
		m.Artifacts = append(m.Artifacts, a)
	}
	m.ID = m.ContentID()
	if err := store.Put(m, work.Path); err != nil {
		t.Fatal(err)
	}
	return store, m
}

// TestImageStaysWhileArming: between the choice of an image and the arming with it, which
// somebody may have to answer a question for, nobody removes it.
func TestImageStaysWhileArming(t *testing.T) {
	store, m := newTinyImage(t)
	dir := t.TempDir()
	writeFiles(t, dir, tinySite)
	site, problems, err := profiles.Open(dir)
	if err != nil || problems.Err() != nil {
		t.Fatal(err, problems)
	}
	a, err := newArmer(site, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // of two hosts
		if arming, err := a.prepare(t.Context(), "build01", ""); err != nil || arming.Image != m.ID {
			t.Fatal(arming, err)
		}
	}
	if err := store.Remove(m.ID); !errors.Is(err, images.ErrInUse) {
		t.Errorf("removed while it's asked: %v", err)
	}
	a.close()
	if err := store.Remove(m.ID); err != nil {
		t.Error(err)
	}
}

// TestHeldByHosts: whether hosts need an image, and whether that can be known.
func TestHeldByHosts(t *testing.T) {
	store, m := newTinyImage(t)
	dir := filepath.Join(t.TempDir(), "state")
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_STATE", dir)
	for _, holder := range []string{dir, dir, filepath.Join(t.TempDir(), "gone")} {
		if err := store.AddHolder(holder); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := store.Holders(); err != nil || len(list) != 2 {
		t.Errorf("the holders are %q, %v", list, err)
	}
	arming := state.Arming{Host: "build01.example.org", MACs: []plan.MAC{"52:54:00:00:00:01"}, Image: m.ID, Profile: "tiny", Disk: "its only disk"}
	way := func(want string) {
		t.Helper()
		err := store.Held(m.ID)
		if want == "" && err != nil || want != "" && (!errors.Is(err, images.ErrInUse) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	way("")
	if _, err := s.Arm(arming); err != nil {
		t.Fatal(err)
	}
	way("to install build01.example.org (armed): kiln disarm build01.example.org takes that back")
	i, err := s.Boot(arming.Host, state.Site{MAC: arming.MACs[0]})
	if err != nil || i == nil {
		t.Fatal(i, err)
	}
	way("to install build01.example.org (booted)")
	if err := store.Held(strings.Repeat("a", 64)); err != nil {
		t.Errorf("another image: %v", err)
	}
	if _, err := s.Disarm(arming.Host, "bob"); err != nil {
		t.Fatal(err)
	}
	way("")
	broken := filepath.Join(t.TempDir(), "broken")
	writeFiles(t, broken, map[string]string{"hosts": "no folder"})
	if err := store.AddHolder(broken); err != nil {
		t.Fatal(err)
	}
	way("whether hosts are armed with it isn't known")
	if entries, err := os.ReadDir(broken); err != nil || len(entries) != 1 {
		t.Errorf("looking has made %v, %v", entries, err)
	}
}
