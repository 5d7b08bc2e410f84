package dhcp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/plan"
)

// FuzzAnswer: whatever comes in, nothing crashes, and none but a registered host
// gets a reply, which is to it.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"ipxe-bios-discover", "ipxe-bios-request", "ovmf-http-discover", "ovmf-pxe-boot", "ovmf-pxe-discover", "ovmf-pxe-request", "snponly-discover"} {
		for i := range 4 {
			f.Add(captured(f, name), i&1 == 1, i&2 == 2)
		}
	}
	for _, kind := range []dhcpv4.MessageType{request, release, decline, inform} {
		f.Add(message(f, known, kind, want("10.77.0.101"), option(82, 1, 1, 1), option(43, 71, 4, 0, 1, 0, 0), option(77, 4, 'i', 'P', 'X', 'E')), true, false)
	}
	f.Add(message(f, unknown, discover, text(60, "PXEClient")), false, false)
	var seen Sightings
	servers := map[Mode]*Server{}
	for _, mode := range []Mode{Proxy, Full} {
		s, _ := newServer(f, mode)
		s.Seen = seen.Add
		servers[mode] = s
	}
	f.Fuzz(func(t *testing.T, packet []byte, full, boot bool) {
		mode := Proxy
		if full {
			mode = Full
		}
		at := here
		at.Boot = boot
		r, why := servers[mode].Answer(packet, at)
		if (r == nil) == (why == Answered) {
			t.Fatalf("reply %v, reason %s", r, why)
		}
		if r == nil {
			return
		}
		raw := r.Packet.ToBytes()
		if !bytes.Equal(packet[28:34], []byte{0x52, 0x54, 0, 0x77, 0, 1}) || !bytes.Equal(raw[28:34], packet[28:34]) || !bytes.Equal(raw[4:8], packet[4:8]) {
			t.Fatalf("a reply to % x, of % x", raw[28:34], packet[28:34])
		}
		p, err := dhcpv4.FromBytes(raw)
		if err != nil {
			t.Fatalf("the reply can't be read: %v", err)
		}
		if mode == Proxy && !address(p.YourIPAddr).IsUnspecified() {
			t.Fatalf("a proxy gives %s", p.YourIPAddr)
		}
		if _, err := dhcpv4.FromBytes(packet); err != nil {
			t.Fatalf("what can't be read has a reply: %v", err)
		}
	})
}

// TestUnknownMachines are listed, and never answered.
func TestUnknownMachines(t *testing.T) {
	s, c := newServer(t, Full)
	var seen Sightings
	s.Seen = seen.Add
	for _, packet := range [][]byte{
		message(t, unknown, discover, text(60, "PXEClient:Arch:00007:UNDI:003016"), option(93, 0, 7), option(97, 0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff)),
		message(t, "52:54:00:77:00:98", discover, text(60, "PXEClient\x1b[2J\xff"), option(93, 0, 11)),
		message(t, "52:54:00:77:00:97", discover), // a laptop
		message(t, known, discover, text(60, "PXEClient")),
	} {
		c.Time = c.Add(time.Second)
		s.Answer(packet, here)
	}
	var got strings.Builder
	for _, u := range seen.List() {
		fmt.Fprintln(&got, u.MAC, u.Vendor, "|", u.Firmware, "|", u.UUID)
	}
	expect(t, "the list", got.String(), `52:54:00:77:00:98 PXEClient?[2J? | UEFI ARM 64 | 
52:54:00:77:00:99 PXEClient:Arch:00007:UNDI:003016 | UEFI x86-64 | 00112233-4455-6677-8899-aabbccddeeff
`)
	for i := range 3 * maxSightings {
		c.Time = c.Add(time.Second)
		seen.Add(Unknown{MAC: plan.MAC(fmt.Sprint(i)), Time: c.Time})
	}
	list := seen.List()
	if len(list) != maxSightings || list[0].MAC != plan.MAC(fmt.Sprint(3*maxSightings-1)) {
		t.Errorf("%d are kept, the last is %s", len(list), list[0].MAC)
	}
}

