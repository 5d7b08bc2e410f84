package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// put adds an image with one file of that format to the store.
func put(t *testing.T, s *Store, profile, content string, format Format, made time.Time) *Manifest {
	t.Helper()
	work, err := s.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer work.Remove()
	dir := work.Path
	name := "image." + string(format)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := NewArtifact(dir, name, format)
	if err != nil {
		t.Fatal(err)
	}
	m := &Manifest{Profile: profile, Definition: Default, Created: made, Files: []File{{Path: "/etc/content", SHA256: content}}, Artifacts: []Artifact{a}}
	m.ID = m.ContentID()
	if err := s.Put(m, dir); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStore(t *testing.T) {
	s := &Store{Dir: filepath.Join(t.TempDir(), "images")}
	if list, err := s.List(); err != nil || list != nil {
		t.Fatalf("a store that isn't there: %v, %v", list, err)
	}
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	old := put(t, s, "plain", "one", FormatRaw, day)
	newer := put(t, s, "plain", "two", FormatRaw, day.Add(time.Hour))
	other := put(t, s, "alissandra", "one", FormatRaw, day)

	for what, want := range map[string]*Manifest{old.ID: old, old.Short(): old, newer.ID[:4]: newer, "plain": newer, "alissandra": other} {
		if m, err := s.Find(what); err != nil || m.ID != want.ID {
			t.Errorf("%s: got %v, %v", what, m, err)
		}
	}
	for _, what := range []string{"plane", "", old.ID[:3], old.ID + "0"} {
		if m, err := s.Find(what); err == nil || !strings.Contains(err.Error(), "there is no image") {
			t.Errorf("%s: got %v, %v", what, m, err)
		}
	}

	// The same image in another format is still one image.
	again := put(t, s, "plain", "one", FormatQCOW2, day.Add(2*time.Hour))
	if again.ID != old.ID {
		t.Error("the format is in the ID")
	}
	m, err := s.Find(old.ID)
	if err != nil || strings.Join(m.FormatsOf(), " ") != "raw qcow2" {
		t.Fatalf("got %v, %v", m, err)
	}
	for _, name := range []string{"image.raw", "image.qcow2", ManifestName, SumsName} {
		if _, err := os.Stat(s.Path(old.ID, name)); err != nil {
			t.Error(err)
		}
	}
	if sums, err := os.ReadFile(s.Path(old.ID, SumsName)); err != nil || string(sums) != string(m.Sums()) || strings.Count(string(sums), "\n") != 2 {
		t.Errorf("got %s, %v", sums, err)
	}

	// Of plain, the older one is now the second.
	release, err := s.Use(newer.ID)
	if err != nil {
		t.Fatal(err)
	}
	removed, used, err := s.Prune(1)
	if err != nil || removed != nil || len(used) != 1 || used[0].ID != newer.ID {
		t.Errorf("in use: removed %v, not %v, %v", removed, used, err)
	}
	if err := s.Remove(newer.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	release()
	removed, used, err = s.Prune(1)
	if err != nil || len(removed) != 1 || removed[0].ID != newer.ID || used != nil {
		t.Errorf("removed %v, not %v, %v", removed, used, err)
	}
	if _, err := s.Use(newer.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was removed can be used: %v", err)
	}
	if err := s.Remove(other.ID); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].ID != old.ID {
		t.Errorf("left: %v, %v", list, err)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) != 2 { // the image, and the lock
		t.Errorf("in the store: %v, %v", entries, err)
	}
}

func TestAChangedManifest(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	m := put(t, s, "plain", "one", FormatRaw, time.Now())
	name := s.Path(m.ID, ManifestName)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(data), "/etc/content", "/etc/contend", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if m, err := ReadManifest(name); err == nil || !strings.Contains(err.Error(), "isn't what was written") {
		t.Errorf("got %v, %v", m, err)
	}
	// The others are there all the same, and it can be removed.
	good := put(t, s, "plain", "two", FormatRaw, time.Now())
	list, damaged, err := s.ListAll()
	if err != nil || len(list) != 1 || list[0].ID != good.ID || len(damaged) != 1 || damaged[0].ID != m.ID {
		t.Errorf("got %v, %v, %v", list, damaged, err)
	}
	if _, err := s.Find(m.ID); err == nil || !strings.Contains(err.Error(), "kiln images remove "+m.Short()) {
		t.Errorf("got %v", err)
	}
	id, err := s.FindID(m.ID[:8])
	if err != nil || id != m.ID {
		t.Errorf("got %s, %v", id, err)
	}
	if err := s.Remove(id); err != nil {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	good := put(t, s, "plain", "one", FormatRaw, time.Now())
	half := put(t, s, "plain", "two", FormatRaw, time.Now())
	if err := errors.Join(os.Remove(s.Path(half.ID, ManifestName)), os.Mkdir(filepath.Join(s.Dir, "new-left"), 0o755)); err != nil {
		t.Fatal(err)
	}
	used, err := s.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer used.Remove()
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{good.ID: true, half.ID: false, "new-left": false, filepath.Base(used.Path): true} {
		if _, err := os.Stat(filepath.Join(s.Dir, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHeld: what somebody else needs stays, with his reason, whether it is read or not.
func TestHeld(t *testing.T) {
	s, day := &Store{Dir: filepath.Join(t.TempDir(), "images")}, time.Unix(1_700_000_000, 0)
	m := put(t, s, "plain", "one", FormatRaw, day)
	put(t, s, "plain", "two", FormatRaw, day.Add(time.Hour))
	s.Held = func(id string) error { return fmt.Errorf("%w, by %.4s", ErrInUse, id) }
	for _, read := range []bool{false, true} {
		if read {
			release, err := s.Use(m.ID)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
		}
		if err := s.Remove(m.ID); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "by "+m.ID[:4]) {
			t.Errorf("read %v: %v", read, err)
		}
		if removed, left, err := s.Prune(1); err != nil || removed != nil || len(left) != 1 || left[0].ID != m.ID || !errors.Is(left[0].Why, ErrInUse) {
			t.Errorf("read %v: removed %v, not %v, %v", read, removed, left, err)
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	if err := s.AddHolder(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(s.Dir, holdersName)); err != nil || info.Mode() != 0o644 {
		t.Errorf("others can't read who holds images: %v, %v", info, err)
	}
}
