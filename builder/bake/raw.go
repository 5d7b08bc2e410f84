package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
)

// rawName is the disk's file, in its step's result and in the store.
const rawName = "image.raw"

// baseRaw and baseBlocks are what the base disk's step leaves: the disk, and the
// hashes of its blocks.
const (
	baseRaw    = "base.raw"
	blocksName = "disk.json"
)

// disk makes the raw disk, and what else was asked for of it.
func (b *builder) disk(ctx context.Context, made *parts) ([]artifact, error) {
	base, err := b.do(ctx, b.baseDiskStep(made))
	if err != nil {
		return nil, err
	}
	raw, err := b.do(ctx, b.diskStep(base, made))
	if err != nil {
		return nil, err
	}
	made.disk = raw
	list := []artifact{{format: images.FormatRaw, from: filepath.Join(raw.Dir, rawName), name: rawName}}
	if slices.Contains(b.formats, images.FormatQCOW2) {
		r, err := b.do(ctx, b.qcow2Step(raw))
		if err != nil {
			return nil, err
		}
		list = append(list, artifact{format: images.FormatQCOW2, from: filepath.Join(r.Dir, "image.qcow2"), name: "image.qcow2"})
	}
	if slices.Contains(b.formats, images.FormatNetboot) {
		more, err := b.netboot(ctx, made, raw)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

func readBlocks(r Result) (*images.Disk, error) {
	var d images.Disk
	return &d, readJSON(r, blocksName, &d)
}

func writeBlocks(dir string, d *images.Disk) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, blocksName), data, 0o644)
}

// Room is left on the base disk for whoever writes before the root grows, and for
// the layer: in steps, so that images whose layers differ in little have one base
// disk.
const (
	freeRoom  = 256 << 20
	layerRoom = 64 << 20
)

// baseDiskStep writes a disk of the base alone, and hashes it: out/base.raw,
// out/disk.json.
func (b *builder) baseDiskStep(made *parts) Step {
	free := freeRoom + (made.size/layerRoom+1)*layerRoom
	return Step{
		Name: stepBaseDisk,
		Inputs: []Input{
			{"recipe", "1"}, {"base", made.base.Key}, {"room", strconv.FormatInt(free, 10)}, {"distribution", b.definition.Release.ID},
			{"clock", strconv.FormatInt(b.epoch, 10)}, {"mke2fs", b.tools["mke2fs"]},
		},
		Run: func(ctx context.Context, dir string) error {
			tree, root, to := filepath.Join(made.base.Dir, "tree"), filepath.Join(dir, "root.ext4"), filepath.Join(dir, baseRaw)
			clock := time.Unix(b.epoch, 0).UTC()
			err := unflushed(dir, func(quick string) error {
				return disk.Root(ctx, tree, filepath.Join(quick, filepath.Base(root)), disk.RootOptions{IDs: b.ids, Label: "root", Time: clock, Free: free, Runner: b.run})
			})
			if err != nil {
				return err
			}
			info, err := os.Stat(root)
			if err != nil {
				return err
			}
			progress := b.bytesOf(stepBaseDisk, 2*info.Size())
			err = disk.Write(ctx, disk.Spec{
				Tree: tree, Root: root, Distribution: b.definition.Release.ID, IDs: b.ids, Time: clock, Runner: b.run, Progress: progress,
			}, to)
			if err != nil {
				return err
			}
			d, err := hashBlocks(ctx, to, progress)
			if err != nil {
				return err
			}
			return errors.Join(writeBlocks(dir, d), os.Remove(root))
		},
	}
}

// bytesOf tells how many bytes of a step are done.
func (b *builder) bytesOf(step string, total int64) func(int64) {
	e := Event{Step: step, State: StateProgress, Total: total, Unit: unitBytes}
	return func(n int64) {
		e.Done += n
		b.cache.tell(e)
	}
}

// diskStep lays the layer over a fresh copy of the base disk: out/image.raw,
// out/disk.json. Only the blocks that the layer has changed are hashed.
func (b *builder) diskStep(base Result, made *parts) Step {
	return Step{
		Name:   stepDisk,
		Inputs: []Input{{"recipe", "2"}, {"base disk", base.Key}, {"layer", made.hash}, {"clock", strconv.FormatInt(b.epoch, 10)}},
		Run: func(ctx context.Context, dir string) error {
			d, err := readBlocks(base)
			if err != nil {
				return err
			}
			to := filepath.Join(dir, rawName)
			if err := copySparse(ctx, filepath.Join(base.Dir, baseRaw), to, b.bytesOf(stepDisk, d.Size)); err != nil {
				return err
			}
			f, err := os.OpenFile(to, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			written, err := disk.Lay(ctx, f, disk.RootOffset, made.entries, time.Unix(b.epoch, 0))
			if err != nil {
				return err
			}
			if err := rehash(f, d, written); err != nil {
				return err
			}
			if err := b.fsck(ctx, dir); err != nil {
				return err
			}
			return errors.Join(writeBlocks(dir, d), f.Chmod(0o444))
		},
	}
}

// fsck has e2fsck look at the disk in dir.
func (b *builder) fsck(ctx context.Context, dir string) error {
	return unflushed(dir, func(quick string) error { return disk.Check(ctx, b.run, filepath.Join(quick, rawName)) })
}

// copySparse copies a file with its holes.
func copySparse(ctx context.Context, from, to string, progress func(int64)) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(disk.Copy(ctx, out, in, progress), out.Close())
}

// rehash hashes the image's blocks that something was written to, of those of the
// root file system.
func rehash(f *os.File, d *images.Disk, written []int64) error {
	buf := make([]byte, d.BlockSize)
	last := int64(-1)
	for _, n := range written {
		block := (disk.RootOffset + n*disk.RootBlock) / int64(d.BlockSize)
		if block == last {
			continue
		}
		last = block
		n, err := f.ReadAt(buf, block*int64(d.BlockSize))
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the disk: %w", err)
		}
		d.Blocks[block] = hash(buf[:n])
	}
	return nil
}

// hashBlocks hashes each block of a disk.
func hashBlocks(ctx context.Context, name string, progress func(int64)) (*images.Disk, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := &images.Disk{BlockSize: images.BlockSize}
	buf := make([]byte, images.BlockSize)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			d.Blocks = append(d.Blocks, hash(buf[:n]))
			d.Size += int64(n)
			progress(int64(n))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return d, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
	}
}

// qcow2Step converts the disk: out/image.qcow2.
func (b *builder) qcow2Step(raw Result) Step {
	return Step{
		Name:   string(images.FormatQCOW2),
		Inputs: []Input{{"recipe", "1"}, {"disk", raw.Key}, {"qemu-img", b.tools["qemu-img"]}},
		Run: func(ctx context.Context, dir string) error {
			out := filepath.Join(dir, "image.qcow2")
			if err := ToQCOW2(ctx, b.run, filepath.Join(raw.Dir, rawName), out); err != nil {
				return err
			}
			return withSum(ctx, out)
		},
	}
}