// TestUnknownMachinesAreLoggedOnce: who asks without an end doesn't fill the log.
func TestUnknownMachinesAreLoggedOnce(t *testing.T) {
	s, _ := newServer(t, Proxy)
	var log bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	boots, laptop := message(t, unknown, discover, text(60, "PXEClient:Arch:00007:UNDI:003016")), message(t, "52:54:00:77:00:97", discover)
	for range 100 {
		s.Answer(boots, here)
		s.Answer(laptop, here)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=INFO") || !strings.Contains(log.String(), unknown) {
		t.Errorf("%d lines:\n%.1000s", n, log.String())
	}
	log.Reset()
	for i := range 5000 {
		s.Answer(message(t, plan.MAC(fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255)), discover, text(60, "PXEClient")), here)
	}
	if n := strings.Count(log.String(), "\n"); n < 2 || n > 1025 || !strings.Contains(log.String(), "no more of them are logged") {
		t.Errorf("%d lines for 5000 invented MACs", n)
	}
	s.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log.Reset()
	s.Answer(boots, here)
	if !strings.Contains(log.String(), "level=DEBUG") || !strings.Contains(log.String(), unknown) {
		t.Errorf("with all of the log: %q", log.String())
	}
}

// TestOwnAddress: an interface may have several.
func TestOwnAddress(t *testing.T) {
	for _, c := range []struct {
		mode   Mode
		to     string
		fixed  string
		server string
	}{
		{Proxy, "255.255.255.255", "", "192.0.2.1"},
		{Proxy, "10.77.0.1", "", "10.77.0.1"},
		{Full, "255.255.255.255", "", "10.77.0.1"},
		{Full, "192.0.2.1", "", "192.0.2.1"},
		{Proxy, "10.77.0.1", "198.51.100.1", "198.51.100.1"},
	} {
		s, clock := newServer(t, c.mode)
		if c.fixed != "" {
			s.Address = netip.MustParseAddr(c.fixed)
		}
		f := &face{networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("10.77.0.1/24")}, read: clock.Time}
		at, ok := s.where(f, net.ParseIP(c.to), netip.AddrPort{}, false)
		if !ok || at.Address.String() != c.server {
			t.Errorf("%s, to %s: %+v, not %s", c.mode, c.to, at, c.server)
		}
	}
}

// TestServerRefuses what it can't serve.
func TestServerRefuses(t *testing.T) {
	r := func(s string) Range {
		r, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for text, s := range map[string]*Server{
		"needs one of IPv4":              {Address: netip.MustParseAddr("::1")},
		"needs a range":                  {Mode: Full},
		"a directory to keep its leases": {Mode: Full, Ranges: []Range{r("10.0.0.1-10.0.0.9")}},
		"overlap":                        {Mode: Full, StateDir: "x", Ranges: []Range{r("10.0.0.1-10.0.0.9"), r("10.0.0.9-10.0.0.10")}},
		"there is no interface nothing0": {Interfaces: []string{"nothing0"}},
	} {
		s.Log = slog.New(slog.DiscardHandler)
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, not %q", err, text)
		}
	}
}

