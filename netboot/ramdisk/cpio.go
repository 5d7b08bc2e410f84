package ramdisk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The format is "newc" of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst:
// a magic number, 13 numbers of eight hexadecimal digits, the name, the content;
// the latter two end at multiples of four bytes.
const (
	magic      = "070701"
	fields     = 13
	headerSize = len(magic) + 8*fields
	trailer    = "TRAILER!!!"
)

// Limits, in bytes: no initramfs comes near them, and a damaged one that claims
// more is refused before memory is taken for it.
const (
	mostName = 4096
	mostFile = 256 << 20
)

// Bits of a mode, as stat(2) has them.
const (
	typeMask      = 0o170000
	typeDirectory = 0o040000
	typeFile      = 0o100000
	typeLink      = 0o120000
	typeCharacter = 0o020000
)

// entry is one file of an archive.
type entry struct {
	name         string
	mode         uint32
	inode, links uint32
	device       [2]uint32 // major and minor of a device node
	size         uint32    // bytes of content
	data         []byte    // content, or a link's target; a reader leaves it to its caller
}

// reader reads an archive. It trusts nothing of it.
type reader struct {
	r    io.Reader
	at   int64 // bytes read
	rest int64 // of the last entry's content, with its padding
}

// next is the next entry; io.EOF after the trailer.
func (r *reader) next() (*entry, error) {
	if err := r.skip(); err != nil {
		return nil, err
	}
	var header [headerSize]byte
	if err := r.read(header[:]); err != nil {
		return nil, err
	}
	if string(header[:len(magic)]) != magic {
		return nil, fmt.Errorf("no header of an entry at byte %d", r.at-int64(headerSize))
	}
	var n [fields]uint32
	for i := range n {
		var b [4]byte
		if _, err := hex.Decode(b[:], header[len(magic)+8*i:len(magic)+8*i+8]); err != nil {
			return nil, fmt.Errorf("the header at byte %d: %w", r.at-int64(headerSize), err)
		}
		n[i] = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	e := &entry{inode: n[0], mode: n[1], links: n[4], size: n[6], device: [2]uint32{n[9], n[10]}}
	if n[11] == 0 || n[11] > mostName || e.size > mostFile {
		return nil, fmt.Errorf("the header at byte %d has a name of %d bytes and a content of %d", r.at-int64(headerSize), n[11], e.size)
	}
	name := make([]byte, n[11])
	if err := r.read(name); err != nil {
		return nil, err
	}
	e.name = strings.TrimRight(string(name), "\x00")
	r.rest = -r.at & 3
	if err := r.skip(); err != nil {
		return nil, err
	}
	if e.name == trailer {
		return nil, io.EOF
	}
	r.rest = (int64(e.size) + 3) &^ 3
	return e, nil
}

// content reads the content of the entry that next gave last.
func (r *reader) content(e *entry) ([]byte, error) {
	// What the archive lacks is found before memory for it is taken.
	data, err := io.ReadAll(io.LimitReader(r.r, int64(e.size)))
	r.at += int64(len(data))
	r.rest -= int64(len(data))
	if err == nil && len(data) < int(e.size) {
		err = io.ErrUnexpectedEOF
	}
	return data, err
}

func (r *reader) skip() error {
	n, err := io.CopyN(io.Discard, r.r, r.rest)
	r.at += n
	r.rest -= n
	return cut(err)
}

func (r *reader) read(b []byte) error {
	n, err := io.ReadFull(r.r, b)
	r.at += int64(n)
	return cut(err)
}

// cut makes an end within an archive an error.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writer writes an archive.
type writer struct {
	w     io.Writer
	at    int64
	inode uint32
	err   error
}

// add writes an entry; its inode, links and size are of no matter.
func (w *writer) add(e entry) {
	links := uint32(1)
	if e.mode&typeMask == typeDirectory {
		links = 2
	}
	w.inode++
	n := [fields]uint32{w.inode, e.mode, 0, 0, links, 0, uint32(len(e.data)), 0, 0, e.device[0], e.device[1], uint32(len(e.name) + 1), 0}
	var b strings.Builder
	b.WriteString(magic)
	for _, v := range n {
		fmt.Fprintf(&b, "%08X", v)
	}
	b.WriteString(e.name + "\x00")
	w.write([]byte(b.String()))
	w.write(e.data)
}

func (w *writer) close() error {
	w.inode = ^uint32(0) // so that the trailer's is 0
	w.add(entry{name: trailer})
	return w.err
}

// write writes b, and up to the next multiple of four.
func (w *writer) write(b []byte) {
	for _, part := range [][]byte{b, make([]byte, -(w.at+int64(len(b)))&3)} {
		if w.err != nil {
			return
		}
		var n int
		n, w.err = w.w.Write(part)
		w.at += int64(n)
	}
}
