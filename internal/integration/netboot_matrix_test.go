//go:build integration && matrix

package integration

import (
	"fmt"
	"testing"

	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/netboot/state"
)

// way is one way for a machine to be installed.
type way struct {
	firmware booting.Firmware
	http     bool // UEFI's HTTP boot, not PXE
	old      bool // over an older installation
}

func (w way) String() string {
	how, disk := "PXE", "blank disk"
	if w.http {
		how = "HTTP"
	}
	if w.old {
		disk = "older installation"
	}
	return fmt.Sprintf("%s, %s, %s", w.firmware, how, disk)
}

// TestNetbootMatrix installs machines in each way that there is: kind of firmware,
// PXE or HTTP, beside the network's own DHCP server or as it, on an empty disk or
// over an older installation; two at a time, each from power-on to ready.
func TestNetbootMatrix(t *testing.T) {
	pairs := [][2]way{
		{{booting.BIOS, false, false}, {booting.UEFI, false, true}},
		{{booting.BIOS, false, true}, {booting.UEFI, false, false}},
		{{booting.UEFI, true, false}, {booting.UEFI, true, true}},
	}
	for _, mode := range []string{"proxy DHCP", "full DHCP"} {
		t.Run(mode, func(t *testing.T) {
			n := newNetbootLab(t)
			if mode == "proxy DHCP" {
				n.dnsmasq(t)
				n.serve(t, "--proxy-dhcp")
			} else {
				n.serve(t, "--dhcp", "10.66.0.200-10.66.0.220")
			}
			for _, pair := range pairs {
				t.Run("two", func(t *testing.T) {
					n.arm(t, "net01", "net02")
					for i, w := range pair {
						t.Run(w.String(), func(t *testing.T) {
							t.Parallel()
							n.once(t, w, fmt.Sprintf("net0%d", i+1), fmt.Sprintf("52:54:00:66:00:3%d", i+1))
						})
					}
				})
			}
			n.sniffer.check(t)
		})
	}
}

// once installs a machine, and wants it ready.
func (n *netbootLab) once(t *testing.T, w way, host, mac string) {
	disk := blank(t, 8<<30)
	if w.old {
		disk = oldInstallation(t)
	}
	data := booting.DataDisk{Size: 2 << 30, Serial: "DATA1"}
	if host == "net02" {
		data = booting.DataDisk{Size: 8 << 30, Serial: "OTHER"}
	}
	m := n.machine(t, host, mac, w.firmware, disk, data)
	m.HTTPBoot = w.http
	if host == "net02" {
		m.DiskSerial = "ROOT2"
	}
	running, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer running.Kill()
	n.until(t, host, state.Ready, running)
}
