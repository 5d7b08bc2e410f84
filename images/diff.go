package images

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// What happened to a thing, from the first image to the second.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Diff is how two images differ. Its lists are sorted.
type Diff struct {
	// Same is that nothing differs but when, of what and by which tools the images
	// were made.
	Same     bool            `json:"same"`
	A        Compared        `json:"a"`
	B        Compared        `json:"b"`
	About    []Change        `json:"about,omitempty"` // the profile, the definition, the release
	Packages []PackageChange `json:"packages,omitempty"`
	Files    []FileChange    `json:"files,omitempty"`
	Modes    []ModeChange    `json:"modes,omitempty"`
	Units    []UnitChange    `json:"units,omitempty"`
	Kernel   []Change        `json:"kernel,omitempty"` // and initramfs and command line
	Disk     *DiskChange     `json:"disk,omitempty"`
	// Causes, Remade and Tools are empty where one of the two is a disk alone.
	Causes []Cause  `json:"causes,omitempty"`
	Remade []string `json:"remade,omitempty"` // steps that have another key
	Tools  []Change `json:"tools,omitempty"`
}

// Compared is one of the images of a Diff.
type Compared struct {
	ID         string    `json:"id"`
	Profile    string    `json:"profile"`
	Definition string    `json:"definition"`
	Created    time.Time `json:"created"`
}

