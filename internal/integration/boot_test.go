//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/bake/disk"
	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/builder/render"
)

// bootPackages are a system that boots, from a disk too, and that cloud-init
// sets up.
const bootPackages = diskPackages + ",ca-certificates,cloud-init,dbus,e2fsprogs,iproute2,openssh-server,procps"

// The time that a guest has: software emulation on a busy machine is slow.
const (
	treeTime    = 90 * time.Second
	machineTime = 15 * time.Minute
)

// bootSeed is a seed with that user-data.
func bootSeed(userData string) []render.NamedFile {
	return []render.NamedFile{
		{Name: "user-data", Data: []byte("#cloud-config\nlocale: C.UTF-8\n" + userData)},
		{Name: "meta-data", Data: []byte("instance-id: i1\nlocal-hostname: build01\n")},
	}
}

// alone gives a test a directory of its own for temporary files, which has to
// be empty at its end, as do the processes below.
func alone(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		out, err := exec.Command("pgrep", "--full", "--list-full", dir+"/kiln-boot-").Output()
		if err == nil {
			t.Errorf("left running: %s", out)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("left mounted: %v\n%s", err, mounts)
		}
	})
}

// comeUp boots a tree and waits for its report.
func comeUp(t *testing.T, tree *booting.Tree) (*booting.Running, *booting.Report) {
	t.Helper()
	needRoot(t)
	program(t, "systemd-nspawn")
	ctx, cancel := context.WithTimeout(t.Context(), treeTime)
	t.Cleanup(cancel)
	guest, err := tree.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guest.Kill)
	report, err := guest.Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return guest, report
}

func TestTreeComesUp(t *testing.T) {
	alone(t)
	root := debianTree(t, "boot", bootPackages)
	before := listing(t, root)
	guest, report := comeUp(t, &booting.Tree{Root: root, Seed: bootSeed(""), Units: []string{"ssh.service", "cloud-final.service"}})
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.State != "running" || report.Hostname != "build01" || len(report.MachineID) != 32 || report.RootSize == 0 ||
		!strings.Contains(report.CloudInit.Datasource, "NoCloud") {
		t.Errorf("the report is %+v", report)
	}
	for _, unit := range []string{"ssh.service", "cloud-final.service"} {
		if report.Units[unit].Active != "active" {
			t.Errorf("%s is %+v", unit, report.Units[unit])
		}
	}
	out, status, err := guest.Exec(t.Context(), "id -u; echo oops >&2; exit 3")
	if out != "0\noops\n" || status != 3 || err != nil {
		t.Errorf("got %q, %d, %v", out, status, err)
	}
	pid, err := guest.Init()
	if err != nil {
		t.Fatal(err)
	}
	if name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm"); err != nil || string(name) != "systemd\n" {
		t.Errorf("its init is %q, %v", name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), treeTime)
	defer cancel()
	if err := guest.Stop(ctx); err != nil {
		t.Error(err)
	}
	if after := listing(t, root); after != before {
		t.Error("the tree was written to")
	}
}

