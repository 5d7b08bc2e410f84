// Package boot starts what was baked and says what came up: an image in QEMU
// (Machine), or a tree in systemd-nspawn (Tree), which takes seconds instead of
// minutes where firmware and kernel don't matter.
//
// A guest tells about itself through a channel of its own, not over the network
// and not on its console: vendor-data beside the seed's user-data has
// cloud-init start a small agent, which says when the boot is over, what failed
// and what the services' states are (Report), and runs what it's then asked to.
// So an image needs nothing for it, and its network may be anything.
//
// A guest lives as long as the context that it was started with, and leaves
// neither processes nor files.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/run"
)

const (
	qemuProgram = "qemu-system-x86_64"
	qemuInstall = "the package qemu-system-x86 has it (Fedora: qemu-system-x86-core)"
	imgInstall  = "the package qemu-utils has it (Fedora: qemu-img)"
)

// Machine is a virtual one. Only Disk has to be set.
type Machine struct {
	// Disk is the file that it boots from, and Format its format: raw, which is
	// the default, or qcow2.
	Disk, Format string
	// DiskSerial is the disk's serial; it may be empty.
	DiskSerial string
	// Snapshot leaves the disk's file as it is: what the guest writes is gone
	// with it.
	Snapshot bool
	// DiskSize is the disk's, in bytes, where it's to be larger than its file
	// says. Only a snapshot grows.
	DiskSize int64
	// DataDisks are further disks, which the guest finds as vdb and so on.
	DataDisks []DataDisk

	// Seed has the files of the host's NoCloud seed; none are a seed without
	// host data. Units are those whose states the report has.
	Seed  []render.NamedFile
	Units []string
	// Files are laid into the guest before its services start: what the host's
	// seed leaves to others, such as its certificate.
	Files []GuestFile
	// NoSeed leaves the machine without any seed. Then it doesn't report, either.
	NoSeed bool

	// Kernel, Initrd and Arguments are for starting a kernel at once, without
	// firmware and boot loader. Then Firmware has to be BIOS.
	Kernel, Initrd, Arguments string

	// Netboot has the firmware try its first network interface before its disk.
	Netboot bool
	// HTTPBoot has UEFI try HTTP alone there, and not PXE.
	HTTPBoot bool

	Firmware Firmware // empty is UEFI
	Memory   int      // in MiB; 0 is 2048
	CPUs     int      // 0 is 2, or 1 where Secure Boot's firmware runs in software
	Accel    Accel    // empty is AccelAuto

	// NICs are its network interfaces; none are one on QEMU's own network, which
	// reaches out but can't be reached. NoNetwork is for none at all.
	NICs      []NIC
	NoNetwork bool
	// Namespace is the network namespace to run in, the path of a file such as
	// /run/netns/NAME, where its taps are.
	Namespace string

	// Console gets all that the guest writes to its first serial port, as it
	// comes. Line gets it line by line, without what moves a terminal's cursor.
	Console io.Writer
	Line    func(string)
	// Note is told what isn't as one might expect: that KVM isn't used, and why.
	Note func(string)

	// Run runs programs that come back at once; nil is the usual one.
	Run run.Runner
}

// DataDisk is a disk beside the one that a machine boots from.
type DataDisk struct {
	// Path is its file and Format that one's format, raw by default. Empty is a
	// new, empty disk of Size bytes that is gone with the machine.
	Path, Format string
	Size         int64
	Serial       string // may be empty
	// WWN is its worldwide name, 0x and 16 hexadecimal digits, or empty. Disks
	// that have one, or a serial of more than 20 characters, are SCSI's: the guest
	// finds these as sda and so on.
	WWN string
}

// NIC is a network interface.
type NIC struct {
	MAC string // empty is QEMU's choice
	// Tap is the name of a tap interface that exists where the machine runs.
	// Empty is QEMU's own network.
	Tap string
	// Network and Gateway are the addresses of QEMU's own network, and what it
	// calls itself there, for hosts whose addresses are fixed. By default that
	// is 10.0.2.0/24 and 10.0.2.2.
	Network netip.Prefix
	Gateway netip.Addr
	// DNS is where it answers for this machine's resolver, and Lease the first
	// address that it leases. By default these are the network's third and
	// fifteenth.
	DNS, Lease netip.Addr
}

