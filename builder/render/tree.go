package render

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/plan"
)

// Entry is one directory, file or symbolic link of a Tree.
type Entry struct {
	Path    string // absolute, as on the host
	Owner   string
	Group   string
	Mode    fs.FileMode // as chmod(1) numbers it
	Dir     bool
	Target  string // of a symbolic link
	Content []byte
	Secret  bool // the content has a resolved secret
}

// Tree is what a plan has on a host's disk, to look at and to compare with a
// live host, sorted by path. Directories above the entries aren't among them
// unless the plan says something about them.
type Tree struct {
	Entries []Entry
	// Others are what the plan has besides files, a line each: packages, groups,
	// users, units.
	Others []string
}

// Files is the tree of the Host half for a golden image, and of both halves for
// a stock one.
func Files(p *plan.Plan, o Options) (*Tree, error) {
	var files []plan.File
	directories, t := p.Host.Directories, &Tree{}
	if o.Target.hasImage() {
		image, err := ImageFiles(&p.Image)
		if err != nil {
			return nil, err
		}
		files, directories = image, mergeDirectories(p.Image.Directories, directories)
		for _, pkg := range p.Image.Packages {
			t.Others = append(t.Others, "package "+pkg.Name)
		}
		t.addOthers(&p.Image.Layer)
	}
	if o.Target.hasHost() {
		host, err := hostFiles(p)
		if err != nil {
			return nil, err
		}
		files = mergeFiles(files, host)
		t.addOthers(&p.Host.Layer)
	}
	return t, t.fill(files, directories)
}

// ImageTree is the tree of the Image half alone.
func ImageTree(image *plan.Image) (*Tree, error) {
	files, err := ImageFiles(image)
	if err != nil {
		return nil, err
	}
	t := &Tree{}
	return t, t.fill(files, image.Directories)
}

// fill adds files and directories, and looks whether they can be on one disk.
func (t *Tree) fill(files []plan.File, directories []plan.Directory) error {
	for _, d := range directories {
		t.Entries = append(t.Entries, Entry{Path: d.Path, Owner: d.Owner, Group: d.Group, Mode: d.Mode, Dir: true})
	}
	for i := range files {
		f := &files[i]
		if err := checkFile(f); err != nil {
			return err
		}
		content, err := f.Content.Bytes()
		if err != nil {
			return fmt.Errorf("the content of %s: %w", f.Path, err)
		}
		t.Entries = append(t.Entries, Entry{Path: f.Path, Owner: f.Owner, Group: f.Group, Mode: f.Mode, Target: f.Target, Content: content, Secret: f.Content.HoldsSecrets()})
	}
	slices.SortStableFunc(t.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return t.check()
}

func (t *Tree) addOthers(l *plan.Layer) {
	number := func(kind string, n *int) string {
		if n == nil {
			return ""
		}
		return fmt.Sprintf(" %s=%d", kind, *n)
	}
	for _, g := range l.Groups {
		t.Others = append(t.Others, "group "+g.Name+number("gid", g.GID))
	}
	for i := range l.Users {
		u := &l.Users[i]
		t.Others = append(t.Others, "user "+u.Name+number("uid", u.UID)+" home="+homeOf(u)+" shell="+shellOf(u))
	}
	for _, u := range l.Units {
		t.Others = append(t.Others, "unit "+u.Name+" "+string(u.State))
	}
}

// check finds what couldn't be on one disk, or would get out of the directory
// that the tree is written to.
func (t *Tree) check() error {
	leaf := map[string]bool{}
	for i, e := range t.Entries {
		if e.Path != "/" && (!strings.HasPrefix(e.Path, "/") || strings.HasSuffix(e.Path, "/") || strings.ContainsFunc(e.Path, notInLine)) {
			return fmt.Errorf("%q is no absolute path", e.Path)
		}
		if !fs.ValidPath(relative(e.Path)) {
			return fmt.Errorf("the path %s has empty parts, . or .. in it", e.Path)
		}
		if i > 0 && t.Entries[i-1].Path == e.Path {
			return fmt.Errorf("the plan has both a file and a directory, or two files, at %s", e.Path)
		}
		for dir := parent(e.Path); dir != "/"; dir = parent(dir) {
			if leaf[dir] {
				return fmt.Errorf("%s can't be there: the plan has a file or a link at %s", e.Path, dir)
			}
		}
		leaf[e.Path] = !e.Dir
	}
	return nil
}

// relative is an absolute path without its slash.
func relative(path string) string {
	if path == "/" {
		return "."
	}
	return path[1:]
}

func parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return "/"
}

// HoldsSecrets tells whether the tree gives a resolved secret away.
func (t *Tree) HoldsSecrets() bool {
	return slices.ContainsFunc(t.Entries, func(e Entry) bool { return e.Secret })
}

// listHeader begins the list of a tree, and tells it from other files.
const listHeader = "# kiln files: MODE OWNER:GROUP SHA256-or-kind PATH\n"

// List is the tree as text: a line for each entry, to be compared with another
// host's, and one for each of Others.
func (t *Tree) List() []byte {
	b := []byte(listHeader)
	for _, e := range t.Entries {
		kind := "directory"
		switch {
		case e.Target != "":
			kind = "link"
		case !e.Dir:
			sum := sha256.Sum256(e.Content)
			kind = hex.EncodeToString(sum[:])
		}
		b = appendMode(b, e.Mode)
		b = append(b, " "+e.Owner+":"+e.Group+" "+kind+" "+e.Path...)
		if e.Target != "" {
			b = append(b, " -> "+e.Target...)
		}
		b = append(b, '\n')
	}
	for _, o := range t.Others {
		b = append(b, "# "+o+"\n"...)
	}
	return b
}

// WriteTar writes the tree as a tar archive, with the names of owners and
// groups, and no times. The same tree makes the same bytes.
func (t *Tree) WriteTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, e := range t.Entries {
		h := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     relative(e.Path),
			Mode:     int64(e.Mode) & 0o7777,
			Uname:    e.Owner,
			Gname:    e.Group,
			Size:     int64(len(e.Content)),
			ModTime:  time.Unix(0, 0),
			Format:   tar.FormatPAX,
		}
		if e.Owner != "root" {
			h.Uid = unknownID
		}
		if e.Group != "root" {
			h.Gid = unknownID
		}
		switch {
		case e.Dir:
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case e.Target != "":
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, e.Target, 0o777, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("writing %s into a tar archive: %w", e.Path, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write(e.Content); err != nil {
				return fmt.Errorf("writing %s into a tar archive: %w", e.Path, err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("ending a tar archive: %w", err)
	}
	return nil
}

// unknownID stands for the numbers of owners that only their host knows: names
// count, and where a name is missing, nobody gets the file, and not root.
const unknownID = 65534
