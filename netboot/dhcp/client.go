package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/plan"
)

// Options that the library has no names for.
const (
	optionPXE   = 43 // vendor-specific: of PXE
	optionClass = 60 // who asks: PXEClient:Arch:00007:UNDI:003016
	optionUser  = 77
	optionArch  = 93
	optionUUID  = 97
	optionIPXE  = 175
)

// Sub-options of option 43, as PXE 2.1 has them, and of option 175, as iPXE does.
const (
	pxeDiscovery = 6  // how to find boot servers…
	pxeUseFile   = 8  // …not at all: take the file that is named
	pxeItem      = 71 // the boot item that the client wants of a boot server
	ipxeHTTP     = 19 // it can do HTTP
	ipxeNoProxy  = 176
)

// arch is a client's architecture, of the numbers that IANA keeps for option 93.
type arch uint16

const (
	archBIOS    arch = 0
	archEFI     arch = 7 // "EBC" on paper, x86-64 in fact
	archEFI64   arch = 9 // x86-64 on paper
	archEFIHTTP arch = 16
)

var archNames = map[arch]string{
	archBIOS: "BIOS", 6: "UEFI x86", archEFI: "UEFI x86-64", archEFI64: "UEFI x86-64", 10: "UEFI ARM 32", 11: "UEFI ARM 64",
	15: "UEFI x86 HTTP", archEFIHTTP: "UEFI x86-64 HTTP", 18: "UEFI ARM 32 HTTP", 19: "UEFI ARM 64 HTTP", 27: "UEFI RISC-V 64",
}

func (a arch) String() string {
	if name, ok := archNames[a]; ok {
		return name
	}
	return fmt.Sprintf("architecture %d", uint16(a))
}

// macOf is the MAC of a packet that a client may have sent, without reading the
// rest of it: most packets of a network are of no interest.
func macOf(packet []byte) (mac [6]byte, ok bool) {
	const cookie = 236
	if len(packet) < cookie+4 || packet[0] != 1 || packet[1] != 1 || packet[2] != 6 || string(packet[cookie:cookie+4]) != "\x63\x82\x53\x63" {
		return mac, false
	}
	return [6]byte(packet[28:34]), true
}

func planMAC(mac [6]byte) plan.MAC {
	const digits = "0123456789abcdef"
	b := [17]byte{2: ':', 5: ':', 8: ':', 11: ':', 14: ':'}
	for i, x := range mac {
		b[3*i], b[3*i+1] = digits[x>>4], digits[x&15]
	}
	return plan.MAC(b[:])
}

// client is what a request says of whoever sent it.
type client struct {
	gives Kind   // what it should get; Lease: it doesn't boot from the network
	class string // PXEClient, HTTPClient or nothing
	arch  arch
	ipxe  bool
}

// classify reads who asks, and why it can't be served, if it can't.
func classify(p *dhcpv4.DHCPv4) (client, Reason) {
	c := client{gives: Lease}
	vendor := p.Options.Get(dhcpv4.GenericOptionCode(optionClass))
	for _, class := range []string{"PXEClient", "HTTPClient"} {
		if bytes.HasPrefix(vendor, []byte(class)) {
			c.class = class
		}
	}
	c.ipxe = isIPXE(p.Options.Get(dhcpv4.GenericOptionCode(optionUser)))
	if c.class == "" && !c.ipxe {
		return c, 0
	}
	archs := archsOf(p, vendor)
	c.arch = archs[0]
	for _, a := range archs {
		gives := Lease
		switch {
		case c.ipxe && (a == archBIOS || a == archEFI || a == archEFI64 || a == archEFIHTTP):
			gives = Script
		case c.class == "HTTPClient" && (a == archEFIHTTP || a == archEFI || a == archEFI64):
			gives = HTTP
		case c.class == "PXEClient" && a == archBIOS:
			gives = BIOS
		case c.class == "PXEClient" && (a == archEFI || a == archEFI64):
			gives = EFI
		}
		if gives != Lease {
			c.gives, c.arch = gives, a
			break
		}
	}
	if c.gives == Lease {
		return c, OtherArchitecture
	}
	if c.gives == Script && lacksHTTP(p.Options.Get(dhcpv4.GenericOptionCode(optionIPXE))) {
		c.gives = EFI
		if c.arch == archBIOS {
			c.gives = BIOS
		}
	}
	return c, 0
}

// isIPXE reads option 77, which iPXE writes as it is, and RFC 3004 as strings that
// have their length in front.
func isIPXE(user []byte) bool {
	if string(user) == "iPXE" {
		return true
	}
	for len(user) > 0 {
		n := int(user[0])
		if n == 0 || n >= len(user) {
			return false
		}
		if string(user[1:1+n]) == "iPXE" {
			return true
		}
		user = user[1+n:]
	}
	return false
}

// archsOf are a client's architectures, of which there is one at least. A client
// without option 93 may have it in option 60; if not, it is an old BIOS.
func archsOf(p *dhcpv4.DHCPv4, vendor []byte) []arch {
	var archs []arch
	for b := p.Options.Get(dhcpv4.GenericOptionCode(optionArch)); len(b) >= 2 && len(archs) < 8; b = b[2:] {
		archs = append(archs, arch(binary.BigEndian.Uint16(b)))
	}
	if len(archs) > 0 {
		return archs
	}
	if _, rest, ok := strings.Cut(string(vendor), ":Arch:"); ok && len(rest) >= 5 {
		n := 0
		for _, d := range []byte(rest[:5]) {
			if d < '0' || d > '9' {
				return []arch{0xffff}
			}
			n = 10*n + int(d-'0')
		}
		return []arch{arch(min(n, 0xffff))}
	}
	return []arch{archBIOS}
}

// lacksHTTP tells whether an iPXE says what it can do, and HTTP isn't in it.
func lacksHTTP(features []byte) bool {
	if len(features) == 0 {
		return false
	}
	_, ok := subOption(features, ipxeHTTP)
	return !ok
}

// subOption finds a sub-option of an option that has such.
func subOption(b []byte, code byte) ([]byte, bool) {
	for len(b) > 0 && b[0] != 255 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return nil, false
		}
		if b[0] == code {
			return b[2 : 2+int(b[1])], true
		}
		b = b[2+int(b[1]):]
	}
	return nil, false
}

// chains knows how often an iPXE that can't do HTTP was sent to another one.
type chains struct {
	mu sync.Mutex
	m  map[[6]byte]chain
}

type chain struct {
	start time.Time
	last  dhcpv4.TransactionID
	n     int
}

const (
	maxChain  = 3               // boots
	chainTime = 2 * time.Minute // in that time
	maxChains = 4096            // clients
)

// loops tells whether a client was sent there too often, and counts this time.
func (c *chains) loops(mac [6]byte, id dhcpv4.TransactionID, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.m[mac]
	if now.Sub(k.start) > chainTime {
		k = chain{start: now}
	}
	if k.n == 0 || k.last != id {
		k.n, k.last = k.n+1, id
	}
	if c.m == nil || len(c.m) >= maxChains {
		c.m = map[[6]byte]chain{}
	}
	c.m[mac] = k
	return k.n > maxChain
}
