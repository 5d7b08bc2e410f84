package testnetboot

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"unicode/utf16"
)

// Root is where the root partition of Disk begins, in bytes.
const Root = 3 << 20

// Disk is a disk with a GPT whose second partition is a root of random bytes,
// with zeros in its middle; it has at least 5 MiB. It's the seed that tells disks apart.
func Disk(size int, seed uint64) []byte {
	const sector, entries = 512, 128
	raw := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = random.Read(raw[34*sector : 2<<20])
	rootEnd := size - 1<<20
	_, _ = random.Read(raw[Root:rootEnd])
	clear(raw[Root+(rootEnd-Root)/4 : Root+(rootEnd-Root)*3/4])
	copy(raw, "boot code")

	le := binary.LittleEndian
	table := make([]byte, entries*128)
	partition := func(i int, kind string, from, to int, name string) {
		e := table[i*128:]
		copy(e, kind)
		copy(e[16:], "unique partition"+string(rune('0'+i)))
		le.PutUint64(e[32:], uint64(from/sector))
		le.PutUint64(e[40:], uint64(to/sector-1))
		for j, c := range utf16.Encode([]rune(name)) {
			le.PutUint16(e[56+2*j:], c)
		}
	}
	partition(0, "\x48\x61\x68\x21\x49\x64\x6f\x6e\x74\x4e\x65\x65\x64\x45\x46\x49", 1<<20, 2<<20, "bios")
	partition(1, "\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09", Root, rootEnd, "root")
	last := uint64(size/sector - 1)
	header := func(own, other, at uint64) []byte {
		h := make([]byte, sector)
		copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
		le.PutUint64(h[24:], own)
		le.PutUint64(h[32:], other)
		le.PutUint64(h[40:], 34)
		le.PutUint64(h[48:], last-33)
		copy(h[56:], "unique disk name")
		le.PutUint64(h[72:], at)
		le.PutUint32(h[80:], entries)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}
	copy(raw[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	le.PutUint32(raw[458:], uint32(last))
	raw[510], raw[511] = 0x55, 0xaa
	copy(raw[sector:], header(1, last, 2))
	copy(raw[2*sector:], table)
	copy(raw[size-33*sector:], table)
	copy(raw[size-sector:], header(last, 1, last-32))
	return raw
}
