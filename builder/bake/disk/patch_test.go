package disk

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layerOn makes a root filesystem of the planted tree, with something before it,
// as on a disk, lays the entries over it, and gives the file and its filesystem's
// name for e2fsprogs.
func layerOn(t *testing.T, base string, entries []Entry) (file, name string, written []int64) {
	t.Helper()
	const offset = Block
	file = filepath.Join(t.TempDir(), "disk")
	data, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(make([]byte, offset), data...), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if written, err = Lay(t.Context(), f, offset, entries, testTime); err != nil {
		t.Fatal(err)
	}
	name = fmt.Sprintf("%s?offset=%d", file, offset)
	judge(t, "e2fsck", "-fn", name)
	return file, name, written
}

func plantedBase(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	plant(t, filepath.Join(dir, "tree"))
	base := filepath.Join(dir, "base")
	if err := Root(t.Context(), filepath.Join(dir, "tree"), base, RootOptions{IDs: testIDs, Label: "root", Time: testTime, Free: 64 * mib}); err != nil {
		t.Fatal(err)
	}
	return base
}

// laid is a layer with everything that one can have.
func laid() []Entry {
	return []Entry{
		{Path: "/", Type: fs.ModeDir, Mode: 0o755},
		{Path: "/etc/hostname", Mode: 0o640, UID: 70000, GID: 100, Content: []byte("build02\n")}, // one of two names
		{Path: "/etc/shadow", Mode: 0o600, Content: nil},
		{Path: "/etc/new", Type: fs.ModeDir, Mode: 0o750, GID: 7},
		{Path: "/etc/new/a", Mode: 0o4755, Content: []byte("a")},
		{Path: "/etc/new/long name with \"quotes\"", Mode: 0o644, Content: bytes.Repeat([]byte("0123456789abcdef"), 3000)},
		{Path: "/etc/new/big", Mode: 0o644, Content: bytes.Repeat([]byte("big "), 3<<20)},
		{Path: "/etc/new/link", Type: fs.ModeSymlink, Target: "a"},
		{Path: "/etc/new/far", Type: fs.ModeSymlink, Target: "/" + strings.Repeat("far/", 60)},
		{Path: "/etc/new/capable", Mode: 0o755, Content: []byte("c"), Extended: map[string][]byte{"security.capability": []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}},
		{Path: "/etc/new/acl", Mode: 0o640, Content: []byte("d"), Extended: map[string][]byte{
			"user.long":               bytes.Repeat([]byte("v"), 300),
			"system.posix_acl_access": []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"),
		}},
		{Path: "/many", Type: Gone},
		{Path: "/usr/hardlink", Type: Gone},
		{Path: "/sparse", Type: fs.ModeDir, Mode: 0o700},
		{Path: "/tmp", Type: fs.ModeDir, Mode: 0o1777},
		{Path: "/was never there", Type: Gone},
	}
}

// TestLay: what was laid is there as it was, what was taken away isn't, and
// e2fsck finds nothing.
func TestLay(t *testing.T) {
	_, name, _ := layerOn(t, plantedBase(t), laid())
	ask := func(command string) string { return judge(t, "debugfs", "-R", command, name) }
	for command, want := range map[string]string{
		"cat /etc/hostname":     "build02",
		"stat /etc/hostname":    "Mode:  0640   Flags: 0x80000",
		"stat /etc/new":         "Type: directory    Mode:  0750",
		"stat /etc/new/a":       "Mode:  04755",
		"stat /etc/new/link":    `Fast link dest: "a"`,
		"cat /etc/new/far":      "/far/far/",
		"ea_list /etc/new/acl":  "user.long (300)",
		"stat /sparse":          "Type: directory",
		"stat /tmp":             "Mode:  01777",
		"stat /many":            "File not found by ext2_lookup",
		"stat /usr/hardlink":    "File not found by ext2_lookup",
		"ea_list /etc/new":      "",
		"ea_get /etc/new/acl x": "",
		"stat /usr/short":       `Fast link dest: "bin/set"`,
		"stat /etc/shadow":      "Size: 0",
		"cat \"/etc/new/long name with \"\"quotes\"\"\"": "0123456789abcdef",
	} {
		if out := ask(command); !strings.Contains(out, want) {
			t.Errorf("%s: %s", command, out)
		}
	}
	if out := ask("ea_list /etc/new/acl"); !strings.Contains(out, "system.posix_acl_access") {
		t.Error(out)
	}
	if out := ask("ea_list /etc/new/capable"); !strings.Contains(out, "security.capability (20) = 01 00 00 02 00 04") {
		t.Error(out)
	}
	if out := ask("cat /etc/new/big"); out[strings.Index(out, "big "):] != strings.Repeat("big ", 3<<20) {
		t.Errorf("the big file has %d bytes", len(out))
	}
	if out := ask("stat /etc/hostname"); !strings.Contains(out, "User: 70000   Group:   100") || !strings.Contains(out, "Links: 1") {
		t.Error(out)
	}
}

