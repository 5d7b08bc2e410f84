package bake

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

// names are the numbers of a tree's users and groups.
type names struct {
	users  map[string]int
	groups map[string]int
	own    map[string]int // the primary group of each user
}

func readNames(root string) (*names, error) {
	n := &names{users: map[string]int{}, groups: map[string]int{}, own: map[string]int{}}
	read := func(file string, each func(fields []string) error) error {
		f, err := os.Open(filepath.Join(root, file))
		if err != nil {
			return fmt.Errorf("the tree has no /%s: %w", file, err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if fields := strings.Split(lines.Text(), ":"); len(fields) > 3 {
				if err := each(fields); err != nil {
					return fmt.Errorf("/%s: %q: %w", file, lines.Text(), err)
				}
			}
		}
		return lines.Err()
	}
	err := read("etc/passwd", func(f []string) (err error) {
		if n.users[f[0]], err = strconv.Atoi(f[2]); err != nil {
			return err
		}
		n.own[f[0]], err = strconv.Atoi(f[3])
		return err
	})
	if err == nil {
		err = read("etc/group", func(f []string) (err error) {
			n.groups[f[0]], err = strconv.Atoi(f[2])
			return err
		})
	}
	return n, err
}

// owner gives the numbers of a user and a group.
func (n *names) owner(user, group string) (uid, gid int, err error) {
	uid, ok := n.users[user]
	if !ok {
		return 0, 0, fmt.Errorf("the image has no user %s: no package of the profile makes it, nor does the profile itself", user)
	}
	if gid, ok = n.groups[group]; !ok {
		return 0, 0, fmt.Errorf("the image has no group %s: no package of the profile makes it, nor does the profile itself", group)
	}
	return uid, gid, nil
}

// treeWriter puts files into a tree.
type treeWriter struct {
	root  string
	names *names
}

// write puts directories and files into the tree, in the order of their paths.
func (t *treeWriter) write(files []plan.File, directories []plan.Directory) error {
	for len(files) > 0 || len(directories) > 0 {
		if len(files) == 0 || len(directories) > 0 && directories[0].Path <= files[0].Path {
			d := &directories[0]
			directories = directories[1:]
			if err := t.directory(d); err != nil {
				return fmt.Errorf("%s: the directory %s: %w", d.Origin, d.Path, err)
			}
			continue
		}
		f := &files[0]
		files = files[1:]
		if err := t.file(f); err != nil {
			if f.Origin.String() == "" {
				return fmt.Errorf("the file %s: %w", f.Path, err)
			}
			return fmt.Errorf("%s: the file %s: %w", f.Origin, f.Path, err)
		}
	}
	return nil
}

func (t *treeWriter) directory(d *plan.Directory) error {
	uid, gid, err := t.names.owner(d.Owner, d.Group)
	if err != nil {
		return err
	}
	if d.Path == "/" {
		return own(t.root, uid, gid, d.Mode)
	}
	// A link to a directory is as good as one.
	real, err := inTree(t.root, d.Path+"/.")
	if err != nil {
		return err
	}
	if err := t.parents(real); err != nil {
		return err
	}
	switch info, err := os.Lstat(real); {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(real, 0o700); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.IsDir():
		return errors.New("a package has a file there")
	}
	return own(real, uid, gid, d.Mode)
}

func (t *treeWriter) file(f *plan.File) error {
	uid, gid, err := t.names.owner(f.Owner, f.Group)
	if err != nil {
		return err
	}
	content, err := f.Content.Bytes()
	if err != nil {
		return err
	}
	real, err := inTree(t.root, f.Path)
	if err != nil {
		return err
	}
	if err := t.parents(real); err != nil {
		return err
	}
	if info, err := os.Lstat(real); err == nil {
		if info.IsDir() {
			return errors.New("a directory is there already")
		}
		if err := os.Remove(real); err != nil {
			return err
		}
	}
	if f.Target != "" {
		return errors.Join(os.Symlink(f.Target, real), os.Lchown(real, uid, gid))
	}
	if err := os.WriteFile(real, content, 0o600); err != nil {
		return err
	}
	return own(real, uid, gid, f.Mode)
}

// parents makes the directories above a path, as root's, where they're missing.
func (t *treeWriter) parents(real string) error {
	dir := filepath.Dir(real)
	if len(dir) <= len(t.root) {
		return nil
	}
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is no directory", strings.TrimPrefix(dir, t.root))
		}
		return nil
	}
	if err := t.parents(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return own(dir, 0, 0, 0o755)
}

// own sets owner and mode, in this order: a change of owner takes setuid away.
func own(name string, uid, gid int, mode fs.FileMode) error {
	m := mode & 0o777
	for bit, flag := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	if err := os.Lchown(name, uid, gid); err != nil {
		return err
	}
	return os.Chmod(name, m)
}

// sshKeys lets the image's users log in.
func (t *treeWriter) sshKeys(users []plan.User) error {
	for i := range users {
		u := &users[i]
		if len(u.SSHKeys) == 0 {
			continue
		}
		uid, gid := t.names.users[u.Name], t.names.own[u.Name]
		dir, err := inTree(t.root, path.Join(render.HomeOf(u), ".ssh"))
		if err != nil {
			return err
		}
		if err := t.parents(dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		file := filepath.Join(dir, "authorized_keys")
		if err := errors.Join(os.WriteFile(file, []byte(strings.Join(u.SSHKeys, "\n")+"\n"), 0o600), own(file, uid, gid, 0o600), own(dir, uid, gid, 0o700)); err != nil {
			return fmt.Errorf("%s: the SSH keys of %s: %w", u.Origin, u.Name, err)
		}
	}
	return nil
}

// readStatus lists the packages that are installed in the tree, by name.
func readStatus(root string) ([]images.Installed, error) {
	f, err := os.Open(filepath.Join(root, "var/lib/dpkg/status"))
	if err != nil {
		return nil, fmt.Errorf("the tree's packages: %w", err)
	}
	defer f.Close()
	list, err := images.ReadInstalled(f)
	if err != nil {
		return nil, fmt.Errorf("the tree's packages: %w", err)
	}
	return list, nil
}

// eachField is images.EachField for a file.
func eachField(file string, each func(key, value string)) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return images.EachField(f, each)
}
