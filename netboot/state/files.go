package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alisw/kiln/internal/flock"
)

// files is what a store asks of a disk. The tests have one that loses power.
type files interface {
	// lock waits until nobody else, in whatever process, has the lock of the name.
	lock(name string) (unlock func(), err error)
	read(name string) ([]byte, version, error)
	stat(name string) (version, error)
	// list gives the names of all files, and the version of the folder itself: that
	// is another one whenever a file was put there.
	list() ([]string, version, error)
	statDir() (version, error)
	create(name string) (file, error)
	rename(from, to string) error
	syncDir() error
}

// file is one that is being written.
type file interface {
	Write(data []byte) (int, error)
	Sync() error
	Close() error
}

// version tells a file from the one that had its name before: each change is by
// rename, so it has another inode.
type version struct {
	mod   time.Time
	size  int64
	inode uint64
}

// The folders of a store: the records, and their locks, which are files of their
// own since a record is another file after each change.
const (
	recordsDir = "hosts"
	locksDir   = "locks"
)

// disk is the real one.
type disk struct{ dir string }

func openDisk(dir string) (disk, error) {
	for _, d := range []string{dir, filepath.Join(dir, recordsDir), filepath.Join(dir, locksDir)} {
		err := os.Mkdir(d, 0o700)
		if err == nil && d != dir {
			err = likeFolder(d, dir)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return disk{}, fmt.Errorf("the state of installations: %w", err)
		}
		info, err := os.Stat(d)
		if err != nil {
			return disk{}, fmt.Errorf("the state of installations: %w", err)
		}
		// Who may write there may have any host's disk wiped.
		if info.Mode().Perm()&0o077 == 0 {
			continue
		}
		// A folder that is somebody else's mustn't be closed to them: it was mistyped.
		if d == dir {
			if err := onlyState(d); err != nil {
				return disk{}, fmt.Errorf("the state of installations: %w", err)
			}
		}
		if err := os.Chmod(d, 0o700); err != nil {
			return disk{}, fmt.Errorf("the state of installations: others may enter %s: %w", d, err)
		}
	}
	// What is stored in a folder stays only if the folder does.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := syncDir(d); err != nil {
			return disk{}, fmt.Errorf("the state of installations: %w", err)
		}
	}
	return disk{dir}, nil
}

// onlyState refuses a folder that has something in it, and isn't a state's.
func onlyState(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, recordsDir)); err == nil {
		if _, err := os.Stat(filepath.Join(dir, locksDir)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s has other files in it (%s), and others may enter it: name a folder of its own, which is made if it is missing", dir, entries[0].Name())
}

// likeFolder gives what root has made to the owner of the folder: a server that
// isn't root's couldn't read it otherwise.
func likeFolder(name, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 {
		return os.Lchown(name, int(s.Uid), int(s.Gid))
	}
	return nil
}

func (d disk) path(name string) string { return filepath.Join(d.dir, recordsDir, name) }

func (d disk) lock(name string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(d.dir, locksDir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := likeFolder(f.Name(), d.dir); err != nil {
		f.Close()
		return nil, err
	}
	if err := flock.Lock(f, syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (d disk) read(name string) ([]byte, version, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, version{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, version{}, err
	}
	if info.Size() > maxRecord {
		return nil, version{}, fmt.Errorf("it has %d bytes, and a record has %d at most", info.Size(), maxRecord)
	}
	data := make([]byte, info.Size())
	if n, err := f.ReadAt(data, 0); n < len(data) {
		return nil, version{}, err
	}
	return data, versionOf(info), nil
}

func (d disk) stat(name string) (version, error) {
	info, err := os.Stat(d.path(name))
	if err != nil {
		return version{}, err
	}
	return versionOf(info), nil
}

func (d disk) statDir() (version, error) { return d.stat("") }

func (d disk) list() ([]string, version, error) {
	// What is put there while it's read makes it another version than this one.
	v, err := d.statDir()
	if err != nil {
		return nil, v, err
	}
	entries, err := os.ReadDir(d.path(""))
	if err != nil {
		return nil, v, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, v, nil
}

func (d disk) create(name string) (file, error) {
	f, err := os.OpenFile(d.path(name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := likeFolder(f.Name(), d.dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d disk) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d disk) syncDir() error { return syncDir(d.path("")) }

func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func versionOf(info fs.FileInfo) version {
	v := version{mod: info.ModTime(), size: info.Size()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		v.inode = s.Ino
	}
	return v
}
