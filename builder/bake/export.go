package bake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/scratch"
)

// tarName is the packed tree's file, in its step's result and in the store.
const tarName = "root.tar.zst"

// tarStep packs the tree: out/root.tar.zst, with the numbers of owners, ACLs and
// capabilities, in the order of names.
func (b *builder) tarStep(made *parts) Step {
	return Step{
		Name:   stepTar,
		Inputs: []Input{{"recipe", "2"}, {"base", made.base.Key}, {"layer", made.hash}, {"clock", strconv.FormatInt(b.epoch, 10)}, {"tar", b.tools["tar"]}, {"zstd", b.tools["zstd"]}},
		Run: func(ctx context.Context, dir string) error {
			tree := filepath.Join(dir, "tree")
			if err := layOut(ctx, b.run, filepath.Join(made.base.Dir, "tree"), tree, made.entries); err != nil {
				return err
			}
			out := filepath.Join(dir, tarName)
			err := b.run.Run(ctx, run.Command{Name: "tar", Args: []string{
				"--create", "--file", out, "--use-compress-program=zstd -3 -T0 -q", "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls",
				"--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", fmt.Sprintf("--mtime=@%d", b.epoch), "--clamp-mtime",
				"--directory", tree, ".",
			}})
			if err != nil {
				return err
			}
			return errors.Join(withSum(ctx, out), os.RemoveAll(tree))
		},
	}
}

// linkOrCopy gives a file a second name, or where that can't be, copies it.
func linkOrCopy(ctx context.Context, r run.Runner, from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	return copyFile(ctx, r, from, to)
}

// copyFile copies a file with its holes.
func copyFile(ctx context.Context, r run.Runner, from, to string) error {
	return r.Run(ctx, run.Command{Name: "cp", Args: []string{"--sparse=always", "--reflink=auto", "--", from, to}})
}

// ToQCOW2 converts a raw disk.
func ToQCOW2(ctx context.Context, r run.Runner, raw, to string) error {
	return r.Run(ctx, run.Command{Name: "qemu-img", Args: []string{"convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", "--", raw, to}, Install: "the Debian package qemu-utils has it"})
}

// Export writes an image in that format: a file called to, or a folder where the
// format is a netboot set. It appears when it's complete, and in place of what
// has that name. Qcow2 is made of a raw disk where the store doesn't have it.
func Export(ctx context.Context, r run.Runner, store *images.Store, m *images.Manifest, format images.Format, to string) error {
	release, err := store.Use(m.ID)
	if err != nil {
		return err
	}
	defer release()
	if err := export(ctx, r, store, m, format, to); err != nil {
		return fmt.Errorf("exporting to %s: %w", to, err)
	}
	return nil
}

func export(ctx context.Context, r run.Runner, store *images.Store, m *images.Manifest, format images.Format, to string) (err error) {
	var from string
	for _, a := range m.Artifacts {
		if a.Format == format {
			from = store.Path(m.ID, a.Name)
		}
	}
	convert := from == "" && format == images.FormatQCOW2 && m.Disk != nil
	switch {
	case convert:
		from = store.Path(m.ID, rawName)
	case from == "":
		return fmt.Errorf("the image %s isn't there as %s, but as %s: kiln build %s --image %s --format %s adds it",
			m.Short(), format, strings.Join(m.FormatsOf(), ", "), m.Profile, m.Definition, format)
	case format == images.FormatNetboot:
		from = store.Path(m.ID, netbootDir)
	}
	// What an export that was killed has left beside it goes at the same time.
	work, err := scratch.New(filepath.Dir(to), ".kiln-export-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.Remove()) }()
	made := filepath.Join(work.Path, "made")
	switch {
	case convert:
		err = ToQCOW2(ctx, r, from, made)
	case format == images.FormatNetboot:
		err = r.Run(ctx, run.Command{Name: "cp", Args: []string{"--recursive", "--sparse=always", "--reflink=auto", "--", from, made}})
	default:
		err = copyFile(ctx, r, from, made)
	}
	if err != nil {
		return noRoom(filepath.Dir(to), err)
	}
	if format == images.FormatNetboot {
		return replaceSet(made, to, work.Path)
	}
	if err := os.Chmod(made, 0o644); err != nil {
		return err
	}
	return os.Rename(made, to)
}

// replaceSet gives a netboot set its name. An earlier one that has it goes.
func replaceSet(made, to, work string) error {
	entries, err := os.ReadDir(to)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Rename(made, to)
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(to, chunksName)); err != nil {
			return errors.New("the folder isn't empty, and what is in it is no netboot set: name another")
		}
	}
	old := filepath.Join(work, "old")
	if err := os.Rename(to, old); err != nil {
		return err
	}
	if err := os.Rename(made, to); err != nil {
		return errors.Join(err, os.Rename(old, to))
	}
	return nil
}

// noRoom is noSpace where it isn't the cache's that is missing.
func noRoom(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || saysFull(err.Error()) {
		return fmt.Errorf("no space is left in %s: make room there, or export to another place: %w", dir, err)
	}
	return err
}
