package installer

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/internal/testnetboot"
)

func TestReadTable(t *testing.T) {
	const size = 5 << 20
	raw := testnetboot.Disk(size, 1)
	table, err := readTable(raw[:headBytes], size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := table.root()
	if diff := cmp.Diff(Partition{Number: 2, Offset: testnetboot.Root, Size: size - 1<<20 - testnetboot.Root}, p); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := readTable(raw[:headBytes-1], size); err == nil {
		t.Error("less than a MiB has a table")
	}
	for i := range 2*sectorSize + 128 {
		if i == 446+5 { // from there to the signature, nobody looks
			continue
		}
		raw[i] ^= 0x10
		if _, err := readTable(raw[:headBytes], size); err == nil && (i == 510 || i == 511 || i == 450 || i >= sectorSize && i < sectorSize+92 || i >= 2*sectorSize) {
			t.Errorf("it's valid with byte %d changed", i)
		}
		raw[i] ^= 0x10
	}
	if _, _, err := table.moved(size - 512); err == nil || !strings.Contains(err.Error(), "and the image") {
		t.Errorf("on a smaller disk: %v", err)
	}
}

func FuzzReadTable(f *testing.F) {
	const size = 5 << 20
	raw := testnetboot.Disk(size, 1)[:4096]
	f.Add(raw)
	f.Fuzz(func(t *testing.T, start []byte) {
		head := make([]byte, headBytes)
		copy(head, start)
		// The checksums keep a fuzzer out.
		fix(head)
		table, err := readTable(head, size)
		if err != nil {
			return
		}
		if p, err := table.root(); err == nil && (p.Offset < headBytes || p.Offset+p.Size > size || p.Number < 1) {
			t.Errorf("%+v", p)
		}
		if _, _, err := table.moved(2 * size); err != nil {
			t.Error(err)
		}
	})
}

// fix gives a table its checksums.
func fix(head []byte) {
	le := binary.LittleEndian
	h := head[sectorSize : 2*sectorSize]
	at, n := le.Uint64(h[atEntries:])*sectorSize, uint64(le.Uint32(h[atEntryCount:]))*uint64(le.Uint32(h[atEntrySize:]))
	if at < headBytes && n < headBytes && at+n <= headBytes {
		le.PutUint32(h[atEntriesCRC:], crc32.ChecksumIEEE(head[at:at+n]))
	}
	le.PutUint32(h[atHeaderCRC:], headerSum(h))
}
