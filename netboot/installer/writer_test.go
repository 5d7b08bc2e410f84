package installer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/testnetboot"
)

// memory is a disk with a cache that loses power.
type memory struct {
	mu     sync.Mutex
	cached []byte   // what a reader sees
	safe   []byte   // what a power cut leaves
	ops    []change // since the last flush
	fuel   int      // operations until the power is cut; negative: never
	count  int
	bad    int64 // a byte that isn't kept; 0: none
}

type change struct {
	at   int64
	data []byte
}

var errPower = errors.New("the power is cut")

func newMemory(content []byte) *memory {
	return &memory{cached: bytes.Clone(content), safe: bytes.Clone(content), fuel: -1}
}

func (m *memory) spend() error {
	m.count++
	if m.fuel == 0 {
		return errPower
	}
	m.fuel--
	return nil
}

func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(b, m.cached[at:]), nil
}

func (m *memory) WriteAt(b []byte, at int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at%sectorSize != 0 || len(b)%sectorSize != 0 || at+int64(len(b)) > int64(len(m.cached)) {
		return 0, fmt.Errorf("%d bytes at %d aren't sectors of the disk", len(b), at)
	}
	m.ops = append(m.ops, change{at, bytes.Clone(b)})
	if err := m.spend(); err != nil {
		return 0, err
	}
	copy(m.cached[at:], b)
	if m.bad > 0 && m.bad >= at && m.bad < at+int64(len(b)) {
		m.cached[m.bad] ^= 4
	}
	return len(b), nil
}

func (m *memory) Zero(at, n int64) error {
	_, err := m.WriteAt(make([]byte, n), at)
	return err
}

func (m *memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.spend(); err != nil {
		return err
	}
	copy(m.safe, m.cached)
	m.ops = nil
	return nil
}

func (m *memory) Size() int64 { return int64(len(m.cached)) }

// crash is a disk that a power cut may leave: of what wasn't flushed, each sector
// may be there or not.
func (m *memory) crash(r *rand.Rand) []byte {
	left := bytes.Clone(m.safe)
	for _, op := range m.ops {
		how := r.IntN(4) // nothing, all, or some sectors of it
		for i := 0; i < len(op.data); i += sectorSize {
			if how == 1 || how > 1 && r.IntN(2) == 0 {
				copy(left[op.at+int64(i):], op.data[i:i+sectorSize])
			}
		}
	}
	return left
}

// validTable tells whether there is a header of a table in a sector that firmware
// would believe.
func validTable(disk []byte, sector int64) bool {
	h := disk[sector*sectorSize : (sector+1)*sectorSize]
	if string(h[:8]) != gptSignature || binary.LittleEndian.Uint64(h[atOwn:]) != uint64(sector) || headerSum(h) != binary.LittleEndian.Uint32(h[atHeaderCRC:]) {
		return false
	}
	at := int64(binary.LittleEndian.Uint64(h[atEntries:])) * sectorSize
	if at < 0 || at+16384 > int64(len(disk)) {
		return false
	}
	return crc32.ChecksumIEEE(disk[at:at+16384]) == binary.LittleEndian.Uint32(h[atEntriesCRC:])
}

// boots tells whether any firmware may start something from the disk.
func boots(disk []byte) bool {
	return strings.Trim(string(disk[:sectorSize]), "\x00") != "" || validTable(disk, 1) || validTable(disk, int64(len(disk)/sectorSize-1))
}

const testBlock = 1 << 20

// testImage is a disk, and what a Writer needs to have of it.
func testImage(t testing.TB, raw []byte) (*images.Disk, func(context.Context, string, []byte) ([]byte, error)) {
	t.Helper()
	dir := t.TempDir()
	m := testnetboot.Image(t, dir, raw, testBlock)
	chunks := map[string][]byte{}
	for _, sum := range m.Disk.Blocks {
		data, err := os.ReadFile(filepath.Join(dir, images.NetbootDir, images.ChunkFile(sum)))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a block of zeros has none
			t.Fatal(err)
		}
		chunks[sum] = data
	}
	return m.Disk, func(_ context.Context, sum string, _ []byte) ([]byte, error) { return bytes.Clone(chunks[sum]), nil }
}

