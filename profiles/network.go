package profiles

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

var interfaceName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)

// Linux' bonding modes, by the kernel's names.
var bondModes = []string{"802.3ad", "active-backup", "balance-alb", "balance-rr", "balance-tlb", "balance-xor", "broadcast"}

// network checks a host's interfaces.
func network(interfaces strictyaml.Map[InterfaceFile], problems *problem.List) plan.Network {
	var n plan.Network
	var gateways []strictyaml.Value[netip.Addr]
	for _, e := range interfaces {
		i := networkInterface(e, problems)
		for _, g := range e.Value.Gateways {
			if a, ok := parseAddr(g.V); ok {
				gateways = append(gateways, strictyaml.Value[netip.Addr]{V: a, Pos: g.Pos})
			}
		}
		n.Interfaces = append(n.Interfaces, i)
	}
	families := map[bool]problem.Position{}
	for _, g := range gateways {
		if first, twice := families[g.V.Is4()]; twice {
			problems.Addf(g.Pos, "keep one a family; the ways to other networks are routes", "a second default gateway, %s: the first stands at %s", g.V, first)
		}
		families[g.V.Is4()] = g.Pos
	}
	links(interfaces, problems)
	return n
}

// links checks what bonds and VLANs name.
func links(interfaces strictyaml.Map[InterfaceFile], problems *problem.List) {
	names := make([]string, len(interfaces))
	for i, e := range interfaces {
		names[i] = e.Key
	}
	bonded := map[string]string{}
	for _, e := range interfaces {
		if b := e.Value.Bond; b != nil {
			for _, m := range b.Members {
				member, ok := interfaces.Get(m.V)
				switch {
				case !ok:
					problems.Addf(m.Pos, strictyaml.DidYouMean(m.V, names), "the bond %s joins the interface %s, which the host doesn't have", e.Key, m.V)
				case m.V == e.Key || member.Value.Bond != nil || member.Value.VLAN != nil:
					problems.Addf(m.Pos, "name hardware interfaces", "the bond %s can't join %s", e.Key, m.V)
				case bonded[m.V] != "":
					problems.Addf(m.Pos, "keep one of the two", "the interface %s is in the bond %s already", m.V, bonded[m.V])
				case len(member.Value.Addresses) > 0 || member.Value.DHCP4 || member.Value.DHCP6:
					problems.Addf(member.Pos, "give the addresses to the bond", "the interface %s is in the bond %s: it can't have addresses of its own", m.V, e.Key)
				}
				bonded[m.V] = e.Key
			}
		}
		if v := e.Value.VLAN; v != nil {
			if link, ok := interfaces.Get(v.Link.V); !ok {
				problems.Addf(v.Pos, strictyaml.DidYouMean(v.Link.V, names), "the VLAN %s is on the interface %q, which the host doesn't have", e.Key, v.Link.V)
			} else if link.Value.VLAN != nil {
				problems.Addf(v.Pos, "name hardware or a bond", "the VLAN %s can't be on another VLAN", e.Key)
			}
		}
	}
}

func networkInterface(e strictyaml.Entry[InterfaceFile], problems *problem.List) plan.Interface {
	f := e.Value
	i := plan.Interface{
		Name: e.Key, DHCP4: f.DHCP4, DHCP6: f.DHCP6, AcceptRA: f.AcceptRA, MTU: f.MTU.V,
		Search: texts(f.Search), Origin: plan.Origin{Position: e.Pos},
	}
	if !interfaceName().MatchString(e.Key) {
		problems.Addf(e.Pos, "use up to 15 letters, digits and ._-", "%q can't name an interface", e.Key)
	}
	if f.MAC.Set() {
		mac, err := plan.ParseMAC(f.MAC.V)
		if err != nil {
			problems.Addf(f.MAC.Pos, "", "%s", err)
		}
		i.MAC = mac
	}
	if f.MTU.Set() && (f.MTU.V < 576 || f.MTU.V > 65536) {
		problems.Addf(f.MTU.Pos, "write 1500, or 9000 for jumbo frames", "an MTU of %d can't be", f.MTU.V)
	}
	for _, s := range f.Search {
		if !validDomain(s.V) {
			problems.Addf(s.Pos, "write a DNS name in lower case", "%q can't be a search domain", s.V)
		}
	}
	i.Addresses = addresses(f.Addresses, problems)
	i.Gateways = gateways(f.Gateways, i.Addresses, problems)
	i.DNS = parseAddrs(f.DNS, "DNS server", problems)
	i.Routes = routes(f.Routes, i, problems)
	kinds(f, &i, problems)
	return i
}

