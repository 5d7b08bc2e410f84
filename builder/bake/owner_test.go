package bake

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckOwner: a cache serves the user who has filled it.
func TestCheckOwner(t *testing.T) {
	me, other := os.Geteuid(), os.Geteuid()+1
	dir := t.TempDir()
	cache, store := filepath.Join(dir, "a/build"), filepath.Join(dir, "a/images")
	if err := checkOwner(me, cache, store); err != nil {
		t.Errorf("one that isn't there yet: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(cache, "steps"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := checkOwner(me, cache, store); err != nil {
		t.Errorf("one's own: %v", err)
	}
	for _, who := range []int{other, 0} {
		if who == me {
			continue
		}
		if err := checkOwner(who, cache, store); err == nil || !strings.Contains(err.Error(), "a cache serves one user") || !strings.Contains(err.Error(), "KILN_CACHE") {
			t.Errorf("the user %d has another's: %v", who, err)
		}
	}
}

// TestSameIDs: what has other numbers in another namespace isn't taken from it.
func TestSameIDs(t *testing.T) {
	c := &Cache{Dir: t.TempDir()}
	for _, ids := range []string{"", "uid 0 1000 1", "uid 0 1000 1", ""} {
		if err := c.sameIDs(ids); err != nil {
			t.Errorf("%q: %v", ids, err)
		}
	}
	if err := c.sameIDs("uid 0 0 4294967295"); err == nil || !strings.Contains(err.Error(), "then uid 0 1000 1; now uid 0 0 4294967295") || !strings.Contains(err.Error(), "KILN_CACHE") {
		t.Errorf("got %v", err)
	}
}