// install does what an installation does to the disk; the seed is a sector.
func install(ctx context.Context, w *Writer) error {
	if err := w.Invalidate(); err != nil {
		return err
	}
	if err := w.Blocks(ctx); err != nil {
		return err
	}
	if err := w.Verify(ctx); err != nil {
		return err
	}
	p, err := w.Root()
	if err != nil {
		return err
	}
	if _, err := w.Device.WriteAt(bytes.Repeat([]byte("s"), sectorSize), p.Offset); err != nil {
		return err
	}
	return w.Commit()
}

// installed is what the disk has to be after that: the image with its seed, and
// tables for the disk's size. Between the image and the tables nothing is said.
func checkInstalled(t *testing.T, disk, raw []byte) {
	t.Helper()
	const root = testnetboot.Root
	want := bytes.Clone(raw)
	copy(want[root:], bytes.Repeat([]byte("s"), sectorSize))
	if !bytes.Equal(disk[:440], want[:440]) || !bytes.Equal(disk[34*sectorSize:len(raw)-tailBytes], want[34*sectorSize:len(raw)-tailBytes]) {
		t.Error("the disk isn't the image with its seed")
	}
	if !validTable(disk, 1) || !validTable(disk, int64(len(disk)/sectorSize-1)) {
		t.Error("a table isn't valid")
	}
}

var diskSizes = map[string]int{"same": 5 << 20, "a sector more": 5<<20 + 512, "more": 7<<20 + 512*5}

func TestWriter(t *testing.T) {
	raw := testnetboot.Disk(5<<20, 1)
	image, fetch := testImage(t, raw)
	for name, size := range diskSizes {
		for _, old := range []string{"blank", "installed", "moved"} {
			t.Run(name+" "+old, func(t *testing.T) {
				m := newMemory(oldDisk(old, size))
				var last int64
				w := &Writer{Device: m, Image: image, Fetch: fetch, Workers: 1, Progress: func(done int64) { last = done }}
				if err := install(t.Context(), w); err != nil {
					t.Fatal(err)
				}
				checkInstalled(t, m.safe, raw)
				if last != image.Size {
					t.Errorf("the progress ends at %d of %d", last, image.Size)
				}
				sgdisk(t, m.safe)
			})
		}
	}
}

// oldDisk is a disk as it was before: blank, with an installation, or with one that
// was copied from a smaller disk, whose second table is in its middle.
func oldDisk(old string, size int) []byte {
	switch old {
	case "blank":
		return make([]byte, size)
	case "moved":
		return append(testnetboot.Disk(5<<20, 9), bytes.Repeat([]byte{7}, size-5<<20)...)
	}
	return testnetboot.Disk(size, 9)
}

