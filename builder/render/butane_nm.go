package render

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// networkManager is an interface as a keyfile of NetworkManager, which reads
// none that others may.
func (net *ignitionNet) networkManager(in *plan.Interface) ([]plan.File, error) {
	var t networkText
	kind := "ethernet"
	switch {
	case in.Bond != nil:
		kind = "bond"
	case in.VLAN != nil:
		kind = "vlan"
	}
	t.section("connection")
	t.set("id", in.Name)
	t.set("type", kind)
	if !hardware(in) || in.MAC == "" {
		t.set("interface-name", in.Name)
	}
	master := net.master[in.Name]
	t.set("master", master)
	if master != "" {
		t.set("slave-type", "bond")
	}
	if in.MAC != "" || in.MTU != 0 {
		t.section("ethernet")
		if hardware(in) {
			t.set("mac-address", string(in.MAC))
		} else {
			t.set("cloned-mac-address", string(in.MAC))
		}
		if in.MTU != 0 {
			t.set("mtu", strconv.Itoa(in.MTU))
		}
	}
	if in.Bond != nil {
		t.section("bond")
		// Without monitoring, a bond keeps sending to a member without a link.
		t.set("miimon", "100")
		t.set("mode", in.Bond.Mode)
	}
	if in.VLAN != nil {
		t.section("vlan")
		t.set("id", strconv.Itoa(in.VLAN.ID))
		t.set("parent", in.VLAN.Link)
	}
	if master == "" {
		if err := keyfileAddresses(&t, in); err != nil {
			return nil, err
		}
	}
	path := "/etc/NetworkManager/system-connections/" + in.Name + ".nmconnection"
	return append(linkFile(in), rootFile(path, 0o600, []byte(t.String()))), nil
}

// keyfileAddresses adds the sections of both families. NetworkManager refuses
// a connection that has DNS servers in a family without addresses.
func keyfileAddresses(t *networkText, in *plan.Interface) error {
	var static [2]bool
	for _, a := range in.Addresses {
		static[family(a.Addr())] = true
	}
	methods := [2]string{method4(in, static[0]), method6(in, static[1])}
	usable := [2]bool{methods[0] != "disabled", methods[1] != "link-local"}
	// Search domains belong to no family: they go where they are taken.
	search := 0
	if !usable[0] {
		search = 1
	}
	if len(in.Search) > 0 && !usable[search] {
		return fmt.Errorf("it has domains to search in, but gets no address: give it one, or move them to an interface that has")
	}
	for f, section := range []string{"ipv4", "ipv6"} {
		t.section(section)
		t.set("method", methods[f])
		n := 0
		for _, a := range in.Addresses {
			if family(a.Addr()) == f {
				n++
				t.set("address"+strconv.Itoa(n), a.String())
			}
		}
		var dns []string
		for _, d := range in.DNS {
			if family(d) == f {
				dns = append(dns, d.String())
			}
		}
		if len(dns) > 0 && !usable[f] {
			return fmt.Errorf("its DNS server %s is %s, but it gets no such address: give it one, or move the server to an interface that has", dns[0], section)
		}
		t.set("dns", keyfileList(dns))
		if f == search {
			t.set("dns-search", keyfileList(in.Search))
		}
		for _, g := range in.Gateways {
			if family(g) == f {
				t.set("gateway", g.String())
			}
		}
		keyfileRoutes(t, in.Routes, f)
	}
	return nil
}

func keyfileRoutes(t *networkText, routes []plan.Route, f int) {
	n := 0
	for _, r := range routes {
		if family(r.To.Addr()) != f {
			continue
		}
		n++
		via := ""
		if r.Via.IsValid() {
			via = "," + r.Via.String()
		}
		t.set("route"+strconv.Itoa(n), r.To.String()+via)
	}
}

func method4(in *plan.Interface, static bool) string {
	switch {
	case in.DHCP4:
		return "auto"
	case static:
		return "manual"
	}
	return "disabled"
}

// method6 follows the kernel's default, which takes what routers announce.
func method6(in *plan.Interface, static bool) string {
	switch {
	case in.AcceptRA == nil || *in.AcceptRA:
		return "auto"
	case in.DHCP6:
		return "dhcp"
	case static:
		return "manual"
	}
	return "link-local"
}

// keyfileList is a list as a keyfile has it.
func keyfileList(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return strings.Join(values, ";") + ";"
}
