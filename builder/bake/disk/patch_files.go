package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
)

const (
	inodeSize0    = 0x04
	inodeSectors  = 0x1c
	inodeFlags    = 0x20
	inodeBlocks   = 0x28 // the extents, or a short link's target
	inodeFileACL  = 0x68 // the block with extended attributes
	inodeSizeHigh = 0x6c
	inodeACLHigh  = 0x76

	blocksSize = 60 // bytes of inodeBlocks

	flagIndexed = 0x1000
	flagExtents = 0x80000

	extentMagic = 0xf30a
	extentSize  = 12 // bytes of an extent, an index or the header before them
	perInode    = 4  // extents in an inode
	tailSum     = 4  // bytes of the checksum behind a block of extents
)

// isDir tells whether an inode is a directory's.
func (p *patch) isDir(number uint32) (bool, error) {
	i, err := p.inode(number)
	if err != nil {
		return false, err
	}
	return i.get16(inodeMode)&modeType == modeDir, nil
}

// setRuns writes where an inode's content is.
func (p *patch) setRuns(number uint32, i inode, path string, runs []span) error {
	const perBlock = (blockSize - extentSize - tailSum) / extentSize
	i.put32(inodeFlags, i.get32(inodeFlags)|flagExtents)
	clear(i[inodeBlocks:][:blocksSize])
	var sectors int64
	for _, r := range runs {
		sectors += r.length * (blockSize / 512)
	}
	switch {
	case len(runs) <= perInode:
		writeExtents(i[inodeBlocks:][:blocksSize], runs, perInode)
	case len(runs) <= perBlock:
		leaf, err := p.newBlocks(path, 1)
		if err != nil {
			return err
		}
		at := leaf[0].start
		b := p.fresh(at)
		writeExtents(b, runs, perBlock)
		p.sumExtents(number, i, b)
		sectors += blockSize / 512
		root := i[inodeBlocks:][:blocksSize]
		extentHeader(root, 1, perInode, 1)
		le := binary.LittleEndian
		le.PutUint32(root[extentSize+4:], uint32(at))
		le.PutUint16(root[extentSize+8:], uint16(at>>32))
	default:
		return fmt.Errorf("the free space for it is in %d pieces, which are too many: leave the root more of it", len(runs))
	}
	i.put32(inodeSectors, uint32(sectors))
	return nil
}

func extentHeader(b []byte, entries, most, depth int) {
	le := binary.LittleEndian
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(most))
	le.PutUint16(b[6:], uint16(depth))
}

func writeExtents(b []byte, runs []span, most int) {
	extentHeader(b, len(runs), most, 0)
	le := binary.LittleEndian
	logical := int64(0)
	for n, r := range runs {
		e := b[extentSize*(n+1):]
		le.PutUint32(e, uint32(logical))
		le.PutUint16(e[4:], uint16(r.length))
		le.PutUint16(e[6:], uint16(r.start>>32))
		le.PutUint32(e[8:], uint32(r.start))
		logical += r.length
	}
}

// sumExtents sets the checksum of a block of extents.
func (p *patch) sumExtents(number uint32, i inode, b []byte) {
	at := extentSize + extentSize*int(binary.LittleEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint32(b[at:], crc(p.inodeSeed(number, i), b[:at]))
}

// inodeSeed is what checksums of an inode's blocks begin with.
func (p *patch) inodeSeed(number uint32, i inode) uint32 {
	return crc(crc(p.seed, binary.LittleEndian.AppendUint32(nil, number)), i[inodeGen:inodeGen+4])
}

// runs are the blocks of an inode's content, in their order, and those of its
// index.
func (p *patch) runs(i inode) (content, index []span, err error) {
	if i.get32(inodeFlags)&flagExtents == 0 {
		return nil, nil, nil // a short link, a pipe, a device
	}
	err = p.extents(i[inodeBlocks:][:blocksSize], 0, &content, &index)
	return content, index, err
}

func (p *patch) extents(b []byte, below int, content, index *[]span) error {
	le := binary.LittleEndian
	entries, depth := int(le.Uint16(b[2:])), le.Uint16(b[6:])
	if le.Uint16(b) != extentMagic || extentSize*(entries+1) > len(b) || below > 5 {
		return errors.New("the filesystem is damaged: a list of extents is none")
	}
	for n := range entries {
		e := b[extentSize*(n+1):]
		if depth == 0 {
			length := int64(le.Uint16(e[4:]))
			if length > 32768 {
				length -= 32768 // reserved, and not written
			}
			*content = append(*content, span{int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:])), length})
			continue
		}
		at := int64(le.Uint16(e[8:]))<<32 | int64(le.Uint32(e[4:]))
		*index = append(*index, span{at, 1})
		child, err := p.block(at)
		if err != nil {
			return err
		}
		if err := p.extents(child, below+1, content, index); err != nil {
			return err
		}
	}
	return nil
}

