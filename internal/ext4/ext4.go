// Package ext4 reads ext4 filesystems out of files, without mounting them: what
// mke2fs makes for Kiln's images, and filesystems like that. It writes nothing.
//
// It trusts nothing that it reads: numbers are compared with what can be, each
// walk has an end, and what doesn't fit is an error. It replays no journal, and
// verifies no checksums: e2fsck does.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Offsets and numbers are those of fs/ext4/ext4.h in the kernel.
const (
	superblockAt   = 1024
	superblockSize = 1024
	magic          = 0xef53

	// RootInode is the number of the root folder.
	RootInode = 2
	// FirstInode is the first number that isn't reserved: lost+found's.
	FirstInode = 11
)

// features that change how a filesystem is read (the incompatible ones): those
// that this package knows, or needn't.
const (
	featureFiletype = 0x0002
	featureRecover  = 0x0004
	feature64bit    = 0x0080
	knownFeatures   = featureFiletype | 0x0040 /* extent */ | feature64bit | 0x0200 /* flex_bg */ | 0x2000 /* csum_seed */ | 0x4000 /* largedir */
	featureBigalloc = 0x0200                                                                                                        // among those that matter to writers alone
)

var featureNames = map[uint32]string{
	0x0001: "compression", 0x0008: "journal_dev", 0x0010: "meta_bg", 0x0100: "mmp", 0x0400: "ea_inode", 0x1000: "dirdata",
	0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold",
}

// FS is a filesystem. Its methods can be called from several goroutines, if the
// file's can.
type FS struct {
	// UUID is in the order in which it is written.
	UUID [16]byte
	// BlockSize is in bytes.
	BlockSize int64
	// Blocks is how many there are.
	Blocks int64

	r              io.ReaderAt
	firstBlock     int64
	blocksPerGroup int64
	inodesPerGroup uint32
	inodeSize      int64
	inodes         uint32
	groups         []group
}

type group struct {
	blockBitmap, inodeTable int64 // blocks
	flags                   uint16
	unused                  uint32 // inodes at the end of its table that never were used
}

// flags of groups.
const (
	inodeUninit = 1
	blockUninit = 2
)

// Open reads the superblock and the groups' descriptors of a filesystem of size
// bytes at most.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	fs, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("the ext4 filesystem: %w", err)
	}
	return fs, nil
}

func open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, superblockSize)
	if _, err := r.ReadAt(b, superblockAt); err != nil {
		return nil, fmt.Errorf("its superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != magic {
		return nil, errors.New("it is none: its superblock has another number")
	}
	if err := checkFeatures(le.Uint32(b[0x60:]), le.Uint32(b[0x64:])); err != nil {
		return nil, err
	}
	logSize := le.Uint32(b[0x18:])
	if logSize > 6 {
		return nil, fmt.Errorf("its blocks have 2^%d bytes", logSize+10)
	}
	fs := &FS{
		r: r, BlockSize: 1024 << logSize, inodes: le.Uint32(b[0x00:]), firstBlock: int64(le.Uint32(b[0x14:])),
		blocksPerGroup: int64(le.Uint32(b[0x20:])), inodesPerGroup: le.Uint32(b[0x28:]), inodeSize: int64(le.Uint16(b[0x58:])),
	}
	copy(fs.UUID[:], b[0x68:])
	blocks := uint64(le.Uint32(b[0x04:]))
	descriptor := int64(32)
	if le.Uint32(b[0x60:])&feature64bit != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
		descriptor = int64(le.Uint16(b[0xfe:]))
	}
	switch {
	case blocks == 0 || blocks > uint64(size/fs.BlockSize):
		return nil, fmt.Errorf("it says that it has %d blocks of %d bytes, and there are %d bytes", blocks, fs.BlockSize, size)
	case fs.firstBlock < 0 || fs.firstBlock > 1 || fs.firstBlock >= int64(blocks):
		return nil, fmt.Errorf("its first block is %d", fs.firstBlock)
	case fs.blocksPerGroup == 0 || fs.blocksPerGroup > 8*fs.BlockSize:
		return nil, fmt.Errorf("its groups have %d blocks", fs.blocksPerGroup)
	case fs.inodeSize < 128 || fs.inodeSize > fs.BlockSize || fs.inodeSize&(fs.inodeSize-1) != 0:
		return nil, fmt.Errorf("its inodes have %d bytes", fs.inodeSize)
	case fs.inodesPerGroup == 0 || int64(fs.inodesPerGroup) > 8*fs.BlockSize:
		return nil, fmt.Errorf("its groups have %d inodes", fs.inodesPerGroup)
	case descriptor < 32 || descriptor > 1024 || descriptor&(descriptor-1) != 0:
		return nil, fmt.Errorf("its groups' descriptors have %d bytes", descriptor)
	}
	fs.Blocks = int64(blocks)
	return fs, fs.readGroups(descriptor)
}