// kinds checks what makes an interface a bond or a VLAN.
func kinds(f InterfaceFile, i *plan.Interface, problems *problem.List) {
	if f.Bond != nil && f.VLAN != nil {
		problems.Addf(f.Pos, "make two interfaces, the VLAN on the bond", "the interface %s can't be a bond and a VLAN", i.Name)
	}
	if f.MAC.Set() && f.VLAN != nil {
		problems.Addf(f.MAC.Pos, "give it to the interface below", "the VLAN %s has its interface's MAC", i.Name)
	}
	if b := f.Bond; b != nil {
		i.Bond = &plan.Bond{Members: texts(b.Members), Mode: b.Mode.Or("802.3ad")}
		if len(b.Members) == 0 {
			problems.Addf(b.Pos, "name its members", "the bond %s joins nothing", i.Name)
		}
		if !slices.Contains(bondModes, i.Bond.Mode) {
			problems.Addf(b.Mode.Pos, strictyaml.DidYouMean(b.Mode.V, bondModes), "%q is no bonding mode", b.Mode.V)
		}
	}
	if v := f.VLAN; v != nil {
		i.VLAN = &plan.VLAN{ID: v.ID.V, Link: v.Link.V}
		if v.ID.V < 1 || v.ID.V > 4094 {
			at := v.ID.Pos
			if !v.ID.Set() {
				at = v.Pos
			}
			problems.Addf(at, "write one from 1 to 4094", "%d is no VLAN's ID", v.ID.V)
		}
	}
}

func addresses(said []text, problems *problem.List) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range said {
		p, err := netip.ParsePrefix(a.V)
		switch {
		case err != nil:
			problems.Addf(a.Pos, "write an address and its prefix length: 192.0.2.11/24", "%q is no address of an interface", a.V)
		case p.Addr().Is4In6() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().IsLoopback():
			problems.Addf(a.Pos, "write an address of the host's own", "%q can't be an interface's address", a.V)
		case noHost(p, p.Addr()):
			problems.Addf(a.Pos, "write the host's own address", "%s is the network's own or its broadcast address", a.V)
			out = append(out, p)
		default:
			out = append(out, p)
		}
	}
	return out
}

// noHost tells whether a is what no host of the network p can have.
func noHost(p netip.Prefix, a netip.Addr) bool {
	return a.Is4() && p.Bits() < 31 && (a == p.Masked().Addr() || a == broadcast(p))
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(a)
}

func gateways(said []text, in []netip.Prefix, problems *problem.List) []netip.Addr {
	out := parseAddrs(said, "gateway", problems)
	for _, g := range said {
		a, ok := parseAddr(g.V)
		if !ok || a.IsLinkLocalUnicast() && a.Is6() {
			continue
		}
		if !slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Contains(a) }) {
			var networks []string
			for _, p := range in {
				if p.Addr().Is4() == a.Is4() {
					networks = append(networks, p.Masked().String())
				}
			}
			fix := "give the interface an address of the same family with its prefix length"
			if len(networks) > 0 {
				fix = "choose one in " + strings.Join(networks, " or ")
			}
			problems.Addf(g.Pos, fix, "the gateway %s is in no network of the interface", a)
		} else if slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Addr() == a }) {
			problems.Addf(g.Pos, "name the router's address", "the gateway %s is the host's own address", a)
		} else if slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Contains(a) && noHost(p, a) }) {
			problems.Addf(g.Pos, "name the router's address", "the gateway %s is the network's own or its broadcast address", a)
		}
	}
	return out
}

