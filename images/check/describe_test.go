package check

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/alisw/kiln/images"
)

// TestDescribe reads an image's disk, and wants what was put there.
func TestDescribe(t *testing.T) {
	i := newImage(t)
	i.file("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n", 0o644)
	i.add("var/lib/dpkg/status", "Version: 1.2\nArchitecture: all\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n")
	for _, version := range []string{"6.9", "6.10"} {
		i.file("boot/vmlinuz-"+version, version, 0o644)
		i.file("boot/initrd.img-"+version, version, 0o644)
	}
	i.do(os.Link(filepath.Join(i.tree, "usr/bin/good"), filepath.Join(i.tree, "usr/bin/same")))
	m, err := Describe(t.Context(), i.disk())
	if err != nil {
		t.Fatal(err)
	}
	if !m.Bare || m.Release.ID != "debian" || m.Release.Version != "12" || m.Release.Codename != "bookworm" {
		t.Errorf("it is of %+v", m.Release)
	}
	if want := (images.Package{Name: "good", Version: "1.2", Architecture: "all"}); len(m.Packages) != 1 || m.Packages[0] != want {
		t.Errorf("its packages are %v", m.Packages)
	}
	if m.Kernel != "/boot/vmlinuz-6.10" || m.Initrd != "/boot/initrd.img-6.10" {
		t.Errorf("its kernel is %q, its initramfs %q", m.Kernel, m.Initrd)
	}
	found := map[string]string{}
	for _, f := range m.Files {
		found[f.Path] = fmt.Sprintf("%s %s %d %s%s", f.Type, f.Mode, f.Size, f.SHA256, f.Target)
	}
	for path, want := range map[string]string{
		"/tmp": "directory 1777 0 ", "/usr/bin/su": fmt.Sprintf("file 4755 2 %x", sha256.Sum256([]byte("su"))), "/bin": "link 0777 0 usr/bin",
		"/usr/bin/same": found["/usr/bin/good"], "/etc/machine-id": fmt.Sprintf("file 0444 0 %x", sha256.Sum256(nil)),
	} {
		if found[path] != want {
			t.Errorf("%s is %q, not %q", path, found[path], want)
		}
	}
	if _, ok := found["/lost+found"]; ok {
		t.Error("mke2fs's own folder is there")
	}
	walked := 0
	i.do(filepath.WalkDir(i.tree, func(string, os.DirEntry, error) error { walked++; return nil }))
	if walked != len(m.Files) {
		t.Errorf("of %d files it has %d", walked, len(m.Files))
	}
}

func TestDescribeRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "not a disk")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err := Describe(t.Context(), name); err == nil {
		t.Errorf("it is %+v", m)
	}
}
