package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/alisw/kiln/internal/ext4"
)

const (
	mostDepth = 200 // folders below each other
	mostText  = 16 << 20
	mostLinks = 40 // that lead to each other, as in Linux
)

// tree is what a root filesystem has.
type tree struct {
	disk    *diskFile
	root    *node
	inodes  map[uint32]*ext4.Inode
	names   map[uint32]string // the first path of each
	pieces  []piece           // of files' blocks, in their order on the disk
	joints  []joint
	used    *ext4.Bitmap
	regular []*ext4.Inode
}

type node struct {
	name     string
	inode    *ext4.Inode
	parent   *node
	children []*node // by name
}

// piece is a part of a file that lies in one place, in bytes of the disk.
type piece struct {
	start, end int64
	at         int64 // where in the file it begins
	inode      *ext4.Inode
}

// joint is a place in a file whose two sides lie apart on the disk.
type joint struct {
	inode *ext4.Inode
	at    int64
}

func readTree(ctx context.Context, d *diskFile) (*tree, error) {
	t := &tree{disk: d, inodes: map[uint32]*ext4.Inode{}, names: map[uint32]string{}}
	err := d.fs.Inodes(func(i *ext4.Inode) error {
		if i.Number < ext4.FirstInode && i.Number != ext4.RootInode {
			return nil
		}
		t.inodes[i.Number] = i
		return t.place(i)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(t.pieces, func(a, b piece) int { return cmp.Compare(a.start, b.start) })
	root := t.inodes[ext4.RootInode]
	if root == nil || !root.IsDir() {
		return nil, errors.New("its root filesystem has no root folder")
	}
	t.root = &node{inode: root}
	seen := map[uint32]bool{ext4.RootInode: true}
	// What all names can take at most: it's a bound for what isn't made by mke2fs.
	left := d.fs.Blocks * d.fs.BlockSize
	if err := t.grow(ctx, t.root, "", seen, &left, 0); err != nil {
		return nil, err
	}
	t.used, err = d.fs.Bitmap()
	return t, err
}

// place notes where a file lies.
func (t *tree) place(i *ext4.Inode) error {
	extents, err := t.disk.fs.Extents(i)
	if err != nil {
		return err
	}
	if i.IsRegular() && len(extents) > 0 {
		t.regular = append(t.regular, i)
	}
	bs, base := t.disk.fs.BlockSize, t.disk.root.start
	for n, x := range extents {
		t.pieces = append(t.pieces, piece{start: base + x.Physical*bs, end: base + (x.Physical+x.Blocks)*bs, at: x.Logical * bs, inode: i})
		if n > 0 {
			if last := extents[n-1]; last.Logical+last.Blocks == x.Logical && last.Physical+last.Blocks != x.Physical {
				t.joints = append(t.joints, joint{i, x.Logical * bs})
			}
		}
	}
	return nil
}

func (t *tree) grow(ctx context.Context, n *node, dir string, seen map[uint32]bool, left *int64, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if depth > mostDepth {
		return fmt.Errorf("its folders go deeper than %d: %.200s", mostDepth, dir)
	}
	entries, err := t.disk.fs.ReadDir(n.inode)
	if err != nil {
		return err
	}
	for _, e := range entries {
		i, ok := t.inodes[e.Inode]
		if !ok {
			return fmt.Errorf("%s/%s is an inode that isn't in use (%d): e2fsck mends it", dir, e.Name, e.Inode)
		}
		name := dir + "/" + e.Name
		if *left -= int64(len(name)); *left < 0 {
			return errors.New("its names need more room than it has")
		}
		n.children = append(n.children, &node{name: e.Name, inode: i, parent: n})
		if was, ok := t.names[i.Number]; !ok || name < was {
			t.names[i.Number] = name
		}
	}
	slices.SortFunc(n.children, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	for _, c := range n.children {
		if !c.inode.IsDir() {
			continue
		}
		if seen[c.inode.Number] {
			return fmt.Errorf("the folder %s/%s has another name, too: e2fsck mends it", dir, c.name)
		}
		seen[c.inode.Number] = true
		if err := t.grow(ctx, c, dir+"/"+c.name, seen, left, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) child(name string) *node {
	i, ok := sort.Find(len(n.children), func(i int) int { return cmp.Compare(name, n.children[i].name) })
	if !ok {
		return nil
	}
	return n.children[i]
}

func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	return n.parent.path() + "/" + n.name
}

// walk calls each for all below n, a folder before what is in it.
func (n *node) walk(dir string, each func(name string, n *node)) {
	for _, c := range n.children {
		name := dir + "/" + c.name
		each(name, c)
		c.walk(name, each)
	}
}

// lstat finds what a path names, following the links of its folders. nil is that
// there is nothing.
func (t *tree) lstat(name string) *node { return t.find(name, false) }

// stat is lstat, and follows a link at the end.
func (t *tree) stat(name string) *node { return t.find(name, true) }

func (t *tree) find(name string, follow bool) *node {
	links := 0
	at := t.root
	rest := strings.Split(name, "/")
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		switch word {
		case "", ".":
			continue
		case "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		next := at.child(word)
		if next == nil {
			return nil
		}
		if !next.inode.IsLink() || !follow && len(rest) == 0 {
			at = next
			continue
		}
		target, err := t.disk.fs.Readlink(next.inode)
		if links++; err != nil || links > mostLinks || len(rest) > 4096 {
			return nil
		}
		if path.IsAbs(target) {
			at = t.root
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at
}

// read gives the content of a regular file; nil is that there is none.
func (t *tree) read(n *node) ([]byte, error) {
	if n == nil || !n.inode.IsRegular() {
		return nil, nil
	}
	b, err := t.disk.fs.ReadFile(n.inode, mostText)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.path(), err)
	}
	return b, nil
}

// glob lists what a pattern matches, by path. Only its last elements can have
// wildcards.
func (t *tree) glob(pattern string) []*node {
	list := []*node{t.root}
	for _, word := range strings.Split(strings.Trim(pattern, "/"), "/") {
		var next []*node
		for _, n := range list {
			if !strings.ContainsAny(word, "*?[") {
				if c := n.child(word); c != nil {
					next = append(next, c)
				}
				continue
			}
			for _, c := range n.children {
				if ok, err := path.Match(word, c.name); ok && err == nil {
					next = append(next, c)
				}
			}
		}
		list = next
	}
	return list
}

// at finds the piece that has a byte of the disk.
func (t *tree) at(offset int64) *piece {
	i := sort.Search(len(t.pieces), func(i int) bool { return t.pieces[i].end > offset })
	if i == len(t.pieces) || t.pieces[i].start > offset {
		return nil
	}
	return &t.pieces[i]
}
