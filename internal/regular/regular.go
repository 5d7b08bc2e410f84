// Package regular opens files that are some: reading a named pipe, a terminal
// or a device waits for somebody who may never write, where no signal and no
// context ends it.
package regular

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrNot is what a name that isn't a regular file's gives.
var ErrNot = errors.New("it is no regular file")

// Open opens the regular file called name, or what a link of that name leads to.
func Open(name string) (*os.File, error) {
	// Before it is opened: opening a pipe waits, too.
	info, err := os.Stat(name)
	if err := check(name, info, err); err != nil {
		return nil, err
	}
	return os.Open(name)
}

// ReadFile reads the regular file called name.
func ReadFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err := check(name, info, err); err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// ReadFS reads the regular file called name in fsys, which must be an fs.StatFS
// for that to be told without opening it.
func ReadFS(fsys fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(fsys, name)
	if err := check(name, info, err); err != nil {
		return nil, err
	}
	return fs.ReadFile(fsys, name)
}

// check tells whether what stat says of a name lets it be opened.
func check(name string, info fs.FileInfo, err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		// As opening would have said it.
		return &fs.PathError{Op: "open", Path: path.Path, Err: path.Err}
	} else if err != nil {
		return err
	}
	what := ""
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		what = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case mode&fs.ModeSocket != 0:
		what = "a socket"
	default:
		what = "a device"
	}
	return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%w but %s: put a file in its place", ErrNot, what)}
}
