//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/installer"
)

// disk is a virtual disk: a loop device on a file, or that file where there are none.
type disk struct {
	path   string
	file   string
	isLoop bool
}

// newDisk makes one in dir, of so many bytes.
func newDisk(ctx context.Context, dir string, size int64) (*disk, error) {
	d := &disk{file: filepath.Join(dir, "disk")}
	f, err := os.Create(d.file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	// Its file's cache is gone around, like that of a machine's disk.
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", d.file).Output()
	if d.path = strings.TrimSpace(string(out)); err == nil && d.path != "" {
		d.isLoop = true
		return d, nil
	}
	d.path = d.file
	return d, nil
}

func (d *disk) String() string {
	if d.isLoop {
		return "a loop device"
	}
	return "a file, as there is no loop device"
}

func (d *disk) remove() error {
	if !d.isLoop {
		return os.Remove(d.file)
	}
	return errors.Join(exec.Command("losetup", "--detach", d.path).Run(), os.Remove(d.file))
}

// plainFile is a disk that is a file: the kernel zeros it in another way.
type plainFile struct {
	*installer.BlockDevice
	name string
}

// Zero implements installer.Device.
func (p plainFile) Zero(at, n int64) error {
	f, err := os.OpenFile(p.name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, at, n), f.Close())
}

// measureWriting installs the image from kiln serve, and has dd write the same disk,
// which curl fetches from nginx over the same cable; in turns, the best counts.
func measureWriting(ctx context.Context, t *table, l *lab) (err error) {
	_, stop, err := l.serveBesideNginx(ctx)
	if err != nil {
		return err
	}
	defer stop()
	d, err := newDisk(ctx, l.dir, l.image.Disk.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	return l.writeInTurns(ctx, t, d)
}

// writeInTurns has one after the other write the disk.
func (l *lab) writeInTurns(ctx context.Context, t *table, d *disk) error {
	if _, err := dd(ctx, d); err != nil { // the file's blocks aren't allocated yet
		return err
	}
	if err := wipe(ctx, d); err != nil { // what dd has written is what the installer has to write
		return err
	}
	var byDD, byKiln, verified, own time.Duration
	for range rounds {
		before, err := usageOf(os.Getpid())
		if err != nil {
			return err
		}
		written, all, err := l.install(ctx, d)
		if err != nil {
			return err
		}
		after, err := usageOf(os.Getpid())
		if err != nil {
			return err
		}
		if byKiln == 0 { // the first
			if err := l.compare(d); err != nil {
				return err
			}
		}
		took, err := dd(ctx, d)
		if err != nil {
			return err
		}
		own = after.processor - before.processor
		byDD, byKiln, verified = best(byDD, took), best(byKiln, written), best(verified, all)
	}
	speed := func(d time.Duration) float64 { return float64(l.image.Disk.Size) / (1 << 20) / d.Seconds() }
	fmt.Printf("Writing: a disk of %d MiB to %s, best of %d rounds in turns\n", l.image.Disk.Size>>20, d, rounds)
	fmt.Printf("  curl … | dd oflag=direct conv=fsync: %s; the installer: %s, and with all read back: %s; its processor time %.2f s\n",
		mib(speed(byDD)), mib(speed(byKiln)), mib(speed(verified)), own.Seconds())
	t.more("writing an image to "+d.String(), "dd", mib(speed(byKiln)), mib(speed(byDD)), speed(byKiln)/speed(byDD), 0.9)
	t.add(row{
		what: "the same, and all of it read back, which dd doesn't", other: "dd", value: mib(speed(verified)), beside: mib(speed(byDD)),
		ratio: fmt.Sprintf("%.2f", speed(verified)/speed(byDD)),
	})
	return nil
}

func best(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// dd writes the disk as it is, until it would outlive a power cut.
func dd(ctx context.Context, d *disk) (time.Duration, error) {
	script := "set -o pipefail; curl --silent --show-error --fail --noproxy '*' \"$0\" | dd \"of=$1\" bs=4M iflag=fullblock oflag=direct conv=fsync,notrunc status=none"
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "http://"+serverAddress+":"+nginxPort+"/disk.raw", d.path)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("curl and dd: %w: %s", err, out)
	}
	return time.Since(start), nil
}

// wipe writes over all of the disk.
func wipe(ctx context.Context, d *disk) error {
	script := "tr '\\0' '\\377' </dev/zero | dd \"of=$0\" bs=4M count=" + fmt.Sprint(chunkCount) + " iflag=fullblock oflag=direct conv=fsync,notrunc status=none"
	if out, err := exec.CommandContext(ctx, "sh", "-c", script, d.path).CombinedOutput(); err != nil {
		return fmt.Errorf("dd: %w: %s", err, out)
	}
	return nil
}

// install writes the image as the installer does, and says how long that took, and
// how long with all read back.
func (l *lab) install(ctx context.Context, d *disk) (written, all time.Duration, err error) {
	begun := time.Now()
	block, err := installer.OpenBlockDevice(d.path, l.image.Disk.Size)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, block.Close()) }()
	memory := &aligned{}
	defer memory.free()
	const workers = 4
	f := installer.NewFetcher(l.url("/images/"+l.image.ID), workers)
	w := &installer.Writer{
		Device: block, Image: l.image.Disk, Workers: workers, Buffer: memory.get,
		Fetch: func(ctx context.Context, sum string, buf []byte) ([]byte, error) {
			return f.Get(ctx, images.NetbootDir+"/"+images.ChunkFile(sum), buf, 2*images.BlockSize)
		},
	}
	if !d.isLoop {
		w.Device = plainFile{block, d.path}
	}
	if err := w.Invalidate(); err != nil {
		return 0, 0, err
	}
	if err := w.Blocks(ctx); err != nil {
		return 0, 0, err
	}
	read := time.Now()
	if err := w.Verify(ctx); err != nil {
		return 0, 0, err
	}
	reading := time.Since(read)
	if err := w.Commit(); err != nil {
		return 0, 0, err
	}
	all = time.Since(begun)
	return all - reading, all, nil
}

// aligned is the memory of an installation's blocks, which isn't Go's.
type aligned struct {
	mu    sync.Mutex
	parts [][]byte
}

func (a *aligned) get(n int) ([]byte, error) {
	b, err := installer.Aligned(n)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.parts = append(a.parts, b)
	return b, nil
}

func (a *aligned) free() {
	for _, b := range a.parts {
		_ = unix.Munmap(b) // it was mapped
	}
}

// compare compares the disk with the image's.
func (l *lab) compare(d *disk) error {
	want, err := os.Open(l.raw)
	if err != nil {
		return err
	}
	defer want.Close()
	got, err := installer.OpenBlockDevice(d.path, l.image.Disk.Size) // it reads what is on the disk
	if err != nil {
		return err
	}
	defer got.Close()
	a, b := make([]byte, images.BlockSize), make([]byte, images.BlockSize)
	for at := int64(0); at < l.image.Disk.Size; at += images.BlockSize {
		_, err := want.ReadAt(a, at)
		_, e := got.ReadAt(b, at)
		if err = errors.Join(err, e); err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			return fmt.Errorf("the disk isn't what the image is, within the 4 MiB at byte %d", at)
		}
	}
	return nil
}
