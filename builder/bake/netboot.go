package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/alisw/kiln/images"
)

// netbootDir and netbootSums are what the step leaves: the set, and the SHA-256
// of each of its files. chunksName is the set's own manifest.
const (
	netbootDir  = images.NetbootDir
	netbootSums = "sums.json"
	chunksName  = images.ChunksName
)

// netboot makes the netboot set: kernel, initramfs, and the disk in chunks.
func (b *builder) netboot(ctx context.Context, made *parts, raw Result) ([]artifact, error) {
	vmlinuz, ramdisk, err := b.kernel(made)
	if err != nil {
		return nil, err
	}
	r, err := b.do(ctx, Step{
		Name:   string(images.FormatNetboot),
		Inputs: []Input{{"recipe", "3"}, {"disk", raw.Key}, {"kernel", vmlinuz}, {"initrd", ramdisk}},
		Run: func(ctx context.Context, dir string) error {
			kernel, err := fileOf(made.base, made.entries, vmlinuz, dir)
			if err != nil {
				return err
			}
			initrd, err := fileOf(made.base, made.entries, ramdisk, dir)
			if err != nil {
				return err
			}
			d, err := readBlocks(raw)
			if err != nil {
				return err
			}
			return b.netbootSet(ctx, dir, filepath.Join(raw.Dir, rawName), kernel, initrd, d)
		},
	})
	if err != nil {
		return nil, err
	}
	var sums map[string]string
	if err := readJSON(r, netbootSums, &sums); err != nil {
		return nil, err
	}
	list := make([]artifact, 0, len(sums))
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		list = append(list, artifact{format: images.FormatNetboot, from: filepath.Join(r.Dir, netbootDir, name), name: filepath.Join(netbootDir, name), sum: sums[name]})
	}
	return list, nil
}

// netbootSet fills dir with the set and its sums.
func (b *builder) netbootSet(ctx context.Context, dir, raw, kernel, initrd string, d *images.Disk) error {
	set := filepath.Join(dir, netbootDir)
	if err := os.MkdirAll(filepath.Join(set, "chunks"), 0o755); err != nil {
		return err
	}
	sums := map[string]string{}
	c := images.Chunks{Size: d.Size, BlockSize: d.BlockSize, Kernel: "vmlinuz", Initrd: "initrd.img"}
	for to, from := range map[string]string{c.Kernel: kernel, c.Initrd: initrd} {
		err := copyFile(ctx, b.run, from, filepath.Join(set, to))
		if err == nil {
			err = os.Chmod(filepath.Join(set, to), 0o444)
		}
		if err == nil {
			sums[to], err = hashFile(ctx, filepath.Join(set, to))
		}
		if err != nil {
			return err
		}
	}
	var err error
	if c.Chunks, err = b.chunk(ctx, raw, set, d, sums); err != nil {
		return err
	}
	data, err := json.MarshalIndent(c, "", " ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	sums[chunksName] = hash(data)
	list, err := json.Marshal(sums)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(set, chunksName), data, 0o444), os.WriteFile(filepath.Join(dir, netbootSums), list, 0o444))
}

// chunk compresses the disk's blocks into files below set, and adds their hashes
// to sums.
func (b *builder) chunk(ctx context.Context, raw, set string, d *images.Disk, sums map[string]string) ([]images.Chunk, error) {
	f, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer encoder.Close()
	chunks := make([]images.Chunk, 0, len(d.Blocks))
	buf, packed := make([]byte, d.BlockSize), []byte(nil)
	sizes := map[string]int64{}
	for i, sum := range d.Blocks {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("reading the disk: %w", err)
		}
		chunk := images.Chunk{SHA256: sum}
		if !zero(buf[:n]) {
			chunk.File = images.ChunkFile(sum)
			if _, done := sizes[sum]; !done {
				packed = encoder.EncodeAll(buf[:n], packed[:0])
				if err := os.WriteFile(filepath.Join(set, chunk.File), packed, 0o444); err != nil {
					return nil, err
				}
				sizes[sum], sums[chunk.File] = int64(len(packed)), hash(packed)
			}
			chunk.Size = sizes[sum]
		}
		chunks = append(chunks, chunk)
		b.cache.tell(Event{Step: string(images.FormatNetboot), State: StateProgress, Done: int64(i+1) * int64(d.BlockSize), Total: d.Size, Unit: unitBytes})
	}
	return chunks, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
