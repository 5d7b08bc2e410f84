//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/testnetboot"
	"github.com/alisw/kiln/plan"
)

// An image like that of a small host, but that it has no block of zeros: those cost
// the installer nothing, and dd as much as others.
const (
	chunkCount  = 256
	diskSize    = chunkCount * images.BlockSize
	kernelSize  = 8 << 20
	moduleCount = 31
	moduleSize  = 1 << 20
	// largeFile is what a file server is measured with, beside the chunks.
	largeFile = "chunks/large.zst"
	largeSize = 256 << 20
)

// makeImage puts the image into the lab's store, and its disk beside it.
func (l *lab) makeImage(ctx context.Context) error {
	store := &images.Store{Dir: filepath.Join(l.cache(), "images")}
	if err := os.MkdirAll(store.Dir, 0o755); err != nil {
		return err
	}
	dir, err := store.NewDir()
	if err != nil {
		return err
	}
	defer dir.Remove() //nolint:errcheck // all of the lab is removed
	raw := testnetboot.Disk(diskSize, 1)
	fill(raw[testnetboot.Root : diskSize-(1<<20)])
	m := &images.Manifest{
		Profile: "plain", Definition: "debian-12", Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
		Artifacts: []images.Artifact{{Name: images.NetbootDir + "/" + images.ChunksName, Format: images.FormatNetboot}},
	}
	if err := writeChunks(ctx, filepath.Join(dir.Path, images.NetbootDir), m, raw); err != nil {
		return err
	}
	m.ID = m.ContentID()
	if err := store.Put(m, dir.Path); err != nil {
		return err
	}
	l.image, l.raw = m, filepath.Join(l.cache(), "disk.raw")
	err = errors.Join(
		os.WriteFile(l.raw, raw, 0o644),
		os.WriteFile(store.Path(m.ID, images.NetbootDir+"/"+largeFile), random(largeSize, 5), 0o644),
	)
	raw = nil
	debug.FreeOSMemory() // what is measured needs the machine's memory
	return err
}

// writeChunks writes the disk's chunks, and all that belongs to them, to dir.
func writeChunks(ctx context.Context, dir string, m *images.Manifest, raw []byte) error {
	if err := os.MkdirAll(filepath.Join(dir, "chunks"), 0o755); err != nil {
		return err
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	defer z.Close()
	list := images.Chunks{Size: int64(len(raw)), BlockSize: images.BlockSize, Kernel: "vmlinuz", Initrd: "initrd.img", Chunks: make([]images.Chunk, chunkCount)}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range list.Chunks {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			block := raw[i*images.BlockSize : (i+1)*images.BlockSize]
			sum := sha256.Sum256(block)
			packed := z.EncodeAll(block, nil)
			c := images.Chunk{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(packed))}
			c.File = images.ChunkFile(c.SHA256)
			list.Chunks[i] = c
			return os.WriteFile(filepath.Join(dir, c.File), packed, 0o644)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	m.Disk = &images.Disk{Size: list.Size, BlockSize: list.BlockSize}
	var packed int64
	for _, c := range list.Chunks {
		m.Disk.Blocks = append(m.Disk.Blocks, c.SHA256)
		packed += c.Size
	}
	fmt.Printf("An image: %d chunks of 4 MiB, %d MiB compressed\n", chunkCount, packed>>20)
	data, err := json.Marshal(list)
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, images.ChunksName), data, 0o644),
		os.WriteFile(filepath.Join(dir, list.Kernel), random(kernelSize, 3), 0o644),
		os.WriteFile(filepath.Join(dir, list.Initrd), initrd(), 0o644),
	)
}

// random is bytes that can't be compressed.
func random(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// fill fills b with what can be compressed as programs can: to two fifths.
func fill(b []byte) {
	source := rand.NewChaCha8([32]byte{2})
	r := rand.New(source)
	words := random(64<<10, 4)
	for len(b) > 0 {
		n := min(len(b), 8+r.IntN(24))
		if r.IntN(5) < 2 {
			_, _ = source.Read(b[:n])
		} else {
			n = min(len(b), n+16)
			copy(b[:n], words[r.IntN(len(words)-64):])
		}
		b = b[n:]
	}
}

// initrd is like one of initramfs-tools, with as many modules and as large as those
// for bare metal: an archive of cpio's format "newc".
func initrd() []byte {
	const modules = "usr/lib/modules/6.1.0-1-amd64/"
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode int, content []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	var dep bytes.Buffer
	for i := range moduleCount {
		name := fmt.Sprintf("kernel/driver%02d.ko", i)
		fmt.Fprintf(&dep, "%s:\n", name)
		add(modules+name, 0o100644, random(moduleSize, byte(16+i)))
	}
	add(modules+"modules.dep", 0o100644, dep.Bytes())
	add(modules+"modules.alias", 0o100644, []byte("alias pci:v00001234d00005678sv*sd*bc*sc*i* driver00\n"))
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}
