// Package disk writes disks that boot, out of a tree of files: the root as an
// ext4 filesystem, and around it all that firmware wants to see. It needs
// neither loop devices nor mounts, and the same tree gives the same bytes,
// whatever filesystem it lies on, at whatever time, by whoever.
//
// A disk has three partitions. The root comes last, so that it can grow:
//
//	1  BIOS boot   GRUB's core image, which boot code in the first sector loads
//	2  ESP         FAT32: the distribution's signed shim and GRUB
//	3  root        ext4: the system, kernel and /boot/grub included
//
// Firmware of either kind ends in the same place. GRUB finds the root by its
// filesystem's UUID, and reads /boot/grub/grub.cfg there, which is the one that
// update-grub writes: a host's own kernel upgrades need nothing of Kiln. With
// Secure Boot, firmware verifies shim, shim GRUB, and GRUB the kernel, all as
// the distribution signed them.
//
// The order of things is Install into the tree, Root, Write.
package disk

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/internal/run"
)

const (
	// Block is what sizes and partitions are multiples of, in bytes: an image is
	// hashed in blocks of it.
	Block = 4 << 20

	sectorSize = 512
	mib        = 1 << 20

	// The first partition starts where every tool starts one, and ends where the
	// first block does.
	biosStart = 1 * mib
	biosSize  = Block - biosStart
	espStart  = Block
	// defaultESP has room for shim and GRUB ten times over, and for firmware
	// updates.
	defaultESP = 128 * mib
	// tailSize is for the second partition table, which needs 33 sectors.
	tailSize = Block
)

// RootOffset is where the root filesystem begins on a disk of Write's whose ESP
// has the usual size, and RootBlock the size of its blocks, both in bytes.
const (
	RootOffset = espStart + defaultESP
	RootBlock  = blockSize
)

// RootPartition is the number of the root's partition: growpart's argument.
const RootPartition = 3

// UUID is one in the order in which it is written.
type UUID [16]byte

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// IDs are all the numbers of a disk that elsewhere are random.
type IDs struct {
	Disk, BIOSPartition, ESPPartition, RootPartition UUID

	Root     UUID   // the root filesystem's, which the bootloader looks for
	HashSeed UUID   // of the root's folders
	ESP      uint32 // the ESP's serial number
}

// NewIDs derives the numbers of a disk from seed, which may be any text: the
// same one gives the same numbers. No two disks in a machine may have the same,
// else GRUB and Linux find the root on whichever comes first.
func NewIDs(seed string) IDs {
	derive := func(what string) (u UUID) {
		sum := sha256.Sum256([]byte("kiln disk " + what + "\x00" + seed))
		copy(u[:], sum[:])
		u[6] = u[6]&0x0f | 0x80 // version 8: made in a way of one's own
		u[8] = u[8]&0x3f | 0x80
		return u
	}
	esp := derive("esp")
	return IDs{
		Disk: derive("disk"), BIOSPartition: derive("bios partition"), ESPPartition: derive("esp partition"),
		RootPartition: derive("root partition"), Root: derive("root"), HashSeed: derive("hash seed"),
		ESP: binary.BigEndian.Uint32(esp[:]),
	}
}

// ESPUUID is the ESP's serial number as fstab(5) and blkid name it: UUID=1A2B-3C4D.
func (i IDs) ESPUUID() string { return fmt.Sprintf("%04X-%04X", i.ESP>>16, i.ESP&0xffff) }

// Spec is a disk to write.
type Spec struct {
	// Tree is the root's tree of files, which has shim and GRUB as the packages
	// shim-signed, grub-efi-amd64-signed and grub-pc-bin install them.
	Tree string
	// Root is the file that the function Root made of the tree.
	Root string
	// Distribution is os-release's ID, debian or ubuntu: its signed GRUB looks in
	// a folder of that name.
	Distribution string
	IDs          IDs
	Time         time.Time   // of the files on the ESP
	ESPSize      int64       // in bytes, a multiple of Block; 0 is 128 MiB
	Runner       run.Runner  // runs grub-mkimage; nil is the real one
	Progress     func(int64) // where set, is told of bytes of the root as they are done
}

// Write writes the disk to the file out, which appears when it is complete.
// What is zero on it is a hole in the file.
func Write(ctx context.Context, spec Spec, out string) error {
	if err := write(ctx, spec, out); err != nil {
		return fmt.Errorf("writing the disk %s: %w", out, err)
	}
	return nil
}