// TestLayKeepsPlaces: where a file goes depends on its path, not on what else is
// laid; what is taken away leaves nothing; only what it says is written.
func TestLayKeepsPlaces(t *testing.T) {
	base := plantedBase(t)
	one, _, _ := layerOn(t, base, laid())
	again, _, _ := layerOn(t, base, laid())
	more, _, written := layerOn(t, base, append(laid(), Entry{Path: "/etc/a first one", Mode: 0o644, Content: []byte("x")}))
	read := func(name string) []byte {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first, other := read(one), read(more)
	if !bytes.Equal(first, read(again)) {
		t.Error("the same layer gave other bytes")
	}
	blocks := 0
	for at := 0; at < len(first); at += blockSize {
		if !bytes.Equal(first[at:at+blockSize], other[at:at+blockSize]) {
			blocks++
		}
	}
	// The file, its inode, its directory, two bitmaps, descriptors, superblock.
	if blocks == 0 || blocks > 7 {
		t.Errorf("one more file makes %d blocks differ", blocks)
	}
	was := append(make([]byte, Block), read(base)...)
	for _, n := range written {
		at := Block + n*blockSize
		copy(was[at:], other[at:at+blockSize])
	}
	if !bytes.Equal(was, other) {
		t.Error("more was written than it says")
	}
	if bytes.Contains(first, []byte("root:*:19000")) || bytes.Contains(first, []byte("build01\n")) {
		t.Error("what was replaced is still somewhere on the disk")
	}
}

// TestLayAtRandom: no order of things damages the filesystem.
func TestLayAtRandom(t *testing.T) {
	base := plantedBase(t)
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 1))
		var entries []Entry
		dirs := []string{"/many", "/usr/bin", "/etc"}
		for n := range 150 {
			dir := dirs[r.IntN(len(dirs))]
			e := Entry{Path: fmt.Sprintf("%s/%s%d", dir, strings.Repeat("n", r.IntN(120)), n), Mode: uint16(r.IntN(0o10000)), UID: r.Uint32N(1 << 20)}
			switch r.IntN(8) {
			case 0, 1:
				e.Type = fs.ModeDir
				dirs = append(dirs, e.Path)
			case 2:
				e.Type, e.Target = fs.ModeSymlink, strings.Repeat("t", 1+r.IntN(200))
			case 3:
				e.Content = make([]byte, r.IntN(3<<20))
			case 4:
				e = Entry{Path: fmt.Sprintf("/many/%c%d-%s", 'a'+n%26, n, strings.Repeat("n", n%40)), Type: Gone}
			default:
				e.Content = bytes.Repeat([]byte{byte(n)}, r.IntN(20000))
				if r.IntN(2) == 0 {
					e.Extended = map[string][]byte{"user.x": make([]byte, r.IntN(400)), "trusted.y": []byte("1")}
				}
			}
			entries = append(entries, e)
		}
		layerOn(t, base, entries)
	}
}

func TestLayErrors(t *testing.T) {
	base := plantedBase(t)
	for want, e := range map[string]Entry{
		"no directory /nowhere":      {Path: "/nowhere/a"},
		"isn't a directory":          {Path: "/etc/hostname/a"},
		"absolute, clean path":       {Path: "/etc/../a"},
		"the root is a directory":    {Path: "/"},
		"no room":                    {Path: "/a", Content: make([]byte, 500<<20)},
		"no ext4 has":                {Path: "/a", Extended: map[string][]byte{"btrfs.x": nil}},
		"more bytes than a block":    {Path: "/a", Extended: map[string][]byte{"user.x": make([]byte, 5000)}},
		"more than 255 bytes":        {Path: "/" + strings.Repeat("n", 256)},
		"files, directories and lin": {Path: "/a", Type: fs.ModeNamedPipe},
	} {
		f, err := os.OpenFile(copyOf(t, base), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Lay(t.Context(), f, 0, []Entry{e}, testTime); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), e.Path) {
			t.Errorf("%s: %v", want, err)
		}
		f.Close()
	}
}

func copyOf(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}

// FuzzLay: no damaged filesystem takes Kiln down.
func FuzzLay(f *testing.F) {
	f.Add(uint32(1024), byte(0xff), uint32(4096), byte(1))
	dir := f.TempDir()
	tree, base := filepath.Join(dir, "tree"), filepath.Join(dir, "base")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc/passwd"), []byte("root\n"), 0o644); err != nil {
		f.Fatal(err)
	}
	if err := Root(f.Context(), tree, base, RootOptions{IDs: testIDs, Label: "root", Time: testTime, Free: 8 * mib}); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(base)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, at uint32, with byte, at2 uint32, with2 byte) {
		name := filepath.Join(t.TempDir(), "fs")
		bad := bytes.Clone(good)
		bad[int(at)%len(bad)], bad[int(at2)%len(bad)] = with, with2
		if err := os.WriteFile(name, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		_, _ = Lay(t.Context(), file, 0, []Entry{
			{Path: "/etc/passwd", Content: []byte("x")}, {Path: "/etc/a", Type: fs.ModeDir}, {Path: "/etc/a/b", Content: make([]byte, 100000)}, {Path: "/lost+found", Type: Gone},
		}, testTime)
	})
}
