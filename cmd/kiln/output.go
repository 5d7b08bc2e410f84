package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// secretMode is the mode of each file that can have secrets in it.
const secretMode = fs.FileMode(0o600)

// writeFile puts data into the file called name: all of it, or the file stays
// as it was. With secrets in it the file is for its owner alone, whatever mode
// it had; otherwise an existing file keeps its mode.
func writeFile(name string, data []byte, secret bool) error {
	return writeFileBy(name, secret, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// writeFileBy is writeFile for what is too long to be held in memory.
func writeFileBy(name string, secret bool, write func(io.Writer) error) (err error) {
	mode := fs.FileMode(0)
	switch info, statErr := os.Stat(name); {
	case errors.Is(statErr, fs.ErrNotExist):
	case statErr != nil:
		return fmt.Errorf("writing %s: %w", name, statErr)
	case info.IsDir():
		return fmt.Errorf("writing %s: it is a directory: name a file in it", name)
	case !info.Mode().IsRegular():
		return fmt.Errorf("writing %s: it is no regular file: without -o the result goes to standard output", name)
	default:
		mode = info.Mode().Perm()
		// What a symbolic link leads to is replaced, not the link.
		if name, err = filepath.EvalSymlinks(name); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if secret {
		mode = secretMode
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	tmp, err := writeTemp(filepath.Dir(name), mode, write)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("writing %s: %w", name, errors.Join(err, os.Remove(tmp)))
	}
	return nil
}

// writeTemp writes a new file in dir, of that mode, or of whatever the umask
// leaves where it is 0. Until the mode is set nobody else can read it.
func writeTemp(dir string, mode fs.FileMode, write func(io.Writer) error) (name string, err error) {
	f, err := os.CreateTemp(dir, ".kiln-*.tmp") // of mode 0600
	if err != nil {
		return "", err
	}
	err = write(f)
	if mode == 0 {
		mode = 0o666 &^ umask()
	}
	if mode != secretMode {
		err = errors.Join(err, f.Chmod(mode))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}
