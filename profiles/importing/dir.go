package importing

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/alisw/kiln/internal/problem"
)

// maxFile bounds the size of one imported file, in bytes: a larger one is no
// configuration.
const maxFile = 16 << 20

// File is a file or a symbolic link that was imported, byte for byte.
type File struct {
	Path   string // on a host
	Owner  string
	Group  string
	Mode   fs.FileMode // as chmod(1) numbers it
	Link   string      // a symbolic link's target; empty for a regular file
	Data   []byte
	Secret bool // it seems to hold a secret as literal text
}

// Directory is a directory that isn't root's with mode 0755, or is empty.
type Directory struct {
	Path         string
	Owner, Group string
	Mode         fs.FileMode
}

// Tree is a live directory. Files and Directories are sorted by path.
type Tree struct {
	Files       []File
	Directories []Directory
	// Problems are what can't come along, and what is worth a look. Files with
	// secrets are among both.
	Problems problem.List
}

// DirOptions change how a directory is read. The zero value reads it as the
// host has it.
type DirOptions struct {
	// As is the directory's path on the hosts; empty: its own absolute path.
	As string
	// Owner and Group are set for a copy of a host's directory, which belongs to
	// whoever copied it; empty: as they are.
	Owner, Group string
}

// Dir reads a live directory with all below it. The error is for a directory
// that can't be read at all.
func Dir(dir string, o DirOptions) (Tree, error) {
	as := o.As
	if as == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return Tree{}, fmt.Errorf("finding the path of %s: %w", dir, err)
		}
		as = filepath.ToSlash(abs)
	}
	if !path.IsAbs(as) || !hostPath(as) {
		return Tree{}, fmt.Errorf("%q is no absolute path on a host: give one with --as, such as /etc/nomad.d", as)
	}
	as = path.Clean(as)
	if !hostPath(o.Owner) || !hostPath(o.Group) {
		return Tree{}, fmt.Errorf("%q is no owner and group of files", o.Owner+":"+o.Group)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return Tree{}, fmt.Errorf("reading the directory to import: %w", err)
	}
	if !info.IsDir() {
		return Tree{}, fmt.Errorf("%s is no directory: import the directory that it is in", dir)
	}
	r := &reader{dir: dir, as: as, options: o, names: map[string]string{}}
	// A symbolic link to the directory stands for it.
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Tree{}, fmt.Errorf("reading the directory to import: %w", err)
	}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(root, p)
		if relErr != nil {
			return relErr
		}
		return r.visit(p, filepath.ToSlash(rel), d, err)
	})
	if err != nil {
		return Tree{}, err
	}
	r.tree.Problems.Sort()
	slices.SortFunc(r.tree.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(r.tree.Directories, func(a, b Directory) int { return strings.Compare(a.Path, b.Path) })
	return r.tree, nil
}

// hostPath tells whether a path can be written in a profile.
func hostPath(p string) bool {
	return utf8.ValidString(p) && !strings.ContainsFunc(p, unicode.IsControl)
}

type reader struct {
	dir, as string
	options DirOptions
	tree    Tree
	names   map[string]string // of users and groups, by u or g and number
}

func (r *reader) visit(p, rel string, d fs.DirEntry, err error) error {
	pos := problem.Position{File: filepath.Join(r.dir, filepath.FromSlash(rel))}
	target := path.Join(r.as, rel)
	if err != nil {
		if rel == "." {
			return fmt.Errorf("reading the directory to import: %w", err)
		}
		r.tree.Problems.Addf(pos, "import as root, or as who may read it", "it can't be read: %s", cause(err))
		return nil
	}
	if !hostPath(target) {
		r.tree.Problems.Addf(problem.Position{File: strconv.QuoteToASCII(pos.File)}, "rename it", "its name has bytes that can't be written in a profile")
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	info, err := d.Info()
	if err != nil {
		r.tree.Problems.Addf(pos, "import again", "it went away, or can't be read: %s", cause(err))
		return nil
	}
	owner, group := r.owner(pos, info)
	f := File{Path: target, Owner: owner, Group: group, Mode: modeBits(info.Mode())}
	switch info.Mode().Type() {
	case 0:
		r.regular(pos, p, f)
	case fs.ModeSymlink:
		r.link(pos, p, f)
	case fs.ModeDir:
		r.directory(p, f)
	default:
		r.tree.Problems.Addf(pos, "let what uses it make it on the host", "it is a %s, which no profile can hold", special(info.Mode()))
	}
	return nil
}

// cause is an error without the path, which the position has.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func special(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// modeBits are the mode as chmod(1) numbers it.
func modeBits(m fs.FileMode) fs.FileMode {
	bits := m.Perm()
	for bit, number := range map[fs.FileMode]fs.FileMode{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			bits |= number
		}
	}
	return bits
}

