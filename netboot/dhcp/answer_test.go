package dhcp

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/plan"
)

var update = flag.Bool("update", false, "write the golden files anew; the run fails all the same")

const (
	known   = "52:54:00:77:00:01" // of the captured packets
	unknown = "52:54:00:77:00:99"
)

// here is how packets come in, in these tests, unless they say otherwise.
var here = Where{
	Interface: "eth0", Address: netip.MustParseAddr("10.77.0.1"), Network: netip.MustParsePrefix("10.77.0.1/24"),
	From: netip.MustParseAddrPort("0.0.0.0:68"),
}

// clock is a time that tests move.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func nicOf(mac plan.MAC, addresses ...string) netboot.NIC {
	n := netboot.NIC{MAC: mac}
	for _, a := range addresses {
		n.Addresses = append(n.Addresses, netip.MustParsePrefix(a))
	}
	return n
}

// newServer has hosts with one interface each, build01 being of the MAC known.
func newServer(t testing.TB, mode Mode, nics ...netboot.NIC) (*Server, *clock) {
	t.Helper()
	if len(nics) == 0 {
		nics = []netboot.NIC{nicOf(known)}
	}
	var hosts []netboot.Host
	for i, n := range nics {
		hosts = append(hosts, netboot.Host{Name: fmt.Sprintf("build%02d.example.org", i+1), NICs: []netboot.NIC{n}})
	}
	in, err := netboot.NewHosts(hosts)
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	s := &Server{Mode: mode, Log: slog.New(slog.DiscardHandler), StateDir: t.TempDir(), Now: c.now}
	if mode == Full {
		s.Ranges = []Range{{First: netip.MustParseAddr("10.77.0.100"), Last: netip.MustParseAddr("10.77.0.109")}}
	}
	s.SetHosts(in)
	return s, c
}

// captured is a packet that real firmware has sent.
func captured(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/packets", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	_, digits, _ := strings.Cut(string(text), "\n")
	b, err := hex.DecodeString(strings.ReplaceAll(digits, "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func option(code uint8, value ...byte) dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), value)
}

func text(code uint8, value string) dhcpv4.Modifier { return option(code, []byte(value)...) }

// message makes a packet.
func message(t testing.TB, mac plan.MAC, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	hw, err := net.ParseMAC(string(mac))
	if err != nil {
		t.Fatal(err)
	}
	p, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(kind)}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p.ToBytes()
}

// dump is a packet for people. Where it has numbers that differ between runs,
// none is shown.
func dump(p *dhcpv4.DHCPv4) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %s\n", p.MessageType())
	for _, f := range []struct {
		name string
		ip   net.IP
	}{{"ciaddr", p.ClientIPAddr}, {"yiaddr", p.YourIPAddr}, {"siaddr", p.ServerIPAddr}, {"giaddr", p.GatewayIPAddr}} {
		if a := address(f.ip); !a.IsUnspecified() {
			fmt.Fprintf(&b, "  %s %s\n", f.name, a)
		}
	}
	fmt.Fprintf(&b, "  chaddr %s\n", p.ClientHWAddr)
	if p.IsBroadcast() {
		b.WriteString("  flags broadcast\n")
	}
	if p.BootFileName != "" {
		fmt.Fprintf(&b, "  file %s\n", p.BootFileName)
	}
	codes := []int{}
	for code := range p.Options {
		codes = append(codes, int(code))
	}
	slices.Sort(codes)
	for _, code := range codes {
		v := p.Options[uint8(code)]
		switch code {
		case optionClass, optionUser, 66, 67, 12, 15:
			fmt.Fprintf(&b, "  option %d %q\n", code, v)
		case 54, 50, 1, 3, 6:
			fmt.Fprintf(&b, "  option %d %s\n", code, net.IP(v))
		default:
			fmt.Fprintf(&b, "  option %d % x\n", code, v)
		}
	}
	return b.String()
}

