package disk

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/alisw/kiln/internal/run"
)

const (
	// growBlocks is how far the root grows in place: to 4 TiB. Further, Linux
	// moves what doesn't fit.
	growBlocks = 4 << 40 / blockSize
	// The journal, in MiB: the most is what a root of some GiB wants, since it
	// doesn't grow with the root.
	leastJournal = 4
	mostJournal  = 64
	defaultFree  = 256 * mib
)

// mke2fsConfig takes the place of the building machine's own: which features a
// filesystem has is said in the command alone.
const mke2fsConfig = `[defaults]
	base_features = none
[fs_types]
	ext4 = {
	}
	floppy = {
	}
	small = {
	}
	big = {
	}
	huge = {
	}
`

// features are what Debian 12's GRUB and e2fsprogs know, and all later ones.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

const installE2fsprogs = "the Debian package e2fsprogs has it"

// RootOptions say how the root filesystem is made.
type RootOptions struct {
	IDs   IDs
	Label string // at most 16 bytes
	// Time is that of all that happens now; what was modified after it was
	// modified at it.
	Time time.Time
	// Size is in bytes, a multiple of Block. 0 is what the tree needs, and Free.
	Size int64
	// Free is how many bytes are left for whoever writes before the root grows;
	// 0 is 256 MiB.
	Free   int64
	Runner run.Runner // runs mke2fs and e2fsck; nil is the real ones
}

// Root writes an ext4 filesystem with what is in tree to the file out, which
// appears when it is complete. Owners, modes, links, devices and extended
// attributes are the tree's, so that only root can make one that boots.
//
// The bytes depend on what is in the tree, and on nothing else but the version
// of mke2fs. One thing is left to the tree's own filesystem: where a file has
// several extended attributes, their order is the one in which it lists them.
func Root(ctx context.Context, tree, out string, o RootOptions) error {
	if err := root(ctx, tree, out, o); err != nil {
		return fmt.Errorf("writing the root filesystem %s: %w", out, err)
	}
	return nil
}

func root(ctx context.Context, tree, out string, o RootOptions) error {
	switch {
	case o.Size%Block != 0 || o.Size < 0 || o.Free < 0:
		return fmt.Errorf("its size of %d bytes is no multiple of %d", o.Size, Block)
	case o.Time.Unix() <= 0 || o.Time.Unix() > math.MaxUint32:
		return fmt.Errorf("the time %s: between 1970 and 2106 it has to be", o.Time)
	case len(o.Label) > 16:
		return fmt.Errorf("the label %q has more than 16 bytes", o.Label)
	}
	m, err := measureTree(ctx, tree)
	if err != nil {
		return err
	}
	if o.Free == 0 {
		o.Free = defaultFree
	}
	g := m.geometry(o.Free)
	if o.Size != 0 {
		g = m.sized(o.Size)
	}
	return replace(out, func(f *os.File) error {
		if err := f.Truncate(g.size); err != nil {
			return err
		}
		if err := mke2fs(ctx, tree, f.Name(), g, &o); err != nil {
			if need := m.geometry(mib).size; g.size < need {
				return fmt.Errorf("%d MiB is too small for the tree: %d MiB aren't: %w", g.size/mib, need/mib, err)
			}
			return err
		}
		fs, err := openExt4(f)
		if err != nil {
			return err
		}
		// All but the reserved ones, of which lost+found is the last.
		if got := int64(fs.inodes-fs.free) - lostFound; got != m.inodes {
			return fmt.Errorf("mke2fs took %d of the tree's %d files, folders and links: does something write to %s?", got, m.inodes, tree)
		}
		if err := fs.settle(o.Time, m.root); err != nil {
			return err
		}
		check := run.Command{Name: "e2fsck", Args: []string{"-fn", f.Name()}, Install: installE2fsprogs, Env: []string{"LC_ALL=C"}}
		if report, err := o.Runner.Output(ctx, check); err != nil {
			return fmt.Errorf("checking it: %w\n%s", err, report)
		}
		return nil
	})
}

// mke2fs makes the filesystem in the file, which is as large as it gets.
func mke2fs(ctx context.Context, tree, file string, g geometry, o *RootOptions) error {
	config, err := os.CreateTemp(filepath.Dir(file), ".kiln-mke2fs")
	if err != nil {
		return err
	}
	defer os.Remove(config.Name())
	_, err = config.WriteString(mke2fsConfig)
	if err = errors.Join(err, config.Close()); err != nil {
		return err
	}
	tree, err = filepath.Abs(tree)
	if err != nil {
		return err
	}
	return o.Runner.Run(ctx, run.Command{
		Name: "mke2fs",
		Args: []string{
			"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-N", strconv.FormatInt(g.inodes, 10),
			"-O", features, "-m", "1", "-J", "size=" + strconv.FormatInt(g.journal, 10), "-e", "remount-ro",
			"-E", fmt.Sprintf("lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,resize=%d,hash_seed=%s", growBlocks, o.IDs.HashSeed),
			"-U", o.IDs.Root.String(), "-L", o.Label, "-d", tree, file,
		},
		// Names are sorted by the language's rules: C has none.
		Env:     []string{"LC_ALL=C", "MKE2FS_CONFIG=" + config.Name(), fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", o.Time.Unix())},
		Without: []string{"MKE2FS_DEVICE_SECTSIZE", "MKE2FS_DEVICE_PHYS_SECTSIZE", "MKE2FS_FIRST_META_BG"},
		Install: installE2fsprogs,
	})
}

// create makes a file beside path that isn't there yet.
func create(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
}
