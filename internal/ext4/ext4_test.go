package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// judge runs a program that has to be content.
func judge(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (make setup installs it)\n%s", cmd, err, out)
	}
	return string(out)
}

// features are those of the images that kiln build makes.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

func makeFS(t testing.TB, tree, features string, size int, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(out, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-q", "-F", "-t", "ext4", "-O", features, "-d", tree}, args...)
	judge(t, "mke2fs", append(args, out, fmt.Sprintf("%dk", size/1024))...)
	return out
}

func openFS(t testing.TB, name string) *FS {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func plant(t testing.TB, tree string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name, content string, mode fs.FileMode) {
		t.Helper()
		check(os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		check(os.WriteFile(filepath.Join(tree, name), []byte(content), 0o600))
		check(os.Chmod(filepath.Join(tree, name), mode))
	}
	file("etc/hosts", "127.0.0.1 localhost\n", 0o644)
	file("empty", "", 0o400)
	file("set", strings.Repeat("0123456789", 5000), 0o755|fs.ModeSetuid)
	for i := range 700 {
		file(fmt.Sprintf("many/%d-%s", i, strings.Repeat("n", i%200)), fmt.Sprint(i), 0o644)
	}
	check(os.Link(filepath.Join(tree, "etc/hosts"), filepath.Join(tree, "hard")))
	check(os.Symlink("etc/hosts", filepath.Join(tree, "short")))
	check(os.Symlink("/"+strings.Repeat("far/", 40), filepath.Join(tree, "long")))
	check(os.Symlink(strings.Repeat("x", 59), filepath.Join(tree, "59")))
	check(os.Symlink(strings.Repeat("x", 60), filepath.Join(tree, "60")))
	check(syscall.Mkfifo(filepath.Join(tree, "pipe"), 0o600))
	check(os.MkdirAll(filepath.Join(tree, "tmp"), 0o755))
	check(os.Chmod(filepath.Join(tree, "tmp"), 0o777|fs.ModeSticky))
	// So many extents that their list needs blocks of its own.
	sparse, err := os.Create(filepath.Join(tree, "sparse"))
	check(err)
	for i := range int64(900) {
		_, err = sparse.WriteAt([]byte(fmt.Sprintf("block %d", i)), i*8192+100)
		check(err)
	}
	check(sparse.Truncate(64 << 20))
	check(sparse.Close())
}

// TestTree compares all that is read with the tree that mke2fs was given.
func TestTree(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	plant(t, tree)
	for name, args := range map[string][]string{
		"4096": {"-b", "4096", "-I", "256"}, "1024": {"-b", "1024", "-I", "256"}, "128": {"-b", "4096", "-I", "128"},
	} {
		t.Run(name, func(t *testing.T) {
			fs := openFS(t, makeFS(t, tree, features, 64<<20, args...))
			used := map[uint32]*Inode{}
			if err := fs.Inodes(func(i *Inode) error { used[i.Number] = i; return nil }); err != nil {
				t.Fatal(err)
			}
			seen := compare(t, fs, used, RootInode, tree)
			for number := range used {
				if number > FirstInode && !seen[number] {
					t.Errorf("the inode %d is in use, and has no name", number)
				}
			}
		})
	}
}

// compare walks both, and returns the inodes that have a name.
func compare(t *testing.T, f *FS, used map[uint32]*Inode, number uint32, dir string) map[uint32]bool {
	t.Helper()
	seen := map[uint32]bool{number: true}
	bitmap, err := f.Bitmap()
	if err != nil {
		t.Fatal(err)
	}
	var walk func(number uint32, dir string)
	walk = func(number uint32, dir string) {
		entries, err := f.ReadDir(used[number])
		if err != nil {
			t.Fatal(err)
		}
		names := 0
		for _, e := range entries {
			if e.Name == "lost+found" {
				continue
			}
			names++
			name := filepath.Join(dir, e.Name)
			want, err := os.Lstat(name)
			i := used[e.Inode]
			if err != nil || i == nil {
				t.Fatalf("%s: inode %d, %v", name, e.Inode, err)
			}
			again, err := f.Inode(e.Inode)
			if err != nil || again.Mode != i.Mode || again.Size != i.Size || again.UID != i.UID {
				t.Errorf("%s: %+v, read alone %+v, %v", name, i, again, err)
			}
			seen[e.Inode] = true
			st := want.Sys().(*syscall.Stat_t)
			if i.FileMode() != want.Mode() || i.UID != st.Uid || i.GID != st.Gid || i.Modified != want.ModTime().Unix() || !i.IsDir() && i.Links != int(st.Nlink) {
				t.Errorf("%s: %v %d:%d %d, %d links, and it has %v", name, i.FileMode(), i.UID, i.GID, i.Modified, i.Links, want)
			}
			switch {
			case i.IsDir():
				walk(e.Inode, name)
			case i.IsLink():
				target, err := os.Readlink(name)
				if got, gotErr := f.Readlink(i); err != nil || gotErr != nil || got != target {
					t.Errorf("%s: leads to %q, %v, and to %q", name, got, gotErr, target)
				}
			case i.IsRegular():
				content(t, f, bitmap, i, name)
			}
		}
		if there, err := os.ReadDir(dir); err != nil || len(there) != names {
			t.Errorf("%s: %d names of %d, %v", dir, names, len(there), err)
		}
	}
	walk(number, dir)
	return seen
}

func content(t *testing.T, f *FS, bitmap *Bitmap, i *Inode, name string) {
	t.Helper()
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.ReadFile(i, i.Size)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v: they aren't its %d bytes", name, len(got), err, len(want))
	}
	if _, err := f.ReadFile(i, i.Size-1); err == nil {
		t.Errorf("%s: larger than it may be, and read", name)
	}
	file, err := f.File(i)
	if err != nil || file.Size() != int64(len(want)) {
		t.Fatal(err)
	}
	for at := int64(0); at <= file.Size()+10; at += 7777 {
		var b [5000]byte
		n, err := file.ReadAt(b[:], at)
		m, wantErr := bytes.NewReader(want).ReadAt(b[:], at)
		if n != m || (err == io.EOF) != (wantErr == io.EOF) {
			t.Errorf("%s at %d: %d, %v, and it should be %d, %v", name, at, n, err, m, wantErr)
		}
	}
	extents, err := f.Extents(i)
	if err != nil {
		t.Error(err)
	}
	for _, x := range extents {
		for n := range x.Blocks {
			if !bitmap.Used(x.Physical + n) {
				t.Errorf("%s: its block %d isn't in use", name, x.Physical+n)
			}
		}
	}
}

// TestAttributes has some in the inode and some in a block, as debugfs sets them.
func TestAttributes(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	plant(t, tree)
	name := makeFS(t, tree, features, 64<<20, "-b", "4096", "-I", "256")
	want := map[string]string{
		"user.small": "x", "security.capability": "\x01\x00\x00\x02 capabilities", "trusted.t": "y", "user.large": strings.Repeat("large", 300), "user.empty": "",
	}
	for key, value := range want {
		from := filepath.Join(t.TempDir(), "value")
		if err := os.WriteFile(from, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		judge(t, "debugfs", "-w", "-R", fmt.Sprintf("ea_set -f %s /etc/hosts %s", from, key), name)
	}
	fs := openFS(t, name)
	file := find(t, fs, "hard")
	got, err := fs.Attributes(file)
	if err != nil || len(got) != len(want) {
		t.Errorf("%q, %v", got, err)
	}
	for key, value := range want {
		if string(got[key]) != value {
			t.Errorf("%s is %q, not %q", key, got[key], value)
		}
	}
	if got, err := fs.Attributes(find(t, fs, "set")); err != nil || len(got) > 0 {
		t.Errorf("a file without any: %q, %v", got, err)
	}
}

func find(t *testing.T, fs *FS, name string) *Inode {
	t.Helper()
	root, err := fs.Inode(RootInode)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := fs.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name == name {
			i, err := fs.Inode(e.Inode)
			if err != nil {
				t.Fatal(err)
			}
			return i
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

func TestFreed(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	plant(t, tree)
	name := makeFS(t, tree, features, 64<<20, "-b", "4096", "-I", "256")
	f := openFS(t, name)
	extents, err := f.Extents(find(t, f, "set"))
	if err != nil || len(extents) != 1 {
		t.Fatalf("%v, %v", extents, err)
	}
	judge(t, "debugfs", "-w", "-R", "rm /set", name)
	f = openFS(t, name)
	bitmap, err := f.Bitmap()
	if err != nil || bitmap.Used(extents[0].Physical) || !bitmap.Used(0) {
		t.Errorf("what was removed is in use, %v", err)
	}
}

// TestRefused has each error with what to do.
func TestRefused(t *testing.T) {
	tree := t.TempDir()
	for _, test := range []struct {
		name     string
		features string
		change   func([]byte)
		want     string
	}{
		{"inline", features + ",inline_data", nil, "inline_data): make it without"},
		{"encrypt", features + ",encrypt", nil, "(encrypt)"},
		{"bigalloc", features + ",bigalloc", nil, "(bigalloc)"},
		{"no", features, func(b []byte) { clear(b) }, "it is none"},
		{"in use", features, func(b []byte) { b[0x60] |= 4 }, "e2fsck mends it"},
		{"unknown", features, func(b []byte) { b[0x63] |= 0x80 }, "(0x80000000)"},
		{"large", features, func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 1<<30) }, "it says that it has"},
		{"inodes", features, func(b []byte) { binary.LittleEndian.PutUint32(b, 1) }, "inodes, in"},
		{"groups", features, func(b []byte) { clear(b[0x20:0x24]) }, "groups have 0 blocks"},
	} {
		name := makeFS(t, tree, test.features, 16<<20, "-b", "4096", "-I", "256")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if test.change != nil {
			test.change(b[superblockAt:][:superblockSize])
		}
		if _, err := Open(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := Open(bytes.NewReader(nil), 0); !errors.Is(err, io.EOF) {
		t.Errorf("nothing: %v", err)
	}
}

// FuzzRead changes bytes of a filesystem, and reads all of it: whatever comes, it
// comes to an end.
func FuzzRead(f *testing.F) {
	tree := filepath.Join(f.TempDir(), "tree")
	for name, content := range map[string]string{"etc/hosts": "x", "bin/sh": strings.Repeat("sh", 5000)} {
		if err := errors.Join(os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644)); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("x", 100), filepath.Join(tree, "long")); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(makeFS(f, tree, strings.Replace(features, "has_journal,", "", 1), 512<<10, "-b", "1024", "-I", "256", "-N", "32"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte{4, 0x18, 0, 2})
	for at := range 64 {
		f.Add([]byte{byte(at), 4, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, changes []byte) {
		b := bytes.Clone(good)
		// Two bytes say where, in units of four bytes, and two are written there.
		for ; len(changes) >= 4; changes = changes[4:] {
			at := int(binary.LittleEndian.Uint16(changes)) * 4 % (len(b) - 2)
			copy(b[at:], changes[2:4])
		}
		readAll(bytes.NewReader(b), int64(len(b)))
	})
}

func readAll(r io.ReaderAt, size int64) {
	fs, err := Open(r, size)
	if err != nil {
		return
	}
	if m, err := fs.Bitmap(); err == nil {
		for n := int64(-1); n < fs.Blocks+10; n++ {
			m.Used(n)
		}
	}
	_ = fs.Inodes(func(i *Inode) error {
		_, _ = fs.Extents(i)
		_, _ = fs.ReadDir(i)
		_, _ = fs.Readlink(i)
		_, _ = fs.Attributes(i)
		if f, err := fs.File(i); err == nil {
			var b [3000]byte
			for _, at := range []int64{0, 1000, i.Size - 10, i.Size, 1 << 40} {
				_, _ = f.ReadAt(b[:], at)
			}
		}
		return nil
	})
}
