package bake

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/flock"
)

// hold keeps results in the cache from being pruned, until release is called or
// the process ends: a build goes on with what it has found there.
func (c *Cache) hold() (release func(), err error) {
	return c.holdAs(syscall.LOCK_SH)
}

func (c *Cache) holdAs(how int) (release func(), err error) {
	if err := os.MkdirAll(filepath.Join(c.Dir, "steps"), 0o755); err != nil {
		return nil, fmt.Errorf("the cache: %w", noSpace(c.Dir, err))
	}
	f, err := os.Open(filepath.Join(c.Dir, "steps"))
	if err != nil {
		return nil, fmt.Errorf("the cache: %w", err)
	}
	if err := flock.Lock(f, how); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	return func() { f.Close() }, nil
}

// ErrBusy is that a build goes on.
var ErrBusy = errors.New("a build goes on")

// holdAlone keeps builds from beginning, until release is called. While one goes on
// the error is ErrBusy.
func (c *Cache) holdAlone() (release func(), err error) {
	release, err = c.holdAs(syscall.LOCK_EX | syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrBusy
	}
	return release, err
}

// Prune removes the results of steps that no image of the store was made with, as
// well as what killed builds have left. It tells how many bytes that were. While a
// build goes on the error is ErrBusy.
func (c *Cache) Prune(store *images.Store) (freed int64, err error) {
	if _, err := os.Stat(filepath.Join(c.Dir, "steps")); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	release, err := c.holdAlone()
	if err != nil {
		return 0, err
	}
	defer release()
	if err := c.Sweep(); err != nil {
		return 0, err
	}
	list, err := store.List()
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, m := range list {
		for _, s := range m.Steps {
			if s.Key != "" {
				used[resultName(s.Name, s.Key)] = true
			}
		}
	}
	for _, kind := range []string{"steps", "locks"} {
		entries, err := os.ReadDir(filepath.Join(c.Dir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("the cache: %w", err)
		}
		for _, e := range entries {
			if used[e.Name()] || !strings.Contains(e.Name(), "-") {
				continue
			}
			path := filepath.Join(c.Dir, kind, e.Name())
			freed += diskUsage(path)
			if err := os.RemoveAll(path); err != nil {
				return freed, fmt.Errorf("the cache: %w", err)
			}
		}
	}
	return freed, nil
}

// diskUsage is how many bytes a removal frees: those of files that have no other
// name.
func diskUsage(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Nlink == 1 || e.IsDir()) {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}
