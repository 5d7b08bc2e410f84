package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"time"
)

// Offsets in ext4's structures, as fs/ext4/ext4.h of the kernel has them.
const (
	superBlocks     = 0x04 // and 0x150
	superFreeBlocks = 0x0c // and 0x158
	superFreeInodes = 0x10
	superPerGroup   = 0x20
	superReserved   = 0xce // blocks for more descriptors
	superBlocksHigh = 0x150
	superFreeHigh   = 0x158
	superSum        = 0x3fc

	groupBlockBitmap = 0x00
	groupInodeBitmap = 0x04
	groupInodeTable  = 0x08
	groupFreeBlocks  = 0x0c
	groupFreeInodes  = 0x0e
	groupDirectories = 0x10
	groupFlags       = 0x12
	groupBlockSum    = 0x18
	groupInodeSum    = 0x1a
	groupUnused      = 0x1c
	groupSum         = 0x1e
	groupHigh        = 0x20 // where the upper halves of addresses begin
	groupHighCounts  = 0x2c // and of the counts: free blocks, free inodes, directories, unused inodes
	groupHighSums    = 0x38

	blocksUninit = 2 // a group's flag: its block bitmap was never written
)

// patch is a filesystem that is being changed. All blocks that it has looked at
// are in memory, and are written at the end.
type patch struct {
	*ext4
	offset   int64
	time     int64
	blocks   map[int64][]byte
	changed  map[int64]bool
	total    int64 // blocks of the filesystem
	perGroup int64

	inodeGroup int64 // where new inodes go
	window     span  // of blocks, where new small files go
}

// span is a number of blocks in a row.
type span struct{ start, length int64 }

// inode is one in its table's block.
type inode []byte

func (i inode) put16(at int, v uint16) { binary.LittleEndian.PutUint16(i[at:], v) }
func (i inode) put32(at int, v uint32) { binary.LittleEndian.PutUint32(i[at:], v) }
func (i inode) get16(at int) uint16    { return binary.LittleEndian.Uint16(i[at:]) }
func (i inode) get32(at int) uint32    { return binary.LittleEndian.Uint32(i[at:]) }

func newPatch(f *os.File, offset int64, entries []Entry, t time.Time) (*patch, error) {
	p := &patch{offset: offset, time: t.Unix(), blocks: map[int64][]byte{}, changed: map[int64]bool{}}
	var err error
	if p.ext4, err = openExt4At(f, offset); err != nil {
		return nil, err
	}
	super, err := p.block(0)
	if err != nil {
		return nil, err
	}
	s := super[superblockAt:]
	le := binary.LittleEndian
	p.total = int64(le.Uint32(s[superBlocks:])) | int64(le.Uint32(s[superBlocksHigh:]))<<32
	p.perGroup = int64(le.Uint32(s[superPerGroup:]))
	if p.blockSize != blockSize || p.perGroup != 8*blockSize || p.total <= 0 || p.groups != (p.total+p.perGroup-1)/p.perGroup {
		return nil, errors.New("it is no ext4 filesystem that Root made")
	}
	var need int64
	for i := range entries {
		if n := int64(len(entries[i].Content)); n <= smallFile {
			need += 2 + n/blockSize // and its folder's
		}
	}
	if err := p.choose(need); err != nil {
		return nil, err
	}
	return p, nil
}

// block gives a block to look at; change, one to write to.
func (p *patch) block(n int64) ([]byte, error) {
	if b := p.blocks[n]; b != nil {
		return b, nil
	}
	if n < 0 || p.total != 0 && n >= p.total {
		return nil, fmt.Errorf("the filesystem is damaged: it has no block %d", n)
	}
	b := make([]byte, blockSize)
	if _, err := p.f.ReadAt(b, p.offset+n*blockSize); err != nil {
		return nil, fmt.Errorf("reading block %d: %w", n, err)
	}
	p.blocks[n] = b
	return b, nil
}

func (p *patch) change(n int64) ([]byte, error) {
	b, err := p.block(n)
	p.changed[n] = true
	return b, err
}

