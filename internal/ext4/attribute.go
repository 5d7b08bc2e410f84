package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const attributeMagic = 0xea020000

// prefixes are what names of attributes begin with, by the number on the disk.
var prefixes = map[byte]string{
	0: "", 1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 7: "system.", 8: "system.richacl",
}

// Attributes gives the extended attributes of an inode, raw: capabilities are
// called security.capability, ACLs system.posix_acl_access, in ext4's own form.
func (fs *FS) Attributes(i *Inode) (map[string][]byte, error) {
	if i.inline == nil && i.attributes == 0 {
		return nil, nil
	}
	found := map[string][]byte{}
	if i.inline != nil {
		// Values are counted from behind the number.
		if err := readAttributes(found, i.inline[4:], i.inline[4:]); err != nil {
			return nil, fmt.Errorf("the attributes of inode %d: %w", i.Number, err)
		}
	}
	if i.attributes != 0 {
		if i.attributes < 0 || i.attributes >= fs.Blocks {
			return nil, fmt.Errorf("the attributes of inode %d are in block %d, which there isn't", i.Number, i.attributes)
		}
		b := make([]byte, fs.BlockSize)
		if _, err := fs.r.ReadAt(b, i.attributes*fs.BlockSize); err != nil {
			return nil, fmt.Errorf("the attributes of inode %d: %w", i.Number, err)
		}
		err := errors.New("their block isn't one")
		if binary.LittleEndian.Uint32(b) == attributeMagic {
			err = readAttributes(found, b[32:], b)
		}
		if err != nil {
			return nil, fmt.Errorf("the attributes of inode %d: %w", i.Number, err)
		}
	}
	return found, nil
}

// readAttributes reads entries, whose values are within values.
func readAttributes(found map[string][]byte, entries, values []byte) error {
	le := binary.LittleEndian
	for len(entries) >= 4 && le.Uint32(entries) != 0 {
		if len(entries) < 16 {
			return errors.New("the last one is cut off")
		}
		length, at, size := int(entries[0]), int(le.Uint16(entries[2:])), uint64(le.Uint32(entries[8:]))
		next := (16 + length + 3) &^ 3
		switch {
		case next > len(entries):
			return errors.New("a name is cut off")
		case le.Uint32(entries[4:]) != 0:
			return errors.New("a value is in an inode of its own")
		case at > len(values) || size > uint64(len(values)-at):
			return errors.New("a value is cut off")
		}
		prefix, ok := prefixes[entries[1]]
		if !ok {
			prefix = fmt.Sprintf("%d.", entries[1])
		}
		found[prefix+string(entries[16:16+length])] = append([]byte(nil), values[at:at+int(size)]...)
		entries = entries[next:]
	}
	return nil
}
