//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/builder/bake/disk"
)

// diskPackages are a system that boots from a disk, and no more. The cloud
// kernel is the smaller one, and QEMU's devices are all that it knows.
const diskPackages = "grub-efi-amd64-signed,grub-pc-bin,grub2-common,initramfs-tools,kmod,linux-image-cloud-amd64," +
	"shim-signed,systemd-sysv,udev,zstd"

// markScript is what the disk's kernel starts as its init. At the first start,
// with a BIOS, it has update-grub write the menu that later ones start from.
const markScript = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec >/dev/ttyS0 2>&1
mount -o remount,rw /
firmware=bios
[ ! -d /sys/firmware/efi ] || firmware=uefi
start=first
[ ! -e /started ] || start=second
echo "MARK start=$start firmware=$firmware root=$(findmnt -no SOURCE,FSTYPE /)"
echo "MARK esp=$(mount /boot/efi && cd /boot/efi/EFI && echo * debian/*; cd / && umount /boot/efi)"
if [ $start = first ] && [ $firmware = bios ]; then
	update-grub || echo "MARK update-grub: $?"
	grep -E '^[[:space:]]linux' /boot/grub/grub.cfg | head -n 1 | sed 's/^[[:space:]]*/MARK next=/'
	touch /started
fi
echo "MARK end"
mount -o remount,ro /
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
`

// bootableDisk makes a disk of a tree that has markScript.
func bootableDisk(t *testing.T) string {
	t.Helper()
	ids := disk.NewIDs("integration")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", debianTree(t, "disk", diskPackages), tree).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	place(t, filepath.Join(tree, "mark"), markScript)
	if err := os.Chmod(filepath.Join(tree, "mark"), 0o755); err != nil {
		t.Fatal(err)
	}
	// As render.ImageFiles has a plan's arguments.
	place(t, filepath.Join(tree, "etc/default/grub.d/90-kiln.cfg"), "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX init=/mark\"\n")
	if err := disk.Install(tree, []string{"init=/mark"}, ids); err != nil {
		t.Fatal(err)
	}
	root, path := filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	now := time.Unix(1_700_000_000, 0)
	if err := disk.Root(t.Context(), tree, root, disk.RootOptions{IDs: ids, Label: "root", Time: now}); err != nil {
		t.Fatal(err)
	}
	if err := disk.Write(t.Context(), disk.Spec{Tree: tree, Root: root, Distribution: "debian", IDs: ids, Time: now}, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// start boots a disk until it powers itself off, and returns what was on its
// serial line.
func start(t *testing.T, image string, firmware ...string) string {
	t.Helper()
	// Emulated on two cores that have other work too, the longest took 110 s.
	const bound = 4 * time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	serial := filepath.Join(t.TempDir(), "serial")
	began := time.Now()
	cmd := exec.CommandContext(ctx, program(t, "qemu-system-x86_64"), append([]string{
		"-machine", "q35,smm=on", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:" + serial, "-drive", "if=virtio,format=qcow2,file=" + image,
	}, firmware...)...)
	said, err := cmd.CombinedOutput()
	console, _ := os.ReadFile(serial)
	text := strings.ReplaceAll(string(console), "\r", "")
	if err != nil {
		t.Fatalf("%v, within %s of %s; QEMU says %q, and on the serial line is\n%s", err, time.Since(began), bound, said, tail([]byte(text), 6000))
	}
	t.Logf("started and powered off in %s", time.Since(began).Round(time.Second))
	return text
}

// overlay is a disk to write to, over one that others share.
func overlay(t *testing.T, base string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "overlay.qcow2")
	if out, err := exec.Command(program(t, "qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return image
}

// ovmf is a UEFI firmware, as QEMU is told of it.
func ovmf(t *testing.T, code, variables string) []string {
	t.Helper()
	const folder = "/usr/share/OVMF/"
	own := filepath.Join(t.TempDir(), "variables")
	b, err := os.ReadFile(folder + variables)
	if err == nil {
		err = os.WriteFile(own, b, 0o600)
	}
	if err != nil {
		t.Fatalf("%v: make setup installs it", err)
	}
	return []string{
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + folder + code,
		"-drive", "if=pflash,unit=1,format=raw,file=" + own,
	}
}

// TestDiskBoots starts one disk with each firmware, from the menu that it comes
// with and from the one that update-grub makes of it on the host.
func TestDiskBoots(t *testing.T) {
	needRoot(t)
	base := bootableDisk(t)
	shared := overlay(t, base)
	commandLine := "root=UUID=" + disk.NewIDs("integration").Root.String() + " ro console=tty0 console=ttyS0,115200 init=/mark"
	always := []string{
		"MARK esp=BOOT debian debian/BOOTX64.CSV debian/grub.cfg debian/grubx64.efi debian/mmx64.efi debian/shimx64.efi\n",
		" root=/dev/vda3 ext4\n", commandLine + "\n", "MARK end\n",
	}
	for _, tt := range []struct {
		name     string
		image    string
		firmware []string
		want     []string // on the serial line
	}{
		{"SeaBIOS", shared, nil, []string{"*Linux 6", "MARK start=first firmware=bios "}},
		{"SeaBIOS after update-grub", shared, nil, []string{"Debian GNU/Linux", "MARK start=second firmware=bios "}},
		{"OVMF", overlay(t, base), ovmf(t, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), []string{
			"*Linux 6", "Secure boot disabled", "MARK start=first firmware=uefi "}},
		{"Secure Boot after update-grub", shared, append(ovmf(t, "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
			"-global", "driver=cfi.pflash01,property=secure,value=on"), []string{
			"Secure boot enabled", "Kernel is locked down from EFI Secure Boot", "Debian GNU/Linux", "MARK start=second firmware=uefi "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			console := start(t, tt.image, tt.firmware...)
			hold(t, console, append(tt.want, always...)...)
			if tt.name != "SeaBIOS" {
				return
			}
			if next := strings.Join(strings.Fields(between(console, "MARK next=", "\n")), " "); !strings.HasSuffix(next, commandLine) {
				t.Errorf("update-grub writes %q, want %q at its end", next, commandLine)
			}
		})
	}
}

// hold fails the test unless all of want is in a console's text.
func hold(t *testing.T, console string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(console, w) {
			t.Fatalf("%q isn't on the serial line:\n%s", w, tail([]byte(console), 6000))
		}
	}
}

// between is what stands there in text.
func between(text, before, after string) string {
	_, text, _ = strings.Cut(text, before)
	text, _, _ = strings.Cut(text, after)
	return text
}

// TestDiskRootOfRoots has what only root can make: owners, devices,
// capabilities, access lists.
func TestDiskRootOfRoots(t *testing.T) {
	needRoot(t)
	shm, err := os.MkdirTemp("/dev/shm", "kiln")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	var made [][]byte
	dir := t.TempDir()
	out := filepath.Join(dir, "root")
	for _, tree := range []string{filepath.Join(dir, "tree"), filepath.Join(shm, "tree")} {
		plantAsRoot(t, tree)
		if err := disk.Root(t.Context(), tree, out, disk.RootOptions{IDs: disk.NewIDs("roots"), Time: time.Unix(1_700_000_000, 0), Free: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, b)
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("a tree on a tmpfs gives other bytes than one on a disk")
	}
	for request, want := range map[string]string{
		"stat /null":       "Type: character special Mode: 0666 ",
		"stat /block":      "Device major/minor number: 08:17 ",
		"stat /owned":      "User: 70001 Group: 70002 ",
		"stat /":           "Mode: 0751 Flags: 0x80000 Generation: 0 Version: 0x00000000:00000000 User: 3 Group: 70002 ",
		"ea_list /capable": `security.capability (20) = 01 00 00 02 00 04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 `,
		"ea_list /large":   "trusted.b (1500)",
		"ea_list /listed":  "system.posix_acl_access (",
	} {
		said, err := exec.Command("debugfs", "-R", request, out).CombinedOutput()
		if err != nil || !strings.Contains(strings.Join(strings.Fields(string(said)), " ")+" ", want) {
			t.Errorf("%s: %v, %q isn't in\n%s", request, err, want, said)
		}
	}
}

// plantAsRoot makes a tree with what only root can make.
func plantAsRoot(t *testing.T, tree string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Mkdir(tree, 0o700))
	for _, name := range []string{"owned", "capable", "large", "listed"} {
		check(os.WriteFile(filepath.Join(tree, name), []byte(name), 0o644))
	}
	check(unix.Mknod(filepath.Join(tree, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(os.Chmod(filepath.Join(tree, "null"), 0o666))
	check(unix.Mknod(filepath.Join(tree, "block"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 17))))
	check(os.Chown(filepath.Join(tree, "owned"), 70001, 70002))
	// cap_net_bind_service, effective and permitted.
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	check(unix.Setxattr(filepath.Join(tree, "capable"), "security.capability", capability, 0))
	// More than fits beside an inode.
	check(unix.Setxattr(filepath.Join(tree, "large"), "trusted.b", bytes.Repeat([]byte("b"), 1500), 0))
	if out, err := exec.Command(program(t, "setfacl"), "-m", "u:9001:r,g:9002:rw", filepath.Join(tree, "listed")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check(os.Chown(tree, 3, 70002))
	check(os.Chmod(tree, 0o751))
	names, err := os.ReadDir(tree)
	check(err)
	past := time.Unix(1_600_000_000, 0)
	for i, n := range names {
		check(os.Chtimes(filepath.Join(tree, n.Name()), past, past.Add(time.Duration(i)*time.Second)))
	}
	check(os.Chtimes(tree, past, past))
}

// TestDiskTreeMounted refuses what mke2fs would copy: /proc of the builder.
func TestDiskTreeMounted(t *testing.T) {
	needRoot(t)
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "root")
	if err := unix.Mount("proc", filepath.Join(tree, "proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(tree, "proc"), 0)
	err := disk.Root(t.Context(), tree, out, disk.RootOptions{IDs: disk.NewIDs("mounted"), Time: time.Unix(1_700_000_000, 0)})
	if want := fmt.Sprintf("%s/proc is another filesystem, mounted in the tree: unmount it", tree); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q in it", err, want)
	}
}