// remove takes a name out of a directory, and with the last name all that it
// stood for.
func (p *patch) remove(parent uint32, name string, number uint32) error {
	i, err := p.inode(number)
	if err != nil {
		return err
	}
	dir := i.get16(inodeMode)&modeType == modeDir
	if dir {
		if err := p.empty(number); err != nil {
			return err
		}
		if err := p.relink(parent, -1); err != nil { // its ..
			return err
		}
	}
	if err := p.unlink(parent, name); err != nil {
		return err
	}
	if links := i.get16(inodeLinks); !dir && links > 1 {
		i.put16(inodeLinks, links-1)
		p.ext4.sum(number, i)
		return nil
	}
	content, index, err := p.runs(i)
	if err != nil {
		return err
	}
	if acl := i.acl(); acl != 0 {
		if err := p.dropExtended(acl, &index); err != nil {
			return err
		}
	}
	for _, r := range append(content, index...) {
		if err := p.release(r); err != nil {
			return err
		}
	}
	return p.freeInode(number, dir)
}

// acl is the block of an inode's extended attributes, or 0.
func (i inode) acl() int64 { return int64(i.get16(inodeACLHigh))<<32 | int64(i.get32(inodeFileACL)) }

// relink changes how many names an inode has.
func (p *patch) relink(number uint32, by int) error {
	i, err := p.inode(number)
	if err != nil {
		return err
	}
	i.put16(inodeLinks, uint16(int(i.get16(inodeLinks))+by))
	p.ext4.sum(number, i)
	return nil
}

// The types in a directory's entries.
var entryTypes = map[fs.FileMode]byte{0: 1, fs.ModeDir: 2, fs.ModeSymlink: 7}

const (
	entryHead = 8  // bytes of an entry before its name
	entryTail = 12 // bytes of a block of entries that are its checksum's
	tailType  = 0xde
)

// fillDirectory gives a new directory its first block.
func (p *patch) fillDirectory(number uint32, i inode, parent uint32, e *Entry) error {
	runs, err := p.newBlocks(e.Path, 1)
	if err != nil {
		return err
	}
	b := p.fresh(runs[0].start)
	putEntry(b, number, 12, ".", 2)
	putEntry(b[12:], parent, blockSize-entryTail-12, "..", 2)
	p.sumEntries(number, i, b)
	i.put16(inodeLinks, 2)
	i.put32(inodeSize0, blockSize)
	if err := p.setRuns(number, i, e.Path, runs); err != nil {
		return err
	}
	return p.relink(parent, 1)
}

func putEntry(b []byte, number uint32, length int, name string, kind byte) {
	le := binary.LittleEndian
	le.PutUint32(b, number)
	le.PutUint16(b[4:], uint16(length))
	b[6], b[7] = byte(len(name)), kind
	copy(b[entryHead:], name)
}

// entrySize is how many bytes an entry with such a name takes.
func entrySize(name int) int { return (entryHead + name + 3) &^ 3 }

// sumEntries sets the checksum of a block of entries.
func (p *patch) sumEntries(number uint32, i inode, b []byte) {
	at := blockSize - entryTail
	clear(b[at:])
	binary.LittleEndian.PutUint16(b[at+4:], entryTail)
	b[at+7] = tailType
	binary.LittleEndian.PutUint32(b[at+8:], crc(p.inodeSeed(number, i), b[:at]))
}

// eachEntry calls do with each entry of a directory: its block, where it begins in
// it and where the one before does, -1 for none. Do ends it by returning true.
func (p *patch) eachEntry(dir uint32, do func(block int64, b []byte, at, before int) bool) error {
	i, err := p.inode(dir)
	if err != nil {
		return err
	}
	if i.get32(inodeFlags)&flagIndexed != 0 {
		return errors.New("a directory of it has an index, which Root makes none with")
	}
	content, _, err := p.runs(i)
	if err != nil {
		return err
	}
	for _, r := range content {
		for n := r.start; n < r.start+r.length; n++ {
			b, err := p.block(n)
			if err != nil {
				return err
			}
			for at, before := 0, -1; at < blockSize-entryTail; {
				length := int(binary.LittleEndian.Uint16(b[at+4:]))
				if length < entryHead || at+length > blockSize || entryHead+int(b[at+6]) > length {
					return errors.New("the filesystem is damaged: a directory's entry is none")
				}
				if do(n, b, at, before) {
					return nil
				}
				at, before = at+length, at
			}
		}
	}
	return nil
}

// find gives the inode of a name in a directory, or 0.
func (p *patch) find(dir uint32, name string) (uint32, error) {
	var number uint32
	err := p.eachEntry(dir, func(_ int64, b []byte, at, _ int) bool {
		if n := binary.LittleEndian.Uint32(b[at:]); n != 0 && string(b[at+entryHead:][:b[at+6]]) == name {
			number = n
		}
		return number != 0
	})
	return number, err
}

