package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/internal/ext4"
)

const sectorSize = 512

// diskFile is a disk with a partition table.
type diskFile struct {
	*os.File
	size       int64
	partitions []partition
	root       *partition
	fs         *ext4.FS
	rootReader io.ReaderAt // of the partition alone
}

type partition struct {
	name       string
	kind       [16]byte // its type's GUID, as the table has it
	start, end int64    // bytes
}

// rootPartition is what disks that Kiln makes call it.
const rootPartition = "root"

// The types of partitions that a root may be of, in the order of the table's
// bytes: those that say so (for x86-64 and arm64), and the one of any Linux data.
var (
	rootTypes = [][16]byte{
		{0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09},
		{0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae},
	}
	linuxType = [16]byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
)

func openDisk(name string) (*diskFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	d := &diskFile{File: f}
	if err := d.open(); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func (d *diskFile) open() error {
	info, err := d.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	d.size = info.Size()
	if err := d.readTable(); err != nil {
		return err
	}
	if d.root = d.findRoot(); d.root == nil {
		return errors.New("it has no partition called root, as disks that kiln build makes have, nor one of a root's type with an ext4 file system, as stock cloud images have")
	}
	d.rootReader = io.NewSectionReader(d, d.root.start, d.root.end-d.root.start)
	d.fs, err = ext4.Open(d.rootReader, d.root.end-d.root.start)
	return err
}

// findRoot is the partition with the root's file system; nil is that there is
// none. Kiln's is known by its name. Of a stock image, whose partitions have
// none, it is the one of a root's type, or else the largest one with Linux data
// that is ext4: Ubuntu's has a smaller one with /boot besides.
func (d *diskFile) findRoot() *partition {
	var root *partition
	best := [2]int64{}
	for i := range d.partitions {
		p := &d.partitions[i]
		rank := [2]int64{0, p.end - p.start}
		switch {
		case p.name == rootPartition:
			rank[0] = 3
		case slices.Contains(rootTypes, p.kind) && d.isExt4(p):
			rank[0] = 2
		case p.kind == linuxType && d.isExt4(p):
			rank[0] = 1
		default:
			continue
		}
		if rank[0] > best[0] || rank[0] == best[0] && rank[1] > best[1] {
			root, best = p, rank
		}
	}
	return root
}

// isExt4 tells whether a partition has the magic number of ext4's superblock.
func (d *diskFile) isExt4(p *partition) bool {
	b := make([]byte, 2)
	const magicAt = 1024 + 0x38
	if p.end-p.start < magicAt+int64(len(b)) {
		return false
	}
	_, err := d.ReadAt(b, p.start+magicAt)
	return err == nil && binary.LittleEndian.Uint16(b) == 0xef53
}

// readTable reads the GPT, as chapter 5 of the UEFI specification has it.
func (d *diskFile) readTable() error {
	b := make([]byte, sectorSize)
	if _, err := d.ReadAt(b, sectorSize); err != nil {
		return fmt.Errorf("its partition table: %w", err)
	}
	le := binary.LittleEndian
	sum := le.Uint32(b[16:])
	clear(b[16:20])
	if string(b[:8]) != "EFI PART" || le.Uint32(b[12:]) != 92 || crc32.ChecksumIEEE(b[:92]) != sum {
		return errors.New("it has no partition table of the kind that UEFI knows: is it a raw disk?")
	}
	at, count, size := le.Uint64(b[72:]), le.Uint32(b[80:]), le.Uint32(b[84:])
	if count > 1024 || size < 128 || size > 4096 || at > uint64(d.size)/sectorSize {
		return fmt.Errorf("its partition table has %d entries of %d bytes in sector %d", count, size, at)
	}
	entries := make([]byte, int64(count)*int64(size))
	if _, err := d.ReadAt(entries, int64(at)*sectorSize); err != nil {
		return fmt.Errorf("its partition table: %w", err)
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(b[88:]) {
		return errors.New("its partition table doesn't have the checksum that it says")
	}
	for ; len(entries) > 0; entries = entries[size:] {
		if [16]byte(entries) == [16]byte{} {
			continue
		}
		first, last := le.Uint64(entries[32:]), le.Uint64(entries[40:])
		if first > last || last >= uint64(d.size)/sectorSize {
			return fmt.Errorf("a partition has the sectors %d to %d, and the disk %d: was it cut off?", first, last, d.size/sectorSize)
		}
		var name []uint16
		for i := 56; i+1 < 128 && le.Uint16(entries[i:]) != 0; i += 2 {
			name = append(name, le.Uint16(entries[i:]))
		}
		d.partitions = append(d.partitions, partition{string(utf16.Decode(name)), [16]byte(entries), int64(first) * sectorSize, int64(last+1) * sectorSize})
	}
	return nil
}

// segment is a piece of the disk that isn't a hole, in bytes.
type segment struct{ start, end int64 }

// segments lists what isn't a hole of the file. Where the filesystem below can't
// tell, that is all of it.
func (d *diskFile) segments() ([]segment, error) {
	var list []segment
	for at := int64(0); at < d.size; {
		start, err := unix.Seek(int(d.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil || start < at {
			return []segment{{0, d.size}}, nil
		}
		end, err := unix.Seek(int(d.Fd()), start, unix.SEEK_HOLE)
		if err != nil || end <= start {
			return []segment{{0, d.size}}, nil
		}
		list = append(list, segment{start, min(end, d.size)})
		at = end
	}
	return list, nil
}
