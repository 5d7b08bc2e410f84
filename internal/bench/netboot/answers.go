//go:build linux

package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/dhcp"
	"github.com/alisw/kiln/plan"
)

// manyHosts is a large site.
const manyHosts = 100_000

// Of a server's answer among many hosts, to that among ten.
const (
	wantedAnswer = 2.0       // times as long: memory is further away
	wantedTime   = 1_000_000 // nanoseconds: microseconds are wanted
)

// measureAnswers answers the same packet of a machine among ten hosts, and among many.
func measureAnswers(t *table) error {
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	own := netip.MustParseAddr(serverAddress)
	at := dhcp.Where{Interface: "kiln0", Address: own, Network: netip.PrefixFrom(own, 8), From: netip.MustParseAddrPort("0.0.0.0:68")}
	fmt.Printf("DHCP: an answer among 10 hosts, and among %d\n", manyHosts)
	few, err := inventory(10)
	if err != nil {
		return err
	}
	many, err := inventory(manyHosts)
	if err != nil {
		return err
	}
	for _, mode := range []dhcp.Mode{dhcp.Proxy, dhcp.Full} {
		s := &dhcp.Server{Mode: mode, StateDir: dir, Log: slog.New(slog.DiscardHandler)}
		if mode == dhcp.Full {
			s.Ranges = []dhcp.Range{{First: netip.MustParseAddr("10.250.0.1"), Last: netip.MustParseAddr("10.250.0.99")}}
		}
		machine := &virtual{mac: macOf(7), own: netip.IPv4Unspecified()}
		packet := machine.packet(typeDiscover, "").marshal()
		var results [2]testing.BenchmarkResult
		for i, hosts := range []*netboot.Inventory{few, many} {
			s.SetHosts(hosts)
			if r, why := s.Answer(packet, at); r == nil {
				return fmt.Errorf("a registered host gets no answer: %s", why)
			}
			results[i] = testing.Benchmark(func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if r, _ := s.Answer(packet, at); r != nil {
						r.Packet.ToBytes()
					}
				}
			})
		}
		a, b := results[0], results[1]
		ratio := float64(b.NsPerOp()) / float64(a.NsPerOp())
		fmt.Printf("  %-5s  %6d ns and %d allocations, %6d ns and %d allocations: %.2f times\n", mode, a.NsPerOp(), a.AllocsPerOp(), b.NsPerOp(), b.AllocsPerOp(), ratio)
		what := fmt.Sprintf("a DHCP answer among %d hosts (%s)", manyHosts, mode)
		t.add(row{
			what: what, value: fmt.Sprintf("%.1f µs", float64(b.NsPerOp())/1000), other: "10 hosts", beside: fmt.Sprintf("%.1f µs", float64(a.NsPerOp())/1000),
			ratio: fmt.Sprintf("%.2f", ratio), wanted: fmt.Sprintf("microseconds; %.0f or less", wantedAnswer), met: ratio <= wantedAnswer && b.NsPerOp() < wantedTime,
		})
		t.add(row{
			what: what + ": allocations", value: fmt.Sprint(b.AllocsPerOp()), other: "10 hosts", beside: fmt.Sprint(a.AllocsPerOp()),
			wanted: "no more", met: b.AllocsPerOp() <= a.AllocsPerOp(),
		})
	}
	return nil
}

// inventory has so many hosts.
func inventory(n int) (*netboot.Inventory, error) {
	hosts := make([]netboot.Host, n)
	address := netip.MustParseAddr("10.3.0.0")
	for i := range hosts {
		address = address.Next()
		hosts[i] = netboot.Host{Name: fmt.Sprintf("h%d.example.org", i), NICs: []netboot.NIC{{
			MAC: plan.MAC(macOf(i).String()), Addresses: []netip.Prefix{netip.PrefixFrom(address, 8)},
		}}}
	}
	return netboot.NewHosts(hosts)
}