// link adds a name to a directory.
func (p *patch) link(dir uint32, name string, number uint32, kind fs.FileMode) error {
	i, err := p.inode(dir)
	if err != nil {
		return err
	}
	if err := p.bringHere(dir, i); err != nil {
		return err
	}
	need, done := entrySize(len(name)), false
	le := binary.LittleEndian
	err = p.eachEntry(dir, func(block int64, b []byte, at, _ int) bool {
		length := int(le.Uint16(b[at+4:]))
		own := 0
		if le.Uint32(b[at:]) != 0 {
			own = entrySize(int(b[at+6]))
		}
		if length-own < need {
			return false
		}
		if own > 0 {
			le.PutUint16(b[at+4:], uint16(own))
		}
		clear(b[at+own : at+length])
		putEntry(b[at+own:], number, length-own, name, entryTypes[kind])
		p.sumEntries(dir, i, b)
		p.changed[block] = true
		done = true
		return true
	})
	if err == nil && !done {
		err = p.growDirectory(dir, i, name, number, kind)
	}
	if err != nil {
		return err
	}
	setTime(i, inodeMtime, inodeMtimeX, p.time)
	p.ext4.sum(dir, i)
	return nil
}

// growDirectory gives a directory one more block, with a name in it.
func (p *patch) growDirectory(dir uint32, i inode, name string, number uint32, kind fs.FileMode) error {
	content, index, err := p.runs(i)
	if err != nil {
		return err
	}
	more, err := p.newBlocks(name, 1)
	if err != nil {
		return err
	}
	b := p.fresh(more[0].start)
	putEntry(b, number, blockSize-entryTail, name, entryTypes[kind])
	p.sumEntries(dir, i, b)
	if last := len(content) - 1; last >= 0 && content[last].start+content[last].length == more[0].start {
		content[last].length++
	} else {
		content = append(content, more[0])
	}
	if len(content) > perInode {
		if content, err = p.gather(name, content); err != nil {
			return err
		}
	}
	// Its few extents need no index any more.
	for _, r := range index {
		if err := p.release(r); err != nil {
			return err
		}
	}
	i.put32(inodeSize0, i.get32(inodeSize0)+blockSize)
	if err := p.setRuns(dir, i, name, content); err != nil {
		return err
	}
	if i.acl() != 0 {
		i.put32(inodeSectors, i.get32(inodeSectors)+blockSize/512)
	}
	return nil
}

// bringHere moves a small directory to where the layer's files are: the images of a
// base differ there anyway, and so nowhere else.
func (p *patch) bringHere(dir uint32, i inode) error {
	content, index, err := p.runs(i)
	if err != nil || len(index) > 0 || p.window.length == 0 {
		return err
	}
	var blocks int64
	here := true
	for _, r := range content {
		blocks += r.length
		here = here && r.start >= p.window.start && r.start+r.length <= p.window.start+p.window.length
	}
	const most = 4 // blocks
	if here || blocks > most {
		return nil
	}
	name := fmt.Sprintf("directory %d", dir)
	if content, err = p.gather(name, content); err != nil {
		return err
	}
	sectors := i.get32(inodeSectors)
	if err := p.setRuns(dir, i, name, content); err != nil {
		return err
	}
	i.put32(inodeSectors, sectors)
	return nil
}

// gather moves blocks that are in many pieces to where they are in few.
func (p *patch) gather(name string, pieces []span) ([]span, error) {
	var all []int64
	for _, r := range pieces {
		for b := r.start; b < r.start+r.length; b++ {
			all = append(all, b)
		}
	}
	together, err := p.newBlocks(name, int64(len(all)))
	if err != nil {
		return nil, err
	}
	rest := all
	for _, r := range together {
		for b := r.start; b < r.start+r.length; b++ {
			from, err := p.block(rest[0])
			if err != nil {
				return nil, err
			}
			copy(p.fresh(b), from)
			rest = rest[1:]
		}
	}
	for _, r := range pieces {
		if err := p.release(r); err != nil {
			return nil, err
		}
	}
	return together, nil
}

// unlink takes a name out of a directory; the entry before it takes its bytes.
func (p *patch) unlink(dir uint32, name string) error {
	i, err := p.inode(dir)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	err = p.eachEntry(dir, func(block int64, b []byte, at, before int) bool {
		if le.Uint32(b[at:]) == 0 || string(b[at+entryHead:][:b[at+6]]) != name {
			return false
		}
		length := int(le.Uint16(b[at+4:]))
		if before >= 0 {
			clear(b[at : at+length])
			le.PutUint16(b[before+4:], le.Uint16(b[before+4:])+uint16(length))
		} else {
			clear(b[at+entryHead : at+length])
			le.PutUint32(b[at:], 0)
			b[at+6], b[at+7] = 0, 0
		}
		p.sumEntries(dir, i, b)
		p.changed[block] = true
		return true
	})
	if err != nil {
		return err
	}
	setTime(i, inodeMtime, inodeMtimeX, p.time)
	p.ext4.sum(dir, i)
	return nil
}

// empty removes all that is in a directory.
func (p *patch) empty(dir uint32) error {
	type child struct {
		name   string
		number uint32
	}
	var children []child
	err := p.eachEntry(dir, func(_ int64, b []byte, at, _ int) bool {
		name := string(b[at+entryHead:][:b[at+6]])
		if n := binary.LittleEndian.Uint32(b[at:]); n != 0 && name != "." && name != ".." {
			children = append(children, child{name, n})
		}
		return false
	})
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := p.remove(dir, c.name, c.number); err != nil {
			return err
		}
	}
	return nil
}