// TestRangeOfNoNetwork: a server that would never give an address doesn't start;
// one that gives them through a relay does.
func TestRangeOfNoNetwork(t *testing.T) {
	now := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	faces := []*face{
		{Interface: net.Interface{Name: "lab0"}, networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("192.0.2.1/28")}, read: now.Time},
		{Interface: net.Interface{Name: "lab1"}, networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/16")}, read: now.Time},
	}
	for text, want := range map[string]string{
		"10.0.0.100-10.0.0.200":          "",
		"10.1.7.100-10.1.9.200":          "",
		"192.0.2.2-192.0.2.14":           "",
		"198.51.100.10-198.51.100.0/24":  "ends before",
		"198.51.100.10-198.51.100.20":    "range 198.51.100.10-198.51.100.20 is in no interface's network (lab0 has 10.0.0.0/24, lab0 has 192.0.2.0/28, lab1 has 10.1.0.0/16): name a range of one of these, or another interface; if a relay brings the requests, write the length of its network's prefix behind it, as in 198.51.100.10-198.51.100.20/24",
		"192.0.2.2-192.0.2.100":          "is in no interface's network", // nor all of it in one
		"198.51.100.10-198.51.100.20/24": "",                             // relayed
		"10.0.0.100-10.0.0.200/24":       "",
	} {
		r, err := ParseRange(text)
		if err == nil {
			s := &Server{Mode: Full, Now: now.now, Ranges: []Range{r}, Log: slog.New(slog.DiscardHandler)}
			err = s.checkRanges(faces)
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", text, err, want)
		}
	}
	lo := loopback(t)
	s := &Server{Mode: Full, Interfaces: []string{lo}, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Ranges: []Range{{First: netip.MustParseAddr("192.0.2.10"), Last: netip.MustParseAddr("192.0.2.20")}}}
	if err := s.Listen(t.Context()); err == nil || !strings.Contains(err.Error(), "192.0.2.10-192.0.2.20 is in no interface's network ("+lo+" has 127.0.0.0/8") {
		t.Errorf("listening: %v", err)
	}
}

// loopback is the name of the interface that every machine has.
func loopback(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			return i.Name
		}
	}
	t.Fatal("there is no loopback interface")
	return ""
}

// TestCountersHaveAll: a counter that is there from the beginning can be alerted on.
func TestCountersHaveAll(t *testing.T) {
	var c Counters
	counts := c.Read()
	for k := range kinds {
		if _, ok := counts.Answered[k.String()]; !ok || k.String() == "" {
			t.Errorf("kind %d: %q", k, k)
		}
	}
	for r := Answered + 1; r < reasons; r++ {
		if _, ok := counts.Unanswered[r.String()]; !ok || r.String() == "" {
			t.Errorf("reason %d: %q", r, r)
		}
	}
}

// inventory has n hosts, of which the last is of the MAC known.
func inventory(t testing.TB, n int) *netboot.Inventory {
	t.Helper()
	hosts := make([]netboot.Host, n)
	for i := range hosts {
		mac := plan.MAC(fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255))
		if i == n-1 {
			mac = known
		}
		hosts[i] = netboot.Host{Name: fmt.Sprintf("h%d.example.org", i), NICs: []netboot.NIC{nicOf(mac, fmt.Sprintf("10.%d.%d.%d/8", 1+i>>16, i>>8&255, i&255))}}
	}
	in, err := netboot.NewHosts(hosts)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestManyHostsCostNothing: the allocations for a packet are the same for ten hosts
// as for 100,000, and an unknown MAC has one at most.
func TestManyHostsCostNothing(t *testing.T) {
	inventories := []*netboot.Inventory{inventory(t, 10), inventory(t, 100_000)}
	for _, mode := range []Mode{Proxy, Full} {
		var allocations []float64
		for _, in := range inventories {
			s, _ := newServer(t, mode)
			s.SetHosts(in)
			packet, stranger := captured(t, "ovmf-pxe-discover"), message(t, unknown, discover, text(60, "PXEClient"))
			allocations = append(allocations, testing.AllocsPerRun(100, func() {
				if r, why := s.Answer(packet, here); r == nil {
					t.Fatal(why)
				}
			}))
			if a := testing.AllocsPerRun(100, func() { s.Answer(stranger, here) }); a > 1 {
				t.Errorf("%s: an unknown MAC takes %v allocations", mode, a)
			}
		}
		if slices.Min(allocations) != slices.Max(allocations) {
			t.Errorf("%s: %v allocations", mode, allocations)
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	for _, mode := range []Mode{Proxy, Full} {
		for _, n := range []int{10, 100_000} {
			s, _ := newServer(b, mode)
			s.SetHosts(inventory(b, n))
			for name, packet := range map[string][]byte{"known": captured(b, "ovmf-pxe-discover"), "unknown": message(b, unknown, discover, text(60, "PXEClient"))} {
				b.Run(fmt.Sprintf("%s/%d/%s", mode, n, name), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if r, _ := s.Answer(packet, here); r != nil {
							r.Packet.ToBytes()
						}
					}
				})
			}
		}
	}
}
