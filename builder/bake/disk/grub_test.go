package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGrubConfig(t *testing.T) {
	got := GrubConfig("6.12.0-1-amd64", Console+" quiet", testIDs.Root)
	for _, want := range []string{
		"\nset default=0\n", "search --no-floppy --fs-uuid --set=root " + testIDs.Root.String() + "\n",
		"\tlinux /boot/vmlinuz-6.12.0-1-amd64 root=UUID=" + testIDs.Root.String() + " ro console=tty0 console=ttyS0,115200 quiet\n",
		"ttyS0,115200 quiet single\n", "\tinitrd /boot/initrd.img-6.12.0-1-amd64\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q isn't in it:\n%s", want, got)
		}
	}
	path := filepath.Join(t.TempDir(), "grub.cfg")
	if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	judge(t, "grub-script-check", path)
}

func TestInstall(t *testing.T) {
	tree := bootTree(t)
	if err := Install(tree, []string{"quiet", "cgroup_enable=memory"}, testIDs); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(tree, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	arguments := Console + " quiet cgroup_enable=memory"
	if got, want := read(GrubConfigPath), GrubConfig("6.12.0-1-amd64", arguments, testIDs.Root); got != want {
		t.Errorf("grub.cfg: %s", got)
	}
	if got := read("etc/fstab"); got != Fstab(testIDs) || !strings.Contains(got, "UUID="+testIDs.ESPUUID()+" /boot/efi vfat noauto") {
		t.Errorf("fstab: %s", got)
	}
	if read("boot/grub/i386-pc/normal.mod") != "module" || read("boot/grub/i386-pc/fs.lst") != "list" {
		t.Error("the modules aren't there")
	}
	if _, err := os.Stat(filepath.Join(tree, "boot/grub/i386-pc/boot.img")); err == nil {
		t.Error("boot.img, which is no module, is among them")
	}
	// What update-grub will add up to, with the file that the plan's arguments
	// are in.
	said := judge(t, "sh", "-c", `. "$1"; GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX quiet cgroup_enable=memory"; echo "$GRUB_CMDLINE_LINUX"`,
		"sh", filepath.Join(tree, GrubDefaultsPath))
	if said != arguments+"\n" {
		t.Errorf("update-grub would write %q, want %q", said, arguments)
	}
	if info, err := os.Stat(filepath.Join(tree, "boot/efi")); err != nil || !info.IsDir() {
		t.Errorf("there is nowhere to mount the ESP: %v", err)
	}

	// A second time, over what the first one wrote and a site's own table.
	own := "UUID=x / ext4 defaults 0 1\n"
	if err := os.WriteFile(filepath.Join(tree, "etc/fstab"), []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Install(tree, nil, testIDs); err != nil {
		t.Fatal(err)
	}
	if read("etc/fstab") != own || strings.Contains(read(GrubConfigPath), "quiet") {
		t.Error("installed again, it isn't what it should be")
	}

	// All that arguments change is the menu.
	if err := Configure(tree, []string{"quiet", "cgroup_enable=memory"}, testIDs); err != nil {
		t.Fatal(err)
	}
	if got := read(GrubConfigPath); got != GrubConfig("6.12.0-1-amd64", arguments, testIDs.Root) || read("etc/fstab") != own {
		t.Errorf("grub.cfg: %s", got)
	}
	if err := Configure(tree, []string{"a;b"}, testIDs); err == nil || !strings.Contains(err.Error(), "its own language") {
		t.Errorf("got %v", err)
	}
}

func TestInstallErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(tree string) error
		args   []string
		want   string
	}{
		{"no kernel", func(tree string) error { return os.RemoveAll(tree + "/boot") }, nil, "there is no kernel in /boot"},
		{"no initrd", func(tree string) error { return os.Remove(tree + "/boot/initrd.img-6.12.0-1-amd64") }, nil, "has no initrd"},
		{"no modules", func(tree string) error { return os.RemoveAll(tree + "/usr/lib/grub/i386-pc") }, nil, "install the package grub-pc-bin"},
		{"GRUB's language", func(string) error { return nil }, []string{"a;b"}, "its own language"},
		{"out of the tree", func(tree string) error { return os.Symlink("/tmp", tree+"/boot/grub") }, nil, "escapes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := bootTree(t)
			if err := tt.change(tree); err != nil {
				t.Fatal(err)
			}
			if err := Install(tree, tt.args, testIDs); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "6.9.0", "6.12", "6.12.1", "10"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compareVersions(a, b); got > 0 != (i > j) || got < 0 != (i < j) {
				t.Errorf("%s and %s: %d", a, b, got)
			}
		}
	}
	if compareVersions("1.02", "1.2") != 0 {
		t.Error("a zero before a number counts")
	}
}
