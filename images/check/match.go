package check

import "encoding/binary"

// matcher finds where one of many short texts may begin, at some GB/s. It looks
// at a few bytes at every so many: each occurrence of a text covers one of these
// places, and few places have bytes that are part of a text.
type matcher struct {
	mask   uint32                 // of the bytes that are looked at
	stride int                    // from one place to the next
	bits   *[hashes / 64]uint64   // by hash: whether a gram with that hash is in one of the texts
	grams  map[uint32][]candidate // which texts, and how far into them
}

type candidate struct{ text, offset int }

// window is a text to find: all have the same length.
type window struct {
	id     int // what it is reported as
	offset int // where in what is looked for it stands
	text   string
}

const (
	hashFactor = 0x9e3779b1
	hashBits   = 17 // so that the table fits a core's first cache
	hashes     = 1 << hashBits
	hashShift  = 32 - hashBits
)

// newMatcher makes one of windows of that many bytes, of which it looks at gram
// ones, 3 or 4, at a time.
func newMatcher(windows []window, length, gram int) *matcher {
	m := &matcher{mask: 0xffffffff >> (32 - 8*gram), stride: length - gram + 1, bits: new([hashes / 64]uint64), grams: map[uint32][]candidate{}}
	for _, w := range windows {
		for o := range m.stride {
			g := load(w.text[o:o+gram]) & m.mask
			m.grams[g] = append(m.grams[g], candidate{w.id, w.offset + o})
			h := g * hashFactor >> hashShift
			m.bits[h/64] |= 1 << (h % 64)
		}
	}
	return m
}

// load is what binary.LittleEndian.Uint32 is for four bytes, for fewer.
func load(s string) (v uint32) {
	for i := range min(4, len(s)) {
		v |= uint32(s[i]) << (8 * i)
	}
	return v
}

// scan calls each for all places where a text may begin. Some have another: the
// caller compares. A place may be before b.
func (m *matcher) scan(b []byte, each func(id, at int)) {
	if len(m.grams) == 0 {
		return
	}
	table, mask, stride := m.bits, m.mask, m.stride
	p := 0
	for ; p+4 <= len(b); p += stride {
		g := binary.LittleEndian.Uint32(b[p:]) & mask
		h := g * hashFactor >> hashShift
		if table[h/64%(hashes/64)]&(1<<(h%64)) == 0 {
			continue
		}
		for _, c := range m.grams[g] {
			each(c.text, p-c.offset)
		}
	}
	for ; p < len(b); p += stride {
		for _, c := range m.grams[load(string(b[p:]))&mask] {
			each(c.text, p-c.offset)
		}
	}
}
