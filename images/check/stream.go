package check

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/alisw/kiln/internal/ext4"
)

var (
	gzipMagic = []byte{0x1f, 0x8b, 0x08}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	cpioMagic = []byte("070701")
)

const (
	// mostUnpacked is how far a stream is followed, in bytes: no image has larger
	// ones, unless somebody means to keep the check busy.
	mostUnpacked = 4 << 30
	streamPiece  = 1 << 20
	zstdMemory   = 256 << 20
)

// isNamedCompressed tells what the progress counts beside the disk's bytes.
func (s *scan) isNamedCompressed(t *tree, i *ext4.Inode) bool {
	name := path.Base(t.names[i.Number])
	return strings.HasSuffix(name, ".gz") || strings.HasSuffix(name, ".tgz") || strings.HasSuffix(name, ".zst") || strings.HasPrefix(name, "initrd")
}

func isStream(b []byte) bool { return bytes.HasPrefix(b, gzipMagic) || bytes.HasPrefix(b, zstdMagic) }

// compressed searches a file that begins as compressed ones and initramfs do.
func (s *scan) compressed(ctx context.Context, t *tree, i *ext4.Inode, buf *[]byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.isNamedCompressed(t, i) {
		defer s.progress(i.Size)
	}
	f, err := t.disk.fs.File(i)
	if err != nil {
		return err
	}
	head := make([]byte, len(cpioMagic))
	if n, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", t.nameOf(i), err)
	} else {
		head = head[:n]
	}
	if !isStream(head) && !bytes.HasPrefix(head, cpioMagic) {
		return nil
	}
	v, key := s.options.Verdicts, ""
	if v != nil && s.search.hash != "" {
		if key, err = s.contentKey(t, i); err != nil {
			return err
		}
	}
	if key == "" || !v.Known(key) {
		clean := true
		saw := func(h hit, how string) {
			clean = false
			s.saw(sighting{hit: h, inode: i, how: how})
		}
		if bytes.HasPrefix(head, cpioMagic) {
			err = s.initramfs(ctx, f, buf, saw)
		} else {
			err = s.stream(ctx, io.NewSectionReader(f, 0, f.Size()), buf, saw)
		}
		if err != nil {
			return err
		}
		if clean && key != "" {
			v.Store(key)
		}
	}
	return nil
}

// contentKey names a file's content, without reading it where the hashes of the
// disk's blocks are known: by what part of which block it is.
func (s *scan) contentKey(t *tree, i *ext4.Inode) (string, error) {
	h := sha256.New()
	if s.blocks != nil {
		extents, err := t.disk.fs.Extents(i)
		if err != nil {
			return "", err
		}
		bs := t.disk.fs.BlockSize
		for _, x := range extents {
			at, end := t.disk.root.start+x.Physical*bs, t.disk.root.start+(x.Physical+x.Blocks)*bs
			for at < end {
				n := min(end, (at/blockSize+1)*blockSize)
				fmt.Fprintf(h, "%d %v %s %d %d\n", x.Logical, x.Unwritten, s.blocks[at/blockSize], at%blockSize, n-at)
				at = n
			}
		}
		fmt.Fprintf(h, "%d", i.Size)
		return "stream " + s.search.hash + " " + hex.EncodeToString(h.Sum(nil)), nil
	}
	f, err := t.disk.fs.File(i)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, f.Size())); err != nil {
		return "", fmt.Errorf("%s: %w", t.nameOf(i), err)
	}
	return "stream " + s.search.hash + " " + hex.EncodeToString(h.Sum(nil)), nil
}

var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// stream searches what a compressed stream unpacks to, as far as it is one: what
// is broken or cut off is searched up to there.
func (s *scan) stream(ctx context.Context, r io.Reader, buf *[]byte, saw func(hit, string)) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil //nolint:nilerr // too short for a stream
	}
	r = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(head[:]), r), 64<<10)
	how, unpacked := "in gzip", io.Reader(nil)
	if bytes.HasPrefix(head[:], gzipMagic) {
		z := gzipReaders.Get().(*gzip.Reader)
		defer gzipReaders.Put(z)
		if err := z.Reset(r); err != nil {
			return nil //nolint:nilerr // only its first bytes look like one
		}
		unpacked = z
	} else {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory), zstd.WithDecoderMaxWindow(zstdMemory/2))
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		defer z.Close()
		how, unpacked = "in zstd", z
	}
	return s.text(ctx, io.LimitReader(unpacked, mostUnpacked), buf, func(h hit) { saw(h, how) })
}