// sgdisk judges the tables, where it is installed.
func sgdisk(t *testing.T, disk []byte) {
	t.Helper()
	if _, err := exec.LookPath("sgdisk"); err != nil {
		return
	}
	name := filepath.Join(t.TempDir(), "disk")
	testnetboot.Place(t, name, disk)
	out, err := exec.Command("sgdisk", "--verify", name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") || strings.Contains(strings.ToLower(string(out)), "caution") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
}

// TestPowerCut cuts the power after each operation, on disks of all kinds. Before
// all is on the disk, nothing boots; where something does, it is the old
// installation, untouched, or the new one, complete.
func TestPowerCut(t *testing.T) {
	raw := testnetboot.Disk(5<<20, 1)
	image, fetch := testImage(t, raw)
	for name, size := range diskSizes {
		for _, old := range []string{"blank", "installed", "moved"} {
			before := oldDisk(old, size)
			t.Run(name+" "+old, func(t *testing.T) {
				r := rand.New(rand.NewPCG(3, uint64(size)))
				for fuel := 0; ; fuel++ {
					m := newMemory(before)
					m.fuel = fuel
					err := install(t.Context(), &Writer{Device: m, Image: image, Fetch: fetch, Workers: 1 + fuel%4})
					if err == nil {
						if fuel < 12 {
							t.Errorf("it took only %d operations", fuel)
						}
						return
					}
					if !errors.Is(err, errPower) {
						t.Fatal(err)
					}
					for range 3 {
						checkCut(t, m.crash(r), before, raw, fuel)
					}
				}
			})
		}
	}
}

// checkCut looks at what a power cut has left.
func checkCut(t *testing.T, left, before, raw []byte, fuel int) {
	t.Helper()
	if !boots(left) {
		return
	}
	const root = testnetboot.Root
	// Of the old one only its ends may be gone, and a copy of its table.
	touched := 0
	for at := headBytes; at < len(left)-endBytes-sectorSize; at += sectorSize {
		if !bytes.Equal(left[at:at+sectorSize], before[at:at+sectorSize]) {
			touched++
		}
	}
	if touched <= 1 {
		return
	}
	want := bytes.Clone(raw)
	copy(want[root:], bytes.Repeat([]byte("s"), sectorSize))
	if !bytes.Equal(left[headBytes:len(raw)-endBytes], want[headBytes:len(raw)-endBytes]) {
		t.Fatalf("cut after %d operations, it boots half an installation", fuel)
	}
}

func TestWriterRefuses(t *testing.T) {
	raw := testnetboot.Disk(8<<20, 1)
	image, fetch := testImage(t, raw)
	other, _ := testImage(t, testnetboot.Disk(8<<20, 2))
	empty, emptyFetch := testImage(t, make([]byte, 8<<20))
	for name, c := range map[string]struct {
		change func(w *Writer, m *memory)
		want   string
	}{
		"too small": {func(w *Writer, m *memory) { m.cached = m.cached[:7<<20] }, "the disk has 7340032 bytes, and the image 8388608"},
		"another image's chunks": {func(w *Writer, _ *memory) {
			w.Fetch = func(ctx context.Context, sum string, buf []byte) ([]byte, error) {
				for i := range other.Blocks {
					if other.Blocks[i] == sum {
						return fetch(ctx, image.Blocks[i], buf)
					}
				}
				return nil, errors.New("no such block")
			}
			w.Image = other
		}, "never as the image's manifest has it: it doesn't have its hash"},
		"no zstd": {func(w *Writer, _ *memory) {
			w.Fetch = func(context.Context, string, []byte) ([]byte, error) { return []byte("junk"), nil }
		}, "unpacking it"},
		"a block that is larger": {func(w *Writer, _ *memory) {
			large, largeFetch := testImage(t, append(bytes.Repeat([]byte("x"), testBlock), make([]byte, 4<<20)...))
			large.BlockSize, large.Blocks = testBlock, large.Blocks[:5]
			w.Fetch = func(ctx context.Context, _ string, buf []byte) ([]byte, error) {
				return largeFetch(ctx, large.Blocks[0], buf)
			}
		}, "it doesn't have its hash"},
		"no partition table": {func(w *Writer, _ *memory) { w.Image, w.Fetch = empty, emptyFetch }, "no partition table"},
		"a broken disk":      {func(_ *Writer, m *memory) { m.bad = 3<<20 + 12345 }, "doesn't give back what was written"},
		"a server that fails": {func(w *Writer, _ *memory) {
			w.Fetch = func(context.Context, string, []byte) ([]byte, error) { return nil, errors.New("no server") }
		}, "no server"},
	} {
		t.Run(name, func(t *testing.T) {
			before := testnetboot.Disk(9<<20, 7)
			m := newMemory(before)
			w := &Writer{Device: m, Image: image, Fetch: fetch}
			c.change(w, m)
			err := install(t.Context(), w)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, not %q", err, c.want)
			}
			if len(m.cached) == len(before) && boots(m.cached) {
				t.Error("the disk boots")
			}
		})
	}
}

// TestWriterTriesAgain: a block that comes damaged once is fetched again.
func TestWriterTriesAgain(t *testing.T) {
	raw := testnetboot.Disk(8<<20, 1)
	image, fetch := testImage(t, raw)
	var mu sync.Mutex
	seen := map[string]bool{}
	m := newMemory(make([]byte, 9<<20))
	w := &Writer{Device: m, Image: image, Fetch: func(ctx context.Context, sum string, buf []byte) ([]byte, error) {
		data, err := fetch(ctx, sum, buf)
		mu.Lock()
		defer mu.Unlock()
		if !seen[sum] {
			seen[sum] = true
			data[len(data)/2] ^= 1
		}
		return data, err
	}}
	if err := install(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	checkInstalled(t, m.safe, raw)
}

func TestWriterStops(t *testing.T) {
	image, fetch := testImage(t, testnetboot.Disk(8<<20, 1))
	ctx, cancel := context.WithCancelCause(t.Context())
	m := newMemory(testnetboot.Disk(8<<20, 7))
	w := &Writer{Device: m, Image: image, Workers: 2, Fetch: func(ctx context.Context, sum string, buf []byte) ([]byte, error) {
		cancel(errStopped{"disarmed"})
		return fetch(ctx, sum, buf)
	}}
	if err := install(ctx, w); err == nil || boots(m.cached) {
		t.Errorf("%v; it boots: %v", err, boots(m.cached))
	}
}