// TestRealFirmware holds what is answered to packets that firmware has sent.
func TestRealFirmware(t *testing.T) {
	packets, err := filepath.Glob("testdata/packets/*.hex")
	if err != nil || len(packets) == 0 {
		t.Fatal(err, "no packets")
	}
	for _, mode := range []Mode{Proxy, Full} {
		for _, path := range packets {
			name := strings.TrimSuffix(filepath.Base(path), ".hex")
			t.Run(name+","+mode.String(), func(t *testing.T) {
				packet := captured(t, name)
				at := here
				if strings.HasSuffix(name, "-boot") {
					at.Boot, at.From = true, netip.MustParseAddrPort("10.77.0.80:4011")
				}
				s, _ := newServer(t, mode)
				req, err := dhcpv4.FromBytes(packet)
				if err != nil {
					t.Fatal(err)
				}
				got := "request\n" + dump(req)
				if reply, why := s.Answer(packet, at); reply != nil {
					got += fmt.Sprintf("\nreply to %s: %s\n%s", reply.To, reply.Kind, dump(again(t, reply)))
				} else {
					got += fmt.Sprintf("\nno reply: %s\n", why)
				}
				golden(t, filepath.Join("testdata/answers", name+"-"+mode.String()+".txt"), got)
			})
		}
	}
}

// again is a reply as its client reads it.
func again(t testing.TB, r *Reply) *dhcpv4.DHCPv4 {
	t.Helper()
	p, err := dhcpv4.FromBytes(r.Packet.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err == nil && string(want) == got {
		return
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("%s (%v) differs; look at it after: go test ./netboot/dhcp -update\ngot:\n%s", path, err, got)
}

// TestWhoGetsWhat goes through what clients say they are.
func TestWhoGetsWhat(t *testing.T) {
	const script = "http://10.77.0.1:8080/boot/52-54-00-77-00-01/script.ipxe"
	const discover = dhcpv4.MessageTypeDiscover
	for _, c := range []struct {
		name string
		with []dhcpv4.Modifier
		file string
		why  Reason
	}{
		{name: "BIOS", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:00000:UNDI:002001"), option(93, 0, 0)}, file: "undionly.kpxe"},
		{name: "BIOS, by its class", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:00000:UNDI:002001")}, file: "undionly.kpxe"},
		{name: "an old BIOS", with: []dhcpv4.Modifier{text(60, "PXEClient")}, file: "undionly.kpxe"},
		{name: "UEFI", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:00007:UNDI:003016"), option(93, 0, 7)}, file: "snponly.efi"},
		{name: "UEFI, 9", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 9)}, file: "snponly.efi"},
		{name: "UEFI, by its class", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:00007:UNDI:003016")}, file: "snponly.efi"},
		{name: "UEFI HTTP", with: []dhcpv4.Modifier{text(60, "HTTPClient:Arch:00016:UNDI:003001"), option(93, 0, 16)}, file: "http://10.77.0.1:8080/ipxe/snponly.efi"},
		{name: "several architectures", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 11, 0, 7)}, file: "snponly.efi"},
		{name: "UEFI x86", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 6)}, why: OtherArchitecture},
		{name: "ARM", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:00011:UNDI:003016"), option(93, 0, 11)}, why: OtherArchitecture},
		{name: "ARM HTTP", with: []dhcpv4.Modifier{text(60, "HTTPClient"), option(93, 0, 19)}, why: OtherArchitecture},
		{name: "iPXE on ARM", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 11), text(77, "iPXE")}, why: OtherArchitecture},
		{name: "a class that makes no sense", with: []dhcpv4.Modifier{text(60, "PXEClient:Arch:x0000:UNDI:003016")}, why: OtherArchitecture},
		{name: "iPXE", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 0), text(77, "iPXE"), option(175, 19, 1, 1)}, file: script},
		{name: "iPXE, UEFI", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 7), text(77, "iPXE")}, file: script},
		{name: "iPXE, as RFC 3004", with: []dhcpv4.Modifier{option(93, 0, 7), text(77, "\x03abc\x04iPXE")}, file: script},
		{name: "iPXE without HTTP", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 0), text(77, "iPXE"), option(175, 21, 1, 1)}, file: "undionly.kpxe"},
		{name: "iPXE without HTTP, UEFI", with: []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 7), text(77, "iPXE"), option(175, 21, 1, 1)}, file: "snponly.efi"},
		{name: "Linux", with: []dhcpv4.Modifier{text(60, "udhcp 1.35.0")}, why: NotBooting},
		{name: "nothing", why: NotBooting},
		{name: "another user class", with: []dhcpv4.Modifier{text(77, "iPXE2")}, why: NotBooting},
	} {
		s, _ := newServer(t, Proxy)
		r, why := s.Answer(message(t, known, discover, c.with...), here)
		if why != c.why || (r == nil) != (c.file == "") {
			t.Errorf("%s: %s, reply %v", c.name, why, r)
			continue
		}
		if r == nil {
			continue
		}
		p := again(t, r)
		if p.BootFileName != c.file || p.BootFileNameOption() != c.file {
			t.Errorf("%s: boots %q and %q, not %q", c.name, p.BootFileName, p.BootFileNameOption(), c.file)
		}
		if !p.YourIPAddr.IsUnspecified() || r.To.String() != "255.255.255.255:68" {
			t.Errorf("%s: a proxy gives %s to %s", c.name, p.YourIPAddr, r.To)
		}
		if r, _ := s.Answer(message(t, unknown, discover, c.with...), here); r != nil {
			t.Errorf("%s: an unknown MAC gets %v", c.name, r)
		}
	}
}

