package installer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/alisw/kiln/images"
)

// Device is a disk that is written. Its methods may be called several times at
// once, for different places.
type Device interface {
	ReadAt(b []byte, at int64) (int, error)
	WriteAt(b []byte, at int64) (int, error)
	// Zero has n bytes read as zero from then on.
	Zero(at, n int64) error
	// Flush returns once all that was written outlives a power cut.
	Flush() error
	Size() int64 // bytes
}

// Writer writes an image to a disk so that the disk boots either what it has
// completely, or not at all. Its methods are called in this order:
//
//	Invalidate   nothing on the disk boots any more
//	Blocks       all of the image but its partition tables, as it comes
//	Verify       what the disk has now is what the image is
//	Root         where the root filesystem is, for the host's own data
//	Commit       the partition tables; the first sector is the last that is written
//
// The image's first MiB, which boots, and the copy of its partition table are kept
// in memory until Commit: OVMF boots from that copy alone, with a first sector of
// zeros.
type Writer struct {
	Device Device
	Image  *images.Disk // whose hashes are believed
	// Fetch gets the compressed block with a hash, into buf where that is large enough.
	Fetch    func(ctx context.Context, sum string, buf []byte) ([]byte, error)
	Workers  int                         // that fetch and write at once; 0: 4
	Progress func(done int64)            // bytes of the image that Blocks or Verify have done; nil: nobody is told
	Buffer   func(n int) ([]byte, error) // memory as the device likes it; nil: any

	done       atomic.Int64
	mu         sync.Mutex
	head, tail []byte   // what is kept back
	sums       []uint32 // of what was written, by block
}

// Sizes, in bytes.
const (
	headBytes = mebibyte
	tailBytes = tableSectors * sectorSize
	// endBytes are wiped at the disk's end: a table's copy is there, and what
	// RAIDs and ZFS know themselves by.
	endBytes = mebibyte
	// zeroRun is how much is made zero at once: progress and ^C wait for it.
	zeroRun = 64 << 20
)

// tries is how often a block is fetched that doesn't have its hash.
const tries = 3

func (w *Writer) workers() int {
	if w.Workers > 0 {
		return w.Workers
	}
	return 4
}

// Invalidate makes the disk one that nothing boots from, and that has no partitions.
func (w *Writer) Invalidate() error {
	size := w.Device.Size()
	if size < w.Image.Size || size < headBytes+endBytes {
		return fmt.Errorf("the disk has %d bytes, and the image %d", size, w.Image.Size)
	}
	sector := make([]byte, sectorSize)
	if _, err := w.Device.ReadAt(sector, sectorSize); err != nil {
		return fmt.Errorf("reading the disk: %w", err)
	}
	// The copies go first: without them the disk is still what it was.
	if at := otherTable(sector); at >= headBytes && at <= size-endBytes-sectorSize {
		if err := w.Device.Zero(at, sectorSize); err != nil {
			return fmt.Errorf("clearing the old partition table's copy: %w", err)
		}
	}
	if err := w.Device.Zero(size-endBytes, endBytes); err != nil {
		return fmt.Errorf("clearing the disk's end: %w", err)
	}
	if err := w.Device.Zero(0, headBytes); err != nil {
		return fmt.Errorf("clearing the disk's begin: %w", err)
	}
	return w.flush()
}

func (w *Writer) flush() error {
	if err := w.Device.Flush(); err != nil {
		return fmt.Errorf("flushing the disk: %w", err)
	}
	return nil
}

// span is a row of blocks: one, or several that are zero.
type span struct {
	index  int
	at, n  int64
	isZero bool
}

// spans lists the work, in the order of the disk.
func (w *Writer) spans() []span {
	var list []span
	zeros := map[int64]string{}
	for i, sum := range w.Image.Blocks {
		s := span{index: i, at: int64(i) * int64(w.Image.BlockSize), n: int64(w.Image.BlockSize)}
		s.n = min(s.n, w.Image.Size-s.at)
		if zeros[s.n] == "" {
			zero := sha256.Sum256(make([]byte, s.n))
			zeros[s.n] = hex.EncodeToString(zero[:])
		}
		s.isZero = sum == zeros[s.n]
		if last := len(list) - 1; s.isZero && last > 0 && list[last].isZero && list[last].n < zeroRun {
			list[last].n += s.n
			continue
		}
		list = append(list, s)
	}
	return list
}