func checkFeatures(incompatible, readOnly uint32) error {
	var unknown []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if incompatible&bit == 0 || knownFeatures&bit != 0 {
			continue
		}
		name := featureNames[bit]
		switch {
		case bit == featureRecover:
			return errors.New("it was in use when it was copied, and its journal has what isn't in its place yet: e2fsck mends it")
		case name == "":
			name = fmt.Sprintf("%#x", bit)
		}
		unknown = append(unknown, name)
	}
	if readOnly&featureBigalloc != 0 {
		unknown = append(unknown, "bigalloc")
	}
	if len(unknown) > 0 {
		return fmt.Errorf("it has features that Kiln can't read (%s): make it without them", strings.Join(unknown, ", "))
	}
	return nil
}

func (fs *FS) readGroups(size int64) error {
	n := (fs.Blocks - fs.firstBlock + fs.blocksPerGroup - 1) / fs.blocksPerGroup
	if int64(fs.inodes) != n*int64(fs.inodesPerGroup) {
		return fmt.Errorf("it says that it has %d inodes, in %d groups of %d", fs.inodes, n, fs.inodesPerGroup)
	}
	if int64(fs.inodes)*fs.inodeSize > fs.Blocks*fs.BlockSize {
		return fmt.Errorf("%d inodes have no room in it", fs.inodes)
	}
	at := (fs.firstBlock + 1) * fs.BlockSize
	if at+n*size > fs.Blocks*fs.BlockSize {
		return fmt.Errorf("%d groups have no room in it", n)
	}
	b := make([]byte, n*size)
	if _, err := fs.r.ReadAt(b, at); err != nil {
		return fmt.Errorf("its groups' descriptors: %w", err)
	}
	le := binary.LittleEndian
	table := (int64(fs.inodesPerGroup)*fs.inodeSize + fs.BlockSize - 1) / fs.BlockSize
	fs.groups = make([]group, n)
	for i := range fs.groups {
		d := b[int64(i)*size:][:size]
		bitmap, inodes := uint64(le.Uint32(d[0x00:])), uint64(le.Uint32(d[0x08:]))
		g := group{flags: le.Uint16(d[0x12:]), unused: uint32(le.Uint16(d[0x1c:]))}
		if size >= 64 {
			bitmap |= uint64(le.Uint32(d[0x20:])) << 32
			inodes |= uint64(le.Uint32(d[0x28:])) << 32
			g.unused |= uint32(le.Uint16(d[0x32:])) << 16
		}
		if bitmap >= uint64(fs.Blocks) || inodes > uint64(fs.Blocks-table) || table > fs.Blocks || g.unused > fs.inodesPerGroup {
			return fmt.Errorf("group %d lies outside it", i)
		}
		g.blockBitmap, g.inodeTable = int64(bitmap), int64(inodes)
		fs.groups[i] = g
	}
	return nil
}

// Bitmap says which blocks of a filesystem are in use.
type Bitmap struct {
	first, perGroup int64
	groups          [][]byte // nil: none that was ever given to a file
}

// Used tells whether a block belongs to a file or to the filesystem itself.
func (m *Bitmap) Used(block int64) bool {
	if block < m.first {
		return true
	}
	g, bit := (block-m.first)/m.perGroup, (block-m.first)%m.perGroup
	return g < int64(len(m.groups)) && m.groups[g] != nil && m.groups[g][bit/8]&(1<<(bit%8)) != 0
}

// Bitmap reads which blocks are in use. Of groups that no file was ever given a
// block of, mke2fs writes no bitmap: their copies of the superblock count as
// unused.
func (fs *FS) Bitmap() (*Bitmap, error) {
	m := &Bitmap{first: fs.firstBlock, perGroup: fs.blocksPerGroup, groups: make([][]byte, len(fs.groups))}
	for i := range fs.groups {
		if fs.groups[i].flags&blockUninit != 0 {
			continue
		}
		b := make([]byte, (fs.blocksPerGroup+7)/8)
		if _, err := fs.r.ReadAt(b, fs.groups[i].blockBitmap*fs.BlockSize); err != nil {
			return nil, fmt.Errorf("the bitmap of the ext4 filesystem's group %d: %w", i, err)
		}
		m.groups[i] = b
	}
	return m, nil
}
