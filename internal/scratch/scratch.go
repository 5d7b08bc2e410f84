// Package scratch makes temporary directories that don't outlive whoever makes
// them, however that ends: each is locked as long as its maker lives, so that the
// next one to come can tell those that are worked in from those that were left
// by a process that was killed, and removes the latter.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alisw/kiln/internal/flock"
)

// Dir is a temporary directory.
type Dir struct {
	// Path is where it is. It may be given another name, by which it stays.
	Path string

	lock *os.File
}

// New makes a directory in parent, which is made where it's missing, with a name
// that begins with prefix. It removes those of the prefix that were left.
func New(parent, prefix string) (*Dir, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	if err := Sweep(parent, prefix); err != nil {
		return nil, err
	}
	// Between getting its name and being locked, it looks as if it had been left.
	unlock, err := hold(parent)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path}
	if err = os.Chmod(path, 0o755); err == nil {
		d.lock, err = take(path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return d, nil
}

// Remove takes the directory away, if it is still there by its name, and ends
// its lock. It may be called again.
func (d *Dir) Remove() error {
	defer d.lock.Close()
	return RemoveAll(d.Path)
}

// Sweep removes what was left in parent, with names that begin with prefix.
func Sweep(parent, prefix string) error {
	found, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil || len(found) == 0 {
		return err
	}
	left, err := leftAmong(parent, found)
	for _, d := range left {
		err = errors.Join(err, d.Remove())
	}
	return err
}

// leftAmong locks those that nobody works in.
func leftAmong(parent string, found []string) (left []*Dir, err error) {
	unlock, err := hold(parent)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, path := range found {
		lock, err := take(path)
		switch {
		case err == nil:
			left = append(left, &Dir{path, lock})
		case errors.Is(err, syscall.EWOULDBLOCK), errors.Is(err, fs.ErrNotExist):
		default:
			return left, fmt.Errorf("looking for what was left behind: %w", err)
		}
	}
	return left, nil
}

// take locks what is at path, unless somebody else has.
func take(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hold waits for the lock of the directory that others are made in, which is only
// ever held for a moment.
func hold(name string) (unlock func(), err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if err := flock.Lock(f, syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// Patience for what still writes while it dies, its maker having been killed.
const (
	tries = 100
	pause = 50 * time.Millisecond
)

// RemoveAll removes a directory with all that is in it. It never goes into a
// file system that is mounted there.
func RemoveAll(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if at := unescape.Replace(fields[1]); strings.HasPrefix(at, dir+"/") {
			return fmt.Errorf("something is still mounted at %s: umount it, and remove %s", at, dir)
		}
	}
	for range tries {
		err = os.RemoveAll(dir)
		if !slices.ContainsFunc([]error{syscall.ENOTEMPTY, syscall.EBUSY}, func(e error) bool { return errors.Is(err, e) }) {
			return err
		}
		time.Sleep(pause)
	}
	return err
}
