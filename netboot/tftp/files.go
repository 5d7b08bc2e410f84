package tftp

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// Files has what is served.
type Files interface {
	// Open gives the content of a file, which nobody changes afterwards. The name is
	// clean (see CleanName). fs.ErrNotExist and fs.ErrPermission are told to the client.
	Open(name string, client netip.Addr) ([]byte, error)
}

// FilesFunc is a function that has the files.
type FilesFunc func(name string, client netip.Addr) ([]byte, error)

// Open calls the function.
func (f FilesFunc) Open(name string, client netip.Addr) ([]byte, error) { return f(name, client) }

// Map has files by their names. It isn't changed while it is served.
type Map map[string][]byte

// Open finds a name.
func (m Map) Open(name string, _ netip.Addr) ([]byte, error) {
	if b, ok := m[name]; ok {
		return b, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// First asks each in turn, until one has the file.
func First(all ...Files) Files {
	return FilesFunc(func(name string, client netip.Addr) ([]byte, error) {
		for _, f := range all {
			b, err := f.Open(name, client)
			if !os.IsNotExist(err) {
				return b, err
			}
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	})
}

// AutoexecName is what newer iPXE asks for before anything else, where it was
// itself loaded from.
const AutoexecName = "autoexec.ipxe"

// Autoexec answers iPXE's request for autoexec.ipxe with a script that goes on to
// the host's own one. Only iPXE knows its MAC, so the URL has iPXE's variable for
// it: http://10.0.0.1:8080/ipxe?mac=${netX/mac}. Where that can't be loaded, iPXE
// does what it would have done without.
func Autoexec(url string) Files {
	script := fmt.Appendf(nil, "#!ipxe\nisset ${netX/ip} || dhcp || autoboot\nchain --replace %s || autoboot\n", url)
	return Map{AutoexecName: script}
}

// maxFile bounds what is kept in memory of one file.
const maxFile = 64 << 20

// Folder has the files of a folder and those below it. They are kept in memory,
// and read again when their size or time of change is another. Links that lead
// out of the folder aren't followed.
type Folder struct {
	root *os.Root
	mu   sync.Mutex
	kept map[string]*keptFile
}

type keptFile struct {
	size int64
	time time.Time
	data []byte
}

// maxKept bounds how many files are kept; clients choose the names.
const maxKept = 64

// OpenFolder opens the folder; Close closes it.
func OpenFolder(dir string) (*Folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder of TFTP's files: %w", err)
	}
	return &Folder{root: root, kept: map[string]*keptFile{}}, nil
}

// Close closes the folder. Transfers that run go on.
func (f *Folder) Close() error { return f.root.Close() }

// Open reads a file, unless it is in memory.
func (f *Folder) Open(name string, _ netip.Addr) ([]byte, error) {
	// One at a time: 500 clients who want the same file read it once.
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.root.Stat(name)
	if err != nil {
		delete(f.kept, name)
		return nil, err
	}
	if k := f.kept[name]; k != nil && k.size == info.Size() && k.time.Equal(info.ModTime()) {
		return k.data, nil
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, more than TFTP's %d: serve it over HTTP", name, info.Size(), int64(maxFile))
	}
	data, info, err := f.read(name)
	if err != nil {
		return nil, err
	}
	if len(f.kept) >= maxKept {
		clear(f.kept)
	}
	f.kept[name] = &keptFile{info.Size(), info.ModTime(), data}
	return data, nil
}

// read reads a whole file, and says how it was before.
func (f *Folder) read(name string) ([]byte, fs.FileInfo, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile))
	if err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return data, info, nil
}

// CleanName makes the name that a client sends one of ours: without the slashes
// it may begin with, back slashes made slashes, without the 0xff that some
// firmware ends it with. A name that leads out of the folder is refused.
func CleanName(name string) (string, error) {
	wrong := func() (string, error) {
		return "", &fs.PathError{Op: "open", Path: fmt.Sprintf("%q", name), Err: fs.ErrNotExist}
	}
	clean := strings.TrimSpace(name)
	for strings.HasSuffix(clean, "\xff") { // TrimRight would take it for any wrong rune
		clean = clean[:len(clean)-1]
	}
	clean = strings.ReplaceAll(clean, `\`, "/")
	for _, c := range []byte(clean) {
		if c < ' ' || c == 0x7f {
			return wrong()
		}
	}
	for part := range strings.SplitSeq(clean, "/") {
		if part == ".." {
			return wrong()
		}
	}
	clean = strings.TrimPrefix(path.Clean("/"+clean), "/")
	if clean == "" || !fs.ValidPath(clean) { // also what isn't UTF-8
		return wrong()
	}
	return clean, nil
}

// netASCII is the file as a terminal of 1980 wants it: lines end with CR LF, and a
// CR that ends none is followed by a zero.
func netASCII(data []byte) []byte {
	out := make([]byte, 0, len(data)+bytes.Count(data, []byte{'\n'})+bytes.Count(data, []byte{'\r'}))
	for _, c := range data {
		switch c {
		case '\n':
			out = append(out, '\r', '\n')
		case '\r':
			out = append(out, '\r', 0)
		default:
			out = append(out, c)
		}
	}
	return out
}