// owner is who the file belongs to, by name: numbers differ between hosts.
func (r *reader) owner(pos problem.Position, info fs.FileInfo) (owner, group string) {
	owner, group = r.options.Owner, r.options.Group
	stat, ok := info.Sys().(*syscall.Stat_t)
	if owner == "" {
		owner = "root"
		if ok {
			owner = r.name(pos, "u", strconv.FormatUint(uint64(stat.Uid), 10))
		}
	}
	if group == "" {
		group = "root"
		if ok {
			group = r.name(pos, "g", strconv.FormatUint(uint64(stat.Gid), 10))
		}
	}
	return owner, group
}

func (r *reader) name(pos problem.Position, kind, id string) string {
	if id == "0" {
		return "root" // also where the group is called wheel
	}
	if name := r.names[kind+id]; name != "" {
		return name
	}
	var name, what string
	var err error
	if kind == "u" {
		var u *user.User
		what = "user"
		if u, err = user.LookupId(id); err == nil {
			name = u.Username
		}
	} else {
		var g *user.Group
		what = "group"
		if g, err = user.LookupGroupId(id); err == nil {
			name = g.Name
		}
	}
	if err != nil || name == "" {
		r.tree.Problems.Addf(pos, "write its "+map[string]string{"u": "owner", "g": "group"}[kind]+" in profile.yaml, which has root for now", "its %s %s has no name here", what, id)
		return "root"
	}
	r.names[kind+id] = name
	return name
}

func (r *reader) regular(pos problem.Position, p string, f File) {
	data, err := readRegular(p)
	if err != nil {
		r.tree.Problems.Addf(pos, "import as root, or as who may read it", "it can't be read: %s", cause(err))
		return
	}
	if len(data) > maxFile {
		r.tree.Problems.Addf(pos, "put it into a package", "it is larger than %d MiB", maxFile>>20)
		return
	}
	f.Data = data
	if found := literalSecrets(pos.File, data); len(found) > 0 {
		f.Secret = true
		r.tree.Problems = append(r.tree.Problems, found...)
	}
	if m := teigi().FindIndex(data); m != nil {
		at := problem.Position{File: pos.File, Line: strings.Count(string(data[:m[0]]), "\n") + 1}
		r.tree.Problems.Addf(at, "import the file as an ERB template", "one of Teigi's placeholders stands here as literal text")
	}
	if strings.HasSuffix(f.Path, ".tmpl") {
		if !utf8.Valid(data) || strings.ContainsRune(string(data), 0) {
			r.tree.Problems.Addf(pos, "give it another name", "a file of a profile that ends in .tmpl is a template, and this one is no text that profile.yaml could hold instead")
			return
		}
		r.tree.Problems.Warnf(pos, "", "its name ends in .tmpl, as a profile's templates do: it stands in profile.yaml instead, under content")
	}
	r.tree.Files = append(r.tree.Files, f)
}

// readRegular reads a file that is still a regular one: what was put in its
// place in the meantime is neither followed nor waited for.
func readRegular(p string) ([]byte, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it was replaced meanwhile")
	}
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

func (r *reader) link(pos problem.Position, p string, f File) {
	target, err := os.Readlink(p)
	if err != nil || !hostPath(target) {
		r.tree.Problems.Addf(pos, "write the link in profile.yaml", "where the symbolic link leads can't be read, or not be written in a profile")
		return
	}
	f.Link = target
	r.tree.Files = append(r.tree.Files, f)
}

func (r *reader) directory(p string, f File) {
	entries, err := os.ReadDir(p)
	if err == nil && len(entries) > 0 && f.Owner == "root" && f.Group == "root" && f.Mode == 0o755 {
		return
	}
	r.tree.Directories = append(r.tree.Directories, Directory{f.Path, f.Owner, f.Group, f.Mode})
}
