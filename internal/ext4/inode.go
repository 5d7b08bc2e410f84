package ext4

import (
	"encoding/binary"
	"fmt"
	"io/fs"
)

// Inode is a file, folder, link or device.
type Inode struct {
	Number   uint32
	Mode     uint16 // type, and permissions as chmod(1) numbers them
	UID, GID uint32
	Size     int64 // bytes
	Links    int
	Flags    uint32
	Modified int64 // seconds since 1970

	sectors    int64    // that it takes, of 512 bytes
	block      [60]byte // where its content is, or a short link's target
	attributes int64    // the block of them; 0 is none
	inline     []byte   // attributes that stand in the inode itself
}

// Types of inodes, in the bits of Mode that typeMask has.
const (
	typeMask    = 0xf000
	typeSocket  = 0xc000
	typeLink    = 0xa000
	typeRegular = 0x8000
	typeBlock   = 0x6000
	typeFolder  = 0x4000
	typeChar    = 0x2000
	typePipe    = 0x1000

	flagExtents  = 0x80000
	flagHuge     = 0x40000
	flagEncrypt  = 0x800
	flagInline   = 0x10000000
	flagEAInode  = 0x200000
	unreadable   = flagEncrypt | flagInline | flagEAInode
	permissions  = 0o7777
	inodeMinimum = 128
)

// IsDir tells whether it is a folder.
func (i *Inode) IsDir() bool { return i.Mode&typeMask == typeFolder }

// IsRegular tells whether it is a regular file.
func (i *Inode) IsRegular() bool { return i.Mode&typeMask == typeRegular }

// IsLink tells whether it is a symbolic link.
func (i *Inode) IsLink() bool { return i.Mode&typeMask == typeLink }

// Permissions are as chmod(1) numbers them: setuid, setgid and sticky bits
// included.
func (i *Inode) Permissions() uint16 { return i.Mode & permissions }

// FileMode is the mode as Go has it.
func (i *Inode) FileMode() fs.FileMode {
	m := fs.FileMode(i.Mode & 0o777)
	for bit, flag := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if i.Mode&bit != 0 {
			m |= flag
		}
	}
	switch i.Mode & typeMask {
	case typeSocket:
		m |= fs.ModeSocket
	case typeLink:
		m |= fs.ModeSymlink
	case typeRegular:
	case typeBlock:
		m |= fs.ModeDevice
	case typeFolder:
		m |= fs.ModeDir
	case typeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case typePipe:
		m |= fs.ModeNamedPipe
	default:
		m |= fs.ModeIrregular
	}
	return m
}

// Inode reads one inode, whether it is in use or not.
func (fs *FS) Inode(number uint32) (*Inode, error) {
	if number == 0 || number > fs.inodes {
		return nil, fmt.Errorf("there is no inode %d", number)
	}
	g, index := (number-1)/fs.inodesPerGroup, (number-1)%fs.inodesPerGroup
	b := make([]byte, fs.inodeSize)
	if _, err := fs.r.ReadAt(b, fs.groups[g].inodeTable*fs.BlockSize+int64(index)*fs.inodeSize); err != nil {
		return nil, fmt.Errorf("the inode %d: %w", number, err)
	}
	i := &Inode{}
	fs.decode(i, number, b)
	return i, nil
}

// Inodes calls each for all that are in use, in the order of their numbers, out
// of one pass over their tables. The reserved ones are among them, such as the
// journal's. It ends with each's first error.
func (fs *FS) Inodes(each func(*Inode) error) error {
	const piece = 1 << 20
	buf := make([]byte, piece)
	per := uint32(piece / fs.inodeSize)
	var taken int64
	for g := range fs.groups {
		if fs.groups[g].flags&inodeUninit != 0 {
			continue
		}
		used := fs.inodesPerGroup - fs.groups[g].unused
		for first := uint32(0); first < used; first += per {
			n := min(per, used-first)
			b := buf[:int64(n)*fs.inodeSize]
			if _, err := fs.r.ReadAt(b, fs.groups[g].inodeTable*fs.BlockSize+int64(first)*fs.inodeSize); err != nil {
				return fmt.Errorf("the inodes of group %d: %w", g, err)
			}
			for j := range n {
				raw := b[int64(j)*fs.inodeSize:][:fs.inodeSize]
				// Without a mode or a name it isn't in use.
				if binary.LittleEndian.Uint16(raw) == 0 || binary.LittleEndian.Uint16(raw[0x1a:]) == 0 {
					continue
				}
				i := &Inode{}
				fs.decode(i, uint32(g)*fs.inodesPerGroup+first+j+1, raw)
				// What the walk through all files' extents can take at most.
				if taken += i.sectors * 512 / fs.BlockSize; i.sectors < 0 || taken > 2*fs.Blocks {
					return fmt.Errorf("up to inode %d, files say that they have more blocks than there are", i.Number)
				}
				if err := each(i); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// decode reads an inode of b, which has inodeSize bytes.
func (fs *FS) decode(i *Inode, number uint32, b []byte) {
	le := binary.LittleEndian
	*i = Inode{
		Number: number, Mode: le.Uint16(b), Links: int(le.Uint16(b[0x1a:])), Flags: le.Uint32(b[0x20:]), Modified: int64(int32(le.Uint32(b[0x10:]))),
		UID:        uint32(le.Uint16(b[0x02:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:        uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7a:]))<<16,
		Size:       int64(uint64(le.Uint32(b[0x04:])) | uint64(le.Uint32(b[0x6c:]))<<32),
		sectors:    int64(le.Uint32(b[0x1c:])) | int64(le.Uint16(b[0x74:]))<<32,
		attributes: int64(le.Uint32(b[0x68:])) | int64(le.Uint16(b[0x76:]))<<32,
	}
	if i.Flags&flagHuge != 0 {
		i.sectors *= fs.BlockSize / 512
	}
	copy(i.block[:], b[0x28:])
	if fs.inodeSize > inodeMinimum {
		extra := int64(le.Uint16(b[inodeMinimum:]))
		if at := inodeMinimum + extra; at+4 <= fs.inodeSize && le.Uint32(b[at:]) == attributeMagic {
			i.inline = append([]byte(nil), b[at:]...)
		}
		if extra >= 0x0c {
			i.Modified += int64(le.Uint32(b[0x88:])&3) << 32
		}
	}
}
