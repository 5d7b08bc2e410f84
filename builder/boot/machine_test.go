package boot

import (
	"context"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew; the run fails all the same")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s is written anew: look at it, and run the tests without -update", path)
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// lines writes a command with each option on a line of its own.
func lines(command string) string { return strings.ReplaceAll(command, " -", " \\\n  -") + "\n" }

func TestCommand(t *testing.T) {
	made := files{dir: "/var/tmp/kiln-boot-1", disk: "/images/a,b.raw", format: "raw", seed: "/var/tmp/kiln-boot-1/seed.img"}
	flash := made
	flash.code, flash.vars = "/usr/share/OVMF/CODE.fd", "/var/tmp/kiln-boot-1/vars.fd"
	more := flash
	more.disk, more.format = "/var/tmp/kiln-boot-1/disk.qcow2", "qcow2"
	more.data = []DataDisk{{Path: "/var/tmp/kiln-boot-1/data0", Format: "raw", Serial: "S3X"}, {Path: "/d.qcow2", Format: "qcow2"}}
	scsi := made
	scsi.data = []DataDisk{
		{Path: "/var/tmp/kiln-boot-1/data0", Format: "raw", WWN: "0x5000c500a0b1c2d3"},
		{Path: "/var/tmp/kiln-boot-1/data1", Format: "raw", Serial: "S3X_with_more_than_20"},
		{Path: "/var/tmp/kiln-boot-1/data2", Format: "raw", Serial: "S3X"},
	}
	bare := made
	bare.seed = ""
	for _, tt := range []struct {
		name    string
		machine Machine
		files   files
		accel   Accel
	}{
		{"uefi", Machine{}, flash, AccelKVM},
		{"secureboot", Machine{Firmware: SecureBoot}, flash, AccelTCG},
		{"bios", Machine{Firmware: BIOS, Memory: 512, CPUs: 1}, made, AccelTCG},
		{"disks", Machine{NICs: []NIC{
			{MAC: "52:54:00:AB:CD:EF", Tap: "tap0"},
			{Network: netip.MustParsePrefix("192.0.2.11/24"), Gateway: netip.MustParseAddr("192.0.2.1")},
			{Network: netip.MustParsePrefix("192.0.2.64/26"), DNS: netip.MustParseAddr("192.0.2.65"), Lease: netip.MustParseAddr("192.0.2.66")},
		}, Namespace: "/run/netns/lab"}, more, AccelKVM},
		{"scsi", Machine{Firmware: BIOS}, scsi, AccelKVM},
		{"netboot", Machine{Netboot: true, HTTPBoot: true, DiskSerial: "ROOT1", NICs: []NIC{{MAC: "52:54:00:AB:CD:EF", Tap: "tap0"}, {Tap: "tap1"}}, NoSeed: true}, bare, AccelTCG},
		{"kernel", Machine{Firmware: BIOS, Kernel: "/vmlinuz", Initrd: "/initrd.img", Arguments: "root=/dev/vda console=ttyS0", NoNetwork: true}, bare, AccelKVM},
	} {
		t.Run(tt.name, func(t *testing.T) {
			golden(t, tt.name+".txt", lines(tt.machine.command(tt.files, tt.accel).String()))
		})
	}
}

func TestMachineThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		name    string
		machine Machine
		want    string
	}{
		{"no disk", Machine{}, "a machine needs a disk"},
		{"format", Machine{Disk: "d", Format: "vmdk"}, `"vmdk"`},
		{"format of a data disk", Machine{Disk: "d", DataDisks: []DataDisk{{Size: 1, Format: "vhd"}}}, `"vhd"`},
		{"size", Machine{Disk: "d", DiskSize: 1}, "only a snapshot"},
		{"memory", Machine{Disk: "d", Memory: -1}, "-1 MiB"},
		{"serial", Machine{Disk: "d", DataDisks: []DataDisk{{Size: 1, Serial: "a,b=c"}}}, `"a,b=c" can't be a disk's serial`},
		{"long serial", Machine{Disk: "d", DataDisks: []DataDisk{{Size: 1, Serial: strings.Repeat("x", 37)}}}, "at most 36"},
		{"WWN", Machine{Disk: "d", DataDisks: []DataDisk{{Size: 1, WWN: "eui.0025385"}}}, `"eui.0025385" can't be a disk's WWN`},
		{"file", Machine{Disk: "d", Files: []GuestFile{{Path: "/etc/a b"}}}, `"/etc/a b" can't be a file of a guest`},
		{"file's way", Machine{Disk: "d", Files: []GuestFile{{Path: "/etc/../b"}}}, `"/etc/../b" can't be a file of a guest`},
		{"no size", Machine{Disk: "d", DataDisks: []DataDisk{{}}}, "a new disk needs a size"},
		{"MAC", Machine{Disk: "d", NICs: []NIC{{MAC: "52:54:00"}}}, "isn't a MAC address"},
		{"tap", Machine{Disk: "d", NICs: []NIC{{Tap: "tap0,script=/x"}}}, "can't be an interface"},
		{"network", Machine{Disk: "d", NICs: []NIC{{Network: netip.MustParsePrefix("2001:db8::/64")}}}, "one of IPv4"},
		{"kernel", Machine{Disk: "d", Kernel: "k"}, "with the firmware bios"},
		{"arguments", Machine{Disk: "d", Arguments: "quiet"}, "there is none"},
		{"no such disk", Machine{Disk: "/nonexistent/disk.raw"}, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leavesNothing(t)
			_, err := tt.machine.Start(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// leavesNothing has the temporary files in a directory of their own, and fails
// where one is left at the end.
func leavesNothing(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

func TestMachineWithoutQEMU(t *testing.T) {
	leavesNothing(t)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	_, err := (&Machine{Disk: disk}).Start(t.Context())
	want := "booting " + disk + ": the program qemu-system-x86_64 isn't there: the package qemu-system-x86 has it (Fedora: qemu-system-x86-core)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// program puts a script in place of a program.
func program(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

func TestQEMUThatRefuses(t *testing.T) {
	leavesNothing(t)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, qemuProgram, "echo 'qemu: no such machine' >&2; exit 1\n")
	_, err := (&Machine{Disk: disk, Firmware: BIOS, Accel: AccelTCG}).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "exit status 1: qemu: no such machine") {
		t.Errorf("got %v", err)
	}
}

func TestStartThatIsInterrupted(t *testing.T) {
	leavesNothing(t)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	program(t, qemuProgram, "echo >"+started+"; exec sleep 600\n")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(started); err == nil {
				cancel()
			}
		}
	}()
	_, err := (&Machine{Disk: disk, Firmware: BIOS, Accel: AccelTCG}).Start(ctx)
	if err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("got %v", err)
	}
}

// TestMachineThatDoesNotStartWithKVM: where KVM was found to work and QEMU refuses it
// after all, the machine runs in software, and so do later ones at once.
func TestMachineThatDoesNotStartWithKVM(t *testing.T) {
	const emulator = `#!/usr/bin/env python3
import json, socket, sys
if "kvm" in sys.argv:
    sys.exit("failed to set MSR 0x10a")
path = [a for a in sys.argv if a.startswith("socket,id=monitor")][0].split("path=")[1].split(",")[0]
s = socket.socket(socket.AF_UNIX)
s.connect(path)
s.sendall(b'{"QMP": {}}')
while s.recv(4096):
    s.sendall(b'{"return": {}}')
`
	p, runs := tried(t, "exit 33")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, qemuProgram), []byte(emulator), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write(t, filepath.Join(dir, "disk"), "")
	var notes []string
	m := &Machine{Disk: filepath.Join(dir, "disk"), Firmware: BIOS, NoSeed: true, Note: func(s string) { notes = append(notes, s) }}
	for n := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := m.boot(ctx, pair{}, p)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		<-r.done
		if len(notes) != n+1 || !strings.Contains(notes[n], "it didn't come to life with KVM") || !strings.Contains(notes[n], "MSR 0x10a") || *runs != probeTimes {
			t.Errorf("notes %q, %d tries", notes, *runs)
		}
	}
	m.Accel = AccelKVM
	if _, err := m.boot(t.Context(), pair{}, p); err == nil || !strings.Contains(err.Error(), "MSR 0x10a") {
		t.Errorf("with KVM and nothing else it says %v", err)
	}
}