// parseAddr reads the address of one machine, in its one spelling.
func parseAddr(s string) (a netip.Addr, ok bool) {
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast()
}

func parseAddrs(said []text, what string, problems *problem.List) []netip.Addr {
	var out []netip.Addr
	for _, s := range said {
		a, ok := parseAddr(s.V)
		if !ok {
			problems.Addf(s.Pos, "write an address without a prefix length", "%q is no address of a %s", s.V, what)
			continue
		}
		out = append(out, a)
	}
	return out
}

func routes(said []RouteFile, i plan.Interface, problems *problem.List) []plan.Route {
	var out []plan.Route
	for _, r := range said {
		at := func(t text) problem.Position {
			if t.Set() {
				return t.Pos
			}
			return r.Pos
		}
		to, err := netip.ParsePrefix(r.To.V)
		if err != nil || to != to.Masked() {
			problems.Addf(at(r.To), "write a network: 198.51.100.0/24", "%q is no network that a route can lead to", r.To.V)
			continue
		}
		via, ok := parseAddr(r.Via.V)
		if !ok || via.Is4() != to.Addr().Is4() {
			problems.Addf(at(r.Via), "write the router's address, of the network's family", "%q is no address that a route to %s can go through", r.Via.V, to)
			continue
		}
		leased := i.DHCP4 && via.Is4() || via.Is6() && (i.DHCP6 || i.AcceptRA == nil || *i.AcceptRA)
		if !leased && !via.IsLinkLocalUnicast() && !slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Contains(via) }) {
			problems.Addf(r.Via.Pos, "name a router in a network of the interface", "the route to %s goes through %s, which is in no network of the interface", to, via)
		}
		out = append(out, plan.Route{To: to, Via: via})
	}
	return out
}

// advertise is how a host's agents come to their address.
type advertise struct {
	value   string // an address, or a go-sockaddr template
	literal bool
}

// checkAdvertise reads an advertise: setting; nil gives none.
func checkAdvertise(f *AdvertiseFile, problems *problem.List) advertise {
	if f == nil {
		return advertise{}
	}
	switch {
	case f.Address.Set():
		a, ok := parseAddr(f.Address.V)
		if !ok || a.IsLoopback() {
			problems.Addf(f.Address.Pos, "write an address that the servers can reach, or {interface: NAME}, or {network: CIDR}", "%q can't be advertised", f.Address.V)
			return advertise{}
		}
		return advertise{a.String(), true}
	case f.Interface.Set() == f.Network.Set():
		problems.Addf(f.Pos, "write an address, {interface: NAME} or {network: CIDR}", "this says no one way of finding an address")
	case f.Interface.Set():
		if interfaceName().MatchString(f.Interface.V) {
			// go-sockaddr's GetInterfaceIP passes over addresses that it calls not
			// forwardable, and then gives nothing.
			name := strings.ReplaceAll(f.Interface.V, ".", "[.]")
			return advertise{`{{ GetAllInterfaces | include "name" "^` + name + `$" | exclude "flags" "link-local unicast" | sort "type,address" | limit 1 | attr "address" }}`, false}
		}
		problems.Addf(f.Interface.Pos, "use up to 15 letters, digits and ._-", "%q can't name an interface", f.Interface.V)
	default:
		p, err := netip.ParsePrefix(f.Network.V)
		if err == nil && p == p.Masked() {
			return advertise{`{{ GetAllInterfaces | include "network" "` + p.String() + `" | sort "default,address" | limit 1 | attr "address" }}`, false}
		}
		problems.Addf(f.Network.Pos, "write it as 192.0.2.0/24", "%q is no network", f.Network.V)
	}
	return advertise{}
}
