package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// A layer is laid over a root filesystem that Root made: what is in an image's
// layer is a few hundred small files, and making the whole filesystem anew for
// them takes as long as making it the first time. No program does that as it has
// to be done: the kernel's driver needs a mount, and what it writes depends on
// its mood; debugfs exits as if nothing had failed, and leaves what it removes.
//
// Where things go depends on their paths, as far as there is room: the same file
// has the same inode and the same blocks in all images of a base, so that images
// which differ in little have most of their blocks in common.

// Entry is one thing of a layer, at Path, in place of whatever is there. Only
// directories stay what they are, with all that is in them.
type Entry struct {
	Path     string      // absolute and clean
	Type     fs.FileMode // 0 for a file, fs.ModeDir, fs.ModeSymlink; Gone
	Mode     uint16      // permissions, in the 12 lowest bits
	UID, GID uint32
	Content  []byte
	Target   string            // of a link
	Extended map[string][]byte // extended attributes, as getxattr(2) gives them
}

// Gone is the type of an entry that takes away what the base has at its path.
const Gone fs.FileMode = fs.ModeIrregular

// Lay lays the entries over the root filesystem in f that begins at offset. All
// that is new or changed has the time t. It gives the filesystem's blocks of
// 4 KiB that it has written, in their order; what nothing has any more is zero.
//
// After an error the filesystem is worth nothing.
func Lay(ctx context.Context, f *os.File, offset int64, entries []Entry, t time.Time) (written []int64, err error) {
	p, err := newPatch(f, offset, entries, t)
	if err != nil {
		return nil, err
	}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	for i := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e := &entries[i]
		if err := p.lay(e); err != nil {
			return nil, fmt.Errorf("laying %s over the root filesystem: %w", e.Path, err)
		}
	}
	return p.flush()
}

// lay puts one entry in its place.
func (p *patch) lay(e *Entry) error {
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.Contains(e.Path, "\x00") {
		return errors.New("that isn't an absolute, clean path")
	}
	if e.Path == "/" {
		if e.Type != fs.ModeDir {
			return errors.New("the root is a directory")
		}
		return p.restyle(rootInode, e)
	}
	parent, err := p.walk(path.Dir(e.Path))
	if err != nil {
		return err
	}
	name := path.Base(e.Path)
	if len(name) > 255 {
		return errors.New("its name has more than 255 bytes")
	}
	old, err := p.find(parent, name)
	if err != nil {
		return err
	}
	if old != 0 && e.Type == fs.ModeDir {
		if isDir, err := p.isDir(old); err != nil || isDir {
			return errors.Join(err, p.restyle(old, e))
		}
	}
	if old != 0 {
		if err := p.remove(parent, name, old); err != nil {
			return err
		}
	}
	if e.Type == Gone {
		return nil
	}
	number, err := p.create(parent, e)
	if err != nil {
		return err
	}
	return p.link(parent, name, number, e.Type)
}

// walk gives the directory at an absolute path.
func (p *patch) walk(dir string) (uint32, error) {
	number := uint32(rootInode)
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		next, err := p.find(number, part)
		if err != nil {
			return 0, err
		}
		if next == 0 {
			return 0, fmt.Errorf("there is no directory %s in it", dir)
		}
		if isDir, err := p.isDir(next); err != nil || !isDir {
			return 0, errors.Join(err, fmt.Errorf("%s isn't a directory in it", dir))
		}
		number = next
	}
	return number, nil
}

// create makes an inode for the entry.
func (p *patch) create(parent uint32, e *Entry) (uint32, error) {
	number, err := p.newInode(e.Path, e.Type == fs.ModeDir)
	if err != nil {
		return 0, err
	}
	inode, err := p.inode(number)
	if err != nil {
		return 0, err
	}
	clear(inode)
	inode.put16(inodeLinks, 1)
	inode.put16(inodeExtra, inodeExtraEnd-inodeExtra+8) // with crtime, version and project, as mke2fs has it
	switch e.Type {
	case fs.ModeDir:
		err = p.fillDirectory(number, inode, parent, e)
	case fs.ModeSymlink:
		err = p.fillLink(number, inode, e)
	case 0:
		err = p.fillFile(number, inode, e, e.Content)
	default:
		err = fmt.Errorf("a layer has files, directories and links, and no %s", e.Type)
	}
	if err == nil {
		err = p.style(number, inode, e)
	}
	return number, err
}

// The types in an inode's mode.
const (
	modeFile = 0x8000
	modeDir  = 0x4000
	modeLink = 0xa000
	modeType = 0xf000
)

// style gives an inode its owner, mode, times and extended attributes.
func (p *patch) style(number uint32, inode inode, e *Entry) error {
	kind := map[fs.FileMode]uint16{0: modeFile, fs.ModeDir: modeDir, fs.ModeSymlink: modeLink}[e.Type]
	mode := e.Mode & 0o7777
	if e.Type == fs.ModeSymlink {
		mode = 0o777
	}
	inode.put16(inodeMode, kind|mode)
	inode.put16(inodeUID, uint16(e.UID))
	inode.put16(inodeUIDHigh, uint16(e.UID>>16))
	inode.put16(inodeGID, uint16(e.GID))
	inode.put16(inodeGIDHigh, uint16(e.GID>>16))
	for _, at := range [][2]int{{inodeAtime, inodeAtimeX}, {inodeCtime, inodeCtimeX}, {inodeMtime, inodeMtimeX}, {inodeCrtime, inodeCrtimeX}} {
		setTime(inode, at[0], at[1], p.time)
	}
	if err := p.setExtended(number, inode, e); err != nil {
		return err
	}
	p.ext4.sum(number, inode)
	return nil
}

// restyle changes a directory that is there, and leaves what is in it.
func (p *patch) restyle(number uint32, e *Entry) error {
	inode, err := p.inode(number)
	if err != nil {
		return err
	}
	return p.style(number, inode, e)
}

// fillFile gives an inode its content.
func (p *patch) fillFile(number uint32, inode inode, e *Entry, content []byte) error {
	count := (int64(len(content)) + blockSize - 1) / blockSize
	runs, err := p.newBlocks(e.Path, count)
	if err != nil {
		return err
	}
	rest := content
	for _, r := range runs {
		for i := range r.length {
			b := p.fresh(r.start + i)
			rest = rest[copy(b, rest):]
		}
	}
	inode.put32(inodeSize0, uint32(len(content)))
	inode.put32(inodeSizeHigh, uint32(int64(len(content))>>32))
	return p.setRuns(number, inode, e.Path, runs)
}

// fillLink gives an inode the target of a link: short ones stand in the inode.
func (p *patch) fillLink(number uint32, inode inode, e *Entry) error {
	if len(e.Target) == 0 || len(e.Target) >= blockSize {
		return fmt.Errorf("a link's target has 1 to %d bytes", blockSize-1)
	}
	if len(e.Target) >= blocksSize {
		return p.fillFile(number, inode, e, []byte(e.Target))
	}
	inode.put32(inodeSize0, uint32(len(e.Target)))
	copy(inode[inodeBlocks:][:blocksSize], e.Target)
	return nil
}
