package bake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/internal/run"
)

// layOut makes a tree at root, of a base tree and a layer: what a disk has, as
// files.
func layOut(ctx context.Context, r run.Runner, base, root string, entries []disk.Entry) error {
	if err := r.Run(ctx, run.Command{Name: "cp", Args: []string{"-a", "--reflink=auto", "--", base, root}}); err != nil {
		return fmt.Errorf("copying the base tree: %w", err)
	}
	for i := range entries {
		e := &entries[i]
		if err := put(filepath.Join(root, e.Path), e); err != nil {
			return fmt.Errorf("laying out %s: %w", e.Path, err)
		}
	}
	return nil
}

// put makes one file of a layer, in place of what is there. The folders above are
// none of the layer's links: it is applied in the order of paths.
func put(name string, e *disk.Entry) error {
	info, err := os.Lstat(name)
	if err == nil && (e.Type != fs.ModeDir || !info.IsDir()) {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	switch e.Type {
	case disk.Gone:
		return nil
	case fs.ModeDir:
		if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case fs.ModeSymlink:
		if err := os.Symlink(e.Target, name); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(name, e.Content, 0o600); err != nil {
			return err
		}
	}
	if err := os.Lchown(name, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if e.Type != fs.ModeSymlink {
		if err := unix.Chmod(name, uint32(e.Mode)); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	for key, value := range e.Extended {
		if err := unix.Lsetxattr(name, key, value, 0); err != nil {
			return &os.PathError{Op: "setxattr " + key, Path: name, Err: err}
		}
	}
	return nil
}

// fileOf gives a file of the image's that stands in the base or in the layer, as
// a file of this machine. Those of the layer are written into dir.
func fileOf(base Result, entries []disk.Entry, name, dir string) (string, error) {
	for i := range entries {
		if e := &entries[i]; e.Path == name && e.Type == 0 {
			to := filepath.Join(dir, strings.ReplaceAll(strings.Trim(name, "/"), "/", "-"))
			return to, os.WriteFile(to, e.Content, 0o600)
		}
	}
	return filepath.Join(base.Dir, "tree", name), nil
}
