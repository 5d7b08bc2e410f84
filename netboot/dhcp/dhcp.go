// Package dhcp answers the firmware of registered hosts, so that they boot from
// the network. It never answers anybody else.
//
// A machine that boots from the network asks DHCP for two things: an address, and
// what to boot. The two may come from two servers. So there are two modes:
//
//   - Proxy leaves addresses to the network's own DHCP server, and answers beside
//     it with what to boot: a "proxy offer" gives no address (PXE 2.1, 2.2.3). A
//     firmware joins both answers. Some ask a second time for what to boot, at
//     port 4011, and give up with PXE-E55 if nobody is there.
//   - Full gives addresses, too: for a lab that has no other DHCP server.
//
// In both, a relay may bring requests from other networks (RFC 2131, 4.1; option
// 82 is its own, RFC 3046).
//
// What a firmware gets depends on what it says it is:
//
//	option 60     option 93      option 77   it gets
//	PXEClient     0: BIOS                    undionly.kpxe, by TFTP
//	PXEClient     7, 9: UEFI                 snponly.efi, by TFTP
//	HTTPClient    16: UEFI                   the URL of snponly.efi
//	PXEClient     0, 7, 9, 16    iPXE        the URL of its host's script
//	none of them                             nothing; in full mode, an address
//
// The first three lead to the fourth: iPXE, once started, asks again. An iPXE in
// the machine's own ROM that can't do HTTP (option 175 has what it can) is sent
// through undionly.kpxe or snponly.efi as other firmware is; if that leads back to
// the same place three times, it is left alone.
//
// snponly.efi uses the firmware's own driver of the card that booted, so that it
// doesn't have to initialise others. Either iPXE waits for an IPv6 router before it
// goes on: 16 seconds, where the network has none. That is in the distribution's
// program, before anything that it is sent from here.
//
// Nothing here decides whether a host is installed: its script does.
package dhcp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/alisw/kiln/netboot"
)

// Ports of UDP. Clients and relays know no others.
const (
	portServer = 67
	portClient = 68
	portBoot   = 4011 // for what to boot alone
)

// The defaults of a Server.
const (
	DefaultHTTPPort  = 8080
	DefaultBIOSFile  = "undionly.kpxe"
	DefaultEFIFile   = "snponly.efi"
	DefaultLeaseTime = time.Hour
)

// Mode is what a server gives.
type Mode int

// The modes.
const (
	Proxy Mode = iota // what to boot, beside another server that gives addresses
	Full              // both
)

func (m Mode) String() string {
	if m == Full {
		return "full"
	}
	return "proxy"
}

// Server answers DHCP. Its zero value is a proxy on all interfaces that knows no
// host, and so is silent: see SetHosts. Fields aren't to be changed once it runs.
type Server struct {
	Mode Mode
	// Interfaces are the names of those it listens on. None: all that are up, not
	// the loopback, and have an IPv4 address when it starts.
	Interfaces []string
	// Address is what clients are told to reach the server at, over TFTP, HTTP and
	// DHCP. The zero value: the address that a packet came to, or the interface's.
	Address netip.Addr
	// HTTPPort is where boot files and scripts are served; 0 is DefaultHTTPPort.
	HTTPPort uint16
	// BIOSFile and EFIFile are iPXE for either firmware, as TFTP has them; EFIFile is
	// also served over HTTP, see EFIURL. Empty: the defaults, of Debian's package ipxe.
	BIOSFile, EFIFile string
	// Ranges are the addresses given in full mode, one range a network at most.
	Ranges []Range
	// StateDir keeps the leases of full mode, in a file leases.json.
	StateDir string
	// LeaseTime is how long a lease is good for; 0 is DefaultLeaseTime.
	LeaseTime time.Duration
	// Log is nil for slog.Default().
	Log *slog.Logger
	// Counters count all that comes in.
	Counters Counters
	// Seen, if not nil, is told of each packet of an unknown machine that wants to
	// boot. It must return soon, and bound what it keeps, as Sightings does.
	Seen func(Unknown)
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	hosts  atomic.Pointer[netboot.Hosts]
	told   netboot.Told[[6]byte] // unknown machines
	leases leases
	chains chains
	faces  []*face
}

// Range is a range of addresses, for one network.
type Range struct {
	First, Last netip.Addr
	// Network is the one that the addresses belong to. The zero value: that of the
	// interface whose network has them. Relayed requests need it: they come from the
	// network that has the relay's address.
	Network netip.Prefix
	// Gateway and DNS are told to clients whose inventory has none; may be empty.
	Gateway netip.Addr
	DNS     []netip.Addr
}

// maxRange bounds a search for a free address.
const maxRange = 1 << 16

// ParseRange reads FIRST-LAST, such as 10.0.0.100-10.0.0.200, with the length of
// the network's prefix behind it where no interface has it: …200/24.
func ParseRange(s string) (Range, error) {
	bad := func(why string) (Range, error) {
		return Range{}, fmt.Errorf("range %q: %s: write it as 10.0.0.100-10.0.0.200, or 10.0.0.100-10.0.0.200/24", s, why)
	}
	first, rest, ok := strings.Cut(s, "-")
	if !ok {
		return bad("there is no dash between two addresses")
	}
	last, _, hasBits := strings.Cut(rest, "/")
	var r Range
	var err error
	if r.First, err = netip.ParseAddr(first); err != nil {
		return bad(fmt.Sprintf("%q is no address", first))
	}
	if r.Last, err = netip.ParseAddr(last); err != nil {
		return bad(fmt.Sprintf("%q is no address", last))
	}
	if hasBits {
		p, err := netip.ParsePrefix(rest)
		if err != nil {
			return bad(fmt.Sprintf("%q is no address with a prefix's length", rest))
		}
		r.Network = p.Masked()
	}
	if err := r.check(); err != nil {
		return Range{}, err
	}
	return r, nil
}

// check says what is wrong with a range.
func (r Range) check() error {
	name := r.First.String() + "-" + r.Last.String()
	switch {
	case !r.First.Is4() || !r.Last.Is4():
		return fmt.Errorf("range %s: DHCP gives IPv4 addresses alone", name)
	case r.Last.Less(r.First):
		return fmt.Errorf("range %s ends before it begins: swap the two addresses", name)
	case r.size() > maxRange:
		return fmt.Errorf("range %s has %d addresses: %d are the most", name, r.size(), maxRange)
	case r.Network.IsValid() && !(r.Network.Contains(r.First) && r.Network.Contains(r.Last)):
		return fmt.Errorf("range %s isn't within its network %s", name, r.Network)
	}
	return nil
}

func (r Range) size() int { return int(number(r.Last)-number(r.First)) + 1 }

func (r Range) contains(a netip.Addr) bool {
	return a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// SetHosts says which hosts are registered from now on. If hosts has a method
// ByAddress, as netboot.Inventory does, full mode gives no host another's address.
// It may be called while the server runs.
func (s *Server) SetHosts(hosts netboot.Hosts) { s.hosts.Store(&hosts) }

func (s *Server) url(at Where, path string) string {
	port := s.HTTPPort
	if port == 0 {
		port = DefaultHTTPPort
	}
	return "http://" + netip.AddrPortFrom(at.Address, port).String() + path
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.Default()
	}
	return s.Log
}

func (s *Server) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Server) leaseTime() time.Duration {
	if s.LeaseTime <= 0 {
		return DefaultLeaseTime
	}
	return s.LeaseTime
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