// serialName is what a disk's serial may be. QEMU would cut a longer one: one of
// virtio's after 20 characters.
var serialName = lazyregexp.New(`^[0-9A-Za-z._-]{0,36}$`)

const virtioSerial = 20

var (
	wwnName = lazyregexp.New(`^0x[0-9A-Fa-f]{16}$`)
	macName = lazyregexp.New(`^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$`)
	tapName = lazyregexp.New(`^[0-9A-Za-z._-]{1,15}$`)
)

func (m *Machine) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Disk == "" {
		bad("a machine needs a disk")
	}
	for _, format := range append([]string{m.Format}, formats(m.DataDisks)...) {
		if format != "" && format != "raw" && format != "qcow2" {
			bad("a disk of the format %q can't be booted: it's raw or qcow2", format)
		}
	}
	if m.Kernel == "" && (m.Initrd != "" || m.Arguments != "") {
		bad("an initrd and arguments are a kernel's, and there is none")
	}
	if m.Kernel != "" && m.Firmware != BIOS {
		bad("a kernel can only be started at once with the firmware %s", BIOS)
	}
	if m.HTTPBoot && (!m.Netboot || m.Firmware == BIOS) {
		bad("HTTP is a way of UEFI's to boot from the network")
	}
	if m.Netboot && (m.Kernel != "" || m.NoNetwork) {
		bad("a machine without a network, or that is given a kernel, can't boot from the network")
	}
	if m.DiskSize != 0 && !m.Snapshot {
		bad("only a snapshot of a disk can be given a size")
	}
	if m.Memory < 0 || m.CPUs < 0 {
		bad("a machine can't have %d MiB and %d CPUs", m.Memory, m.CPUs)
	}
	if !serialName().MatchString(m.DiskSerial) || len(m.DiskSerial) > virtioSerial {
		bad("%q can't be the serial of the disk that it boots: at most %d letters, digits and ._- can", m.DiskSerial, virtioSerial)
	}
	for _, d := range m.DataDisks {
		if !serialName().MatchString(d.Serial) {
			bad("%q can't be a disk's serial: at most 36 letters, digits and ._- can", d.Serial)
		}
		if d.WWN != "" && !wwnName().MatchString(d.WWN) {
			bad("%q can't be a disk's WWN: 0x and 16 hexadecimal digits can", d.WWN)
		}
		if d.Path == "" && d.Size <= 0 {
			bad("a new disk needs a size")
		}
	}
	for _, n := range m.NICs {
		if n.MAC != "" && !macName().MatchString(n.MAC) {
			bad("%q isn't a MAC address", n.MAC)
		}
		if n.Tap != "" && !tapName().MatchString(n.Tap) {
			bad("%q can't be an interface", n.Tap)
		}
		if n.Network.IsValid() && !n.Network.Addr().Is4() {
			bad("QEMU's own network is one of IPv4, not %s", n.Network)
		}
	}
	for _, f := range m.Files {
		if !guestPath().MatchString(f.Path) {
			bad("%q can't be a file of a guest: an absolute path of letters, digits and _.@+- can", f.Path)
		}
	}
	return errors.Join(errs...)
}

func formats(disks []DataDisk) []string {
	var f []string
	for _, d := range disks {
		f = append(f, d.Format)
	}
	return f
}

