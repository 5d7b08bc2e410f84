package installer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// A GUID partition table, as chapter 5 of the UEFI specification has it: the first
// sector, for those that don't know it; a header; the entries; and at the disk's
// end a copy of the last two.
const (
	sectorSize   = 512
	headerSize   = 92
	gptSignature = "EFI PART"
	// tableSectors are what a table of 128 entries takes at a disk's end.
	tableSectors = 33
	mostEntries  = 1024
)

// Offsets in a header.
const (
	atHeaderSize, atHeaderCRC, atOwn, atOther, atFirst, atLast  = 12, 16, 24, 32, 40, 48
	atEntries, atEntryCount, atEntrySize, atEntriesCRC, atLegal = 72, 80, 84, 88, 446
)

// Partition is one partition of a disk.
type Partition struct {
	Number int   // from 1
	Offset int64 // bytes
	Size   int64 // bytes
}

// rootTypes are the types of a root partition, as the Discoverable Partitions
// Specification has them, in the order of bytes on the disk: x86-64, arm64.
var rootTypes = [][]byte{
	{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09},
	{0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae},
}

// table is the partition table at a disk's begin.
type table struct {
	head      []byte // the disk's first MiB
	header    []byte // of it: the header's sector
	entries   []byte // of it
	entrySize int
	imageSize int64
}

// readTable reads the table in the first MiB of an image of size bytes.
func readTable(head []byte, size int64) (*table, error) {
	if len(head) < mebibyte || head[510] != 0x55 || head[511] != 0xaa || head[atLegal+4] != 0xee {
		return nil, errors.New("the image's first sector isn't that of a GPT")
	}
	le := binary.LittleEndian
	t := &table{head: head, header: head[sectorSize : 2*sectorSize], imageSize: size}
	h := t.header
	length := le.Uint32(h[atHeaderSize:])
	if string(h[:8]) != gptSignature || length < headerSize || length > sectorSize || headerSum(h) != le.Uint32(h[atHeaderCRC:]) {
		return nil, errors.New("the image's partition table has no valid header")
	}
	count, entrySize, at := le.Uint32(h[atEntryCount:]), le.Uint32(h[atEntrySize:]), le.Uint64(h[atEntries:])
	bytes := int64(count) * int64(entrySize)
	if le.Uint64(h[atOwn:]) != 1 || count == 0 || count > mostEntries || entrySize < 128 || entrySize > 1024 || entrySize%128 != 0 ||
		at < 2 || at > mebibyte/sectorSize || int64(at)*sectorSize+bytes > mebibyte || bytes > (tableSectors-1)*sectorSize {
		return nil, errors.New("the image's partition table is in an unusual place, or too large")
	}
	t.entries, t.entrySize = head[at*sectorSize:int64(at)*sectorSize+bytes], int(entrySize)
	if crc32.ChecksumIEEE(t.entries) != le.Uint32(h[atEntriesCRC:]) {
		return nil, errors.New("the image's partition table doesn't have its checksum")
	}
	return t, nil
}

// headerSum is the checksum of a header, in which its own place counts as zero.
func headerSum(h []byte) uint32 {
	length := binary.LittleEndian.Uint32(h[atHeaderSize:])
	if length < headerSize || length > uint32(len(h)) {
		return 0
	}
	h = bytes.Clone(h[:length])
	clear(h[atHeaderCRC : atHeaderCRC+4])
	return crc32.ChecksumIEEE(h)
}

// root finds the partition with the root filesystem: the one of its type, or else
// the one that is called root.
func (t *table) root() (Partition, error) {
	var byType, byName []Partition
	for i := range len(t.entries) / t.entrySize {
		e := t.entries[i*t.entrySize : (i+1)*t.entrySize]
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		if last < first || last >= uint64(t.imageSize/sectorSize) || first < mebibyte/sectorSize {
			return Partition{}, fmt.Errorf("the image's partition %d isn't within its disk", i+1)
		}
		p := Partition{Number: i + 1, Offset: int64(first) * sectorSize, Size: int64(last-first+1) * sectorSize}
		if bytes.Equal(e[:16], rootTypes[0]) || bytes.Equal(e[:16], rootTypes[1]) {
			byType = append(byType, p)
		}
		if name(e[56:128]) == "root" {
			byName = append(byName, p)
		}
	}
	for _, list := range [][]Partition{byType, byName} {
		switch len(list) {
		case 0:
		case 1:
			return list[0], nil
		default:
			return Partition{}, fmt.Errorf("the image has %d root partitions", len(list))
		}
	}
	return Partition{}, errors.New("the image has no root partition")
}

// name is a partition's, which is UTF-16 up to a zero.
func name(b []byte) string {
	var s []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		s = append(s, c)
	}
	return string(utf16.Decode(s))
}

// moved is the table on a disk of size bytes: the disk's first MiB, and its end of
// tableSectors. What the copy at the image's end was made for, a disk of the
// image's size, isn't the one at hand.
func (t *table) moved(size int64) (head, end []byte, err error) {
	if size < t.imageSize {
		return nil, nil, fmt.Errorf("the disk has %d bytes, and the image %d", size, t.imageSize)
	}
	le := binary.LittleEndian
	sectors := uint64(size / sectorSize)
	head = bytes.Clone(t.head)
	le.PutUint32(head[atLegal+12:], uint32(min(sectors-1, 0xffffffff)))
	last, entrySectors := sectors-1, uint64(len(t.entries)+sectorSize-1)/sectorSize
	h := head[sectorSize : 2*sectorSize]
	le.PutUint64(h[atOther:], last)
	le.PutUint64(h[atLast:], last-entrySectors-1)
	le.PutUint32(h[atHeaderCRC:], headerSum(h))

	end = make([]byte, tableSectors*sectorSize)
	copyAt := len(end) - sectorSize - int(entrySectors)*sectorSize
	copy(end[copyAt:], t.entries)
	back := end[len(end)-sectorSize:]
	copy(back, h)
	le.PutUint64(back[atOwn:], last)
	le.PutUint64(back[atOther:], 1)
	le.PutUint64(back[atEntries:], last-entrySectors)
	le.PutUint32(back[atHeaderCRC:], headerSum(back))
	return head, end, nil
}

// otherTable is where an old table's header says that its copy is, in bytes; 0 if
// it is none.
func otherTable(sector []byte) int64 {
	if len(sector) < sectorSize || string(sector[:8]) != gptSignature {
		return 0
	}
	at := binary.LittleEndian.Uint64(sector[atOther:])
	if at > 1<<54 {
		return 0
	}
	return int64(at) * sectorSize
}