// TestProxyKeepsOut: what is another server's to answer, a proxy doesn't.
func TestProxyKeepsOut(t *testing.T) {
	pxe := []dhcpv4.Modifier{text(60, "PXEClient"), option(93, 0, 7)}
	boot := here
	boot.Boot, boot.From = true, netip.MustParseAddrPort("10.77.0.80:4011")
	with := func(more ...dhcpv4.Modifier) []dhcpv4.Modifier { return append(slices.Clone(pxe), more...) }
	for _, c := range []struct {
		name string
		kind dhcpv4.MessageType
		with []dhcpv4.Modifier
		at   Where
		to   string
		why  Reason
	}{
		{name: "a request to the other server", kind: dhcpv4.MessageTypeRequest, with: with(option(54, 10, 77, 0, 2)), at: here, why: OtherServer},
		{name: "a renewal", kind: dhcpv4.MessageTypeRequest, with: with(dhcpv4.WithClientIP(net.IP{10, 77, 0, 80})), at: here, why: OtherServer},
		{name: "an inform", kind: dhcpv4.MessageTypeInform, with: pxe, at: here, why: OtherServer},
		{name: "a release", kind: dhcpv4.MessageTypeRelease, with: pxe, at: here, why: OtherServer},
		{name: "a decline", kind: dhcpv4.MessageTypeDecline, with: pxe, at: here, why: OtherServer},
		{name: "somebody's offer", kind: dhcpv4.MessageTypeOffer, with: pxe, at: here, why: OtherType},
		{name: "no type", kind: 0, with: pxe, at: here, why: OtherType},
		{name: "a discover at 4011", kind: dhcpv4.MessageTypeDiscover, with: pxe, at: boot, why: OtherType},
		{name: "a request at 4011", kind: dhcpv4.MessageTypeRequest, with: pxe, at: boot, to: "10.77.0.80:4011"},
		{name: "an inform at 4011", kind: dhcpv4.MessageTypeInform, with: pxe, at: boot, to: "10.77.0.80:4011"},
		{name: "Linux at 4011", kind: dhcpv4.MessageTypeRequest, at: boot, why: NotBooting},
		{name: "who looks for boot servers", kind: dhcpv4.MessageTypeRequest, with: with(option(43, 71, 4, 0, 1, 0, 0, 255), dhcpv4.WithClientIP(net.IP{10, 77, 0, 80})), at: here, to: "10.77.0.80:68"},
		{name: "who looks for another's", kind: dhcpv4.MessageTypeRequest, with: with(option(43, 71, 4, 0, 1, 0, 0, 255), option(54, 10, 77, 0, 2)), at: here, why: OtherServer},
	} {
		s, _ := newServer(t, Proxy)
		r, why := s.Answer(message(t, known, c.kind, c.with...), c.at)
		if why != c.why || (r == nil) != (c.to == "") {
			t.Errorf("%s: %s, reply %v", c.name, why, r)
			continue
		}
		if r != nil && (r.To.String() != c.to || r.Packet.MessageType() != dhcpv4.MessageTypeAck || r.Packet.BootFileName != "snponly.efi") {
			t.Errorf("%s: %s to %s", c.name, r.Packet, r.To)
		}
		if bytes.Contains(message(t, known, c.kind, c.with...), []byte{43, 7, 71, 4}) && r != nil && !bytes.Equal(r.Packet.Options[43], []byte{6, 1, 8, 71, 4, 0, 1, 0, 0, 255}) {
			t.Errorf("%s: option 43 is % x: the item isn't given back", c.name, r.Packet.Options[43])
		}
	}
}

