package bake

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
)

func TestPrune(t *testing.T) {
	c, store := &Cache{Dir: filepath.Join(t.TempDir(), "build")}, &images.Store{Dir: t.TempDir()}
	if freed, err := c.Prune(store); freed != 0 || err != nil {
		t.Errorf("no cache: %d, %v", freed, err)
	}
	used, err := c.Do(t.Context(), stepOf("one", "used", writes("used")))
	if err != nil {
		t.Fatal(err)
	}
	unused, err := c.Do(t.Context(), stepOf("one", "unused", writes("unused")))
	if err != nil {
		t.Fatal(err)
	}
	work, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	m := &images.Manifest{Profile: "plain", Steps: []images.Step{{Name: "sources"}, {Name: used.Name, Key: used.Key}}}
	m.ID = m.ContentID()
	if err := errors.Join(store.Put(m, work.Path), work.Remove()); err != nil {
		t.Fatal(err)
	}
	release, err := c.hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prune(store); !errors.Is(err, ErrBusy) {
		t.Errorf("under a build: %v", err)
	}
	release()
	freed, err := c.Prune(store)
	if err != nil || freed == 0 {
		t.Errorf("freed %d bytes, %v", freed, err)
	}
	for r, stays := range map[string]bool{used.Dir: true, unused.Dir: false} {
		if _, err := os.Stat(r); (err == nil) != stays {
			t.Errorf("%s: %v", r, err)
		}
	}
}

// TestTrim: what was used the longest time ago goes first, and only as much as has
// to; while a build goes on nothing does.
func TestTrim(t *testing.T) {
	c := &Cache{Dir: filepath.Join(t.TempDir(), "build")}
	large := func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "data"), make([]byte, 1<<20), 0o644)
	}
	var results []Result
	for i, name := range []string{"oldest", "old", "new"} {
		r, err := c.Do(t.Context(), stepOf("one", name, large))
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(filepath.Join(filepath.Dir(r.Dir), stepFile), at, at); err != nil {
			t.Fatal(err)
		}
	}
	// Used again, it's the newest.
	if r, err := c.Do(t.Context(), stepOf("one", "oldest", large)); err != nil || !r.Cached {
		t.Fatal(r, err)
	}
	there := func() (list []bool) {
		for _, r := range results {
			_, err := os.Stat(r.Dir)
			list = append(list, err == nil)
		}
		return list
	}
	release, err := c.hold()
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := c.Trim(0); freed != 0 || err != nil {
		t.Errorf("under a build: %d, %v", freed, err)
	}
	release()
	if freed, err := c.Trim(5 << 20); freed != 0 || err != nil {
		t.Errorf("there is room: %d, %v", freed, err)
	}
	if freed, err := c.Trim(5 << 19); freed < 1<<20 || freed > 3<<19 || err != nil {
		t.Errorf("freed %d, %v", freed, err)
	}
	if got := there(); !slices.Equal(got, []bool{true, false, true}) {
		t.Errorf("left are %v", got)
	}
	if _, err := c.Trim(0); err != nil || slices.Contains(there(), true) {
		t.Errorf("left are %v, %v", there(), err)
	}
}
