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
	"slices"
	"strings"
	"sync/atomic"
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
	most                   int64 // chunks that its server gives; 0: all
}

// newInstalls takes kernel and modules out of a tree.
func newInstalls(t *testing.T, raw, tree string) *installs {
	t.Helper()
	dir := t.TempDir()
	i := &installs{raw: raw, initramfs: filepath.Join(dir, "initramfs"), dir: filepath.Join(dir, "image")}
	program := filepath.Join(dir, "kiln-installer")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/kiln-installer")
	build.Dir, build.Env = repository(t), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
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
	content, err := os.ReadFile(i.raw)
	if err != nil {
		t.Fatal(err)
	}
	i.manifest = testnetboot.Image(t, i.dir, content, images.BlockSize)
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
	var chunks atomic.Int64
	most := i.most
	dir := http.FileServer(http.Dir(i.dir))
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/chunks/") && chunks.Add(1) > most && most > 0 {
			<-r.Context().Done()
			return
		}
		dir.ServeHTTP(w, r)
	}))
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

// restartTime is how long QEMU has to end once the kernel has restarted the machine.
const restartTime = 30 * time.Second

// boot starts the installer with the devices, until the machine restarts, or its
// serial line has what until says. It gives the serial line.
func (i *installs) boot(t *testing.T, s *testnetboot.Server, network, until string, devices ...string) string {
	t.Helper()
	// Emulated on two cores that have other work too, the longest took 200 s.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	serial := filepath.Join(t.TempDir(), "serial")
	line := fmt.Sprintf("console=tty0 console=ttyS0,115200 quiet kiln.server=%s kiln.pin=%s kiln.token=%s kiln.mac=%s kiln.host=%s",
		guestURL(s.HTTPS.URL), s.Pin, s.Token, installerMAC, s.Job.Host)
	cmd := exec.CommandContext(ctx, program(t, "qemu-system-x86_64"), append([]string{
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:" + serial,
		"-kernel", i.kernel, "-initrd", i.initramfs, "-append", line,
		"-netdev", "user,id=n", "-device", network + ",netdev=n,romfile=,mac=" + installerMAC,
	}, devices...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var restarted time.Time
	console := func() string { b, _ := os.ReadFile(serial); return strings.ReplaceAll(string(b), "\r", "") }
	for {
		select {
		case err := <-ended:
			t.Logf("the installer ran for %s:\n%s", time.Since(began).Round(time.Second), tail([]byte(console()), 6000))
			if err != nil || until != "" {
				t.Fatalf("%v: %s", err, &said)
			}
			return console()
		case <-time.After(200 * time.Millisecond):
			text := console()
			if restarted.IsZero() && until == "" && strings.Contains(text, "reboot: Restarting system") {
				restarted = time.Now()
			}
			// QEMU has been seen to stay for good after the restart that it was to end
			// with, on a machine with vmxnet3 and three kinds of disks.
			if !restarted.IsZero() && time.Since(restarted) > restartTime {
				t.Logf("the machine restarts since %s, and QEMU doesn't end: %s", restartTime, &said)
				cancel()
				<-ended
				return text
			}
			// What is waited for may be part of what a failure says.
			if strings.HasSuffix(text, "==\n") && (until == "" || !strings.Contains(text, until)) {
				cancel()
				<-ended
				t.Fatalf("it has failed:\n%s", text)
			}
			if until != "" && strings.Contains(text, until) {
				time.Sleep(3 * time.Second) // it must stay
				select {
				case err := <-ended:
					t.Errorf("the machine doesn't stay: %v", err)
				default:
					cancel()
					<-ended
				}
				return console()
			}
		}
	}
}

// drive is a virtio disk of a raw file.
func drive(id, file, serial string) []string {
	return []string{"-drive", "if=none,id=" + id + ",format=raw,cache=unsafe,file=" + file, "-device", "virtio-blk-pci,drive=" + id + ",serial=" + serial}
}

// TestNetbootInstaller boots the installer in a machine of 512 MiB, with an empty
// disk and one with data beside it, and then the disk that it wrote.
func TestNetbootInstaller(t *testing.T) {
	needRoot(t)
	i := newInstalls(t, bootableDisk(t), debianTree(t, "disk", diskPackages))
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

	console := i.boot(t, s, "virtio-net-pci", "", append(drive("a", target, "SYS1"), drive("b", data, "DATA1")...)...)
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
	if !regexp.MustCompile(`memory: at least [0-9]+ of [0-9]+ MiB`).MatchString(console) {
		t.Error("it says nothing of its memory")
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
	i.hasSeed(t, target, disk.RootOffset, len(want)-disk.RootOffset-disk.Block, s)
}

// hasSeed looks at the seed in the root, which is whole.
func (i *installs) hasSeed(t *testing.T, target string, at, size int, s *testnetboot.Server) {
	t.Helper()
	got, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	testnetboot.Place(t, root, got[at:at+size])
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

// metalPackages are Debian's kernel for machines of metal, with its modules.
const metalPackages = "initramfs-tools,linux-image-amd64,zstd"

// tinyDisk is a disk with a root that is empty.
func tinyDisk(t *testing.T) string {
	t.Helper()
	const size = 64 << 20
	raw := testnetboot.Disk(size, 4)
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command(program(t, "mke2fs"), "-q", "-t", "ext4", root, fmt.Sprint((size-testnetboot.Root-1<<20)>>10)+"k").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[testnetboot.Root:size-1<<20], b)
	name := filepath.Join(t.TempDir(), "disk")
	testnetboot.Place(t, name, raw)
	return name
}

// TestNetbootInstallerOnMetal boots the kernel that machines of metal have, with a
// network card and disks of theirs. All the disks have an installation, and one is
// installed again, which the rule names.
func TestNetbootInstallerOnMetal(t *testing.T) {
	needRoot(t)
	i := newInstalls(t, tinyDisk(t), debianTree(t, "metal", metalPackages))
	for _, c := range []struct{ name, network, disk string }{
		{"nvme", "e1000e", "N1"}, {"sata", "e1000", "A1"}, {"scsi", "vmxnet3", "S1"},
	} {
		t.Run(c.name, func(t *testing.T) { i.metal(t, c.network, c.disk) })
	}
	t.Run("power cut", i.cut)
	t.Run("redeemed before", func(t *testing.T) {
		s := i.server(t)
		s.Redeem()
		disk := filepath.Join(t.TempDir(), "disk")
		before := testnetboot.Disk(80<<20, 7)
		testnetboot.Place(t, disk, before)
		console := i.boot(t, s, "virtio-net-pci", "Nothing was written.", drive("a", disk, "SYS1")...)
		if !strings.Contains(console, "kiln: the installation has FAILED at the step: redeem") || !strings.Contains(console, "it was redeemed by 10.0.0.9") {
			t.Error(console)
		}
		if now, err := os.ReadFile(disk); err != nil || !bytes.Equal(now, before) {
			t.Errorf("the disk was changed: %v", err)
		}
	})
}

// cut takes the machine's power away while it writes, over an older installation.
func (i *installs) cut(t *testing.T) {
	i.most = 4
	s := i.server(t)
	i.most = 0
	s.Job.Data = nil
	disk := filepath.Join(t.TempDir(), "disk")
	testnetboot.Place(t, disk, testnetboot.Disk(80<<20, 7))
	i.boot(t, s, "virtio-net-pci", "from here on the disk has nothing that boots", drive("a", disk, "SYS1")...)
	now, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	if !bytes.Equal(now[:1<<20], zero) || !bytes.Equal(now[79<<20:], zero) || bytes.Equal(now[3<<20:], testnetboot.Disk(80<<20, 7)[3<<20:]) {
		t.Error("the disk has a begin or an end that something may boot from, or isn't half-written")
	}
	if slices.Contains(s.Calls(), protocol.PathWritten) {
		t.Error("the server thinks that it's written")
	}
}

// metal installs to the disk with that serial number.
func (i *installs) metal(t *testing.T, network, serial string) {
	s := i.server(t)
	s.Job.Install, s.Job.Data = plan.DiskRule{Serial: serial}, nil
	dir := t.TempDir()
	devices := []string{"-device", "virtio-scsi-pci,id=scsi", "-device", "ide-cd,bus=ide.5"}
	serials := map[string]string{"N1": "nvme,drive=N1,serial=N1", "A1": "ide-hd,bus=ide.1,drive=A1,serial=A1", "S1": "scsi-hd,bus=scsi.0,drive=S1,serial=S1"}
	for name, device := range serials {
		file := filepath.Join(dir, name)
		testnetboot.Place(t, file, testnetboot.Disk(80<<20, 7))
		devices = append(devices, "-drive", "if=none,format=raw,cache=unsafe,id="+name+",file="+file, "-device", device)
	}
	console := i.boot(t, s, network, "", devices...)
	t.Log(regexp.MustCompile(`memory: .*`).FindString(console))
	for name := range serials {
		now, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || bytes.Equal(now, testnetboot.Disk(80<<20, 7)) != (name != serial) {
			t.Errorf("the disk %s: %v", name, err)
		}
	}
	target := filepath.Join(dir, serial)
	if out, err := exec.Command(program(t, "sgdisk"), "--verify", target).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	i.hasSeed(t, target, testnetboot.Root, 64<<20-testnetboot.Root-1<<20, s)
}
