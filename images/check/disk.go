package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
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
	start, end int64 // bytes
}

const rootPartition = "root"

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
	for i := range d.partitions {
		if d.partitions[i].name == rootPartition {
			d.root = &d.partitions[i]
		}
	}
	if d.root == nil {
		return errors.New("it has no partition called root, as disks that kiln build makes have")
	}
	d.rootReader = io.NewSectionReader(d, d.root.start, d.root.end-d.root.start)
	d.fs, err = ext4.Open(d.rootReader, d.root.end-d.root.start)
	return err
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
		return errors.New("it has no partition table of the kind that UEFI knows: is it a raw disk that kiln build made?")
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
		d.partitions = append(d.partitions, partition{string(utf16.Decode(name)), int64(first) * sectorSize, int64(last+1) * sectorSize})
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
