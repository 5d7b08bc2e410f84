package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockDevice is a disk of the machine, opened for writing. It goes around the
// kernel's cache: what is written needs no memory, and what is read comes from the
// disk.
type BlockDevice struct {
	path string
	size int64
	f    *os.File
}

// OpenBlockDevice opens the disk at path, of size bytes, which nobody else may be using.
func OpenBlockDevice(path string, size int64) (*BlockDevice, error) {
	d := &BlockDevice{path: path}
	if err := d.open(unix.O_EXCL); err != nil {
		return nil, err
	}
	// The disk was chosen by what sysfs said of it: this has to be the same one.
	n, err := d.f.Seek(0, io.SeekEnd)
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes and not %d: was it exchanged?", n, size)
	}
	if err != nil {
		d.f.Close()
		return nil, fmt.Errorf("the disk %s: %w", path, err)
	}
	d.size = n
	return d, nil
}

func (d *BlockDevice) open(flags int) error {
	f, err := os.OpenFile(d.path, os.O_RDWR|unix.O_DIRECT|flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("the disk %s is in use: it, or a partition of it, is mounted or part of a RAID or volume group", d.path)
	}
	if err != nil {
		return fmt.Errorf("opening the disk: %w", err)
	}
	d.f = f
	return nil
}

// Close closes it.
func (d *BlockDevice) Close() error { return d.f.Close() }

// Size is the disk's, in bytes.
func (d *BlockDevice) Size() int64 { return d.size }

// alignment is that of memory that the kernel reads and writes directly.
const alignment = 4096

// Aligned is memory that is read and written without a copy. It is never given back.
func Aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

func isAligned(b []byte) bool {
	return len(b) == 0 || uintptr(unsafe.Pointer(&b[0]))%sectorSize == 0
}

// ReadAt reads whole sectors.
func (d *BlockDevice) ReadAt(b []byte, at int64) (int, error) {
	if isAligned(b) {
		return d.f.ReadAt(b, at)
	}
	own := alignedCopy(len(b))
	n, err := d.f.ReadAt(own, at)
	copy(b, own[:n])
	return n, err
}

// WriteAt writes whole sectors.
func (d *BlockDevice) WriteAt(b []byte, at int64) (int, error) {
	if isAligned(b) {
		return d.f.WriteAt(b, at)
	}
	own := alignedCopy(len(b))
	copy(own, b)
	return d.f.WriteAt(own, at)
}

// alignedCopy is memory for n bytes that is aligned, out of Go's.
func alignedCopy(n int) []byte {
	b := make([]byte, n+alignment)
	skip := -uintptr(unsafe.Pointer(&b[0])) % alignment
	return b[skip : int(skip)+n]
}

// Zero has the kernel write zeros, or the disk itself where it can.
func (d *BlockDevice) Zero(at, n int64) error {
	span := [2]uint64{uint64(at), uint64(n)}
	return d.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&span))
}

// Flush has the disk write what it has in its own cache.
func (d *BlockDevice) Flush() error { return d.f.Sync() }

func (d *BlockDevice) ioctl(request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), request, uintptr(arg))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return e
		}
		return nil
	}
}

// Operations of BLKPG, and its arguments: struct blkpg_ioctl_arg and blkpg_partition.
const (
	addPartition    = 1
	deletePartition = 2
)

type blkpgPartition struct {
	start, length int64
	number        int32
	_             [128]byte // names, which nothing reads
	_             [4]byte
}

type blkpgArgument struct {
	operation, flags, length int32
	data                     *blkpgPartition
}

func (d *BlockDevice) blkpg(operation int32, p Partition) error {
	part := &blkpgPartition{start: p.Offset, length: p.Size, number: int32(p.Number)}
	arg := &blkpgArgument{operation: operation, length: int32(unsafe.Sizeof(*part)), data: part}
	return d.ioctl(unix.BLKPG, unsafe.Pointer(arg))
}

// WithRoot mounts the ext4 file system in a partition that no table on the disk has
// yet, calls use with where it is, and unmounts it.
func (d *BlockDevice) WithRoot(ctx context.Context, p Partition, use func(dir string) error) (err error) {
	// A partition can't be mounted while somebody has all of the disk.
	if err := d.f.Close(); err != nil {
		return err
	}
	if err := d.open(0); err != nil {
		return err
	}
	// What the kernel knows of an earlier table is in the way.
	if err := d.ioctl(unix.BLKRRPART, nil); err != nil {
		return fmt.Errorf("having the kernel forget the old partitions of %s: %w", d.path, err)
	}
	if err := d.blkpg(addPartition, p); err != nil {
		return fmt.Errorf("showing the kernel the root partition of %s: %w", d.path, err)
	}
	defer func() {
		if e := d.blkpg(deletePartition, p); e != nil && err == nil {
			err = fmt.Errorf("having the kernel forget the root partition of %s: %w", d.path, e)
		}
	}()
	dir, err := os.MkdirTemp("", "root")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	device, err := d.partition(ctx, p.Number)
	if err != nil {
		return err
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mounting the installed root %s: %w", device, err)
	}
	err = use(dir)
	if e := unix.Unmount(dir, 0); e != nil && err == nil {
		err = fmt.Errorf("unmounting the installed root %s: %w", device, e)
	}
	return err
}

// partition is the device of a partition. devtmpfs makes it, as soon as the kernel
// knows it.
func (d *BlockDevice) partition(ctx context.Context, number int) (string, error) {
	name := d.path + strconv.Itoa(number)
	if last := d.path[len(d.path)-1]; last >= '0' && last <= '9' {
		name = d.path + "p" + strconv.Itoa(number)
	}
	for range 50 {
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return "", fmt.Errorf("the kernel shows no %s", filepath.Base(name))
}
