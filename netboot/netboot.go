// Package netboot has what those who boot hosts from the network know of them:
// its packages answer DHCP (dhcp), TFTP (tftp) and HTTP (web), keep where each
// installation is (state), and write the image to the disk (installer).
//
// A host's way, with a BIOS or UEFI, from power-on:
//
//  1. Its firmware asks DHCP for an address and a boot file. Kiln answers a
//     registered MAC with iPXE's name, beside the network's own DHCP server or
//     instead of it; nobody else gets an answer.
//  2. The firmware fetches iPXE over TFTP, or over HTTP, and starts it.
//  3. iPXE asks DHCP again, says who it is, and gets the URL of the host's script.
//  4. The script is where it is decided: only a host that is armed gets kernel,
//     initramfs and a one-time token; any other is sent to its own disk.
//  5. The installer redeems the token over HTTPS, waits for its turn, writes the
//     image, and says so; then the host is disarmed, and restarts.
//  6. It boots from its disk, and is ready once the cluster has it.
package netboot

import (
	"net/netip"
	"strings"

	"github.com/alisw/kiln/plan"
)

// PathIPXE is where the plain HTTP server has iPXE's programs, which UEFI boots over
// HTTP.
const PathIPXE = "/ipxe/"

// ScriptPath is the path, on the plain HTTP server, of the script that iPXE is sent
// to for an interface.
func ScriptPath(mac plan.MAC) string {
	return "/boot/" + strings.ReplaceAll(string(mac), ":", "-") + "/script.ipxe"
}

// Host is what network booting has to know of a registered host.
type Host struct {
	Name       string // as in the inventory, fully qualified where the site has a domain
	Profile    string
	Definition string // the image definition's name
	// NICs are its interfaces that have a MAC: any of them may boot.
	NICs []NIC
	// Install is the rule for the disk that the image is written to; the zero
	// rule takes the only disk that is no data disk.
	Install plan.DiskRule
	// Data are the rules of disks that keep every byte.
	Data []plan.DiskRule
}

// NIC is an interface of a host.
type NIC struct {
	MAC plan.MAC
	// Addresses, Gateways and DNS are what the inventory has; all may be empty.
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	DNS       []netip.Addr
}

// Hosts finds registered hosts. It doesn't change: a changed site is another one.
// All methods may be called at the same time.
type Hosts interface {
	// ByMAC finds the host that has an interface of that MAC.
	ByMAC(mac plan.MAC) (*Host, bool)
	// ByName finds a host by its name, short or fully qualified.
	ByName(name string) (*Host, bool)
}
