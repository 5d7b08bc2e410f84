package netboot

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

func host(name string, macs ...plan.MAC) Host {
	h := Host{Name: name}
	for _, m := range macs {
		h.NICs = append(h.NICs, NIC{MAC: m})
	}
	return h
}

var _ Hosts = (*Inventory)(nil)

func TestHostsAreFound(t *testing.T) {
	hosts := []Host{
		host("build01.example.org", "52:54:00:00:00:01", "52:54:00:00:00:02"),
		host("build02.example.org", "52:54:00:00:00:03"),
		host("web.a.example.org"), host("web.b.example.org"), host("web.c.example.org"),
		host("db.example.org"), host("db"),
	}
	hosts[0].NICs[1].Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.11/24")}
	in, err := NewHosts(hosts)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"build01.example.org": "build01.example.org", "build01": "build01.example.org", "BUILD02": "build02.example.org",
		"web.b.example.org": "web.b.example.org", "web": "", "db": "db", "db.example.org": "db.example.org", "": "", "build": "",
	} {
		got := ""
		if h, ok := in.ByName(name); ok {
			got = h.Name
		}
		if got != want {
			t.Errorf("ByName(%q) is %q, not %q", name, got, want)
		}
	}
	for mac, want := range map[plan.MAC]string{"52:54:00:00:00:02": "build01.example.org", "52:54:00:00:00:03": "build02.example.org", "52:54:00:00:00:04": ""} {
		got := ""
		if h, ok := in.ByMAC(mac); ok {
			got = h.Name
		}
		if got != want {
			t.Errorf("ByMAC(%s) is %q, not %q", mac, got, want)
		}
	}
	if h, ok := in.ByAddress(netip.MustParseAddr("192.0.2.11")); !ok || h.Name != "build01.example.org" {
		t.Errorf("ByAddress finds %v", h)
	}
	if _, ok := in.ByAddress(netip.MustParseAddr("192.0.2.12")); ok {
		t.Error("ByAddress finds a host of an address that none has")
	}
}

func TestAmbiguousHostsAreRefused(t *testing.T) {
	_, err := NewHosts([]Host{
		host("a.example.org", "52:54:00:00:00:01", "52:54:00:00:00:01"),
		host("b.example.org", "52:54:00:00:00:01"),
		host("A.example.org", "52:54:00:00:00:02"),
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"the inventory has two hosts A.example.org: rename or remove one",
		"host a.example.org has the MAC 52:54:00:00:00:01 twice",
		"hosts a.example.org and b.example.org have the same MAC 52:54:00:00:00:01",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %q", err, want)
		}
	}
}
