package ext4

import (
	"encoding/binary"
	"fmt"
)

// Entry is a name in a folder.
type Entry struct {
	Name  string
	Inode uint32
}

// mostFolder is how large a folder can be that this package reads, in bytes.
const mostFolder = 256 << 20

// ReadDir lists a folder, without itself and the one above. A hash tree's inner
// nodes look like empty blocks, so that reading one after the other suffices.
func (fs *FS) ReadDir(i *Inode) ([]Entry, error) {
	if !i.IsDir() {
		return nil, fmt.Errorf("the inode %d is no folder", i.Number)
	}
	b, err := fs.ReadFile(i, min(mostFolder, fs.Blocks*fs.BlockSize))
	if err != nil {
		return nil, err
	}
	var list []Entry
	for at := 0; at < len(b); at += int(fs.BlockSize) {
		if list, err = fs.readBlock(list, b[at:min(at+int(fs.BlockSize), len(b))]); err != nil {
			return nil, fmt.Errorf("the folder of inode %d: %w", i.Number, err)
		}
	}
	return list, nil
}

func (fs *FS) readBlock(list []Entry, b []byte) ([]Entry, error) {
	le := binary.LittleEndian
	for len(b) >= 8 {
		number, size, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if size == 0xffff || size == 0 && len(b) == 65536 {
			size = len(b) // as blocks of 64 KiB have it
		}
		switch {
		case size < 8 || size%4 != 0 || size > len(b) || 8+name > size:
			return nil, fmt.Errorf("an entry has %d bytes", size)
		case number == 0: // what was removed, and checksums
		case number > fs.inodes:
			return nil, fmt.Errorf("it names inode %d, which there isn't", number)
		case name == 0:
			return nil, fmt.Errorf("a name of inode %d is empty", number)
		default:
			if s := string(b[8 : 8+name]); s != "." && s != ".." {
				list = append(list, Entry{s, number})
			}
		}
		b = b[size:]
	}
	return list, nil
}