// each does the work with several workers; the first error ends all.
func (w *Writer) each(ctx context.Context, spans []span, worker func() (func(context.Context, span) error, func(), error)) error {
	w.done.Store(0)
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan span)
	g.Go(func() error {
		defer close(jobs)
		for _, s := range spans {
			select {
			case jobs <- s:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range w.workers() {
		g.Go(func() (err error) {
			defer caught(func(e error) { err = e })
			do, end, err := worker()
			if err != nil {
				return err
			}
			defer end()
			for s := range jobs {
				if err := do(ctx, s); err != nil {
					return err
				}
				if done := w.done.Add(s.n); w.Progress != nil {
					w.Progress(done)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// Blocks writes the image, but for what is kept back, and flushes.
func (w *Writer) Blocks(ctx context.Context) error {
	w.sums = make([]uint32, len(w.Image.Blocks))
	if err := w.each(ctx, w.spans(), w.blockWorker); err != nil {
		return err
	}
	if w.head == nil || w.tail == nil {
		return errors.New("the image's first block is empty: it has no partition table")
	}
	return w.flush()
}

// blockWorker fetches, unpacks, compares and writes blocks.
func (w *Writer) blockWorker() (func(context.Context, span) error, func(), error) {
	block, err := w.buffer()
	if err != nil {
		return nil, nil, err
	}
	// DecodeAll must not take more memory than the block has, whatever comes. Its own
	// checksum would cost time, and proves nothing that the hash doesn't.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, nil, err
	}
	packed := make([]byte, 0, packedLimit(w.Image.BlockSize)+1)
	return func(ctx context.Context, s span) error {
		if s.isZero {
			w.keep(s, nil)
			return w.zero(s)
		}
		data, err := w.fetch(ctx, z, s, packed, block)
		if err != nil {
			return err
		}
		w.keep(s, data)
		w.sums[s.index] = crc32.Checksum(data, castagnoli) // as it'll be on the disk
		from := int64(0)
		if s.index == 0 {
			from = headBytes
		}
		if from == s.n {
			return nil
		}
		if _, err := w.Device.WriteAt(data[from:], s.at+from); err != nil {
			return fmt.Errorf("writing the block %d at byte %d: %w", s.index, s.at, err)
		}
		return nil
	}, z.Close, nil
}

func (w *Writer) buffer() ([]byte, error) {
	if w.Buffer == nil {
		return make([]byte, w.Image.BlockSize), nil
	}
	return w.Buffer(w.Image.BlockSize)
}

// packedLimit is how large a compressed block can be: one that can't be compressed
// grows a little.
func packedLimit(block int) int { return block + block>>7 + 1024 }

func (w *Writer) zero(s span) error {
	if err := w.Device.Zero(s.at, s.n); err != nil {
		return fmt.Errorf("writing zeros at byte %d: %w", s.at, err)
	}
	return nil
}

// fetch gets a block that has its hash. One that doesn't is fetched again, some
// times: a bit may have changed on the way.
func (w *Writer) fetch(ctx context.Context, z *zstd.Decoder, s span, packed, block []byte) ([]byte, error) {
	want := w.Image.Blocks[s.index]
	var wrong error
	for range tries {
		got, err := w.Fetch(ctx, want, packed)
		if err != nil {
			return nil, fmt.Errorf("the block %d: %w", s.index, err)
		}
		data, err := z.DecodeAll(got, block[:0:s.n])
		if err != nil {
			wrong = fmt.Errorf("unpacking it: %w", err)
			continue
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) == want && int64(len(data)) == s.n {
			return data, nil
		}
		wrong = errors.New("it doesn't have its hash")
	}
	return nil, fmt.Errorf("the block %d came %d times, and never as the image's manifest has it: %w", s.index, tries, wrong)
}

// keep keeps back what Commit writes, and makes it zero in data. Data may be nil,
// for zeros.
func (w *Writer) keep(s span, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.index == 0 && data != nil {
		w.head = make([]byte, headBytes)
		copy(w.head, data[:headBytes])
		clear(data[:headBytes])
	}
	from := max(s.at, w.Image.Size-tailBytes)
	if to := min(s.at+s.n, w.Image.Size); from < to {
		if w.tail == nil {
			w.tail = make([]byte, tailBytes)
		}
		if data != nil {
			copy(w.tail[from-(w.Image.Size-tailBytes):], data[from-s.at:to-s.at])
			clear(data[from-s.at : to-s.at])
		}
	}
}

// Verify reads back all that Blocks has written: what had its hash before must still
// be what it was. A checksum tells whether a disk is broken, and costs a tenth of a hash.
func (w *Writer) Verify(ctx context.Context) error {
	return w.each(ctx, w.spans(), func() (func(context.Context, span) error, func(), error) {
		block, err := w.buffer()
		return func(ctx context.Context, s span) error {
			for at := s.at; at < s.at+s.n; at += int64(w.Image.BlockSize) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				index := int(at / int64(w.Image.BlockSize))
				if err := w.verify(index, at, block[:min(int64(w.Image.BlockSize), s.at+s.n-at)], s.isZero); err != nil {
					return err
				}
			}
			return nil
		}, func() {}, err
	})
}

func (w *Writer) verify(index int, at int64, block []byte, isZero bool) error {
	if _, err := w.Device.ReadAt(block, at); err != nil {
		return fmt.Errorf("reading back the block %d at byte %d: %w", index, at, err)
	}
	if isZero && allZero(block) || !isZero && crc32.Checksum(block, castagnoli) == w.sums[index] {
		return nil
	}
	return fmt.Errorf("the disk doesn't give back what was written to it: the block %d, at byte %d: it is broken", index, at)
}

// castagnoli is the polynomial that processors have instructions for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func allZero(b []byte) bool {
	// All is zero if the first byte is, and each is what the one before it is.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// Root is the partition of the root filesystem. The kernel doesn't know it yet.
func (w *Writer) Root() (Partition, error) {
	t, err := readTable(w.head, w.Image.Size)
	if err != nil {
		return Partition{}, err
	}
	return t.root()
}

// Commit makes the disk one that boots. Whatever was written to it meanwhile is on
// it for good before that, and the first sector comes after all others.
func (w *Writer) Commit() error {
	t, err := readTable(w.head, w.Image.Size)
	if err != nil {
		return err
	}
	head, end, err := t.moved(w.Device.Size())
	if err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	for _, part := range []struct {
		data []byte
		at   int64
	}{{end, w.Device.Size() - int64(len(end))}, {head[sectorSize:], sectorSize}, {head[:sectorSize], 0}} {
		if _, err := w.Device.WriteAt(part.data, part.at); err != nil {
			return fmt.Errorf("writing the partition tables: %w", err)
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}
