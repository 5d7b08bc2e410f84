package disk

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// Types of partitions, as the UEFI specification, GRUB and the Discoverable
// Partitions Specification have them.
var (
	typeESP       = UUID{0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	typeBIOSBoot  = UUID{0x21, 0x68, 0x61, 0x48, 0x64, 0x49, 0x6e, 0x6f, 0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49}
	typeRootAMD64 = UUID{0x4f, 0x68, 0xbc, 0xe3, 0xe8, 0xcd, 0x4d, 0xb1, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09}
)

const (
	gptEntries   = 128
	gptEntrySize = 128
	gptSectors   = gptEntries * gptEntrySize / sectorSize // of a table, without its header
)

// gpt is a partition table, as chapter 5 of the UEFI specification has it.
type gpt struct {
	disk       UUID
	sectors    uint64 // of the whole disk
	partitions []partition
}

type partition struct {
	kind, id       UUID
	start, sectors uint64
	name           string
}

// write writes the protective MBR with its boot code, and both copies of the
// table.
func (g *gpt) write(w io.WriterAt, code [mbrCode]byte) error {
	entries := make([]byte, gptEntries*gptEntrySize)
	for i, p := range g.partitions {
		p.encode(entries[i*gptEntrySize:])
	}
	last := g.sectors - 1
	for _, part := range []struct {
		sector uint64
		data   []byte
	}{
		{0, g.protective(code)},
		{1, g.header(1, last, 2, entries)},
		{2, entries},
		{last - gptSectors, entries},
		{last, g.header(last, 1, last-gptSectors, entries)},
	} {
		if _, err := w.WriteAt(part.data, int64(part.sector)*sectorSize); err != nil {
			return err
		}
	}
	return nil
}

// protective is an MBR whose one partition keeps tools that know no GPT from
// taking the disk for an empty one.
func (g *gpt) protective(code [mbrCode]byte) []byte {
	b := make([]byte, sectorSize)
	copy(b, code[:])
	entry := b[446:]
	entry[4] = 0xee
	copy(entry[1:], []byte{0x00, 0x02, 0x00})
	copy(entry[5:], []byte{0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], 1)
	binary.LittleEndian.PutUint32(entry[12:], uint32(min(g.sectors-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (g *gpt) header(own, other, entriesAt uint64, entries []byte) []byte {
	b := make([]byte, sectorSize)
	copy(b, "EFI PART")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], 92)
	le.PutUint64(b[24:], own)
	le.PutUint64(b[32:], other)
	le.PutUint64(b[40:], 2+gptSectors)
	le.PutUint64(b[48:], g.sectors-gptSectors-2)
	g.disk.encode(b[56:])
	le.PutUint64(b[72:], entriesAt)
	le.PutUint32(b[80:], gptEntries)
	le.PutUint32(b[84:], gptEntrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
	return b
}

func (p *partition) encode(b []byte) {
	p.kind.encode(b)
	p.id.encode(b[16:])
	binary.LittleEndian.PutUint64(b[32:], p.start)
	binary.LittleEndian.PutUint64(b[40:], p.start+p.sectors-1)
	for i, c := range utf16.Encode([]rune(p.name)) {
		binary.LittleEndian.PutUint16(b[56+2*i:], c)
	}
}

// encode writes u as EFI has it: its first three numbers little-endian.
func (u UUID) encode(b []byte) {
	copy(b, []byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6]})
	copy(b[8:16], u[8:])
}
