package bake

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/internal/userns"
)

// overlaid calls do with a tree that shows the one at lower, and keeps what is
// written to it below dir/up, as overlayfs does: whiteouts for what was removed.
// The mount is seen by do and the programs that it starts, and by nobody else: it
// goes with them, however they end.
func overlaid(lower, dir string, do func(root string) error) error {
	up, work := filepath.Join(dir, "up"), filepath.Join(dir, "work")
	for _, d := range []string{dir, up, work} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// The folder on top is the tree's own in what it shows.
	if err := like(lower, up); err != nil {
		return err
	}
	// A file that is only given another mode is still whole in the layer. Nothing
	// of it is to outlive a power cut: else unmounting would wait for the disk.
	const parts, whole = "lowerdir=%[1]s/lower,upperdir=%[1]s/up,workdir=%[1]s/work", ",metacopy=off,redirect_dir=off,index=off"
	return mounted(dir, overlay{
		links:   map[string]string{"lower": lower, "up": up, "work": work},
		options: []string{parts + whole + ",volatile", parts + whole, parts},
	}, do)
}

// unflushed calls do with another name of a folder, under which fsync(2) does
// nothing. mke2fs and e2fsck flush the file that they work on, the one that is only
// read, too, which takes longer than all else that is done for a changed file. What
// of a step's result isn't on the disk when the power is cut is made again.
func unflushed(dir string, do func(quick string) error) error {
	beside := dir + ".unflushed"
	empty, work := filepath.Join(beside, "empty"), filepath.Join(beside, "work")
	for _, d := range []string{beside, empty, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	const parts = "lowerdir=%[1]s/empty,upperdir=%[1]s/up,workdir=%[1]s/work"
	err := mounted(beside, overlay{
		links:   map[string]string{"empty": empty, "up": dir, "work": work},
		options: []string{parts + ",volatile", parts},
	}, do)
	return errors.Join(err, os.RemoveAll(beside))
}

// mounted mounts the overlay at dir/root, in a thread of its own.
func mounted(dir string, o overlay, do func(root string) error) error {
	done := make(chan error, 1)
	go func() {
		// The thread has mounts of its own from here on, and so ends with this:
		// nothing else may ever run on it.
		runtime.LockOSThread()
		done <- mountedHere(dir, o, do)
	}()
	return <-done
}

func mountedHere(dir string, o overlay, do func(root string) error) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mounts of one's own: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of one's own: %w", err)
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := o.mount(root); err != nil {
		return err
	}
	defer func() {
		if unmounted := unix.Unmount(root, unix.MNT_DETACH); unmounted != nil {
			err = errors.Join(err, fmt.Errorf("unmounting %s: %w", root, unmounted))
		}
	}()
	return do(root)
}

// overlay is one to be mounted: its parts, and the ways to name them to mount(2),
// the best first, with %[1]s for the folder of the links.
type overlay struct {
	links   map[string]string
	options []string
}

// mount names the parts by short links: mount's options have no way to quote a
// colon or a comma.
func (o overlay) mount(root string) error {
	links, err := os.MkdirTemp("", "kiln-overlay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(links)
	for name, to := range o.links {
		if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
			return err
		}
	}
	for _, options := range o.options {
		options = fmt.Sprintf(options, links)
		if userns.Mapped() {
			// What overlayfs keeps in trusted.* is for real root alone.
			options += ",userxattr"
		}
		if err = unix.Mount("overlay", root, "overlay", 0, options); err == nil {
			return nil
		}
	}
	what := cmp.Or(o.links["lower"], o.links["up"])
	if userns.Mapped() && errors.Is(err, unix.EPERM) {
		return fmt.Errorf("laying an overlay over %s: %w: kernels before 5.11 let only root do that: run it as root (sudo kiln build …)", what, err)
	}
	return fmt.Errorf("laying an overlay over %s: %w: the cache has to be on a file system that overlayfs can write to (ext4, xfs, btrfs, tmpfs): name a folder on one in KILN_CACHE", what, err)
}

// like gives a folder another one's owner and mode.
func like(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	return errors.Join(os.Lchown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777))
}

// flush writes all that was written to the file system of a folder to its disk.
func flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
