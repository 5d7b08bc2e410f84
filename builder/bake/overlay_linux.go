package bake

import (
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
	done := make(chan error, 1)
	go func() {
		// The thread has mounts of its own from here on, and so ends with this:
		// nothing else may ever run on it.
		runtime.LockOSThread()
		done <- mounted(lower, dir, do)
	}()
	return <-done
}

func mounted(lower, dir string, do func(root string) error) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mounts of one's own: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts of one's own: %w", err)
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{dir, root, filepath.Join(dir, "up"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// The folder on top is the tree's own in what it shows.
	if err := like(lower, filepath.Join(dir, "up")); err != nil {
		return err
	}
	if err := mountOverlay(lower, dir, root); err != nil {
		return err
	}
	defer func() {
		if unmounted := unix.Unmount(root, unix.MNT_DETACH); unmounted != nil {
			err = errors.Join(err, fmt.Errorf("unmounting %s: %w", root, unmounted))
		}
	}()
	return do(root)
}

// mountOverlay names its parts by short links: mount's options have no way to
// quote a colon or a comma.
func mountOverlay(lower, dir, root string) error {
	links, err := os.MkdirTemp("", "kiln-overlay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(links)
	for name, to := range map[string]string{"lower": lower, "up": filepath.Join(dir, "up"), "work": filepath.Join(dir, "work")} {
		if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/up,workdir=%[1]s/work", links)
	if userns.Mapped() {
		// What overlayfs keeps in trusted.* is for real root alone.
		options += ",userxattr"
	}
	// A file that is only given another mode is still whole in the layer.
	for _, o := range []string{options + ",metacopy=off,redirect_dir=off,index=off", options} {
		if err = unix.Mount("overlay", root, "overlay", 0, o); err == nil {
			return nil
		}
	}
	if userns.Mapped() && errors.Is(err, unix.EPERM) {
		return fmt.Errorf("laying an overlay over %s: %w: kernels before 5.11 let only root do that: run it as root (sudo kiln build …)", lower, err)
	}
	return fmt.Errorf("laying an overlay over %s: %w: the cache has to be on a file system that overlayfs can write to (ext4, xfs, btrfs, tmpfs): name a folder on one in KILN_CACHE", lower, err)
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
