package bake

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// TestCacheWithABlank: apt couldn't read the packages of such a cache, and what it
// says of that helps nobody.
func TestCacheWithABlank(t *testing.T) {
	b := newBuilder(&Options{Cache: filepath.Join(t.TempDir(), "a cache"), Store: &images.Store{}})
	if err := b.checkMachine(t.Context()); err == nil || !strings.Contains(err.Error(), `a cache" has a blank in its path`) || !strings.Contains(err.Error(), "KILN_CACHE") {
		t.Errorf("got %v", err)
	}
}