// listing is what a tree has, with the times of changes.
func listing(t *testing.T, root string) string {
	t.Helper()
	out, err := exec.Command("find", root, "-xdev", "-printf", "%P %y %s %C@\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// doomed is user-data with a unit that fails, and one whose condition isn't met.
const doomed = `write_files:
  - path: /etc/systemd/system/doomed.service
    content: |
      [Service]
      Type=oneshot
      ExecStart=sh -c 'echo there is no data_dir; exit 7'
  - path: /etc/systemd/system/waiting.service
    content: |
      [Unit]
      ConditionPathExists=/etc/kiln/host-ready
      [Service]
      ExecStart=sleep infinity
runcmd:
  - systemctl daemon-reload
  - systemctl start --no-block doomed.service waiting.service
`

func TestTreeThatFails(t *testing.T) {
	alone(t)
	_, report := comeUp(t, &booting.Tree{Root: debianTree(t, "boot", bootPackages), Seed: bootSeed(doomed), Units: []string{"doomed.service", "waiting.service", "absent.service"}})
	want := []string{
		"absent.service: there is no such unit",
		"doomed.service: it failed: exit-code",
		"waiting.service: it wasn't started: a condition isn't met",
	}
	if got := report.Problems(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if !slices.Equal(report.Failed, []string{"doomed.service"}) {
		t.Errorf("failed: %q", report.Failed)
	}
	if err := report.Err(); err == nil || !strings.Contains(err.Error(), "the last that the journal has of doomed.service:\n") || !strings.Contains(err.Error(), "\n    there is no data_dir\n") {
		t.Errorf("got %v", err)
	}
}

func TestTreeWithABadSeed(t *testing.T) {
	alone(t)
	_, report := comeUp(t, &booting.Tree{Root: debianTree(t, "boot", bootPackages), Seed: bootSeed("runcmd: [\n")})
	if !slices.ContainsFunc(report.Problems(), func(p string) bool { return strings.HasPrefix(p, "cloud-init: Failed loading yaml blob") }) {
		t.Errorf("got %q", report.Problems())
	}
}

func TestTreeInANamespace(t *testing.T) {
	alone(t)
	around := newSpace(t)
	around.sh(t, "ip link add eno1 type veth peer name up1; ip address add 192.0.2.11/24 dev eno1; ip link set up1 up; ip link set eno1 up")
	_, report := comeUp(t, &booting.Tree{Root: debianTree(t, "boot", bootPackages), Seed: bootSeed(""), Namespace: around.Network()})
	if !slices.Equal(report.Addresses["eno1"], []string{"192.0.2.11/24"}) {
		t.Errorf("its addresses are %v", report.Addresses)
	}
}

func TestTreeThatIsInterrupted(t *testing.T) {
	alone(t)
	needRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupt := errors.New("interrupted")
	tree := &booting.Tree{Root: debianTree(t, "boot", bootPackages), Seed: bootSeed("")}
	guest, err := tree.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Kill()
	cancel(interrupt)
	if _, err := guest.Report(t.Context()); !errors.Is(err, interrupt) {
		t.Errorf("got %v", err)
	}
}

func TestAccelerationIsTried(t *testing.T) {
	alone(t)
	program(t, "qemu-system-x86_64")
	if err := booting.Try(t.Context(), booting.AccelTCG); err != nil {
		t.Error(err)
	}
}

// sector is a disk that a BIOS starts: code, and the mark of a boot sector.
func sector(t *testing.T, code ...byte) string {
	t.Helper()
	b := append(code, make([]byte, 510-len(code))...)
	path := filepath.Join(t.TempDir(), "sector")
	place(t, path, string(append(b, 0x55, 0xaa)))
	return path
}

func TestMachineSwitchesItselfOff(t *testing.T) {
	alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	// mov dx, 0x604; mov ax, 0x2000; out dx, ax: the power management of q35.
	m := &booting.Machine{Disk: sector(t, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4), Firmware: booting.BIOS, Memory: 64, Snapshot: true, DiskSize: 1 << 20}
	guest, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Kill()
	if err := guest.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := guest.Report(ctx); err == nil || !strings.Contains(err.Error(), "the guest ended before it reported; its console's last lines:\n    SeaBIOS") {
		t.Errorf("got %v", err)
	}
}

func TestMachineOnATap(t *testing.T) {
	alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	around := newSpace(t)
	around.sh(t, "ip tuntap add tap0 mode tap")
	m := &booting.Machine{
		Disk: sector(t, 0xf4, 0xeb, 0xfd), Firmware: booting.BIOS, Memory: 64, Snapshot: true, DiskSize: 1 << 20,
		NICs: []booting.NIC{{MAC: "52:54:00:12:34:56", Tap: "tap0"}}, Namespace: around.Network(),
	}
	guest, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Kill()
	around.sh(t, "ip link set tap0 up")
	// Up with a carrier, which is that somebody holds the other end.
	eventually(t, "the machine holds its tap", func() bool {
		return strings.Contains(around.sh(t, "ip -oneline link show tap0"), "LOWER_UP")
	})
}

func TestMachineThatHangs(t *testing.T) {
	alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	m := &booting.Machine{Disk: sector(t, 0xf4, 0xeb, 0xfd), Firmware: booting.BIOS, Memory: 64, Snapshot: true, DiskSize: 1 << 20}
	guest, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Kill()
	short, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	if _, err := guest.Report(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the guest said nothing") {
		t.Errorf("got %v", err)
	}
	if err := guest.Stop(short); err == nil || !strings.Contains(err.Error(), "didn't shut down in time") {
		t.Errorf("got %v", err)
	}
}

func TestFirmwareStarts(t *testing.T) {
	for _, tt := range []struct {
		firmware booting.Firmware
		want     string
	}{
		{booting.UEFI, "UEFI Interactive Shell"},
		// Nobody signed the shell, and the keys are enrolled.
		{booting.SecureBoot, "Security Violation"},
		{booting.BIOS, "Booting from Hard Disk"},
	} {
		t.Run(string(tt.firmware), func(t *testing.T) {
			alone(t)
			ctx, cancel := context.WithTimeout(t.Context(), machineTime)
			defer cancel()
			seen := make(chan struct{})
			var once sync.Once
			m := &booting.Machine{Disk: sector(t, 0xf4, 0xeb, 0xfd), Firmware: tt.firmware, Memory: 256, Snapshot: true, DiskSize: 1 << 20, Line: func(line string) {
				if strings.Contains(line, tt.want) {
					once.Do(func() { close(seen) })
				}
			}}
			guest, err := m.Start(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer guest.Kill()
			select {
			case <-seen:
			case <-ctx.Done():
				t.Errorf("%q isn't on the console: %q", tt.want, guest.Tail())
			}
		})
	}
}

// bootDisk is a disk of few packages that boots.
func bootDisk(t *testing.T) string {
	t.Helper()
	tree, dir := debianTree(t, "boot", bootPackages), t.TempDir()
	ids, now := disk.NewIDs("boot"), time.Unix(1_700_000_000, 0)
	copied, root, image := filepath.Join(dir, "tree"), filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", tree, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	place(t, filepath.Join(copied, "etc/machine-id"), "")
	// As golden images have it: without the package locales there is no other.
	place(t, filepath.Join(copied, "etc/cloud/cloud.cfg.d/90-locale.cfg"), "locale: C.UTF-8\n")
	if err := disk.Install(copied, nil, ids); err != nil {
		t.Fatal(err)
	}
	if err := disk.Root(t.Context(), copied, root, disk.RootOptions{IDs: ids, Label: "root", Time: now}); err != nil {
		t.Fatal(err)
	}
	if err := disk.Write(t.Context(), disk.Spec{Tree: copied, Root: root, Distribution: "debian", IDs: ids, Time: now}, image); err != nil {
		t.Fatal(err)
	}
	return image
}

// TestMachineComesUp boots a disk with all that can be wrong on the way: Secure
// Boot, the seed's volume, the agent's port, a data disk.
func TestMachineComesUp(t *testing.T) {
	needRoot(t)
	image := bootDisk(t)
	alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*machineTime)
	defer cancel()
	m := &booting.Machine{
		Disk: image, Snapshot: true, DiskSize: 5 << 30, Firmware: booting.SecureBoot, Seed: bootSeed(""), Units: []string{"ssh.service"},
		DataDisks: []booting.DataDisk{{Size: 3 << 30, Serial: "S3X1"}},
	}
	guest, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Kill()
	bootOf(t, ctx, guest)
	out, status, err := guest.Exec(ctx, "lsblk --bytes --nodeps --noheadings --output NAME,SIZE,SERIAL")
	for _, want := range []string{"vda 5368709120", "vdb 3221225472 S3X1", "vdc", "kiln-seed"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) || status != 0 || err != nil {
			t.Errorf("%s isn't among the disks: %s, %d, %v", want, out, status, err)
		}
	}
	if err := guest.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// bootOf is the report of a machine's boot, which has to be a good one.
func bootOf(t *testing.T, ctx context.Context, guest *booting.Running) *booting.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, machineTime)
	defer cancel()
	began := time.Now()
	report, err := guest.Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("booted in %s", time.Since(began).Round(time.Second))
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Hostname != "build01" || report.Firmware != "uefi" || !report.SecureBoot {
		t.Errorf("the report is %+v", report)
	}
	return report
}
