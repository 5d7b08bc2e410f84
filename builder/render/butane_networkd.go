package render

import (
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// networkd is an interface as the files of systemd-networkd.
func (net *ignitionNet) networkd(in *plan.Interface) ([]plan.File, error) {
	files := linkFile(in)
	base := "/etc/systemd/network/10-kiln-" + in.Name
	if !hardware(in) {
		files = append(files, rootFile(base+".netdev", 0o644, []byte(netdev(in))))
	}
	var t networkText
	t.section("Match")
	if hardware(in) && in.MAC != "" {
		// A bond takes a member's address, and a VLAN its link's: only hardware
		// has no kind.
		t.set("PermanentMACAddress", string(in.MAC))
		t.set("Kind", "!*")
	} else {
		t.set("Name", in.Name)
	}
	if in.MTU != 0 {
		t.section("Link")
		t.set("MTUBytes", strconv.Itoa(in.MTU))
	}
	t.section("Network")
	t.set("Bond", net.master[in.Name])
	for _, vlan := range net.vlans[in.Name] {
		t.set("VLAN", vlan)
	}
	if net.master[in.Name] == "" {
		net.addressing(&t, in)
	}
	files = append(files, rootFile(base+".network", 0o644, []byte(t.String())))
	return files, nil
}

// netdev makes a bond or a VLAN.
func netdev(in *plan.Interface) string {
	var t networkText
	t.section("NetDev")
	t.set("Name", in.Name)
	if in.VLAN != nil {
		t.set("Kind", "vlan")
		t.set("MACAddress", string(in.MAC))
		t.section("VLAN")
		t.set("Id", strconv.Itoa(in.VLAN.ID))
		return t.String()
	}
	t.set("Kind", "bond")
	t.set("MACAddress", string(in.MAC))
	t.section("Bond")
	t.set("Mode", in.Bond.Mode)
	// Without monitoring, a bond keeps sending to a member without a link.
	t.set("MIIMonitorSec", "100ms")
	return t.String()
}

// addressing adds how an interface gets its addresses.
func (net *ignitionNet) addressing(t *networkText, in *plan.Interface) {
	dhcp := map[[2]bool]string{{true, true}: "yes", {true, false}: "ipv4", {false, true}: "ipv6", {false, false}: "no"}
	t.set("DHCP", dhcp[[2]bool{in.DHCP4, in.DHCP6}])
	if in.AcceptRA != nil {
		t.set("IPv6AcceptRA", strconv.FormatBool(*in.AcceptRA))
	}
	for _, a := range in.Addresses {
		t.set("Address", a.String())
	}
	for _, g := range in.Gateways {
		t.set("Gateway", g.String())
	}
	for _, d := range in.DNS {
		t.set("DNS", d.String())
	}
	t.set("Domains", strings.Join(in.Search, " "))
	for _, r := range in.Routes {
		t.section("Route")
		t.set("Destination", r.To.String())
		if r.Via.IsValid() {
			t.set("Gateway", r.Via.String())
		}
	}
}
