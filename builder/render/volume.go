package render

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

// SeedLabel is the label by which cloud-init finds a seed's volume.
const SeedLabel = "cidata"

// The FAT16 file system of a seed's volume. It is written here, since a library
// would put the time into it, and the same seed has to be the same bytes. With
// one sector a cluster the smallest has 2 MiB and the largest 32.
const (
	sectorSize  = 512
	rootEntries = 512
	entrySize   = 32
	rootSectors = rootEntries * entrySize / sectorSize
	minClusters = 4085  // fewer make it a FAT12
	maxClusters = 65524 // more make it a FAT32
	fatDate     = 1<<5 | 1
	endOfChain  = 0xffff
)

// SeedVolume is a volume with the seed's files: the image of a vfat file system
// labelled cidata, of whole MiB. The same files make the same bytes.
func SeedVolume(files []NamedFile) ([]byte, error) {
	clusters := 0
	for _, f := range files {
		clusters += (len(f.Data) + sectorSize - 1) / sectorSize
	}
	v, err := newVolume(clusters)
	if err != nil {
		return nil, err
	}
	hash := crc32.NewIEEE()
	for _, f := range files {
		if err := v.add(f); err != nil {
			return nil, fmt.Errorf("the file %s of a seed's volume: %w", f.Name, err)
		}
		_, _ = fmt.Fprintf(hash, "%s %d ", f.Name, len(f.Data))
		_, _ = hash.Write(f.Data)
	}
	v.bootSector(hash.Sum32())
	copy(v.b[(1+v.fatSectors)*sectorSize:], v.b[sectorSize:(1+v.fatSectors)*sectorSize])
	return v.b, nil
}

// volume is a file system being written: boot sector, two copies of the FAT,
// root directory, clusters.
type volume struct {
	b          []byte
	fatSectors int
	entries    int // used in the root directory
	next       int // the first free cluster
	files      int
}

func newVolume(clusters int) (*volume, error) {
	const mebibyte = 1 << 20 / sectorSize
	sectors := 0
	v := &volume{next: 2, entries: 1}
	for sectors = mebibyte; ; sectors += mebibyte {
		// Enough for all sectors is a little too much for the clusters among them.
		v.fatSectors = (2*(sectors+2) + sectorSize - 1) / sectorSize
		have := v.clusters(sectors)
		if have > maxClusters {
			return nil, fmt.Errorf("a seed's volume holds %d MiB, and its files need more: move what all hosts share into the image half", maxClusters*sectorSize>>20)
		}
		if have >= max(clusters, minClusters) {
			break
		}
	}
	v.b = make([]byte, sectors*sectorSize)
	v.setFAT(0, 0xfff8)
	v.setFAT(1, endOfChain)
	label := v.entry(0)
	copy(label, paddedLabel())
	label[11] = 0x08 // a volume's label
	binary.LittleEndian.PutUint16(label[24:], fatDate)
	return v, nil
}

func (v *volume) clusters(sectors int) int { return sectors - 1 - 2*v.fatSectors - rootSectors }

func paddedLabel() string { return fmt.Sprintf("%-11s", SeedLabel) }

func (v *volume) setFAT(cluster int, next uint16) {
	binary.LittleEndian.PutUint16(v.b[sectorSize+2*cluster:], next)
}

func (v *volume) entry(i int) []byte {
	start := (1+2*v.fatSectors)*sectorSize + i*entrySize
	return v.b[start : start+entrySize]
}

func (v *volume) bootSector(id uint32) {
	b, le := v.b, binary.LittleEndian
	copy(b, "\xeb\x3c\x90kiln    ")
	le.PutUint16(b[11:], sectorSize)
	b[13] = 1               // sectors a cluster
	le.PutUint16(b[14:], 1) // reserved sectors
	b[16] = 2               // FATs
	le.PutUint16(b[17:], rootEntries)
	if sectors := len(b) / sectorSize; sectors < 1<<16 {
		le.PutUint16(b[19:], uint16(sectors))
	} else {
		le.PutUint32(b[32:], uint32(sectors))
	}
	b[21] = 0xf8 // a fixed disk
	le.PutUint16(b[22:], uint16(v.fatSectors))
	le.PutUint16(b[24:], 32) // sectors a track: of no meaning, but 0 confuses
	le.PutUint16(b[26:], 64) // heads
	b[36] = 0x80             // the first disk
	b[38] = 0x29             // the next three fields are there
	le.PutUint32(b[39:], id)
	copy(b[43:], paddedLabel())
	copy(b[54:], "FAT16   ")
	copy(b[62:], "\xeb\xfe") // nothing boots from here
	b[510], b[511] = 0x55, 0xaa
}

// add writes a file's clusters and its entries: the short name, and before it
// the long one in pieces, last piece first.
func (v *volume) add(f NamedFile) error {
	name := utf16.Encode([]rune(f.Name))
	pieces := (len(name) + 12) / 13
	if f.Name == "" || len(name) > 255 || strings.ContainsAny(f.Name, "/\\:*?\"<>|\x00") {
		return errors.New("vfat can't have a file of this name")
	}
	if v.entries+pieces+1 >= rootEntries {
		return errors.New("the volume has too many files")
	}
	v.files++
	short := fmt.Sprintf("KILN~%-3d   ", v.files)
	if v.files > 999 {
		return errors.New("the volume has too many files")
	}
	sum := byte(0)
	for i := range len(short) {
		sum = sum>>1 | sum<<7
		sum += short[i]
	}
	for i := range pieces {
		v.longName(name, pieces-1-i, i == 0, sum)
	}
	e := v.entry(v.entries)
	v.entries++
	copy(e, short)
	e[11] = 0x20 // to be archived
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(e[at:], fatDate)
	}
	binary.LittleEndian.PutUint32(e[28:], uint32(len(f.Data)))
	if len(f.Data) > 0 {
		binary.LittleEndian.PutUint16(e[26:], uint16(v.next))
		v.write(f.Data)
	}
	return nil
}

// longName writes the piece of 13 characters that begins at 13*index.
func (v *volume) longName(name []uint16, index int, last bool, sum byte) {
	e := v.entry(v.entries)
	v.entries++
	e[0] = byte(index + 1)
	if last {
		e[0] |= 0x40
	}
	e[11], e[13] = 0x0f, sum
	for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		c := uint16(0xffff)
		switch n := 13*index + i; {
		case n < len(name):
			c = name[n]
		case n == len(name):
			c = 0
		}
		binary.LittleEndian.PutUint16(e[at:], c)
	}
}

// write puts data into consecutive clusters.
func (v *volume) write(data []byte) {
	start := (1+2*v.fatSectors+rootSectors)*sectorSize + (v.next-2)*sectorSize
	copy(v.b[start:], data)
	for n := (len(data) + sectorSize - 1) / sectorSize; n > 0; n-- {
		next := uint16(endOfChain)
		if n > 1 {
			next = uint16(v.next + 1)
		}
		v.setFAT(v.next, next)
		v.next++
	}
}