// Start boots the machine. It lives until ctx ends, Stop is called, or the
// guest switches it off.
func (m *Machine) Start(ctx context.Context) (*Running, error) {
	name := "booting " + m.Disk
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := os.Stat(m.Disk); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := lookPath(qemuProgram, qemuInstall); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	firmware, err := m.firmware().find(os.DirFS("/"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r, err := m.boot(ctx, firmware, newProber(m.Run))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// boot boots the machine with the acceleration that is wanted, or the best one that
// works.
func (m *Machine) boot(ctx context.Context, firmware pair, p prober) (*Running, error) {
	accel, why, err := p.choose(ctx, m.Accel)
	if err != nil {
		return nil, err
	}
	note := func(why string) {
		if why != "" && m.Note != nil {
			m.Note("the guest runs in software, which is slow: " + why)
		}
	}
	note(why)
	r, err := m.start(ctx, firmware, accel)
	if err == nil && accel == AccelKVM && m.Accel != AccelKVM {
		err = r.wakes(ctx, wakeTime)
	}
	if err == nil || accel != AccelKVM || m.Accel == AccelKVM || ctx.Err() != nil {
		return r, err
	}
	// Was it KVM? The smallest guest has less that can be missing.
	soft, otherwise := m.start(ctx, firmware, AccelTCG)
	if otherwise != nil {
		return nil, err
	}
	why = fmt.Sprintf("it didn't come to life with KVM: %v", err)
	p.keep(verdict{Why: why})
	note(why)
	return soft, nil
}

// start boots the machine with an acceleration.
func (m *Machine) start(ctx context.Context, firmware pair, accel Accel) (*Running, error) {
	r, err := newRunning(ctx, m.Console, m.Line)
	if err != nil {
		return nil, err
	}
	files, err := m.prepare(r.ctx, r.dir, firmware)
	if err != nil {
		r.abandon()
		return nil, err
	}
	if err := r.startMachine(m.command(files, accel)); err != nil {
		return nil, err
	}
	return r, nil
}

func (m *Machine) firmware() Firmware {
	if m.Firmware == "" {
		return UEFI
	}
	return m.Firmware
}

// files are those that a machine is made of. Sockets are below dir.
type files struct {
	dir          string
	code, vars   string // empty with a BIOS
	disk, format string
	data         []DataDisk // all have a path
	seed         string     // empty for none
}

// prepare makes the files that live as long as the machine.
func (m *Machine) prepare(ctx context.Context, dir string, firmware pair) (files, error) {
	f := files{dir: dir, code: firmware.code, disk: m.Disk, format: orRaw(m.Format)}
	if firmware.vars != "" {
		f.vars = filepath.Join(dir, "vars.fd")
		b, err := os.ReadFile(firmware.vars)
		if err == nil {
			err = os.WriteFile(f.vars, b, 0o600)
		}
		if err != nil {
			return files{}, fmt.Errorf("copying the firmware's variables: %w", err)
		}
	}
	if m.Snapshot {
		f.disk, f.format = filepath.Join(dir, "disk.qcow2"), "qcow2"
		if err := Overlay(ctx, m.Run, m.Disk, m.Format, f.disk, m.DiskSize); err != nil {
			return files{}, err
		}
	}
	for i, d := range m.DataDisks {
		d.Format = orRaw(d.Format)
		if d.Path == "" {
			d.Path, d.Format = filepath.Join(dir, fmt.Sprintf("data%d", i)), "raw"
			if err := sparse(d.Path, d.Size); err != nil {
				return files{}, fmt.Errorf("making a data disk: %w", err)
			}
		}
		f.data = append(f.data, d)
	}
	if m.NoSeed {
		return f, nil
	}
	seed, err := reporting(m.Seed, m.Units, m.Files...)
	if err != nil {
		return files{}, err
	}
	volume, err := render.SeedVolume(seed)
	if err != nil {
		return files{}, err
	}
	f.seed = filepath.Join(dir, "seed.img")
	if err := os.WriteFile(f.seed, volume, 0o600); err != nil {
		return files{}, fmt.Errorf("writing the seed: %w", err)
	}
	return f, nil
}

func orRaw(format string) string {
	if format == "" {
		return "raw"
	}
	return format
}

// sparse makes a file of zeros that takes no space yet.
func sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Overlay makes a qcow2 at path that has what disk has, and takes what is
// written instead of it. size, in bytes, is its own where that isn't 0.
func Overlay(ctx context.Context, r run.Runner, disk, format, path string, size int64) error {
	base, err := filepath.Abs(disk)
	if err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", "qcow2", "-F", orRaw(format), "-b", base, path}
	if size > 0 {
		args = append(args, fmt.Sprint(size))
	}
	if err := r.Run(ctx, run.Command{Name: "qemu-img", Args: args, Install: imgInstall}); err != nil {
		return fmt.Errorf("laying a snapshot over %s: %w", disk, err)
	}
	return nil
}
