package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// smallFile is the most bytes of a file whose place depends on its path.
const smallFile = 64 << 10

// choose finds out where new inodes and blocks go, which depends on the base
// alone: the first group with many free inodes, and the first blocks of an image
// that are free as a whole, as many as need suggests.
func (p *patch) choose(need int64) error {
	most := int64(-1)
	for g := range p.groups {
		d, err := p.descriptor(g)
		if err != nil {
			return err
		}
		if free := count(d, groupFreeInodes); free > most {
			p.inodeGroup, most = g, free
		}
		if most >= p.inodesPerGroup/2 {
			break
		}
	}
	// In powers of two: layers that differ in little have the same window.
	const perImageBlock = Block / blockSize
	length := int64(perImageBlock)
	for length < 2*need {
		length *= 2
	}
	for start := int64(0); start+length <= p.total; start += perImageBlock {
		free, err := p.allFree(span{start, length})
		if err != nil {
			return err
		}
		if free {
			p.window = span{start, length}
			return nil
		}
	}
	return nil // then everything goes wherever there is room
}

func (p *patch) allFree(r span) (bool, error) {
	for b := r.start; b < r.start+r.length; b++ {
		if used, err := p.used(b); err != nil || used {
			return false, err
		}
	}
	return true, nil
}

// used tells whether a block is in use.
func (p *patch) used(b int64) (bool, error) {
	bits, err := p.blockBits(b / p.perGroup)
	if err != nil {
		return false, err
	}
	at := b % p.perGroup
	return bits[at/8]&(1<<(at%8)) != 0, nil
}

// blockBits is the block bitmap of a group, to write to.
func (p *patch) blockBits(g int64) ([]byte, error) {
	d, err := p.descriptor(g)
	if err != nil {
		return nil, err
	}
	at := address(d, groupBlockBitmap)
	flags := binary.LittleEndian.Uint16(d[groupFlags:])
	if flags&blocksUninit == 0 {
		return p.change(at)
	}
	bits := p.fresh(at)
	if err := p.initBits(g, bits); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint16(d[groupFlags:], flags&^blocksUninit)
	return bits, nil
}

// initBits writes the bitmap of a group that nothing was ever put into: what the
// filesystem itself has there is in use.
func (p *patch) initBits(g int64, bits []byte) error {
	first, end := g*p.perGroup, min((g+1)*p.perGroup, p.total)
	set := func(r span) {
		for b := max(r.start, first); b < min(r.start+r.length, first+p.perGroup); b++ {
			bits[(b-first)/8] |= 1 << ((b - first) % 8)
		}
	}
	set(span{end, first + p.perGroup - end})
	if g == 0 || g == 1 || power(g, 3) || power(g, 5) || power(g, 7) {
		super, err := p.block(0)
		if err != nil {
			return err
		}
		reserved := int64(binary.LittleEndian.Uint16(super[superblockAt+superReserved:]))
		set(span{first, 1 + (p.groups*groupSize+blockSize-1)/blockSize + reserved})
	}
	for other := range p.groups {
		d, err := p.descriptor(other)
		if err != nil {
			return err
		}
		set(span{address(d, groupBlockBitmap), 1})
		set(span{address(d, groupInodeBitmap), 1})
		set(span{address(d, groupInodeTable), p.inodesPerGroup * inodeSize / blockSize})
	}
	return nil
}

// place is where to look first for something of a path's, among so many.
func place(path string, among int64) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(path))
	return int64(h.Sum64() % uint64(among))
}

// newBlocks takes free blocks: in the window where a file is small, else where
// the first are that suffice, or as they come.
func (p *patch) newBlocks(path string, n int64) ([]span, error) {
	if n == 0 {
		return nil, nil
	}
	if n*blockSize <= smallFile && p.window.length > n {
		from := place(path, p.window.length)
		for i := range p.window.length {
			r := span{p.window.start + (from+i)%p.window.length, n}
			if r.start+n > p.window.start+p.window.length {
				continue
			}
			if free, err := p.allFree(r); err != nil {
				return nil, err
			} else if free {
				return []span{r}, p.take(r)
			}
		}
	}
	return p.firstFree(n)
}

