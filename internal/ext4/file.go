package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Extent is a run of a file's blocks that lie side by side on the disk, too.
type Extent struct {
	Logical  int64 // its first block within the file
	Physical int64 // and on the disk
	Blocks   int64
	// Unwritten ones are the file's, and read as zeros, whatever is there.
	Unwritten bool
}

const (
	extentMagic   = 0xf30a
	extentDepth   = 5
	extentHeader  = 12
	extentEntry   = 12
	extentInitMax = 32768
)

// Extents lists where a file's content is, in its order. What lies between them
// is a hole.
func (fs *FS) Extents(i *Inode) ([]Extent, error) {
	switch {
	case !i.IsRegular() && !i.IsDir() && (!i.IsLink() || i.isShort()):
		return nil, nil
	case i.Flags&unreadable != 0:
		return nil, fmt.Errorf("the inode %d is encrypted, or has its content in a place that Kiln can't read", i.Number)
	case i.Flags&flagExtents == 0:
		if i.sectors == 0 {
			return nil, nil // an empty one, of whatever kind
		}
		return nil, fmt.Errorf("the inode %d has no extents, but a list of blocks, as ext3 has it", i.Number)
	}
	w := &extentWalk{fs: fs, left: i.sectors*512/fs.BlockSize + 1}
	depth := int(binary.LittleEndian.Uint16(i.block[6:]))
	if depth > extentDepth {
		return nil, fmt.Errorf("the extents of inode %d are %d levels deep", i.Number, depth)
	}
	if err := w.node(i.block[:], depth); err != nil {
		return nil, fmt.Errorf("the extents of inode %d: %w", i.Number, err)
	}
	return w.list, nil
}

type extentWalk struct {
	fs   *FS
	list []Extent
	next int64 // the first block that the next extent can begin with
	left int64 // nodes that there still can be
}

func (w *extentWalk) node(b []byte, depth int) error {
	le := binary.LittleEndian
	entries, most := int(le.Uint16(b[2:])), (len(b)-extentHeader)/extentEntry
	switch {
	case le.Uint16(b) != extentMagic:
		return errors.New("a node isn't one")
	case int(le.Uint16(b[6:])) != depth:
		return fmt.Errorf("a node says that it is %d levels above the last, and it is %d", le.Uint16(b[6:]), depth)
	case entries > most:
		return fmt.Errorf("a node says that it has %d entries, and %d have room", entries, most)
	}
	if w.left--; w.left < 0 {
		return errors.New("there are more nodes than it has blocks")
	}
	for n := range entries {
		e := b[extentHeader+n*extentEntry:][:extentEntry]
		if depth == 0 {
			if err := w.leaf(e); err != nil {
				return err
			}
			continue
		}
		block := int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32
		if block <= 0 || block >= w.fs.Blocks {
			return fmt.Errorf("a node is in block %d", block)
		}
		child := make([]byte, w.fs.BlockSize)
		if _, err := w.fs.r.ReadAt(child, block*w.fs.BlockSize); err != nil {
			return err
		}
		if err := w.node(child, depth-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *extentWalk) leaf(e []byte) error {
	le := binary.LittleEndian
	x := Extent{Logical: int64(le.Uint32(e)), Blocks: int64(le.Uint16(e[4:])), Physical: int64(le.Uint32(e[8:])) | int64(le.Uint16(e[6:]))<<32}
	if x.Blocks > extentInitMax {
		x.Blocks -= extentInitMax
		x.Unwritten = true
	}
	switch {
	case x.Blocks == 0:
		return errors.New("one is empty")
	case x.Logical < w.next:
		return errors.New("they aren't in their order")
	case x.Physical <= 0 || x.Physical+x.Blocks > w.fs.Blocks:
		return fmt.Errorf("one is in the blocks from %d on, outside the filesystem", x.Physical)
	}
	w.next = x.Logical + x.Blocks
	w.list = append(w.list, x)
	return nil
}

// File is the content of a regular file, folder or long link.
type File struct {
	fs      *FS
	extents []Extent
	size    int64
}

// File opens the content of an inode. It can be read from several goroutines.
func (fs *FS) File(i *Inode) (*File, error) {
	if i.Size < 0 {
		return nil, fmt.Errorf("the inode %d has %d bytes", i.Number, i.Size)
	}
	extents, err := fs.Extents(i)
	return &File{fs, extents, i.Size}, err
}

// Size is in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt reads the content; holes are zeros.
func (f *File) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 {
		return 0, errors.New("reading before the beginning of a file")
	}
	if at >= f.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(b)) > f.size-at {
		b, end = b[:f.size-at], io.EOF
	}
	bs, done := f.fs.BlockSize, 0
	// The first that ends behind at.
	n := sort.Search(len(f.extents), func(i int) bool { return (f.extents[i].Logical+f.extents[i].Blocks)*bs > at })
	for done < len(b) {
		here := at + int64(done)
		rest := b[done:]
		if n == len(f.extents) || f.extents[n].Logical*bs > here {
			hole := int64(len(rest))
			if n < len(f.extents) {
				hole = min(hole, f.extents[n].Logical*bs-here)
			}
			clear(rest[:hole])
			done += int(hole)
			continue
		}
		x := f.extents[n]
		rest = rest[:min(int64(len(rest)), (x.Logical+x.Blocks)*bs-here)]
		if x.Unwritten {
			clear(rest)
		} else if got, err := f.fs.r.ReadAt(rest, x.Physical*bs+here-x.Logical*bs); got < len(rest) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return done + got, err
		}
		done += len(rest)
		n++
	}
	return done, end
}

// ReadFile reads the whole content of an inode that has at most that many bytes.
func (fs *FS) ReadFile(i *Inode, most int64) ([]byte, error) {
	f, err := fs.File(i)
	if err != nil {
		return nil, err
	}
	if f.size > most {
		return nil, fmt.Errorf("the inode %d has %d bytes: %d are the most that such a file can have", i.Number, f.size, most)
	}
	b := make([]byte, f.size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("the inode %d: %w", i.Number, err)
	}
	return b, nil
}

// isShort tells whether a link's target stands in the inode.
func (i *Inode) isShort() bool { return i.Size < int64(len(i.block)) && i.Flags&flagExtents == 0 }

// mostLink is how long a link's target can be.
const mostLink = 4096

// Readlink gives the target of a symbolic link.
func (fs *FS) Readlink(i *Inode) (string, error) {
	switch {
	case !i.IsLink():
		return "", fmt.Errorf("the inode %d is no symbolic link", i.Number)
	case i.Size < 0:
		return "", fmt.Errorf("the link of inode %d has %d bytes", i.Number, i.Size)
	case i.isShort():
		return string(i.block[:i.Size]), nil
	}
	b, err := fs.ReadFile(i, mostLink)
	return string(b), err
}
