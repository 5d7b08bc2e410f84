package bake

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/userns"
)

// CheckOwner finds, before anything is made, a cache that is another user's. Trees
// that a normal user has made have other owners there than root's have, so a cache
// serves one of them.
func CheckOwner(cache string, store *images.Store) error {
	return checkOwner(os.Geteuid(), cache, store.Dir)
}

func checkOwner(me int, cache, store string) error {
	const remedy = "name a folder of your own in KILN_CACHE, or unset that: then it's in your home"
	folders := []string{filepath.Join(cache, "steps")}
	if me != 0 {
		folders = append(folders, cache, filepath.Join(cache, "locks"), filepath.Join(cache, "tmp"), filepath.Join(cache, "debs"), store)
	}
	for _, dir := range folders {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the cache: %w: %s", err, remedy)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != me {
			return fmt.Errorf("the cache's folder %s belongs to %s, and a cache serves one user: %s", dir, userName(st.Uid), remedy)
		}
	}
	for _, dir := range []string{cache, store} {
		for _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir); _, err = os.Stat(dir) {
			dir = filepath.Dir(dir)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("the cache can't be written to %s (%w): %s", dir, err, remedy)
		}
	}
	return nil
}

func userName(uid uint32) string {
	id := strconv.Itoa(int(uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "the user " + id
}

// idsName is the file of the cache that says what numbers the owners of its trees
// have: those of who wrote it.
const idsName = "ids"

// sameIDs compares them with this process's. The cache is held.
func (c *Cache) sameIDs(ids string) error {
	if ids == "" {
		return nil
	}
	name := filepath.Join(c.Dir, idsName)
	was, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return noSpace(c.Dir, os.WriteFile(name, []byte(ids+"\n"), 0o644))
	case err != nil:
		return fmt.Errorf("the cache: %w", err)
	case strings.TrimSpace(string(was)) == ids:
		return nil
	}
	return fmt.Errorf("the cache %s was filled when this user had other subordinate IDs, or none, so that the files in it have other owners now (then %s; now %s): name another folder in KILN_CACHE, or remove it: sudo rm -r %[1]s",
		c.Dir, strings.TrimSpace(string(was)), ids)
}

// checkIDs finds accounts that the user namespace has no number for.
func (b *builder) checkIDs() error {
	const remedy = "which this user's subordinate IDs don't reach: he needs more of them (/etc/subuid and /etc/subgid), or root has to build it (sudo kiln build)"
	for i := range b.image.Users {
		if u := &b.image.Users[i]; u.UID != nil && !userns.Has(*u.UID) {
			return fmt.Errorf("%s: the user %s has the number %d, %s", u.Origin, u.Name, *u.UID, remedy)
		}
	}
	for i := range b.image.Groups {
		if g := &b.image.Groups[i]; g.GID != nil && !userns.Has(*g.GID) {
			return fmt.Errorf("%s: the group %s has the number %d, %s", g.Origin, g.Name, *g.GID, remedy)
		}
	}
	return nil
}
