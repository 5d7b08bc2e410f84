package dhcp

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/plan"
)

// ask has the server answer as it does when it runs: what it has promised is
// stored before. It gives the reply's type and address, or the reason for none.
func ask(t testing.TB, s *Server, mac plan.MAC, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) string {
	t.Helper()
	r, why := s.Answer(message(t, mac, kind, with...), here)
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	if r == nil {
		return why.String()
	}
	p := again(t, r)
	text := strings.ToLower(p.MessageType().String())
	if a := address(p.YourIPAddr); !a.IsUnspecified() {
		text += " " + a.String()
	}
	if r.To != everybody {
		text += " to " + r.To.String()
	}
	return text
}

func ip(s string) net.IP { return net.ParseIP(s).To4() }

func want(a string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(a))) }
func from(a string) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(a)) }
func server(a string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(a)))
}

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	release  = dhcpv4.MessageTypeRelease
	decline  = dhcpv4.MessageTypeDecline
	inform   = dhcpv4.MessageTypeInform
)

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, not %q", what, got, want)
	}
}

const second, third = plan.MAC("52:54:00:77:00:02"), plan.MAC("52:54:00:77:00:03")

func TestLeaseOfTheInventory(t *testing.T) {
	s, c := newServer(t, Full, nicOf(known, "192.0.2.7/24", "10.77.0.11/24"), nicOf(second, "10.77.0.105/24"), nicOf(third))
	s.Ranges[0].Gateway, s.Ranges[0].DNS = netip.MustParseAddr("10.77.0.254"), []netip.Addr{netip.MustParseAddr("10.77.0.53")}
	expect(t, "discover", ask(t, s, known, discover), "offer 10.77.0.11")
	expect(t, "discover, and wants another", ask(t, s, known, discover, want("10.77.0.101")), "offer 10.77.0.11")
	expect(t, "request", ask(t, s, known, request, want("10.77.0.11"), server("10.77.0.1")), "ack 10.77.0.11")
	expect(t, "request of another's", ask(t, s, known, request, want("10.77.0.12"), server("10.77.0.1")), "nak")
	expect(t, "renewal", ask(t, s, known, request, from("10.77.0.11")), "ack 10.77.0.11 to 10.77.0.11:68")
	expect(t, "renewal of another's", ask(t, s, known, request, from("10.77.0.12")), "nak")
	expect(t, "restart", ask(t, s, known, request, want("10.77.0.11")), "ack 10.77.0.11")
	expect(t, "restart in another network", ask(t, s, known, request, want("192.168.1.7")), "nak")
	expect(t, "request of nothing", ask(t, s, known, request), "malformed")
	expect(t, "inform", ask(t, s, known, inform, from("10.77.0.11")), "ack to 10.77.0.11:68")
	// In the range, but build02's.
	expect(t, "wants another host's", ask(t, s, third, request, want("10.77.0.105")), "nak")
	expect(t, "an unknown MAC", ask(t, s, unknown, discover), "unknown-mac")
	expect(t, "the other", ask(t, s, second, discover), "offer 10.77.0.105")

	r, _ := s.Answer(message(t, known, discover), here)
	p := again(t, r)
	for what, got := range map[string]string{
		"10.77.0.254": net.IP(p.Options[3]).String(), "10.77.0.53": net.IP(p.Options[6]).String(), "255.255.255.0": net.IP(p.Options[1]).String(),
		"build01": p.HostName(), "example.org": p.DomainName(), "1h0m0s": p.IPAddressLeaseTime(0).String(), "": p.BootFileName,
	} {
		expect(t, "the offer's", got, what)
	}
	// Somebody else has its address: it gets one of the range, for a while.
	expect(t, "decline", ask(t, s, known, decline, want("10.77.0.11"), server("10.77.0.1")), "declined")
	got := ask(t, s, known, discover)
	if !strings.HasPrefix(got, "offer 10.77.0.10") {
		t.Errorf("after declining: %q", got)
	}
	c.Time = c.Add(declineTime + time.Second)
	expect(t, "later", ask(t, s, known, discover), "offer 10.77.0.11")
}

func TestLeaseOfTheRange(t *testing.T) {
	s, c := newServer(t, Full, nicOf(known), nicOf(second), nicOf(third))
	first := strings.TrimPrefix(ask(t, s, known, discover), "offer ")
	expect(t, "again", ask(t, s, known, discover), "offer "+first)
	expect(t, "another client wants what is offered", ask(t, s, second, request, want(first)), "nak")
	expect(t, "it takes another server's", ask(t, s, known, request, want("10.77.0.50"), server("10.77.0.2")), "other-server")
	expect(t, "now it's free", ask(t, s, second, request, want(first)), "ack "+first)
	other := strings.TrimPrefix(ask(t, s, known, discover), "offer ")
	if other == first {
		t.Errorf("two have %s", first)
	}
	expect(t, "request", ask(t, s, known, request, want(other), server("10.77.0.1")), "ack "+other)
	expect(t, "release", ask(t, s, known, release, from(other), server("10.77.0.1")), "released")
	expect(t, "it's remembered", ask(t, s, known, discover), "offer "+other)

	// A server that starts anew knows what it has promised.
	s2, _ := newServer(t, Full, nicOf(known), nicOf(second), nicOf(third))
	s2.StateDir, s2.Now = s.StateDir, c.now
	if err := s2.load(); err != nil {
		t.Fatal(err)
	}
	expect(t, "after a restart", ask(t, s2, second, request, from(first)), "ack "+first+" to "+first+":68")
	expect(t, "after a restart, another", ask(t, s2, third, request, want(first)), "nak")
	// One that has lost all of it gives the same address to a MAC, if it's free.
	s3, _ := newServer(t, Full, nicOf(known), nicOf(second), nicOf(third))
	expect(t, "without leases", ask(t, s3, known, discover), "offer "+first)
	expect(t, "without leases, it has one", ask(t, s3, second, request, from(other)), "ack "+other+" to "+other+":68")
}