// text searches what a reader has, up to its end or its first error.
func (s *scan) text(ctx context.Context, r io.Reader, keep *[]byte, saw func(hit)) error {
	if len(*keep) < 2*s.search.overlap+streamPiece {
		*keep = make([]byte, 2*s.search.overlap+streamPiece)
	}
	buf := *keep
	kept := 0
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(r, buf[kept:])
		b := buf[:kept+n]
		s.search.scan(b, func(h hit) {
			if h.end > kept {
				saw(h)
			}
		})
		if err != nil {
			return nil //nolint:nilerr // what is behind a broken place can't be unpacked
		}
		kept = min(len(b), s.search.overlap)
		copy(buf, b[len(b)-kept:])
	}
}

// mostMembers is how many files an archive of an initramfs can have.
const mostMembers = 1 << 20

// initramfs searches the compressed parts of one: archives in cpio's form that
// follow each other, the first ones not compressed.
func (s *scan) initramfs(ctx context.Context, f *ext4.File, buf *[]byte, saw func(hit, string)) error {
	at := int64(0)
	header := make([]byte, 110)
	for range mostMembers {
		if n, _ := f.ReadAt(header, at); n < len(header) {
			return nil
		}
		if !bytes.HasPrefix(header, cpioMagic) {
			break
		}
		size, err1 := strconv.ParseUint(string(header[54:62]), 16, 32)
		name, err2 := strconv.ParseUint(string(header[94:102]), 16, 32)
		if err1 != nil || err2 != nil || name > 4096 {
			return nil //nolint:nilerr // it only begins as one
		}
		text := make([]byte, name)
		if n, _ := f.ReadAt(text, at+int64(len(header))); n < len(text) {
			return nil
		}
		at += (int64(len(header)) + int64(name) + 3) &^ 3
		at += (int64(size) + 3) &^ 3
		if string(bytes.TrimRight(text, "\x00")) != "TRAILER!!!" {
			continue
		}
		if at = skipZeros(f, at); at < 0 {
			return nil
		}
	}
	head := make([]byte, 4)
	if n, _ := f.ReadAt(head, at); n < len(head) || !isStream(head) {
		return nil
	}
	return s.stream(ctx, io.NewSectionReader(f, at, f.Size()-at), buf, saw)
}

// skipZeros is the first place from at on that has none, or -1.
func skipZeros(f *ext4.File, at int64) int64 {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, at)
		if i := bytes.IndexFunc(buf[:n], func(r rune) bool { return r != 0 }); i >= 0 {
			return at + int64(i)
		}
		if at += int64(n); err != nil {
			return -1
		}
	}
}

// freeStreams are the places of the root filesystem's unused blocks at which a
// compressed stream begins: what was a file may be there.
func (s *scan) freeStreams(t *tree) ([]int64, error) {
	var list []int64
	bs, root := t.disk.fs.BlockSize, t.disk.root
	buf := make([]byte, 256*bs)
	first := sort.Search(len(s.segments), func(i int) bool { return s.segments[i].end > root.start })
	for _, g := range s.segments[first:] {
		from, to := (max(g.start, root.start)-root.start)/bs, (min(g.end, root.end)-root.start)/bs
		for n := from; n < to; {
			if t.used.Used(n) {
				n++
				continue
			}
			end := n + 1
			for end < to && end-n < 256 && !t.used.Used(end) {
				end++
			}
			b := buf[:(end-n)*bs]
			if _, err := t.disk.rootReader.ReadAt(b, n*bs); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			for i := range end - n {
				if isStream(b[i*bs:]) {
					list = append(list, root.start+(n+i)*bs)
				}
			}
			n = end
		}
	}
	slices.Sort(list)
	return list, nil
}
