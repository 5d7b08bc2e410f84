package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Extended attributes stand behind the inode where there is room for them, else
// in a block of their own.
const (
	extendedMagic = 0xea020000
	extendedHead  = 16 // bytes of an entry before its name
	extendedBlock = 32 // bytes of a block's header
	extendedSum   = 16 // where the checksum is in that
	extendedHash  = 12
	extendedRefs  = 4
)

// extended is an attribute as it is written.
type extended struct {
	index byte // which stands for the beginning of its name
	name  string
	value []byte
}

// extendedPrefixes are the beginnings of names that have numbers.
var extendedPrefixes = []struct {
	prefix string
	index  byte
	whole  bool // nothing comes behind it
}{
	{"user.", 1, false}, {"system.posix_acl_access", 2, true}, {"system.posix_acl_default", 3, true}, {"trusted.", 4, false}, {"security.", 6, false},
}

// setExtended gives an inode the entry's attributes, instead of those it has.
func (p *patch) setExtended(number uint32, i inode, e *Entry) error {
	list, err := encodeExtended(e.Extended)
	if err != nil {
		return err
	}
	if old := i.acl(); old != 0 {
		var freed []span
		if err := p.dropExtended(old, &freed); err != nil {
			return err
		}
		for _, r := range freed {
			if err := p.release(r); err != nil {
				return err
			}
		}
		i.put32(inodeFileACL, 0)
		i.put16(inodeACLHigh, 0)
		i.put32(inodeSectors, i.get32(inodeSectors)-blockSize/512)
	}
	behind := i[inodeExtra+int(i.get16(inodeExtra)):]
	clear(behind)
	if len(list) == 0 {
		return nil
	}
	if putExtended(behind[4:], list, 0) {
		binary.LittleEndian.PutUint32(behind, extendedMagic)
		return nil
	}
	return p.extendedBlockFor(i, e.Path, list)
}

// extendedBlockFor puts attributes into a block of their own.
func (p *patch) extendedBlockFor(i inode, path string, list []extended) error {
	runs, err := p.newBlocks(path, 1)
	if err != nil {
		return err
	}
	at := runs[0].start
	b := p.fresh(at)
	if !putExtended(b[extendedBlock:], list, extendedBlock) {
		return errors.New("its extended attributes have more bytes than a block")
	}
	le := binary.LittleEndian
	le.PutUint32(b, extendedMagic)
	le.PutUint32(b[extendedRefs:], 1)
	le.PutUint32(b[8:], 1) // blocks
	var h uint32
	for _, x := range list {
		h = h<<16 ^ h>>16 ^ x.hash()
	}
	le.PutUint32(b[extendedHash:], h)
	p.sumExtended(at, b)
	i.put32(inodeFileACL, uint32(at))
	i.put16(inodeACLHigh, uint16(at>>32))
	i.put32(inodeSectors, i.get32(inodeSectors)+blockSize/512)
	return nil
}

func (p *patch) sumExtended(at int64, b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[extendedSum:], 0)
	le.PutUint32(b[extendedSum:], crc(crc(p.seed, le.AppendUint64(nil, uint64(at))), b))
}

// dropExtended gives up an inode's share of a block of attributes: the last one's
// is to be released.
func (p *patch) dropExtended(at int64, freed *[]span) error {
	b, err := p.change(at)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint32(b) != extendedMagic {
		return fmt.Errorf("the filesystem is damaged: block %d has no extended attributes", at)
	}
	if refs := le.Uint32(b[extendedRefs:]); refs > 1 {
		le.PutUint32(b[extendedRefs:], refs-1)
		p.sumExtended(at, b)
		return nil
	}
	*freed = append(*freed, span{at, 1})
	return nil
}

// encodeExtended gives attributes as they are written, in the order that the
// kernel wants.
func encodeExtended(all map[string][]byte) ([]extended, error) {
	list := make([]extended, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		x := extended{value: all[name]}
		for _, p := range extendedPrefixes {
			rest, ok := strings.CutPrefix(name, p.prefix)
			if !ok || p.whole && rest != "" || !p.whole && (rest == "" || len(rest) > 255) {
				continue
			}
			x.index, x.name = p.index, rest
		}
		var err error
		switch x.index {
		case 0:
			err = fmt.Errorf("no ext4 has an extended attribute %q", name)
		case 2, 3:
			x.value, err = encodeACL(x.value)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b extended) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return list, nil
}

// encodeACL turns what getxattr(2) gives into what is on the disk: its users and
// groups alone have numbers.
func encodeACL(value []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(value) < 4 || le.Uint32(value) != 2 || len(value)%8 != 4 {
		return nil, errors.New("its ACL isn't as Linux has them")
	}
	out := le.AppendUint32(nil, 1)
	for e := value[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...)
		if tag := le.Uint16(e); tag == 0x02 || tag == 0x08 {
			out = append(out, e[4:8]...)
		}
	}
	return out, nil
}

// putExtended writes the attributes into b: the entries from its beginning, their
// values from its end. It tells whether they fit. What values' places count from
// begins so many bytes before b.
func putExtended(b []byte, list []extended, before int) bool {
	le := binary.LittleEndian
	at, end := 0, len(b)
	for _, x := range list {
		size := (extendedHead + len(x.name) + 3) &^ 3
		from := end - (len(x.value)+3)&^3
		if at+size+4 > from {
			return false
		}
		end = from
		e := b[at:]
		e[0], e[1] = byte(len(x.name)), x.index
		le.PutUint16(e[2:], uint16(from+before))
		le.PutUint32(e[8:], uint32(len(x.value)))
		le.PutUint32(e[12:], x.hash())
		copy(e[extendedHead:], x.name)
		copy(b[from:], x.value)
		at += size
	}
	return true
}

// hash is an entry's, as the kernel makes it.
func (x *extended) hash() uint32 {
	var h uint32
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	padded := append(slices.Clone(x.value), make([]byte, (4-len(x.value)%4)%4)...)
	for ; len(padded) > 0; padded = padded[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(padded)
	}
	return h
}
