package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/testdisk"
)

// bootTree has files of the names that Write wants, in the way of Debian's
// packages. What real ones do is for firmware to say, in the integration tests.
func bootTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for name, content := range map[string]string{
		shimFile: "shim " + strings.Repeat("s", 100000), managerFile: "manager", grubFile: "grub", csvFile: "csv",
		biosModules + "/boot.img":                       strings.Repeat("B", sectorSize),
		biosModules + "/normal.mod":                     "module",
		biosModules + "/fs.lst":                         "list",
		"usr/bin/grub-mkimage":                          "",
		updateGrub:                                      "",
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": "",
		"boot/vmlinuz-6.9.0-1-amd64":                    "old kernel",
		"boot/vmlinuz-6.12.0-1-amd64":                   "kernel",
		"boot/initrd.img-6.12.0-1-amd64":                "initrd",
		"etc/fstab":                                     "# UNCONFIGURED FSTAB FOR BASE SYSTEM\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mkimage stands for the tree's grub-mkimage.
func mkimage(t *testing.T) run.Runner {
	return func(ctx context.Context, c run.Command) ([]byte, error) {
		for _, a := range c.Args {
			if path, ok := strings.CutPrefix(a, "--config="); ok {
				if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), testIDs.Root.String()) {
					t.Errorf("GRUB is given %q, %v", b, err)
				}
			}
		}
		return testdisk.Mkimage(ctx, c)
	}
}

func spec(t *testing.T) Spec {
	tree := bootTree(t)
	return Spec{Tree: tree, Root: rootOf(t, tree), Distribution: "debian", IDs: testIDs, Time: testTime, ESPSize: 40 << 20, Runner: mkimage(t)}
}

func TestWrite(t *testing.T) {
	s := spec(t)
	var done int64
	s.Progress = func(n int64) { done += n }
	dir := t.TempDir()
	out := filepath.Join(dir, "disk")
	if err := Write(t.Context(), s, out); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(s.Root)
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("it left %v", left)
	}
	if len(disk)%Block != 0 || done != int64(len(root)) {
		t.Errorf("%d bytes, %d of %d of the root reported", len(disk), done, len(root))
	}
	if info, err := os.Stat(out); err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 8<<20 || info.Mode() != 0o644 {
		t.Errorf("few holes, or not for all to read: %+v %v", info.Sys(), err)
	}

	if said := judge(t, "sgdisk", "-v", out); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk: %s", said)
	}
	if said := judge(t, "sfdisk", "--verify", out); !strings.Contains(said, "No errors detected") {
		t.Errorf("sfdisk: %s", said)
	}
	said := judge(t, "sfdisk", "--dump", out)
	for _, want := range []string{
		"label-id: " + strings.ToUpper(testIDs.Disk.String()),
		"type=21686148-6449-6E6F-744E-656564454649, uuid=" + strings.ToUpper(testIDs.BIOSPartition.String()),
		"start=        8192, size=       81920, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=" + strings.ToUpper(testIDs.ESPPartition.String()),
		"type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=" + strings.ToUpper(testIDs.RootPartition.String()),
	} {
		if !strings.Contains(said, want) {
			t.Errorf("sfdisk doesn't say %q:\n%s", want, said)
		}
	}
	rootStart := espStart + 40<<20
	if !bytes.Equal(disk[rootStart:][:len(root)], root) {
		t.Error("the root isn't what it was made from")
	}

	checkBoot(t, disk)
	again := filepath.Join(dir, "again")
	if err := Write(t.Context(), s, again); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(again); err != nil || !bytes.Equal(b, disk) {
		t.Errorf("written again, it has other bytes: %v", err)
	}
}

// checkBoot follows a BIOS: boot code, the first sector of the core, and where
// that finds the rest.
func checkBoot(t *testing.T, disk []byte) {
	t.Helper()
	if n := binary.LittleEndian.Uint64(disk[bootKernelSector:]); n != biosStart/sectorSize {
		t.Errorf("the boot code loads sector %d", n)
	}
	if string(disk[bootDriveCheck:][:2]) != "\x90\x90" || string(disk[510:512]) != "\x55\xaa" || disk[0] != 'B' {
		t.Errorf("the boot code: %x", disk[:sectorSize])
	}
	wantCore := append(testdisk.Core(), make([]byte, 4*sectorSize-1600)...)
	binary.LittleEndian.PutUint64(wantCore[coreBlockList:], biosStart/sectorSize+1)
	if !bytes.Equal(disk[biosStart:][:len(wantCore)], wantCore) {
		t.Error("the core image isn't what grub-mkimage made")
	}
}

