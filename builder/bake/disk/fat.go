package disk

import (
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	fatReserved = 32  // sectors before the first table
	fatCluster  = 512 // bytes: the smallest, since FAT32 has 65525 clusters at least
	fatEnd      = 0x0fffffff
	fatMedia    = 0xf8 // a fixed disk
	direntSize  = 32
)

// fat writes a FAT32 filesystem that has nothing random and no time of its own.
// Every name in it has at most eight letters, and three after the dot.
type fat struct {
	label  string
	serial uint32
	size   int64 // in bytes
	offset int64 // of the partition on the disk, in bytes
	time   time.Time

	w      io.WriterAt
	table  []uint32
	sector int64 // where the clusters start, within the partition
	total  int   // clusters that there are
}

// fatFolder is one while it is written: names are sorted, so that the order of
// whoever made it doesn't show.
type fatFolder struct {
	folders map[string]*fatFolder
	files   map[string][]byte
}

// write writes the filesystem with files of these paths, as in EFI/BOOT/x.efi.
func (f *fat) write(w io.WriterAt, files map[string][]byte) error {
	root := &fatFolder{}
	for name, content := range files {
		root.add(strings.Split(name, "/"), content)
	}
	f.w = w
	perTable := f.layout()
	if f.total < 65525 {
		return fmt.Errorf("an ESP of %d MiB is too small for FAT32: 36 MiB is the least", f.size/mib)
	}
	f.table = []uint32{0x0fffff00 | fatMedia, fatEnd}
	if _, err := f.folder(root, "", 0); err != nil {
		return err
	}
	table := make([]byte, 4*len(f.table))
	for i, next := range f.table {
		binary.LittleEndian.PutUint32(table[4*i:], next)
	}
	for _, part := range []struct {
		sector int64
		data   []byte
	}{
		{0, f.bootSector(perTable)}, {1, f.info()}, {2, fatSignature()},
		{6, f.bootSector(perTable)}, {7, f.info()}, {8, fatSignature()},
		{fatReserved, table}, {fatReserved + perTable, table},
	} {
		if _, err := w.WriteAt(part.data, f.offset+part.sector*sectorSize); err != nil {
			return err
		}
	}
	return nil
}

// layout says how many sectors a table has.
func (f *fat) layout() (perTable int64) {
	sectors := f.size / sectorSize
	// As many as all that isn't reserved would need, tables included: some
	// sectors of them stay unused.
	perTable = ((sectors-fatReserved+2)*4 + sectorSize - 1) / sectorSize
	f.sector = fatReserved + 2*perTable
	f.total = int((sectors - f.sector) * sectorSize / fatCluster)
	return perTable
}

func (d *fatFolder) add(names []string, content []byte) {
	if len(names) == 1 {
		if d.files == nil {
			d.files = map[string][]byte{}
		}
		d.files[names[0]] = content
		return
	}
	if d.folders == nil {
		d.folders = map[string]*fatFolder{}
	}
	if d.folders[names[0]] == nil {
		d.folders[names[0]] = &fatFolder{}
	}
	d.folders[names[0]].add(names[1:], content)
}

