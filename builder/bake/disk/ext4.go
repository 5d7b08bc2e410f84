package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"
)

// Offsets in ext4's structures, as fs/ext4/ext4.h of the kernel has them.
const (
	superblockAt   = 1024
	superblockSize = 1024

	inodeSize     = 256
	inodeMode     = 0x00
	inodeUID      = 0x02
	inodeAtime    = 0x08
	inodeCtime    = 0x0c
	inodeMtime    = 0x10
	inodeGID      = 0x18
	inodeLinks    = 0x1a
	inodeGen      = 0x64
	inodeUIDHigh  = 0x78
	inodeGIDHigh  = 0x7a
	inodeSumLow   = 0x7c
	inodeExtra    = 0x80
	inodeSumHigh  = 0x82
	inodeCtimeX   = 0x84
	inodeMtimeX   = 0x88
	inodeAtimeX   = 0x8c
	inodeCrtime   = 0x90
	inodeCrtimeX  = 0x94
	inodeExtraEnd = 0x98

	rootInode  = 2
	lostFound  = 11 // the inode of lost+found, the first that isn't reserved
	groupSize  = 64 // bytes of a group's descriptor
	uninitFlag = 1  // a group's: no inode of it was ever used
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ext4 is a filesystem as mke2fs made it, for what no program does well: after
// each failure, debugfs exits as if there was none.
type ext4 struct {
	f              *os.File
	uuid           UUID
	blockSize      int64
	groups         int64
	inodesPerGroup int64
	inodes, free   uint32
	seed           uint32 // of checksums
}

// openExt4 reads the superblock.
func openExt4(f *os.File) (*ext4, error) { return openExt4At(f, 0) }

// openExt4At reads that of a filesystem that begins at offset.
func openExt4At(f *os.File, offset int64) (*ext4, error) {
	b := make([]byte, superblockSize)
	if _, err := f.ReadAt(b, offset+superblockAt); err != nil {
		return nil, fmt.Errorf("it is no ext4 filesystem: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != 0xef53 {
		return nil, errors.New("it is no ext4 filesystem")
	}
	fs := &ext4{f: f, blockSize: 1024 << min(le.Uint32(b[0x18:]), 6), inodesPerGroup: int64(le.Uint32(b[0x28:])),
		inodes: le.Uint32(b[0x00:]), free: le.Uint32(b[0x10:])}
	copy(fs.uuid[:], b[0x68:])
	if fs.inodesPerGroup == 0 || fs.inodesPerGroup > 8*fs.blockSize || le.Uint16(b[0x58:]) != inodeSize || le.Uint16(b[0xfe:]) != groupSize {
		return nil, errors.New("it is no ext4 filesystem that Root made")
	}
	fs.groups = int64(fs.inodes) / fs.inodesPerGroup
	fs.seed = ^crc32.Update(0, castagnoli, fs.uuid[:])
	return fs, nil
}

// each calls change for each inode that is in use, and writes those that it
// says it changed.
func (fs *ext4) each(change func(number uint32, inode []byte) (changed bool)) error {
	descriptors := make([]byte, fs.groups*groupSize)
	first := max(fs.blockSize, superblockAt+superblockSize)
	if _, err := fs.f.ReadAt(descriptors, first); err != nil {
		return err
	}
	table := make([]byte, fs.inodesPerGroup*inodeSize)
	for g := range fs.groups {
		d := descriptors[g*groupSize:][:groupSize]
		le := binary.LittleEndian
		if le.Uint16(d[0x12:])&uninitFlag != 0 {
			continue
		}
		at := int64(uint64(le.Uint32(d[0x08:]))|uint64(le.Uint32(d[0x28:]))<<32) * fs.blockSize
		if _, err := fs.f.ReadAt(table, at); err != nil {
			return err
		}
		end := 0
		for i := range int(fs.inodesPerGroup) {
			inode := table[i*inodeSize:][:inodeSize]
			if le.Uint16(inode[inodeMode:]) == 0 || le.Uint16(inode[inodeLinks:]) == 0 {
				continue
			}
			number := uint32(g*fs.inodesPerGroup) + uint32(i) + 1
			if change(number, inode) {
				fs.sum(number, inode)
				end = (i + 1) * inodeSize
			}
		}
		if _, err := fs.f.WriteAt(table[:end], at); err != nil {
			return err
		}
	}
	return nil
}

// sum sets an inode's checksum.
func (fs *ext4) sum(number uint32, inode []byte) {
	le := binary.LittleEndian
	le.PutUint16(inode[inodeSumLow:], 0)
	le.PutUint16(inode[inodeSumHigh:], 0)
	// The kernel's crc32c doesn't invert, Go's does, before and after.
	c := crc32.Update(^fs.seed, castagnoli, le.AppendUint32(nil, number))
	c = crc32.Update(c, castagnoli, inode[inodeGen:inodeGen+4])
	c = ^crc32.Update(c, castagnoli, inode)
	le.PutUint16(inode[inodeSumLow:], uint16(c))
	le.PutUint16(inode[inodeSumHigh:], uint16(c>>16))
}

// owner is who has the root folder, and how.
type owner struct {
	uid, gid uint32
	mode     uint16 // permissions, in the 12 lowest bits
	mtime    int64
}

// settle gives each inode the time t, but for what was modified before, and the
// root folder what mke2fs doesn't copy.
func (fs *ext4) settle(t time.Time, root owner) error {
	tooSmall := false
	err := fs.each(func(number uint32, inode []byte) bool {
		le := binary.LittleEndian
		if superblockReserved := number < lostFound && number != rootInode; superblockReserved {
			return false // these have mke2fs' own time, which is t
		}
		if le.Uint16(inode[inodeExtra:])+inodeExtra < inodeExtraEnd {
			tooSmall = true
			return false
		}
		mtime := int64(int32(le.Uint32(inode[inodeMtime:]))) + int64(le.Uint32(inode[inodeMtimeX:])&3)<<32
		if number == rootInode {
			mtime = root.mtime
			le.PutUint16(inode[inodeMode:], le.Uint16(inode[inodeMode:])&^0o7777|root.mode)
			le.PutUint16(inode[inodeUID:], uint16(root.uid))
			le.PutUint16(inode[inodeUIDHigh:], uint16(root.uid>>16))
			le.PutUint16(inode[inodeGID:], uint16(root.gid))
			le.PutUint16(inode[inodeGIDHigh:], uint16(root.gid>>16))
		}
		setTime(inode, inodeMtime, inodeMtimeX, min(mtime, t.Unix()))
		setTime(inode, inodeAtime, inodeAtimeX, t.Unix())
		setTime(inode, inodeCtime, inodeCtimeX, t.Unix())
		setTime(inode, inodeCrtime, inodeCrtimeX, t.Unix())
		return true
	})
	if err == nil && tooSmall {
		err = errors.New("its inodes have no room for times after 2038")
	}
	return err
}

// setTime sets a time in whole seconds: two bits of it are beside the
// nanoseconds.
func setTime(inode []byte, at, extraAt int, t int64) {
	binary.LittleEndian.PutUint32(inode[at:], uint32(t))
	binary.LittleEndian.PutUint32(inode[extraAt:], uint32((t-int64(int32(t)))>>32)&3)
}