// firstFree takes n blocks from the first that are free behind the window, in
// runs that are as long as they come.
func (p *patch) firstFree(n int64) ([]span, error) {
	const longest = 32768 // blocks of an extent
	var runs []span
	start := p.window.start + p.window.length
	for i := int64(0); i < p.total && n > 0; i++ {
		b := (start + i) % p.total
		used, err := p.used(b)
		if err != nil {
			return nil, err
		}
		if used {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].start+runs[last].length == b && runs[last].length < longest {
			runs[last].length++
		} else {
			runs = append(runs, span{b, 1})
		}
		n--
	}
	if n > 0 {
		return nil, errors.New("the root filesystem has no room for it")
	}
	for _, r := range runs {
		if err := p.take(r); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// take marks blocks as used; release gives them back, and zeroes them.
func (p *patch) take(r span) error { return p.mark(r, true) }

func (p *patch) release(r span) error {
	for b := r.start; b < r.start+r.length; b++ {
		p.fresh(b)
	}
	return p.mark(r, false)
}

func (p *patch) mark(r span, used bool) error {
	for b := r.start; b < r.start+r.length; b++ {
		bits, err := p.blockBits(b / p.perGroup)
		if err != nil {
			return err
		}
		d, err := p.descriptor(b / p.perGroup)
		if err != nil {
			return err
		}
		at, bit := b%p.perGroup/8, byte(1)<<(b%p.perGroup%8)
		if was := bits[at]&bit != 0; was == used {
			return fmt.Errorf("the filesystem is damaged: block %d is used already, or free already", b)
		}
		bits[at] ^= bit
		if used {
			add(d, groupFreeBlocks, -1)
			p.freeBlocks(-1)
		} else {
			add(d, groupFreeBlocks, 1)
			p.freeBlocks(1)
		}
	}
	return nil
}

// freeBlocks and freeInodes count in the superblock.
func (p *patch) freeBlocks(n int64) {
	s := p.blocks[0][superblockAt:]
	le := binary.LittleEndian
	v := int64(le.Uint32(s[superFreeBlocks:])) | int64(le.Uint32(s[superFreeHigh:]))<<32
	le.PutUint32(s[superFreeBlocks:], uint32(v+n))
	le.PutUint32(s[superFreeHigh:], uint32((v+n)>>32))
	p.changed[0] = true
}

func (p *patch) freeInodes(n int64) {
	s := p.blocks[0][superblockAt:]
	binary.LittleEndian.PutUint32(s[superFreeInodes:], uint32(int64(binary.LittleEndian.Uint32(s[superFreeInodes:]))+n))
	p.changed[0] = true
}

// newInode takes a free inode.
func (p *patch) newInode(path string, dir bool) (uint32, error) {
	for i := range p.groups {
		g := (p.inodeGroup + i) % p.groups
		d, err := p.descriptor(g)
		if err != nil {
			return 0, err
		}
		if count(d, groupFreeInodes) == 0 {
			continue
		}
		bits, err := p.inodeBits(d)
		if err != nil {
			return 0, err
		}
		from := place(path, p.inodesPerGroup)
		for j := range p.inodesPerGroup {
			at := (from + j) % p.inodesPerGroup
			if bits[at/8]&(1<<(at%8)) != 0 {
				continue
			}
			bits[at/8] |= 1 << (at % 8)
			add(d, groupFreeInodes, -1)
			if dir {
				add(d, groupDirectories, 1)
			}
			if unused := count(d, groupUnused); at >= p.inodesPerGroup-unused {
				add(d, groupUnused, p.inodesPerGroup-at-1-unused)
			}
			p.freeInodes(-1)
			return uint32(g*p.inodesPerGroup+at) + 1, nil
		}
	}
	return 0, errors.New("the root filesystem has no inode left for it")
}

// inodeBits is the inode bitmap of a group, to write to.
func (p *patch) inodeBits(d []byte) ([]byte, error) {
	at := address(d, groupInodeBitmap)
	flags := binary.LittleEndian.Uint16(d[groupFlags:])
	if flags&uninitFlag == 0 {
		return p.change(at)
	}
	bits := p.fresh(at)
	for i := p.inodesPerGroup; i < 8*blockSize; i++ {
		bits[i/8] |= 1 << (i % 8)
	}
	binary.LittleEndian.PutUint16(d[groupFlags:], flags&^uninitFlag)
	return bits, nil
}

// freeInode gives an inode back, and clears it.
func (p *patch) freeInode(number uint32, dir bool) error {
	i, err := p.inode(number)
	if err != nil {
		return err
	}
	clear(i)
	g, at := int64(number-1)/p.inodesPerGroup, int64(number-1)%p.inodesPerGroup
	d, err := p.descriptor(g)
	if err != nil {
		return err
	}
	bits, err := p.inodeBits(d)
	if err != nil {
		return err
	}
	bits[at/8] &^= 1 << (at % 8)
	add(d, groupFreeInodes, 1)
	if dir {
		add(d, groupDirectories, -1)
	}
	p.freeInodes(1)
	return nil
}