// folder writes a folder and all below it, and returns its first cluster.
func (f *fat) folder(d *fatFolder, name string, parent uint32) (uint32, error) {
	entries := 1 + len(d.folders) + len(d.files)
	if name != "" {
		entries++ // two for itself and its parent, none for the label
	}
	first, err := f.allocate(entries * direntSize)
	if err != nil {
		return 0, err
	}
	b := make([]byte, 0, entries*direntSize)
	if name == "" {
		b = append(b, f.entry(fmt.Sprintf("%-11s", f.label), 0x08, 0, 0, 0)...)
	} else {
		b = append(b, f.entry(".          ", 0x10, 0, first, 0)...)
		b = append(b, f.entry("..         ", 0x10, 0, parent, 0)...)
	}
	up := first
	if name == "" {
		up = 0 // the root is always called that
	}
	for _, n := range sorted(d.folders) {
		short, lower, err := shortName(n)
		if err != nil {
			return 0, err
		}
		cluster, err := f.folder(d.folders[n], path.Join("/", name, n), up)
		if err != nil {
			return 0, err
		}
		b = append(b, f.entry(short, 0x10, lower, cluster, 0)...)
	}
	for _, n := range sorted(d.files) {
		short, lower, err := shortName(n)
		if err != nil {
			return 0, err
		}
		content := d.files[n]
		cluster := uint32(0)
		if len(content) > 0 {
			if cluster, err = f.allocate(len(content)); err != nil {
				return 0, err
			}
			if _, err := f.w.WriteAt(content, f.at(cluster)); err != nil {
				return 0, err
			}
		}
		b = append(b, f.entry(short, 0x20, lower, cluster, len(content))...)
	}
	_, err = f.w.WriteAt(b, f.at(first))
	return first, err
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// allocate takes the next clusters for n bytes, and chains them.
func (f *fat) allocate(n int) (uint32, error) {
	count := (n + fatCluster - 1) / fatCluster
	if len(f.table)-2+count > f.total {
		return 0, fmt.Errorf("an ESP of %d MiB is too small for what goes there: give it more", f.size/mib)
	}
	first := uint32(len(f.table))
	for i := range count - 1 {
		f.table = append(f.table, first+uint32(i)+1)
	}
	f.table = append(f.table, fatEnd)
	return first, nil
}

// at is where a cluster is on the disk.
func (f *fat) at(cluster uint32) int64 {
	return f.offset + f.sector*sectorSize + int64(cluster-2)*fatCluster
}

// entry is one of a folder.
func (f *fat) entry(short string, attributes, lower byte, cluster uint32, size int) []byte {
	b := make([]byte, direntSize)
	copy(b, short)
	b[11], b[12] = attributes, lower
	// FAT knows times from 1980 on, in pairs of seconds and in no zone.
	t := f.time.UTC()
	if t.Year() < 1980 {
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	date := uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	clock := uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
	le := binary.LittleEndian
	le.PutUint16(b[14:], clock)
	le.PutUint16(b[16:], date)
	le.PutUint16(b[18:], date)
	le.PutUint16(b[20:], uint16(cluster>>16))
	le.PutUint16(b[22:], clock)
	le.PutUint16(b[24:], date)
	le.PutUint16(b[26:], uint16(cluster))
	le.PutUint32(b[28:], uint32(size))
	return b
}

// shortName is name in eight and three letters, and the flags of Windows NT
// that say which of the two are small.
func shortName(name string) (short string, lower byte, err error) {
	base, ext, _ := strings.Cut(name, ".")
	for i, part := range []string{base, ext} {
		switch {
		case part == strings.ToUpper(part):
		case part == strings.ToLower(part):
			lower |= 0x08 << i
		default:
			err = fmt.Errorf("capitals and small letters are mixed")
		}
	}
	if len(base) == 0 || len(base) > 8 || len(ext) > 3 || strings.Trim(base+ext, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		err = fmt.Errorf("eight letters, a dot and three is the most")
	}
	if err != nil {
		return "", 0, fmt.Errorf("the name %q can't be on the ESP: %w", name, err)
	}
	return strings.ToUpper(fmt.Sprintf("%-8s%-3s", base, ext)), lower, nil
}

// bootSector says what the filesystem looks like.
func (f *fat) bootSector(perTable int64) []byte {
	b := make([]byte, sectorSize)
	copy(b, []byte{0xeb, 0x58, 0x90})
	copy(b[3:], "mkfs.fat") // what some firmware wants to know
	le := binary.LittleEndian
	le.PutUint16(b[11:], sectorSize)
	b[13] = fatCluster / sectorSize
	le.PutUint16(b[14:], fatReserved)
	b[16] = 2 // tables
	b[21] = fatMedia
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	le.PutUint32(b[28:], uint32(f.offset/sectorSize))
	le.PutUint32(b[32:], uint32(f.size/sectorSize))
	le.PutUint32(b[36:], uint32(perTable))
	le.PutUint32(b[44:], 2) // the root's first cluster
	le.PutUint16(b[48:], 1) // the sector of info
	le.PutUint16(b[50:], 6) // the sector of the copy of this one
	b[64], b[66] = 0x80, 0x29
	le.PutUint32(b[67:], f.serial)
	copy(b[71:], fmt.Sprintf("%-11s", f.label))
	copy(b[82:], "FAT32   ")
	// What a BIOS that starts it gets: back, to try the next device.
	copy(b[90:], []byte{0xcd, 0x18})
	b[510], b[511] = 0x55, 0xaa
	return b
}

// info says what is free.
func (f *fat) info() []byte {
	b := fatSignature()
	copy(b, "RRaA")
	copy(b[484:], "rrAa")
	used := len(f.table) - 2
	binary.LittleEndian.PutUint32(b[488:], uint32(f.total-used))
	binary.LittleEndian.PutUint32(b[492:], uint32(len(f.table)-1)) // the last one taken
	return b
}

func fatSignature() []byte {
	b := make([]byte, sectorSize)
	b[510], b[511] = 0x55, 0xaa
	return b
}