// TestESP asks mtools and fsck.
func TestESP(t *testing.T) {
	s := spec(t)
	s.Distribution = "ubuntu"
	out := filepath.Join(t.TempDir(), "disk")
	if err := Write(t.Context(), s, out); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	esp := filepath.Join(t.TempDir(), "esp")
	if err := os.WriteFile(esp, disk[espStart:][:40<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MTOOLSRC", "/dev/null")
	t.Setenv("TZ", "UTC")
	if said := judge(t, "fsck.vfat", "-n", "-v", esp); !strings.Contains(said, ": 12 files, ") {
		t.Errorf("fsck.vfat: %s", said)
	}
	said := judge(t, "minfo", "-i", esp, "::")
	if !strings.Contains(strings.ToUpper(said), strings.ToUpper(strings.ReplaceAll(testIDs.ESPUUID(), "-", ""))) {
		t.Errorf("minfo knows nothing of serial number %s:\n%s", testIDs.ESPUUID(), said)
	}
	if said := judge(t, "mdir", "-/", "-i", esp, "::"); !strings.Contains(said, "BOOTX64  EFI    100005 2023-11-14  22:13") || !strings.Contains(said, "ubuntu") {
		t.Errorf("mdir: %s", said)
	}
	for name, want := range map[string]string{
		"EFI/BOOT/BOOTX64.EFI": "shim ", "EFI/BOOT/grubx64.efi": "grub", "EFI/BOOT/mmx64.efi": "manager",
		"EFI/ubuntu/shimx64.efi": "shim ", "EFI/ubuntu/grubx64.efi": "grub", "EFI/ubuntu/BOOTX64.CSV": "csv",
		"EFI/ubuntu/grub.cfg": "search.fs_uuid " + testIDs.Root.String() + " root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n",
	} {
		if got := judge(t, "mtype", "-i", esp, "::"+name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %.80q, want %q", name, got, want)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	good := spec(t)
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errors.New("interrupted"))
	without := func(name string) Spec {
		s := good
		s.Tree = bootTree(t)
		if err := os.Remove(filepath.Join(s.Tree, name)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	with := func(change func(*Spec)) Spec {
		s := good
		change(&s)
		return s
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		spec Spec
		want string
	}{
		{"interrupted", stopped, good, "interrupted"},
		{"no shim", t.Context(), without(shimFile), "install the package shim-signed"},
		{"no GRUB", t.Context(), without(grubFile), "install the package grub-efi-amd64-signed"},
		{"no GRUB for BIOS", t.Context(), without(biosModules + "/boot.img"), "install the package grub-pc-bin"},
		{"no grub-mkimage", t.Context(), without("usr/bin/grub-mkimage"), "install the package grub-common"},
		{"another distribution", t.Context(), with(func(s *Spec) { s.Distribution = "fedora" }), `"fedora"`},
		{"other IDs", t.Context(), with(func(s *Spec) { s.IDs = NewIDs("other") }), "make both from the same IDs"},
		{"no root", t.Context(), with(func(s *Spec) { s.Root = "/dev/null" }), "make it with Root"},
		{"a small ESP", t.Context(), with(func(s *Spec) { s.ESPSize = 32 << 20 }), "too small for FAT32"},
		{"an odd ESP", t.Context(), with(func(s *Spec) { s.ESPSize = 40<<20 + 512 }), "no multiple of"},
		{"an odd core", t.Context(), with(func(s *Spec) {
			s.Runner = func(_ context.Context, c run.Command) ([]byte, error) {
				return nil, os.WriteFile(strings.TrimPrefix(c.Args[7], "--output="), make([]byte, 2000), 0o600)
			}
		}), "this GRUB isn't known"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			err := Write(tt.ctx, tt.spec, filepath.Join(dir, "disk"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// TestWriteIsInterrupted stops it in the middle of the root.
func TestWriteIsInterrupted(t *testing.T) {
	s := spec(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.Progress = func(int64) { cancel() }
	dir := t.TempDir()
	if err := Write(ctx, s, filepath.Join(dir, "disk")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

// TestNewIDs pins them: images that are made again are to be the same.
func TestNewIDs(t *testing.T) {
	a, b := NewIDs("alissandra"), NewIDs("plain")
	if got, want := a.Root.String(), "91721809-28ef-8455-aba5-c106fd5206d2"; got != want {
		t.Errorf("the root's UUID is %s, want %s", got, want)
	}
	if got, want := a.ESPUUID(), "85AA-D2C2"; got != want {
		t.Errorf("the ESP's is %s, want %s", got, want)
	}
	seen := map[UUID]bool{}
	for _, u := range []UUID{a.Disk, a.BIOSPartition, a.ESPPartition, a.RootPartition, a.Root, a.HashSeed, b.Disk, b.BIOSPartition, b.ESPPartition, b.RootPartition, b.Root, b.HashSeed} {
		if seen[u] || u[6]>>4 != 8 || u[8]>>6 != 2 {
			t.Errorf("%s isn't its own, or no UUID", u)
		}
		seen[u] = true
	}
}

// TestFATTime has times that FAT can't say.
func TestFATTime(t *testing.T) {
	for _, tt := range []struct {
		time time.Time
		want []byte
	}{
		{time.Unix(0, 0), []byte{0, 0, 0x21, 0}},
		{time.Date(2023, 11, 14, 22, 13, 21, 0, time.FixedZone("", 3600)), []byte{0xaa, 0xa9, 0x6e, 0x57}},
	} {
		f := fat{time: tt.time}
		if got := f.entry("", 0, 0, 0, 0)[22:26]; !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got %x, want %x", tt.time, got, tt.want)
		}
	}
}

func TestShortName(t *testing.T) {
	for _, tt := range []struct {
		name, short string
		lower       byte
	}{
		{"BOOTX64.EFI", "BOOTX64 EFI", 0}, {"grubx64.efi", "GRUBX64 EFI", 0x18}, {"debian", "DEBIAN     ", 0x08},
		{"fb.EFI", "FB      EFI", 0x08}, {"12345678.123", "12345678123", 0},
		{"Mixed", "", 0}, {"ninechars", "", 0}, {"a.efix", "", 0}, {"", "", 0}, {"a.b.c", "", 0}, {"ü", "", 0},
	} {
		short, lower, err := shortName(tt.name)
		if short != tt.short || lower != tt.lower || (err == nil) != (tt.short != "") {
			t.Errorf("%q: %q %#x %v", tt.name, short, lower, err)
		}
	}
}

// TestBootFilesBehindLinks: Ubuntu's shim is an alternative, which is a link to an
// absolute path; none leads out of the tree.
func TestBootFilesBehindLinks(t *testing.T) {
	tree := bootTree(t)
	shim := filepath.Join(tree, shimFile)
	alternative := filepath.Join(tree, "etc/alternatives/shimx64.efi.signed")
	if err := errors.Join(
		os.Rename(shim, shim+".latest"), os.MkdirAll(filepath.Dir(alternative), 0o755),
		os.Symlink("/etc/alternatives/shimx64.efi.signed", shim), os.Symlink("/"+shimFile+".latest", alternative),
	); err != nil {
		t.Fatal(err)
	}
	set, err := bootFiles(&Spec{Tree: tree, Distribution: "ubuntu", IDs: testIDs})
	if err != nil || !bytes.HasPrefix(set.esp["EFI/BOOT/BOOTX64.EFI"], []byte("shim sss")) {
		t.Fatalf("got %v", err)
	}
	if _, ok := set.esp["EFI/ubuntu/grub.cfg"]; !ok {
		t.Error("GRUB finds no configuration")
	}
	for _, target := range []string{"../../../../../../../etc/passwd", shimFile[len("usr/lib/shim/"):]} {
		if err := errors.Join(os.Remove(shim), os.Symlink(target, shim)); err != nil {
			t.Fatal(err)
		}
		if _, err := bootFiles(&Spec{Tree: tree, Distribution: "ubuntu", IDs: testIDs}); err == nil {
			t.Errorf("%s is followed", target)
		}
	}
}

// TestCopy: a copy has the bytes of what it's a copy of, and its holes.
func TestCopy(t *testing.T) {
	const size = 40 << 20
	for _, folder := range []string{t.TempDir(), "/dev/shm"} { // one file system, and usually two
		dir, err := os.MkdirTemp(folder, "kiln-copy-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		from, err := os.Create(filepath.Join(t.TempDir(), "from"))
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		for _, at := range []int{0, 5<<20 + 4096, size - 4096} {
			copy(want[at:], bytes.Repeat([]byte("kiln"), 1024))
			if _, err := from.WriteAt(want[at:at+4096], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		to, err := os.Create(filepath.Join(dir, "to"))
		if err != nil {
			t.Fatal(err)
		}
		var told int64
		if err := Copy(t.Context(), to, from, func(n int64) { told += n }); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("in %s: the copy isn't what was copied: %v", folder, err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(to.Name(), &st); err != nil || st.Blocks*512 > size/2 {
			t.Errorf("in %s: the copy takes %d bytes, %v", folder, st.Blocks*512, err)
		}
		if told < size {
			t.Errorf("in %s: it told of %d bytes of %d", folder, told, size)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		if err := Copy(ctx, to, from, nil); err == nil || err.Error() != "enough" {
			t.Errorf("in %s: stopped, it says %v", folder, err)
		}
	}
}
