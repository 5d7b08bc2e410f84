package check

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"strings"
	"testing"
)

// retable changes the entries of a disk's partition table.
func retable(t *testing.T, name string, change func(entry []byte, first, last uint64)) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	le := binary.LittleEndian
	header := make([]byte, sectorSize)
	if _, err := f.ReadAt(header, sectorSize); err != nil {
		t.Fatal(err)
	}
	at, size := int64(le.Uint64(header[72:]))*sectorSize, le.Uint32(header[84:])
	entries := make([]byte, le.Uint32(header[80:])*size)
	if _, err := f.ReadAt(entries, at); err != nil {
		t.Fatal(err)
	}
	for e := entries; len(e) > 0; e = e[size:] {
		if [16]byte(e) != [16]byte{} {
			change(e[:size], le.Uint64(e[32:]), le.Uint64(e[40:]))
		}
	}
	le.PutUint32(header[88:], crc32.ChecksumIEEE(entries))
	clear(header[16:20])
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:92]))
	if _, err := f.WriteAt(entries, at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(header, sectorSize); err != nil {
		t.Fatal(err)
	}
}

// TestStockLayout has a disk whose partitions have no names, as stock cloud images'.
func TestStockLayout(t *testing.T) {
	for name, kind := range map[string][16]byte{"a root's type": rootTypes[0], "Linux data": linuxType} {
		t.Run(name, func(t *testing.T) {
			i := newImage(t)
			i.file("etc/hostname", "builder\n", 0o644)
			file := i.disk()
			retable(t, file, func(e []byte, first, _ uint64) {
				clear(e[56:128])
				switch first * sectorSize {
				case rootAt:
					copy(e, kind[:])
				case rootAt - espSize:
					// What is no ext4 is no root, whatever its type says.
					copy(e, linuxType[:])
				}
			})
			only(t, findingsOf(t, file, Options{}), Identity, "/etc/hostname")
		})
	}
}

// TestNoRoot has a disk of which no partition can be the root.
func TestNoRoot(t *testing.T) {
	i := newImage(t)
	file := i.disk()
	retable(t, file, func(e []byte, first, _ uint64) {
		clear(e[56:128])
		if first*sectorSize == rootAt {
			e[0] ^= 0xff
		}
	})
	if _, err := Disk(t.Context(), file, Options{}); err == nil || !strings.Contains(err.Error(), "nor one of a root's type") {
		t.Errorf("without a root: %v", err)
	}
}

// TestFindRoot has two partitions that may be the root.
func TestFindRoot(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 1 << 20, 3 << 20} {
		if _, err := f.WriteAt([]byte{0x53, 0xef}, at+1024+0x38); err != nil {
			t.Fatal(err)
		}
	}
	boot, large, typed, short := partition{"", linuxType, 0, 1 << 20}, partition{"", linuxType, 1 << 20, 3 << 20}, partition{"", rootTypes[1], 3 << 20, 3<<20 + 8192}, partition{"", linuxType, 3 << 20, 3<<20 + 512}
	for _, test := range []struct {
		partitions []partition
		want       int64
	}{{[]partition{boot, large}, large.start}, {[]partition{large, boot}, large.start}, {[]partition{large, typed, boot}, typed.start}, {[]partition{short, boot}, boot.start}} {
		d := &diskFile{File: f, partitions: test.partitions}
		if got := d.findRoot(); got == nil || got.start != test.want {
			t.Errorf("of %v, the root is %v", test.partitions, got)
		}
	}
}