// TestRelayed: both modes answer the relay, and give it its option back.
func TestRelayed(t *testing.T) {
	for _, mode := range []Mode{Proxy, Full} {
		s, _ := newServer(t, mode)
		if mode == Full {
			s.Ranges = append(s.Ranges, Range{First: netip.MustParseAddr("10.88.0.10"), Last: netip.MustParseAddr("10.88.0.20"), Network: netip.MustParsePrefix("10.88.0.0/24")})
		}
		packet := message(t, known, dhcpv4.MessageTypeDiscover, text(60, "PXEClient"), option(93, 0, 7), dhcpv4.WithGatewayIP(net.IP{10, 88, 0, 1}), option(82, 1, 3, 'e', 't', 'h'))
		r, why := s.Answer(packet, here)
		if r == nil {
			t.Fatalf("%s: %s", mode, why)
		}
		p := again(t, r)
		if r.To.String() != "10.88.0.1:67" || address(p.GatewayIPAddr).String() != "10.88.0.1" || string(p.Options[82]) != "\x01\x03eth" {
			t.Errorf("%s: to %s:\n%s", mode, r.To, dump(p))
		}
		if raw := r.Packet.ToBytes(); !bytes.Contains(raw, append([]byte{82, 5, 1, 3, 'e', 't', 'h'}, 255)) {
			t.Errorf("%s: option 82 isn't the last", mode)
		}
		if a := address(p.YourIPAddr); (mode == Full) != netip.MustParsePrefix("10.88.0.0/24").Contains(a) {
			t.Errorf("%s: gives %s", mode, a)
		}
		if mode == Full {
			packet := message(t, known, dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.IP{10, 99, 0, 1}))
			if r, why := s.Answer(packet, here); r != nil || why != OtherNetwork {
				t.Errorf("a relay in a network that isn't served gets %v, %s", r, why)
			}
		}
	}
}

// TestChainsEnd: an iPXE without HTTP is sent to a better one, but not for ever.
func TestChainsEnd(t *testing.T) {
	s, c := newServer(t, Proxy)
	boot := func() Reason {
		packet := message(t, known, dhcpv4.MessageTypeDiscover, text(60, "PXEClient"), option(93, 0, 0), text(77, "iPXE"), option(175, 21, 1, 1))
		_, why := s.Answer(packet, here)
		_, again := s.Answer(packet, here) // as those do who hear nothing
		if again != why {
			t.Errorf("%s, and %s when it asks again", why, again)
		}
		return why
	}
	for i := range 6 {
		want := Answered
		if i >= maxChain {
			want = ChainLoop
		}
		if why := boot(); why != want {
			t.Errorf("boot %d: %s, not %s", i+1, why, want)
		}
	}
	c.Time = c.Add(chainTime + time.Second)
	if why := boot(); why != Answered {
		t.Errorf("later: %s", why)
	}
}