func TestNoAddressIsTwoHosts(t *testing.T) {
	// 14 hosts for 8 addresses of a range that also has the server's, the gateway's,
	// and one that is a host's by the inventory.
	nics := []netboot.NIC{nicOf("52:54:00:77:01:00", "10.77.0.104/24")}
	for i := 1; i < 14; i++ {
		nics = append(nics, nicOf(plan.MAC(fmt.Sprintf("52:54:00:77:01:%02x", i))))
	}
	s, c := newServer(t, Full, nics...)
	s.Ranges[0].First, s.Ranges[0].Gateway = netip.MustParseAddr("10.77.0.99"), netip.MustParseAddr("10.77.0.107")
	at := here
	at.Address, at.Network = netip.MustParseAddr("10.77.0.100"), netip.MustParsePrefix("10.77.0.100/24")
	random := rand.New(rand.NewPCG(1, 2))
	type held struct {
		mac   plan.MAC
		until time.Time
	}
	holds := map[netip.Addr]held{}
	exhausted := 0
	for range 5000 {
		c.Time = c.Add(time.Duration(random.IntN(300)) * time.Second)
		mac := nics[random.IntN(len(nics))].MAC
		r, why := s.Answer(message(t, mac, discover), at)
		if r == nil {
			if why != Exhausted {
				t.Fatal(why)
			}
			exhausted++
			continue
		}
		a := address(r.Packet.YourIPAddr)
		switch h := holds[a]; {
		case h.mac != mac && c.Before(h.until):
			t.Fatalf("%s is %s's until %s, and %s gets it at %s", a, h.mac, h.until, mac, c.Time)
		case a == at.Address || a.String() == "10.77.0.107", (a.String() == "10.77.0.104") != (mac == nics[0].MAC):
			t.Fatalf("%s gets %s", mac, a)
		}
		if random.IntN(4) == 0 {
			continue // it's silent
		}
		r, why = s.Answer(message(t, mac, request, want(a.String()), server(at.Address.String())), at)
		if r == nil || r.Packet.MessageType() != dhcpv4.MessageTypeAck || address(r.Packet.YourIPAddr) != a {
			t.Fatalf("%s was offered %s, and gets %v, %s", mac, a, r, why)
		}
		holds[a] = held{mac, c.Add(s.leaseTime())}
		if random.IntN(8) == 0 {
			s.Answer(message(t, mac, release, from(a.String())), at)
			delete(holds, a)
		}
	}
	if exhausted == 0 || len(holds) < 8 {
		t.Errorf("the range was never full: %d, %d", exhausted, len(holds))
	}
}

func TestLeasesFile(t *testing.T) {
	s, _ := newServer(t, Full, nicOf(known), nicOf(second))
	expect(t, "offers aren't stored", ask(t, s, second, discover)[:5], "offer")
	expect(t, "request", ask(t, s, known, request, want("10.77.0.102")), "ack 10.77.0.102")
	path := filepath.Join(s.StateDir, leasesFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the file", string(b), `{
  "leases": [
    {
      "mac": "52:54:00:77:00:01",
      "address": "10.77.0.102",
      "host": "build01.example.org",
      "expires": "2026-01-02T04:04:05Z"
    }
  ]
}
`)
	if entries, err := os.ReadDir(s.StateDir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: something is left behind", entries, err)
	}
	for content, text := range map[string]string{
		"{":                               path,
		`{"leases": [{"mac": "nobody"}]}`: "nobody has no address",
		`{"leases": [{"mac": "52:54:00:00:00:01"}]}`: "52:54:00:00:00:01 has no address",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.load(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", content, err)
		}
	}
	// What can't be stored isn't promised.
	s.StateDir = filepath.Join(s.StateDir, "missing")
	s.Answer(message(t, known, request, want("10.77.0.102")), here)
	if err := s.Commit(); err == nil {
		t.Error("a lease is stored in a directory that isn't there")
	}
}

func TestRanges(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.100-10.0.0.200":    "10.0.0.100 10.0.0.200 invalid Prefix",
		"10.0.0.100-10.0.0.200/24": "10.0.0.100 10.0.0.200 10.0.0.0/24",
		"10.0.0.100":               "no dash",
		"x-10.0.0.200":             `"x" is no address`,
		"10.0.0.100-y":             `"y" is no address`,
		"10.0.0.100-10.0.0.200/x":  "no address with a prefix's length",
		"10.0.0.200-10.0.0.100":    "ends before it begins",
		"10.0.0.0-10.9.0.0":        "65536 are the most",
		"10.0.0.1-10.0.1.1/24":     "isn't within its network",
		"fd00::1-fd00::2":          "IPv4 addresses alone",
	} {
		r, err := ParseRange(text)
		got := fmt.Sprintf("%s %s %s", r.First, r.Last, r.Network)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, not %s", text, got, want)
		}
	}
}
