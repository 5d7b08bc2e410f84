package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	testIDs  = NewIDs("test")
	testTime = time.Unix(1_700_000_000, 0)
)

// judge runs a program that has to be content, and returns what it says.
func judge(t *testing.T, name string, args ...string) string {
	t.Helper()
	// Where they are, for whoever isn't root.
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: make setup installs it", err)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// plant makes a tree with what any user can make. Of what is modified, half is
// later than testTime.
func plant(t *testing.T, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name, content string, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, []byte(content), mode))
		check(os.Chmod(path, mode))
	}
	check(os.MkdirAll(dir, 0o755))
	file("etc/hostname", "build01\n", 0o644)
	file("etc/shadow", "root:*:19000::::::\n", 0o640)
	file("empty", "", 0o600)
	file("usr/bin/set", strings.Repeat("x", 10000), 0o755|fs.ModeSetuid)
	file("a name with spaces, \"quotes\" and ünïcode", "1", 0o644)
	for i := range 600 {
		file(fmt.Sprintf("many/%c%d-%s", 'a'+i%26, i, strings.Repeat("n", i%40)), "x", 0o644)
	}
	check(os.Link(filepath.Join(dir, "etc/hostname"), filepath.Join(dir, "usr/hardlink")))
	check(os.Symlink("bin/set", filepath.Join(dir, "usr/short")))
	check(os.Symlink("/"+strings.Repeat("far/", 40), filepath.Join(dir, "usr/long")))
	check(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	check(err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20)
	check(err)
	check(sparse.Close())
	check(os.Chmod(sparse.Name(), 0o644))
	check(os.Mkdir(filepath.Join(dir, "tmp"), 0o755))
	check(os.Chmod(filepath.Join(dir, "tmp"), 0o777|fs.ModeSticky))
	n := 0
	var folders []string
	check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d.IsDir() && d.Name() != "tmp" {
			check(os.Chmod(path, 0o755))
		}
		folders = append(folders, path)
		return err
	}))
	// From below, since each changes the folder above.
	for i := len(folders) - 1; i >= 0; i-- {
		n++
		at := unix.NsecToTimespec(testTime.Add(time.Duration(n%2*2-1)*time.Hour).UnixNano() + 12345)
		check(unix.UtimesNanoAt(unix.AT_FDCWD, folders[i], []unix.Timespec{{Sec: int64(n)}, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func rootOf(t *testing.T, tree string) string {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	out := filepath.Join(t.TempDir(), "root")
	if err := Root(t.Context(), tree, out, RootOptions{IDs: testIDs, Label: "root", Time: testTime, Free: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRoot compares the tree with what debugfs takes out of the filesystem.
func TestRoot(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	plant(t, tree)
	out := rootOf(t, tree)

	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size()%Block != 0 || info.Size() > 128<<20 {
		t.Errorf("it has %d bytes", info.Size())
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 16<<20 {
		t.Errorf("%d of its bytes are no holes", used)
	}
	about := strings.Join(strings.Fields(judge(t, "dumpe2fs", "-h", out)), " ")
	for _, want := range []string{
		"Filesystem volume name: root", "Filesystem UUID: " + testIDs.Root.String(), "Directory Hash Seed: " + testIDs.HashSeed.String(),
		"has_journal", "Filesystem state: clean", "Total journal size: 4096k", "Errors behavior: Remount read-only",
	} {
		if !strings.Contains(about, want) {
			t.Errorf("dumpe2fs doesn't say %q:\n%s", want, about)
		}
	}

	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.Mkdir(copied, 0o755); err != nil {
		t.Fatal(err)
	}
	if said := judge(t, "debugfs", "-R", "rdump / "+copied, out); strings.Count(said, "\n") > 1 {
		t.Errorf("debugfs: %s", said)
	}
	if err := os.Remove(filepath.Join(copied, "lost+found")); err != nil {
		t.Error(err)
	}
	seen := 0
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == tree || d.Name() == "pipe" {
			return err // rdump makes no pipes
		}
		seen++
		name, _ := filepath.Rel(tree, path)
		compare(t, path, filepath.Join(copied, name))
		return nil
	})
	if err != nil || seen < 600 {
		t.Errorf("%d files compared, %v", seen, err)
	}
	for _, tt := range []struct{ name, want string }{
		{"/pipe", "Type: FIFO"}, {"/etc/hostname", "Links: 2"}, {"/", "Mode: 0755"}, {"/tmp", "Mode: 01777"},
		{"/empty", "Mode: 0600"}, {"/usr/bin/set", "Mode: 04755"},
	} {
		if said := judge(t, "debugfs", "-R", "stat "+tt.name, out); !strings.Contains(strings.Join(strings.Fields(said), " "), tt.want) {
			t.Errorf("%s isn't %s:\n%s", tt.name, tt.want, said)
		}
	}
}

// compare holds a copy against what it's of.
func compare(t *testing.T, original, copied string) {
	t.Helper()
	a, errA := os.Lstat(original)
	b, errB := os.Lstat(copied)
	if errA != nil || errB != nil {
		t.Error(errA, errB)
		return
	}
	// rdump leaves out the bits beyond these.
	if a.Mode().Type() != b.Mode().Type() || a.Mode().Perm() != b.Mode().Perm() {
		t.Errorf("%s: mode %v, want %v", copied, b.Mode(), a.Mode())
	}
	want := min(a.ModTime().Unix(), testTime.Unix())
	switch {
	case a.Mode()&fs.ModeSymlink != 0:
		x, _ := os.Readlink(original)
		if y, err := os.Readlink(copied); err != nil || x != y {
			t.Errorf("%s: leads to %s, want %s", copied, y, x)
		}
	case a.Mode().IsRegular():
		x, _ := os.ReadFile(original)
		if y, err := os.ReadFile(copied); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: other content: %v", copied, err)
		}
		if b.ModTime().Unix() != want {
			t.Errorf("%s: modified at %d, want %d", copied, b.ModTime().Unix(), want)
		}
	}
}

// TestRootIsTheSame plants one tree under circumstances that shouldn't matter.
func TestRootIsTheSame(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "kiln")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	disk := t.TempDir()
	plant(t, filepath.Join(disk, "tree"))
	want, err := os.ReadFile(rootOf(t, filepath.Join(disk, "tree")))
	if err != nil {
		t.Fatal(err)
	}

	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	t.Setenv("TZ", "Asia/Kathmandu")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("MKE2FS_FIRST_META_BG", "1")
	t.Setenv("E2FSPROGS_FAKE_TIME", "1")
	for _, tree := range []string{filepath.Join(shm, "tree"), filepath.Join(disk, "other")} {
		plant(t, tree)
		got, err := os.ReadFile(rootOf(t, tree))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			for i := range min(len(want), len(got)) {
				if want[i] != got[i] {
					t.Errorf("%s: %d bytes, want %d; the first difference is in block %d, byte %#x", tree, len(got), len(want), i/blockSize, i%blockSize)
					break
				}
			}
		}
	}
}

func TestRootErrors(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	plant(t, tree)
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errors.New("interrupted"))
	withSocket := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(withSocket, 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(withSocket, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	good := RootOptions{IDs: testIDs, Time: testTime}
	with := func(change func(*RootOptions)) RootOptions {
		o := good
		change(&o)
		return o
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		tree string
		o    RootOptions
		want string
	}{
		{"no tree", t.Context(), tree + "/none", good, "no such file or directory"},
		{"a file", t.Context(), tree + "/empty", good, "not a directory"},
		{"a socket", t.Context(), withSocket, good, "remove it from the tree"},
		{"interrupted", stopped, tree, good, "interrupted"},
		{"too small", t.Context(), tree, with(func(o *RootOptions) { o.Size = 2 * Block }), "is too small for the tree"},
		{"no multiple", t.Context(), tree, with(func(o *RootOptions) { o.Size = 1 }), "no multiple of 4194304"},
		{"no time", t.Context(), tree, with(func(o *RootOptions) { o.Time = time.Time{} }), "between 1970 and 2106"},
		{"a long label", t.Context(), tree, with(func(o *RootOptions) { o.Label = "seventeen letters" }), "more than 16 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
			dir := t.TempDir()
			err := Root(tt.ctx, tt.tree, filepath.Join(dir, "root"), tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// TestSize grows a tree until each part of the estimate matters: mke2fs has the
// last word on whether it's enough, df on whether it's too much.
func TestSize(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files int
		bytes int
	}{{"nothing", 0, 0}, {"many small files", 3000, 1}, {"large files", 4, 40 << 20}} {
		t.Run(tt.name, func(t *testing.T) {
			tree := t.TempDir()
			content := bytes.Repeat([]byte("kiln"), tt.bytes/4+1)
			for i := range tt.files {
				if err := os.WriteFile(filepath.Join(tree, fmt.Sprint("file", i)), content[:tt.bytes], 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out := rootOf(t, tree)
			f, err := os.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			sb := make([]byte, superblockSize)
			if _, err := f.ReadAt(sb, superblockAt); err != nil {
				t.Fatal(err)
			}
			free := (int64(sb[0xc]) | int64(sb[0xd])<<8 | int64(sb[0xe])<<16) * blockSize
			if free < 16<<20 || free > 32<<20 {
				t.Errorf("%d MiB are free, 16 are wanted", free>>20)
			}
		})
	}
}
