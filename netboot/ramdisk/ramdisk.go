// Package ramdisk makes the initramfs that the network installer runs in: the
// installer as /init, and the kernel modules and firmware of a golden image's own
// initramfs, so that what boots is exactly the kernel that the image is of.
//
// An initramfs lies in memory, and a machine may have little. Modules are the most
// of it, so each is compressed by itself: the installer unpacks those alone that
// the machine's hardware asks for. Nothing else of the image's initramfs is taken.
package ramdisk

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Recipe names the way in which Make makes an initramfs. It changes whenever the
// same input gives other bytes: it belongs into the key of whoever caches them.
const Recipe = "1"

// mostUnpacked is how many bytes of an image's initramfs are read.
const mostUnpacked = 4 << 30

// indexes are the files beside the modules that the installer reads.
var indexes = []string{"modules.alias", "modules.builtin", "modules.dep", "modules.softdep"}

// Contents is what an initramfs of Make's has.
type Contents struct {
	Kernel   string   // the version that the modules are of: 6.1.0-56-amd64
	Modules  []string // by name, as modules.dep spells them, sorted: e1000e
	Firmware int      // files
	Unpacked int64    // bytes that its files take in the machine's memory
}

// Make writes the installer's initramfs to w: initrd is an image's own, and
// installer the program. The same input gives the same bytes.
func Make(ctx context.Context, w io.Writer, initrd io.Reader, installer []byte) (*Contents, error) {
	t := tree{}
	if err := t.read(ctx, initrd); err != nil {
		return nil, fmt.Errorf("the image's initramfs: %w", err)
	}
	contents, err := t.contents()
	if err != nil {
		return nil, fmt.Errorf("the image's initramfs: %w", err)
	}
	t["init"] = entry{mode: typeFile | 0o755, data: installer}
	// The kernel opens the console for init before anything is mounted.
	t["dev/console"] = entry{mode: typeCharacter | 0o600, device: [2]uint32{5, 1}}
	for _, dir := range []string{"dev", "proc", "sys", "run", "mnt"} {
		t[dir] = entry{mode: typeDirectory | 0o755}
	}
	if err := t.write(ctx, w); err != nil {
		return nil, fmt.Errorf("the installer's initramfs: %w", err)
	}
	for _, e := range t {
		contents.Unpacked += int64(len(e.data))
	}
	return contents, nil
}

// tree is what is to be in the initramfs, by path.
type tree map[string]entry

// read takes from an initramfs what the installer needs. One is a row of archives:
// first of all there may be one with microcode, not compressed.
func (t tree) read(ctx context.Context, initrd io.Reader) error {
	in := bufio.NewReaderSize(initrd, 1<<16)
	for {
		if err := padding(in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		start, err := in.Peek(len(magic))
		if err != nil {
			return cut(err)
		}
		switch {
		case string(start) == magic:
			err = t.archive(ctx, in)
		case bytes.HasPrefix(start, []byte("\x28\xb5\x2f\xfd")):
			var z *zstd.Decoder
			if z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
				defer z.Close()
				return t.all(ctx, z)
			}
		case bytes.HasPrefix(start, []byte("\x1f\x8b")):
			var z *gzip.Reader
			if z, err = gzip.NewReader(in); err == nil {
				return t.all(ctx, z)
			}
		default:
			err = fmt.Errorf("it is compressed in a way that isn't known here (it goes on with % x): COMPRESS in /etc/initramfs-tools/initramfs.conf has to be zstd or gzip", start)
		}
		if err != nil {
			return err
		}
	}
}

// all reads the archives in what was compressed, which is the rest of an initramfs.
func (t tree) all(ctx context.Context, r io.Reader) error {
	in := bufio.NewReaderSize(io.LimitReader(r, mostUnpacked), 1<<16)
	for {
		if err := padding(in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := t.archive(ctx, in); err != nil {
			return err
		}
	}
}

// padding skips the zeros between archives.
func padding(in *bufio.Reader) error {
	for {
		b, err := in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return in.UnreadByte()
		}
	}
}

func (t tree) archive(ctx context.Context, in io.Reader) error {
	r := &reader{r: in}
	linked := map[uint32][]string{} // by inode: names whose content comes with a later one
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := wanted(e.name)
		if name == "" {
			continue
		}
		switch e.mode & typeMask {
		case typeDirectory, typeLink, typeFile:
		default:
			continue
		}
		if e.data, err = r.content(e); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if e.mode&typeMask == typeFile && e.links > 1 {
			if e.size == 0 {
				linked[e.inode] = append(linked[e.inode], name)
			}
			for _, other := range linked[e.inode] {
				t.put(other, *e)
			}
		}
		t.put(name, *e)
	}
}

// put takes an entry; a module is compressed if it isn't.
func (t tree) put(name string, e entry) {
	if strings.HasSuffix(name, ".ko") {
		e.data, name = packer.EncodeAll(e.data, nil), name+".zst"
	}
	t[name] = entry{mode: e.mode&typeMask | e.mode&0o755, data: e.data}
}

// packer compresses whole pieces: may be used by several at once, and gives the
// same bytes each time.
var packer = func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are constants
	}
	return z
}()

// wanted is the path that an entry of an image's initramfs gets in the
// installer's; empty: none.
func wanted(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(path.Clean("/"+name), "/"), "usr/")
	switch {
	case strings.HasPrefix(name, "lib/firmware/"):
		return name
	case strings.HasPrefix(name, "lib/modules/"):
		if isModule(name) {
			return name
		}
		if dir, base := path.Split(name); strings.Count(dir, "/") == 3 && slices.Contains(indexes, base) {
			return name
		}
	}
	return ""
}

// moduleEndings are those of modules, compressed in the ways that the installer
// or the kernel can read.
var moduleEndings = []string{".ko", ".ko.zst", ".ko.xz"}

func isModule(name string) bool {
	return slices.ContainsFunc(moduleEndings, func(e string) bool { return strings.HasSuffix(name, e) })
}

// contents says what was found, if it can drive a machine.
func (t tree) contents() (*Contents, error) {
	c := &Contents{}
	for name, e := range t {
		parts := strings.Split(name, "/")
		if parts[1] == "firmware" {
			if e.mode&typeMask == typeFile {
				c.Firmware++
			}
			continue
		}
		if c.Kernel != "" && c.Kernel != parts[2] {
			return nil, fmt.Errorf("it has modules of two kernels, %s and %s", min(c.Kernel, parts[2]), max(c.Kernel, parts[2]))
		}
		c.Kernel = parts[2]
		if base, _, is := strings.Cut(path.Base(name), ".ko"); is {
			c.Modules = append(c.Modules, strings.ReplaceAll(base, "-", "_"))
		}
	}
	for _, index := range []string{"modules.dep", "modules.alias"} {
		if _, ok := t["lib/modules/"+c.Kernel+"/"+index]; !ok {
			return nil, fmt.Errorf("it has no lib/modules/*/%s: is it one of initramfs-tools?", index)
		}
	}
	slices.Sort(c.Modules)
	return c, nil
}

// write writes the tree as a compressed archive, in the order of paths, with all
// folders that it needs.
func (t tree) write(ctx context.Context, out io.Writer) error {
	for name := range maps.Clone(t) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			t[dir] = entry{mode: typeDirectory | 0o755}
		}
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	w := &writer{w: z}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := t[name]
		e.name = name
		w.add(e)
	}
	return errors.Join(w.close(), z.Close())
}
