package dhcp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/plan"
)

// Unknown is a machine that wants to boot from the network, and isn't registered.
// What it says of itself, anybody may have sent: it is cut and made printable.
type Unknown struct {
	MAC      plan.MAC   `json:"mac"`
	Vendor   string     `json:"vendor"`         // option 60: PXEClient:Arch:00007:UNDI:003016
	Firmware string     `json:"firmware"`       // "UEFI x86-64", "BIOS"
	UUID     string     `json:"uuid,omitempty"` // of SMBIOS
	Relay    netip.Addr `json:"relay,omitzero"` // that brought the request
	Time     time.Time  `json:"time"`           // when it asked last
}

// strange tells the log, and Seen, of an unknown machine that wants to boot: the log
// has its first packet, and others only if it has all there is.
func (s *Server) strange(packet []byte, mac [6]byte) {
	if mac[0]&1 != 0 || mac == [6]byte{} {
		return
	}
	if s.Seen != nil {
		s.see(packet, mac)
	}
	// Parsing it all would cost too much for what nobody will be told.
	if !bytes.Contains(packet, []byte("PXEClient")) && !bytes.Contains(packet, []byte("HTTPClient")) {
		return
	}
	first, last := s.told.First(mac, s.now())
	level := slog.LevelDebug
	if first {
		level = slog.LevelInfo
	}
	l := s.log()
	if !l.Enabled(context.Background(), level) {
		return
	}
	l.Log(context.Background(), level, "dhcp: not answered: a machine that isn't in the inventory wants to boot", "mac", string(planMAC(mac)))
	if last {
		l.Info("dhcp: many such machines have asked: no more of them are logged for a day; the metrics count their packets")
	}
}

// see tells Seen of an unknown machine.
func (s *Server) see(packet []byte, mac [6]byte) {
	p, err := dhcpv4.FromBytes(packet)
	if err != nil {
		return
	}
	c, _ := classify(p)
	if c.class == "" && !c.ipxe {
		return
	}
	u := Unknown{MAC: planMAC(mac), Vendor: printable(p.Options.Get(dhcpv4.GenericOptionCode(optionClass))), Firmware: c.arch.String(), Time: s.now()}
	if c.ipxe {
		u.Firmware += ", iPXE"
	}
	u.UUID = uuid(p.Options.Get(dhcpv4.GenericOptionCode(optionUUID)))
	if a := address(p.GatewayIPAddr); !a.IsUnspecified() {
		u.Relay = a
	}
	s.Seen(u)
}

// printable is text that a terminal and a page can show.
func printable(b []byte) string {
	const most = 64
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(b[:min(len(b), most)]))
}

// uuid reads option 97: a type, which is 0, and a UUID, whose first three parts
// SMBIOS has with their bytes in the other order.
func uuid(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	b = b[1:]
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:])
}

// Sightings keeps the unknown machines that asked last. The zero value is ready.
type Sightings struct {
	mu sync.Mutex
	m  map[plan.MAC]Unknown
}

// maxSightings bounds what is kept, since anybody can invent MACs.
const maxSightings = 1024

// Add keeps a machine; the one that was silent for longest may have to go for it.
func (s *Sightings) Add(u Unknown) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[plan.MAC]Unknown{}
	}
	if _, ok := s.m[u.MAC]; !ok && len(s.m) >= maxSightings {
		oldest := u
		for _, other := range s.m {
			if other.Time.Before(oldest.Time) {
				oldest = other
			}
		}
		delete(s.m, oldest.MAC)
		if len(s.m) >= maxSightings {
			return
		}
	}
	s.m[u.MAC] = u
}

// List is all that are kept, those that asked last first.
func (s *Sightings) List() []Unknown {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Unknown, 0, len(s.m))
	for _, u := range s.m {
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b Unknown) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.MAC, b.MAC))
	})
	return list
}
