//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/testnetboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/ramdisk"
	"github.com/alisw/kiln/plan"
)

// installs is a bootable image, a kernel and the installer's initramfs.
type installs struct {
	raw, kernel, initramfs string
	dir                    string // the image's, as the web server has it
	manifest               *images.Manifest
}

func newInstalls(t *testing.T) *installs {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	i := &installs{raw: bootableDisk(t), initramfs: filepath.Join(dir, "initramfs"), dir: filepath.Join(dir, "image")}
	program := filepath.Join(dir, "kiln-installer")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/kiln-installer")
	build.Dir, build.Env = repository(t), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tree := debianTree(t, "disk", diskPackages)
	i.kernel = only(t, filepath.Join(tree, "boot/vmlinuz-*"))
	initrd, err := os.Open(only(t, filepath.Join(tree, "boot/initrd.img-*")))
	if err != nil {
		t.Fatal(err)
	}
	defer initrd.Close()
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	contents, err := ramdisk.Make(t.Context(), &out, initrd, binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs of %s: %d bytes, %d unpacked, %d modules; the installer has %d", contents.Kernel, out.Len(), contents.Unpacked, len(contents.Modules), len(binary))
	testnetboot.Place(t, i.initramfs, out.Bytes())
	raw, err := os.ReadFile(i.raw)
	if err != nil {
		t.Fatal(err)
	}
	i.manifest = testnetboot.Image(t, i.dir, raw, images.BlockSize)
	return i
}

// only is the one file of a pattern.
func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

const installerMAC = "52:54:00:12:34:56"

// server is one with a job for the image.
func (i *installs) server(t *testing.T) *testnetboot.Server {
	t.Helper()
	files := httptest.NewServer(http.FileServer(http.Dir(i.dir)))
	t.Cleanup(files.Close)
	s := &testnetboot.Server{
		Token: "token-1", InLine: 1,
		Job: protocol.Job{
			ID: "i1", Session: "session-1", Host: "build01.example.org", Image: i.manifest.ID, ImageURL: guestURL(files.URL) + "/",
			Data: []plan.DiskRule{{Serial: "DATA1"}},
		},
		Seed: protocol.Seed{Files: []protocol.SeedFile{
			{Name: "user-data", Data: []byte("#cloud-config\npassword: a secret\n")}, {Name: "meta-data", Data: []byte("instance-id: i1\n")},
		}},
	}
	s.Start(t)
	return s
}

// guestURL is an address of this machine's loopback as QEMU's user network has it.
func guestURL(url string) string { return strings.Replace(url, "127.0.0.1", "10.0.2.2", 1) }

// boot starts the installer with the disks, until the machine restarts, or ctx ends.
// It gives the serial line.
func (i *installs) boot(t *testing.T, ctx context.Context, s *testnetboot.Server, devices ...string) string {
	t.Helper()
	serial := filepath.Join(t.TempDir(), "serial")
	line := fmt.Sprintf("console=tty0 console=ttyS0,115200 quiet kiln.server=%s kiln.pin=%s kiln.token=%s kiln.mac=%s kiln.host=%s",
		guestURL(s.HTTPS.URL), s.Pin, s.Token, installerMAC, s.Job.Host)
	cmd := exec.CommandContext(ctx, program(t, "qemu-system-x86_64"), append([]string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:" + serial,
		"-kernel", i.kernel, "-initrd", i.initramfs, "-append", line,
		"-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile=,mac=" + installerMAC,
	}, devices...)...)
	began := time.Now()
	said, err := cmd.CombinedOutput()
	console, _ := os.ReadFile(serial)
	if err != nil && ctx.Err() == nil {
		t.Fatalf("%v: %s\n%s", err, said, console)
	}
	t.Logf("the installer ran for %s:\n%s", time.Since(began).Round(time.Second), tail(console, 6000))
	return strings.ReplaceAll(string(console), "\r", "")
}

// drive is a virtio disk of a raw file.
func drive(id, file, serial string) []string {
	return []string{"-drive", "if=none,id=" + id + ",format=raw,cache=unsafe,file=" + file, "-device", "virtio-blk-pci,drive=" + id + ",serial=" + serial}
}

// TestNetbootInstaller boots the installer in a machine of 512 MiB, with an empty
// disk and one with data beside it, and then the disk that it wrote.
func TestNetbootInstaller(t *testing.T) {
	i := newInstalls(t)
	s := i.server(t)
	dir := t.TempDir()
	target, data := filepath.Join(dir, "target"), filepath.Join(dir, "data")
	size := i.manifest.Disk.Size + 100<<20 + 512*7
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(target, size); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	kept := make([]byte, 64<<20)
	_, _ = random.Read(kept)
	testnetboot.Place(t, data, kept)

	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	console := i.boot(t, ctx, s, append(drive("a", target, "SYS1"), drive("b", data, "DATA1")...)...)
	if calls := s.Calls(); len(calls) == 0 || calls[0] != protocol.PathRedeem || calls[len(calls)-1] != protocol.PathWritten {
		t.Fatalf("the server was asked %q\n%s", calls, s.Lines())
	}
	if strings.Contains(console, "secret") || !strings.Contains(console, "waiting in line, at place 1") {
		t.Error("the console says a secret, or nothing of the line")
	}
	if now, err := os.ReadFile(data); err != nil || !bytes.Equal(now, kept) {
		t.Errorf("the data disk was changed: %v", err)
	}
	i.isInstalled(t, target, s)
	if peak := regexp.MustCompile(`memory: .*`).FindString(console); peak != "" {
		t.Log(peak)
	}
	shared := filepath.Join(dir, "installed.qcow2")
	if out, err := exec.Command(program(t, "qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", target, shared).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if text := start(t, shared); !strings.Contains(text, "MARK start=first firmware=bios root=/dev/vda3 ext4") || !strings.Contains(text, "MARK end") {
		t.Errorf("the installed disk with a BIOS:\n%s", text)
	}
}

// isInstalled compares the disk with the image: all of it but the partition table,
// which is moved to the disk's size, and the root, which has the seed.
func (i *installs) isInstalled(t *testing.T, target string, s *testnetboot.Server) {
	t.Helper()
	if out, err := exec.Command(program(t, "sgdisk"), "--verify", target).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	want, err := os.ReadFile(i.raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	// Boot code, BIOS partition and ESP; the table's sectors have other numbers.
	if !bytes.Equal(got[:440], want[:440]) || !bytes.Equal(got[34*512:disk.RootOffset], want[34*512:disk.RootOffset]) {
		t.Error("what is before the root isn't the image's")
	}
	root := filepath.Join(t.TempDir(), "root")
	rootSize := len(want) - disk.RootOffset - disk.Block
	testnetboot.Place(t, root, got[disk.RootOffset:disk.RootOffset+rootSize])
	if out, err := exec.Command(program(t, "e2fsck"), "-fn", root).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for _, f := range s.Seed.Files {
		name := "/var/lib/cloud/seed/nocloud/" + f.Name
		out, err := exec.Command(program(t, "debugfs"), "-R", "cat "+name, root).Output()
		if err != nil || string(out) != string(f.Data) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	out, err := exec.Command(program(t, "debugfs"), "-R", "ls -p /var/lib/cloud/seed/nocloud", root).Output()
	if err != nil || !regexp.MustCompile(`/\d+/040700/0/0/\./`).Match(out) || !regexp.MustCompile(`/\d+/100600/0/0/user-data/`).Match(out) {
		t.Errorf("the seed's modes: %v\n%s", err, out)
	}
}
