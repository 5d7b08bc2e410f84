package images

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// holdersName is the file of a store that has the names of its holders' folders, one a
// line.
const holdersName = ".holders"

// AddHolder has the store know of a folder whose owner may want images to stay: a
// server's state. What it wants is Held's to say.
func (s *Store) AddHolder(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	if strings.Contains(dir, "\n") {
		return fmt.Errorf("the store can't keep the name %q: name a folder without a line feed in it", dir)
	}
	known, err := s.Holders()
	if err != nil {
		return err
	}
	for _, k := range known {
		if k == dir {
			return nil
		}
	}
	name := filepath.Join(s.Dir, holdersName)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	// Two who do this at once have a line each: that is what O_APPEND is for.
	_, err = io.WriteString(f, dir+"\n")
	if len(known) == 0 {
		err = errors.Join(err, s.forAll(f))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	return nil
}

// forAll has a file that was made read by all who may remove images, whatever the umask,
// and gives what root has made in a user's store to that user.
func (s *Store) forAll(f *os.File) error {
	info, err := os.Stat(s.Dir)
	if err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && owner.Uid != 0 {
		return f.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// Holders are the folders that the store was told of, whether they are still there or
// not.
func (s *Store) Holders() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(s.Dir, holdersName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the store: %w", err)
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}
