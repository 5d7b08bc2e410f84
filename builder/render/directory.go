package render

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// The names in a directory that Tree.WriteDir has written.
const (
	listName = "MANIFEST"
	rootName = "rootfs"
)

// WriteDir writes the tree to dir: the files below rootfs, and the list of them,
// with owners and modes, in MANIFEST. dir must not exist, be empty, or hold a
// tree that is then replaced; a failure leaves it as it was.
//
// Owners are set where the caller is root and this machine knows the names;
// MANIFEST has them all. With a secret in the tree, dir is for its owner alone,
// and so is each file with one, whatever mode it has on its host.
func (t *Tree) WriteDir(dir string) error {
	err := replaceDirectory(dir, isTree, func(tmp string) error {
		if err := t.writeRoot(filepath.Join(tmp, rootName)); err != nil {
			return err
		}
		if err := writeSynced(filepath.Join(tmp, listName), t.List(), 0o644); err != nil {
			return err
		}
		if t.HoldsSecrets() {
			return nil // tmp has mode 0700
		}
		return os.Chmod(tmp, 0o755)
	})
	if err != nil {
		return fmt.Errorf("writing the tree %s: %w", dir, err)
	}
	return nil
}

// isTree tells whether a directory was written by WriteDir.
func isTree(dir string, entries []fs.DirEntry) bool {
	for _, e := range entries {
		if e.Name() != listName && e.Name() != rootName {
			return false
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, listName))
	return len(entries) == 0 || err == nil && bytes.HasPrefix(list, []byte(listHeader))
}

func (t *Tree) writeRoot(root string) error {
	if err := makeDirectory(root); err != nil {
		return err
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		path := filepath.Join(root, e.Path)
		if err := makeParents(root, e.Path); err != nil {
			return err
		}
		var err error
		switch {
		case e.Dir:
			err = makeDirectory(path)
		case e.Target != "":
			err = os.Symlink(e.Target, path)
		default:
			err = writeSynced(path, e.Content, 0o600)
		}
		if err != nil {
			return err
		}
	}
	owners := newOwners()
	// From the last to the first: a directory without w or x for us gets its mode
	// when all is in it.
	for i := len(t.Entries) - 1; i >= 0; i-- {
		e := &t.Entries[i]
		path := filepath.Join(root, e.Path)
		if err := owners.set(path, e.Owner, e.Group); err != nil {
			return err
		}
		if e.Target != "" {
			continue
		}
		mode := e.Mode
		if e.Secret {
			mode &= 0o700
		}
		if err := os.Chmod(path, goMode(mode)); err != nil {
			return err
		}
	}
	return nil
}

// goMode turns chmod(1)'s bits into Go's.
func goMode(mode fs.FileMode) fs.FileMode {
	m := mode & fs.ModePerm
	for bit, special := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= special
		}
	}
	return m
}

// makeParents makes the directories between root and path that no entry speaks
// of.
func makeParents(root, path string) error {
	dir := parent(path)
	if dir == "/" {
		return nil
	}
	if err := makeParents(root, dir); err != nil {
		return err
	}
	return makeDirectory(filepath.Join(root, dir))
}

// makeDirectory makes a directory of mode 0755, whatever the umask is, unless
// there is one.
func makeDirectory(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// owners knows the numbers of this machine's users and groups.
type owners struct {
	users, groups map[string]int
}

func newOwners() owners { return owners{map[string]int{}, map[string]int{}} }

// set gives path its owner and group where that can be done.
func (o owners) set(path, owner, group string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid := number(o.users, owner, func() (string, error) {
		u, err := user.Lookup(owner)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
	gid := number(o.groups, group, func() (string, error) {
		g, err := user.LookupGroup(group)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return os.Lchown(path, uid, gid) // -1 leaves one as it is
}

func number(known map[string]int, name string, lookup func() (string, error)) int {
	if n, ok := known[name]; ok {
		return n
	}
	known[name] = -1
	if s, err := lookup(); err == nil {
		if n, err := strconv.Atoi(s); err == nil {
			known[name] = n
		}
	}
	return known[name]
}

// writeSynced writes a new file of exactly this mode.
func writeSynced(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// replaceDirectory has fill write a new directory beside dir, and puts it in
// dir's place. An existing dir is replaced only if mine knows its content.
func replaceDirectory(dir string, mine func(dir string, entries []fs.DirEntry) bool, fill func(tmp string) error) error {
	dir = filepath.Clean(dir)
	entries, err := os.ReadDir(dir)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if exists && !mine(dir, entries) {
		return errors.New("it holds other files, which would be lost: name a directory that doesn't exist yet")
	}
	above := filepath.Dir(dir)
	if err := os.MkdirAll(above, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(above, "."+filepath.Base(dir)+".new-")
	if err != nil {
		return err
	}
	defer removeAll(tmp)
	if err := fill(tmp); err != nil {
		return err
	}
	if !exists {
		return os.Rename(tmp, dir)
	}
	old := tmp + ".old"
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return errors.Join(err, os.Rename(old, dir))
	}
	return removeAll(old)
}

// removeAll is os.RemoveAll also for directories that their owner can't write
// to, as a tree may have them.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