func write(ctx context.Context, spec Spec, out string) error {
	if spec.ESPSize == 0 {
		spec.ESPSize = defaultESP
	}
	if spec.ESPSize%Block != 0 || spec.ESPSize < 0 {
		return fmt.Errorf("the ESP's size of %d bytes is no multiple of %d", spec.ESPSize, Block)
	}
	root, err := os.Open(spec.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	rootSize, err := checkRoot(root, spec.IDs.Root)
	if err != nil {
		return fmt.Errorf("the root filesystem %s: %w", spec.Root, err)
	}
	boot, err := bootFiles(&spec)
	if err != nil {
		return err
	}
	core, err := biosCore(ctx, &spec, filepath.Dir(out))
	if err != nil {
		return err
	}
	mbr, err := biosBoot(boot.bootImage, core, biosStart/sectorSize)
	if err != nil {
		return err
	}
	rootStart := espStart + spec.ESPSize
	size := rootStart + rootSize + tailSize
	table := gpt{disk: spec.IDs.Disk, sectors: uint64(size / sectorSize), partitions: []partition{
		{typeBIOSBoot, spec.IDs.BIOSPartition, biosStart / sectorSize, biosSize / sectorSize, "bios"},
		{typeESP, spec.IDs.ESPPartition, espStart / sectorSize, uint64(spec.ESPSize) / sectorSize, "esp"},
		{typeRootAMD64, spec.IDs.RootPartition, uint64(rootStart) / sectorSize, uint64(rootSize) / sectorSize, "root"},
	}}
	return replace(out, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		if err := table.write(f, mbr); err != nil {
			return err
		}
		if _, err := f.WriteAt(core, biosStart); err != nil {
			return err
		}
		esp := fat{label: "ESP", serial: spec.IDs.ESP, size: spec.ESPSize, offset: espStart, time: spec.Time}
		if err := esp.write(f, boot.esp); err != nil {
			return err
		}
		return copySparse(ctx, f, rootStart, root, spec.Progress)
	})
}

// checkRoot gives the size of a root filesystem that GRUB will find.
func checkRoot(root *os.File, want UUID) (int64, error) {
	info, err := root.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() == 0 || info.Size()%Block != 0 {
		return 0, fmt.Errorf("it has %d bytes, and needs a multiple of %d: make it with Root", info.Size(), Block)
	}
	fs, err := openExt4(root)
	if err != nil {
		return 0, err
	}
	if fs.uuid != want {
		return 0, fmt.Errorf("its UUID is %s, and the disk's bootloader looks for %s: make both from the same IDs", fs.uuid, want)
	}
	return info.Size(), nil
}

// replace makes the file path by write, or leaves what was there: the new file
// appears when it is complete. That it outlives a power cut is the caller's affair.
func replace(path string, write func(*os.File) error) (err error) {
	f, err := create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = write(f); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// copySparse copies all of from to an offset of to, which is all zero there,
// and leaves out what is zero.
func copySparse(ctx context.Context, to *os.File, offset int64, from *os.File, progress func(int64)) error {
	const grain = 64 << 10
	buf := make([]byte, Block)
	info, err := from.Stat()
	if err != nil {
		return err
	}
	var zero [grain]byte
	for at := int64(0); at < info.Size(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// What can't tell its holes says that all is data.
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = info.Size()
		case err != nil:
			data = at
		}
		data -= data % grain
		if data > at {
			report(progress, data-at)
			at = data
			continue
		}
		n, err := from.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%s became shorter while it was read", from.Name())
		}
		for i := 0; i < n; i += grain {
			piece := buf[i:min(i+grain, n)]
			if string(piece) == string(zero[:len(piece)]) {
				continue
			}
			if _, err := to.WriteAt(piece, offset+at+int64(i)); err != nil {
				return err
			}
		}
		report(progress, int64(n))
		at += int64(n)
	}
	return nil
}

// Copy copies a disk to an empty file, and leaves out its holes. Where both are on a
// file system that can share blocks, nothing is copied.
func Copy(ctx context.Context, to, from *os.File, progress func(int64)) error {
	if clone(to, from) == nil {
		return nil
	}
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	if err := copyExtents(ctx, to, from, info.Size(), progress); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return copySparse(ctx, to, 0, from, progress)
}

// Check has e2fsck look at the root filesystem of a disk of Write's.
func Check(ctx context.Context, r run.Runner, name string) error {
	c := run.Command{Name: "e2fsck", Args: []string{"-fn", fmt.Sprintf("%s?offset=%d", filepath.Base(name), RootOffset)}, Dir: filepath.Dir(name), Install: installE2fsprogs, Env: []string{"LC_ALL=C"}}
	if report, err := r.Output(ctx, c); err != nil {
		return fmt.Errorf("checking the root filesystem of %s: %w\n%s", name, err, report)
	}
	return nil
}

func report(progress func(int64), n int64) {
	if progress != nil {
		progress(n)
	}
}