// Change is a value that differs; empty is that there is none.
type Change struct {
	Name   string `json:"name"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// PackageChange is a package that only one image has, or each in another
// version. Two of one version differ where their hashes do.
type PackageChange struct {
	Name   string   `json:"name"`
	Change string   `json:"change"`
	Before *Package `json:"before,omitempty"`
	After  *Package `json:"after,omitempty"`
}

// FileChange is a file that only one image has, or whose content differs.
type FileChange struct {
	Path   string `json:"path"`
	Change string `json:"change"`
	// What has changed: type, content, target (of a link), attributes.
	What   []string `json:"what,omitempty"`
	Before *File    `json:"before,omitempty"`
	After  *File    `json:"after,omitempty"`
}

// ModeChange is a file that both images have, with another mode or owner,
// whether or not its content differs.
type ModeChange struct {
	Path   string `json:"path"`
	Before Access `json:"before"`
	After  Access `json:"after"`
}

// Access is who may do what with a file.
type Access struct {
	Mode string `json:"mode"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

func (a Access) String() string { return fmt.Sprintf("%s %d:%d", a.Mode, a.UID, a.GID) }

// DiskChange is how the raw images differ: in blocks of the same number.
type DiskChange struct {
	Before int64 `json:"before"` // bytes; 0 is no disk
	After  int64 `json:"after"`
	Blocks int   `json:"blocks"` // that differ
	Of     int   `json:"of"`     // of the larger disk; 0 is that blocks can't be compared
}

// Compare finds how b differs from a, from their manifests alone. Of one that is
// Bare, only what is in the image is compared.
func Compare(a, b *Manifest) *Diff {
	d := &Diff{
		A:        Compared{a.ID, a.Profile, a.Definition, a.Created},
		B:        Compared{b.ID, b.Profile, b.Definition, b.Created},
		About:    changes("release", release(a), release(b)),
		Kernel:   changes("kernel", a.Kernel, b.Kernel, "initramfs", a.Initrd, b.Initrd),
		Packages: comparePackages(a.Packages, b.Packages), Units: compareUnits(a.Files, b.Files),
	}
	d.Files, d.Modes = compareFiles(a.Files, b.Files)
	if a.Bare || b.Bare {
		d.Same = d.same()
		return d
	}
	d.About = append(changes("profile", a.Profile, b.Profile, "definition", a.Definition, b.Definition), d.About...)
	d.Kernel = append(d.Kernel, changes("command line", a.KernelArguments, b.KernelArguments)...)
	d.Disk = compareDisks(a.Disk, b.Disk)
	d.Same = d.same()
	d.Causes, d.Remade = causes(a, b)
	for _, name := range slices.Sorted(maps.Keys(union(a.Tools, b.Tools))) {
		d.Tools = append(d.Tools, changes(name, a.Tools[name], b.Tools[name])...)
	}
	return d
}

func (d *Diff) same() bool {
	return len(d.About)+len(d.Packages)+len(d.Files)+len(d.Modes)+len(d.Units)+len(d.Kernel) == 0 && d.Disk == nil
}

func release(m *Manifest) string {
	return strings.TrimSpace(strings.Join([]string{m.Release.ID, m.Release.Version, m.Release.Codename, m.Release.Architecture}, " "))
}

// changes takes triples of a name and the two values, and gives those that differ.
func changes(triples ...string) []Change {
	var list []Change
	for t := range slices.Chunk(triples, 3) {
		if t[1] != t[2] {
			list = append(list, Change{t[0], t[1], t[2]})
		}
	}
	return list
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(b)
	if all == nil {
		all = map[K]V{}
	}
	maps.Copy(all, a)
	return all
}

func comparePackages(a, b []Package) []PackageChange {
	// Where an image has a package for two architectures, each is one of its own.
	several := map[string]bool{}
	for _, list := range [][]Package{a, b} {
		seen := map[string]bool{}
		for _, p := range list {
			several[p.Name] = several[p.Name] || seen[p.Name]
			seen[p.Name] = true
		}
	}
	index := func(list []Package) map[string]*Package {
		byName := map[string]*Package{}
		for i := range list {
			p := &list[i]
			if several[p.Name] {
				byName[p.Name+":"+p.Architecture] = p
			} else {
				byName[p.Name] = p
			}
		}
		return byName
	}
	before, after := index(a), index(b)
	var changed []PackageChange
	for _, name := range slices.Sorted(maps.Keys(union(before, after))) {
		p, q := before[name], after[name]
		switch {
		case p == nil:
			changed = append(changed, PackageChange{Name: name, Change: Added, After: q})
		case q == nil:
			changed = append(changed, PackageChange{Name: name, Change: Removed, Before: p})
		case p.Version != q.Version || p.Architecture != q.Architecture || p.SHA256 != "" && q.SHA256 != "" && p.SHA256 != q.SHA256:
			changed = append(changed, PackageChange{Name: name, Change: Changed, Before: p, After: q})
		}
	}
	return changed
}

// byPath are pointers to the files, in the order of paths.
func byPath(files []File) []*File {
	list := make([]*File, len(files))
	for i := range files {
		list[i] = &files[i]
	}
	slices.SortStableFunc(list, func(a, b *File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

func compareFiles(before, after []File) (files []FileChange, modes []ModeChange) {
	a, b := byPath(before), byPath(after)
	for len(a)+len(b) > 0 {
		order := 0
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = cmp.Compare(a[0].Path, b[0].Path)
		}
		switch {
		case order < 0:
			files = append(files, FileChange{Path: a[0].Path, Change: Removed, Before: a[0]})
			a = a[1:]
		case order > 0:
			files = append(files, FileChange{Path: b[0].Path, Change: Added, After: b[0]})
			b = b[1:]
		default:
			if what := differs(a[0], b[0]); len(what) > 0 {
				files = append(files, FileChange{a[0].Path, Changed, what, a[0], b[0]})
			}
			was, is := Access{a[0].Mode, a[0].UID, a[0].GID}, Access{b[0].Mode, b[0].UID, b[0].GID}
			if was != is {
				modes = append(modes, ModeChange{a[0].Path, was, is})
			}
			a, b = a[1:], b[1:]
		}
	}
	return files, modes
}

// differs says what of a file differs, but for mode and owner.
func differs(a, b *File) []string {
	var what []string
	if a.Type != b.Type {
		what = append(what, "type")
	}
	if a.SHA256 != b.SHA256 || a.Size != b.Size {
		what = append(what, "content")
	}
	if a.Target != b.Target {
		what = append(what, "target")
	}
	if !maps.Equal(a.Attributes, b.Attributes) {
		what = append(what, "attributes")
	}
	return what
}

func compareDisks(a, b *Disk) *DiskChange {
	if a == nil && b == nil {
		return nil
	}
	var none Disk
	a, b = cmp.Or(a, &none), cmp.Or(b, &none)
	d := &DiskChange{Before: a.Size, After: b.Size}
	if a.BlockSize == b.BlockSize {
		d.Of = max(len(a.Blocks), len(b.Blocks))
		for i := range d.Of {
			if i >= len(a.Blocks) || i >= len(b.Blocks) || a.Blocks[i] != b.Blocks[i] {
				d.Blocks++
			}
		}
	}
	if a.Size == b.Size && a.BlockSize == b.BlockSize && d.Blocks == 0 && (a == &none) == (b == &none) {
		return nil
	}
	return d
}
