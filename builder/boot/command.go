package boot

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/alisw/kiln/internal/run"
)

// command is QEMU's, from the machine's files.
func (m *Machine) command(f files, accel Accel) run.Command {
	args := append([]string{"-no-user-config", "-nodefaults", "-display", "none"}, m.board(accel)...)
	if m.firmware() == SecureBoot {
		// Without these a guest could rewrite the firmware's variables.
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
	}
	if f.code != "" {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+option(f.code),
			"-drive", "if=pflash,unit=1,format=raw,file="+option(f.vars))
	}
	if m.Kernel != "" {
		args = append(args, "-kernel", m.Kernel, "-append", m.Arguments)
	}
	if m.Initrd != "" {
		args = append(args, "-initrd", m.Initrd)
	}
	first := ",bootindex=0"
	switch {
	case m.Kernel != "":
		first = "" // that's the kernel
	case m.Netboot:
		first = ",bootindex=1"
	}
	if m.DiskSerial != "" {
		first += ",serial=" + m.DiskSerial
	}
	args = append(args, disk("disk", f.disk, f.format, "virtio-blk-pci", first)...)
	args = append(args, dataDisks(f.data)...)
	if f.seed != "" {
		args = append(args,
			"-drive", "if=none,id=seed,format=raw,readonly=on,file="+option(f.seed),
			"-device", "virtio-blk-pci,drive=seed,serial=kiln-seed")
	}
	args = append(args, m.network()...)
	socket := func(name string) string { return "path=" + option(filepath.Join(f.dir, name)) + ",server=off" }
	args = append(args,
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=console,"+socket(consoleSocket), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,"+socket(agentSocket), "-device", "virtserialport,chardev=agent,name=org.kiln.boot",
		"-chardev", "socket,id=monitor,"+socket(monitorSocket), "-mon", "chardev=monitor,mode=control")
	c := run.Command{Name: qemuProgram, Args: args, Install: qemuInstall}
	if m.Namespace != "" {
		c.Name, c.Args = "nsenter", append([]string{"--net=" + m.Namespace, "--", qemuProgram}, args...)
		c.Install = "the package util-linux has it"
	}
	return c
}

// board is what a machine consists of besides its devices.
func (m *Machine) board(accel Accel) []string {
	memory, cpus := m.Memory, m.CPUs
	if memory == 0 {
		memory = 2048
	}
	if cpus == 0 {
		cpus = 2
		if m.firmware() == SecureBoot && accel == AccelTCG {
			// Its firmware keeps all others waiting at each step, which takes minutes.
			cpus = 1
		}
	}
	machine := "q35,graphics=off"
	if m.firmware() == SecureBoot {
		machine += ",smm=on"
	}
	how, cpu := accel.how()
	return []string{
		"-machine", machine, "-accel", how, "-cpu", cpu,
		"-m", fmt.Sprint(memory), "-smp", fmt.Sprint(cpus),
	}
}

func disk(id, path, format, device, more string) []string {
	return []string{
		"-drive", "if=none,id=" + id + ",format=" + format + ",discard=unmap,file=" + option(path),
		"-device", device + ",drive=" + id + more,
	}
}

func dataDisks(disks []DataDisk) []string {
	var args []string
	controller := false
	for i, d := range disks {
		device, more := "virtio-blk-pci", ""
		if d.Serial != "" {
			more += ",serial=" + d.Serial
		}
		if d.WWN != "" {
			more += ",wwn=" + d.WWN
		}
		if d.WWN != "" || len(d.Serial) > virtioSerial {
			device = "scsi-hd"
			if !controller {
				args = append(args, "-device", "virtio-scsi-pci")
				controller = true
			}
		}
		args = append(args, disk(fmt.Sprintf("data%d", i), d.Path, d.Format, device, more)...)
	}
	return args
}

func (m *Machine) network() []string {
	nics := m.NICs
	if len(nics) == 0 && !m.NoNetwork {
		nics = []NIC{{}}
	}
	var args []string
	if m.HTTPBoot {
		for _, family := range []string{"IPv4", "IPv6"} {
			args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+family+"PXESupport,string=n")
		}
	}
	for i, n := range nics {
		id := fmt.Sprintf("net%d", i)
		backend := []string{"user", "id=" + id}
		if n.Tap != "" {
			backend = []string{"tap", "id=" + id, "ifname=" + n.Tap, "script=no", "downscript=no"}
		} else {
			if n.Network.IsValid() {
				backend = append(backend, "net="+n.Network.Masked().String())
			}
			for _, a := range []struct {
				option string
				addr   netip.Addr
			}{{"host", n.Gateway}, {"dns", n.DNS}, {"dhcpstart", n.Lease}} {
				if a.addr.IsValid() {
					backend = append(backend, a.option+"="+a.addr.String())
				}
			}
		}
		device := "virtio-net-pci,netdev=" + id
		switch {
		case !m.Netboot:
			device += ",romfile=" // no ROM: nothing boots from the network here
		case i == 0:
			device += ",bootindex=0"
		}
		if n.MAC != "" {
			device += ",mac=" + strings.ToLower(n.MAC)
		}
		args = append(args, "-netdev", strings.Join(backend, ","), "-device", device)
	}
	return args
}