// fresh gives a block of zeros.
func (p *patch) fresh(n int64) []byte {
	b := make([]byte, blockSize)
	p.blocks[n], p.changed[n] = b, true
	return b
}

// descriptor is a group's, to write to.
func (p *patch) descriptor(g int64) ([]byte, error) {
	const perBlock = blockSize / groupSize
	b, err := p.change(1 + g/perBlock)
	if err != nil {
		return nil, err
	}
	return b[g%perBlock*groupSize:][:groupSize], nil
}

// address is a block that a descriptor names.
func address(d []byte, at int) int64 {
	le := binary.LittleEndian
	return int64(le.Uint32(d[at:])) | int64(le.Uint32(d[groupHigh+at:]))<<32
}

// count reads one of a descriptor's counts, and add changes it.
func count(d []byte, at int) int64 {
	le := binary.LittleEndian
	return int64(le.Uint16(d[at:])) | int64(le.Uint16(d[highCount(at):]))<<16
}

func add(d []byte, at int, n int64) {
	v := count(d, at) + n
	binary.LittleEndian.PutUint16(d[at:], uint16(v))
	binary.LittleEndian.PutUint16(d[highCount(at):], uint16(v>>16))
}

func highCount(at int) int {
	if at == groupUnused {
		return 0x32
	}
	return groupHighCounts + at - groupFreeBlocks
}

// inode gives an inode to write to.
func (p *patch) inode(number uint32) (inode, error) {
	if number == 0 || number > p.inodes {
		return nil, fmt.Errorf("the filesystem is damaged: it has no inode %d", number)
	}
	g, index := int64(number-1)/p.inodesPerGroup, int64(number-1)%p.inodesPerGroup
	d, err := p.descriptor(g)
	if err != nil {
		return nil, err
	}
	const perBlock = blockSize / inodeSize
	b, err := p.change(address(d, groupInodeTable) + index/perBlock)
	if err != nil {
		return nil, err
	}
	return b[index%perBlock*inodeSize:][:inodeSize], nil
}

// flush sets the checksums of bitmaps, descriptors and superblock, and writes
// what has changed.
func (p *patch) flush() ([]int64, error) {
	le := binary.LittleEndian
	for g := range p.groups {
		d, err := p.descriptor(g)
		if err != nil {
			return nil, err
		}
		for _, m := range []struct {
			bitmap, sum int
			bytes       int64
		}{{groupBlockBitmap, groupBlockSum, p.perGroup / 8}, {groupInodeBitmap, groupInodeSum, p.inodesPerGroup / 8}} {
			if at := address(d, m.bitmap); p.changed[at] {
				c := crc(p.seed, p.blocks[at][:m.bytes])
				le.PutUint16(d[m.sum:], uint16(c))
				le.PutUint16(d[groupHighSums+m.sum-groupBlockSum:], uint16(c>>16))
			}
		}
		le.PutUint16(d[groupSum:], 0)
		c := crc(crc(p.seed, le.AppendUint32(nil, uint32(g))), d)
		le.PutUint16(d[groupSum:], uint16(c))
	}
	s := p.blocks[0][superblockAt:][:superblockSize]
	le.PutUint32(s[superSum:], crc(^uint32(0), s[:superSum]))
	return p.write()
}

// write writes the blocks that have become others than they were.
func (p *patch) write() ([]int64, error) {
	var written []int64
	was := make([]byte, blockSize)
	for _, n := range slices.Sorted(maps.Keys(p.changed)) {
		at := p.offset + n*blockSize
		if _, err := p.f.ReadAt(was, at); err != nil {
			return nil, fmt.Errorf("reading block %d: %w", n, err)
		}
		if string(was) == string(p.blocks[n]) {
			continue
		}
		if _, err := p.f.WriteAt(p.blocks[n], at); err != nil {
			return nil, err
		}
		written = append(written, n)
	}
	return written, nil
}

// crc is the kernel's crc32c, which doesn't invert; Go's does, before and after.
func crc(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }
