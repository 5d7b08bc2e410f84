package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const blockSize = 4096 // of the root filesystem, in bytes

// measure is what a tree needs of a filesystem. It doesn't depend on the one
// that the tree lies on.
type measure struct {
	inodes int64
	blocks int64 // of data, folders included
	root   owner
}

// measureTree walks the tree.
func measureTree(ctx context.Context, tree string) (*measure, error) {
	info, err := os.Stat(tree)
	if err != nil {
		return nil, err
	}
	top, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return nil, &fs.PathError{Op: "stat", Path: tree, Err: syscall.ENOTDIR}
	}
	m := &measure{root: owner{uint32(top.Uid), uint32(top.Gid), uint16(top.Mode & 0o7777), info.ModTime().Unix()}}
	seen := map[uint64]bool{}    // inodes with several names
	folder := map[string]int64{} // bytes of a folder's entries
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if path == tree {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: this system doesn't say which inode it is", path)
		}
		if st.Dev != top.Dev {
			return fmt.Errorf("%s is another filesystem, mounted in the tree: unmount it", path)
		}
		if d.Type() == fs.ModeSocket {
			return fmt.Errorf("%s is a socket, which means nothing in an image: remove it from the tree", path)
		}
		// Eight bytes and a name each, filled up to four.
		folder[filepath.Dir(path)] += int64(8+len(d.Name())+3) &^ 3
		if !d.IsDir() && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		m.inodes++
		blocks, err := contentBlocks(path, info, st)
		m.blocks += blocks
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, n := range folder {
		// Blocks aren't quite filled: no name is split.
		m.blocks += n / (blockSize - 300)
	}
	return m, nil
}

// contentBlocks is how many blocks an inode needs besides itself.
func contentBlocks(path string, info fs.FileInfo, st *syscall.Stat_t) (int64, error) {
	var blocks int64
	switch {
	case info.IsDir():
		blocks = 1
	case info.Mode()&fs.ModeSymlink != 0 && info.Size() >= 60, info.Mode().IsRegular():
		blocks = (info.Size() + blockSize - 1) / blockSize
		if info.Mode().IsRegular() && info.Size() >= mib && st.Blocks*512 < info.Size() {
			var err error
			if blocks, err = dataBlocks(path, info.Size()); err != nil {
				return 0, err
			}
		}
		blocks += blocks / 256 // of extents, where they are many
	}
	// Attributes that don't fit into the inode have a block.
	switch n, err := unix.Llistxattr(path, nil); {
	case err == nil && n > 0:
		blocks++
	case err != nil && !errors.Is(err, unix.ENOTSUP):
		return 0, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	return blocks, nil
}

// dataBlocks counts the blocks of a file with holes that aren't all zero, which
// is what mke2fs copies.
func dataBlocks(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var blocks int64
	var zero [blockSize]byte
	buf := make([]byte, blockSize)
	for at := int64(0); at < size; at += blockSize {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err == nil {
			at = data - data%blockSize
		}
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if string(buf[:n]) != string(zero[:n]) {
			blocks++
		}
	}
	return blocks, nil
}

// geometry is how a filesystem is laid out.
type geometry struct {
	size    int64 // in bytes
	inodes  int64
	journal int64 // in MiB
}

// geometry is a filesystem with room for the tree and that many bytes more.
func (m *measure) geometry(free int64) geometry {
	data := m.blocks + free/blockSize
	// A fourth of it at most, as in mke2fs.
	journal := max(leastJournal, min(mostJournal, data*blockSize/mib/4))
	blocks := data + journal*mib/blockSize
	inodes := m.inodesIn(blocks * blockSize)
	const perGroup = 8 * blockSize
	groups := blocks/perGroup + 1
	blocks += inodes*inodeSize/blockSize + 2*groups + blocks/100
	// The first, and those whose number is a power of 3, 5 or 7, have copies of
	// the superblock and of the groups' descriptors, with room to grow.
	for g := range groups {
		if g == 0 || power(g, 3) || power(g, 5) || power(g, 7) {
			blocks += 1 + growBlocks/perGroup*groupSize/blockSize
		}
	}
	return geometry{(blocks*blockSize + Block - 1) / Block * Block, inodes, journal}
}

// sized is a filesystem of that size.
func (m *measure) sized(size int64) geometry {
	return geometry{size, m.inodesIn(size), max(leastJournal, min(mostJournal, size/mib/8))}
}

// inodesIn is how many inodes a filesystem of that size has: one for each
// 16 KiB, so that they suffice for the disk that it grows to, and enough for the
// tree.
func (m *measure) inodesIn(size int64) int64 {
	return max(m.inodes+m.inodes/4+1024, size/(4*blockSize))
}

func power(n, of int64) bool {
	for n%of == 0 {
		n /= of
	}
	return n == 1
}
