package check

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sort"
	"sync"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ext4"
)

// sighting is a hit, and where it was.
type sighting struct {
	hit
	disk  int64       // where on the disk, in bytes
	inode *ext4.Inode // or in which file, and
	file  int64       // where in it
	how   string      // that it was inside of something, such as gzip
}

// scan searches a disk.
type scan struct {
	disk     *diskFile
	options  *Options
	search   *search
	segments []segment
	blocks   []string // hashes, where they are known

	mu          sync.Mutex
	sightings   []sighting
	done, total int64
}

const blockSize = images.BlockSize

func newScan(d *diskFile, o *Options) (*scan, error) {
	s := &scan{disk: d, options: o, search: newSearch(o.Canaries, o.Verdicts != nil)}
	var err error
	if s.segments, err = d.segments(); err != nil {
		return nil, err
	}
	for _, g := range s.segments {
		s.total += g.end - g.start
	}
	if m := o.Manifest; m != nil && m.Disk != nil {
		n := int((d.size + blockSize - 1) / blockSize)
		if m.Disk.Size != d.size || m.Disk.BlockSize != blockSize || len(m.Disk.Blocks) != n {
			return nil, fmt.Errorf("the manifest is another image's: it has %d bytes in %d blocks, and the disk %d bytes", m.Disk.Size, len(m.Disk.Blocks), d.size)
		}
		s.blocks = m.Disk.Blocks
	}
	return s, nil
}

// parallel calls each for 0 to n-1, on all cores.
func parallel(ctx context.Context, cancel context.CancelCauseFunc, n int, each func(int, *[]byte) error) *sync.WaitGroup {
	var group sync.WaitGroup
	next := make(chan int)
	for range min(n, runtime.GOMAXPROCS(0)) {
		group.Go(func() {
			var buf []byte
			for i := range next {
				if err := each(i, &buf); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	group.Go(func() {
		defer close(next)
		for i := range n {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	return &group
}

func (s *scan) progress(n int64) {
	if s.options.Progress == nil || n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done += n
	s.options.Progress(s.done, s.total)
}

func (s *scan) saw(x sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sightings = append(s.sightings, x)
}

// start searches the raw disk: each block, and what lies across their borders.
func (s *scan) start(ctx context.Context, cancel context.CancelCauseFunc) *sync.WaitGroup {
	n := int((s.disk.size + blockSize - 1) / blockSize)
	return parallel(ctx, cancel, n, func(i int, buf *[]byte) error {
		start := int64(i) * blockSize
		end := min(start+blockSize, s.disk.size)
		data := s.data(start, end)
		if data == 0 {
			return nil
		}
		if err := s.block(i, start, end, buf); err != nil {
			return err
		}
		s.progress(data)
		return s.border(end, buf)
	})
}

// data is how many bytes between start and end aren't holes.
func (s *scan) data(start, end int64) (n int64) {
	i := sort.Search(len(s.segments), func(i int) bool { return s.segments[i].end > start })
	for ; i < len(s.segments) && s.segments[i].start < end; i++ {
		n += min(end, s.segments[i].end) - max(start, s.segments[i].start)
	}
	return n
}

// readDisk reads a part of the disk; what are holes isn't asked for.
func (s *scan) readDisk(buf *[]byte, start, end int64) ([]byte, error) {
	if int64(cap(*buf)) < end-start {
		*buf = make([]byte, max(end-start, blockSize))
	}
	b := (*buf)[:end-start]
	if n, err := s.disk.ReadAt(b, start); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

func (s *scan) block(i int, start, end int64, buf *[]byte) error {
	v := s.options.Verdicts
	key := ""
	if v != nil && s.search.hash != "" && s.blocks != nil {
		if key = "block " + s.search.hash + " " + s.blocks[i]; v.Known(key) {
			return nil
		}
	}
	b, err := s.readDisk(buf, start, end)
	if err != nil {
		return err
	}
	if v != nil && s.search.hash != "" && s.blocks == nil {
		sum := sha256.Sum256(b)
		if key = "block " + s.search.hash + " " + hex.EncodeToString(sum[:]); v.Known(key) {
			return nil
		}
	}
	clean := true
	s.search.scan(b, func(h hit) {
		clean = false
		s.saw(sighting{hit: h, disk: start + int64(h.start)})
	})
	if clean && key != "" {
		v.Store(key)
	}
	return nil
}

// border searches for what lies on both sides of a place.
func (s *scan) border(at int64, buf *[]byte) error {
	reach := int64(s.search.overlap)
	start, end := max(0, at-reach), min(s.disk.size, at+reach)
	if at >= s.disk.size || s.data(start, at) == 0 || s.data(at, end) == 0 {
		return nil
	}
	b, err := s.readDisk(buf, start, end)
	if err != nil {
		return err
	}
	s.search.scan(b, func(h hit) {
		if start+int64(h.start) < at && start+int64(h.end) > at {
			s.saw(sighting{hit: h, disk: start + int64(h.start)})
		}
	})
	return nil
}

// files searches what the raw disk doesn't show: files that lie in pieces, and
// compressed ones.
func (s *scan) files(ctx context.Context, cancel context.CancelCauseFunc, t *tree) error {
	free, err := s.freeStreams(t)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, i := range t.regular {
		if s.isNamedCompressed(t, i) {
			s.total += i.Size
		}
	}
	s.mu.Unlock()
	files, joints := len(t.regular), len(t.joints)
	parallel(ctx, cancel, files+joints+len(free), func(n int, buf *[]byte) error {
		switch {
		case n < files:
			return s.compressed(ctx, t, t.regular[n], buf)
		case n < files+joints:
			return s.joint(t, t.joints[n-files])
		}
		return s.stream(ctx, io.NewSectionReader(s.disk, free[n-files-joints], t.disk.root.end-free[n-files-joints]), buf, func(h hit, how string) {
			s.saw(sighting{hit: h, disk: free[n-files-joints], how: how})
		})
	}).Wait()
	return nil
}

func (s *scan) joint(t *tree, j joint) error {
	f, err := t.disk.fs.File(j.inode)
	if err != nil {
		return err
	}
	reach := int64(s.search.overlap)
	start := max(0, j.at-reach)
	b := make([]byte, max(0, min(f.Size(), j.at+reach)-start))
	if n, err := f.ReadAt(b, start); n < len(b) {
		return fmt.Errorf("%s: %w", t.nameOf(j.inode), err)
	}
	s.search.scan(b, func(h hit) {
		if start+int64(h.start) < j.at && start+int64(h.end) > j.at {
			s.saw(sighting{hit: h, inode: j.inode, file: start + int64(h.start)})
		}
	})
	return nil
}

// nameOf is the path of an inode.
func (t *tree) nameOf(i *ext4.Inode) string {
	if name, ok := t.names[i.Number]; ok {
		return name
	}
	return fmt.Sprintf("a file without a name (inode %d)", i.Number)
}
