package render

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// NetworkConfig is the host's network as cloud-init's network-config version 2,
// or nil where the plan leaves the network to the image. It can't be part of
// user-data: a seed carries it.
func NetworkConfig(p *plan.Plan) ([]byte, error) {
	interfaces := slices.Clone(p.Host.Network.Interfaces)
	if len(interfaces) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(interfaces, func(a, b plan.Interface) int { return strings.Compare(a.Name, b.Name) })
	interfaces = withMembers(interfaces)
	y := yamlText{b: make([]byte, 0, 1024)}
	y.line("version: 2")
	for _, kind := range []string{"ethernets", "bonds", "vlans"} {
		first := true
		for i := range interfaces {
			if n := &interfaces[i]; kindOf(n) == kind {
				if first {
					y.line(kind, ":")
				}
				first = false
				if err := y.networkInterface(n, oldGateways(p.Image.Release)); err != nil {
					return nil, fmt.Errorf("%s: the interface %s: %w", n.Origin, n.Name, err)
				}
			}
		}
	}
	if y.err != nil {
		return nil, fmt.Errorf("%s: the network of %s: %w", p.Host.Origin, p.Host.Name, y.err)
	}
	return y.b, nil
}

func kindOf(n *plan.Interface) string {
	switch {
	case n.Bond != nil:
		return "bonds"
	case n.VLAN != nil:
		return "vlans"
	}
	return "ethernets"
}

// withMembers adds the interfaces that bonds and VLANs name and the plan says
// nothing else about: netplan refuses a member that isn't defined.
func withMembers(interfaces []plan.Interface) []plan.Interface {
	known := map[string]bool{}
	for i := range interfaces {
		known[interfaces[i].Name] = true
	}
	all := interfaces
	for i := range interfaces {
		n := &interfaces[i]
		var needed []string
		if n.Bond != nil {
			needed = n.Bond.Members
		} else if n.VLAN != nil {
			needed = []string{n.VLAN.Link}
		}
		for _, name := range needed {
			if !known[name] {
				known[name] = true
				all = append(all, plan.Interface{Name: name, Origin: n.Origin})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b plan.Interface) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// oldGateways tells whether a default route has to be written as gateway4 or
// gateway6. Debian 12's cloud-init (22.4.2) fails on `to: default`; it makes
// ::/64 of a route to ::/0; and for ifupdown it turns a route to 0.0.0.0/0 into a
// call of route(8), which isn't installed, with its failure ignored. Later
// versions do well by the route, and report gateway4 as deprecated, which makes
// `cloud-init status` fail.
func oldGateways(r plan.Release) bool {
	return r.ID == "debian" && (r.Version == "11" || r.Version == "12")
}

// networkInterface adds one interface's settings.
func (y *yamlText) networkInterface(n *plan.Interface, oldGateways bool) error {
	start := len(y.b)
	y.line("  ", y.scalar(n.Name), ":")
	settings := len(y.b)
	const in = "    "
	switch {
	case n.Bond != nil:
		y.list(in, "interfaces", n.Bond.Members)
		y.line(in, "parameters:")
		y.entry(in+"  ", "mode", n.Bond.Mode)
		// Without monitoring, a bond keeps sending to a member without a link.
		// The unit is milliseconds; the schema wants a string.
		y.line(in, `  mii-monitor-interval: "100"`)
		if n.MAC != "" {
			y.entry(in, "macaddress", string(n.MAC))
		}
	case n.VLAN != nil:
		y.line(in, "id: ", strconv.Itoa(n.VLAN.ID))
		y.entry(in, "link", n.VLAN.Link)
	case n.MAC != "":
		y.line(in, "match:")
		y.entry(in+"  ", "macaddress", string(n.MAC))
		y.entry(in, "set-name", n.Name)
	}
	y.addresses(n)
	if err := y.routes(n, oldGateways); err != nil {
		return err
	}
	if len(n.DNS) > 0 || len(n.Search) > 0 {
		y.line(in, "nameservers:")
		if len(n.DNS) > 0 {
			y.list(in+"  ", "addresses", texts(n.DNS))
		}
		if len(n.Search) > 0 {
			y.list(in+"  ", "search", n.Search)
		}
	}
	if len(y.b) == settings {
		y.b = y.b[:start]
		y.line("  ", y.scalar(n.Name), ": {}")
	}
	return nil
}

func (y *yamlText) addresses(n *plan.Interface) {
	const in = "    "
	if n.DHCP4 {
		y.line(in, "dhcp4: true")
	}
	if n.DHCP6 {
		y.line(in, "dhcp6: true")
	}
	if n.AcceptRA != nil {
		y.line(in, "accept-ra: ", strconv.FormatBool(*n.AcceptRA))
	}
	if n.MTU != 0 {
		y.line(in, "mtu: ", strconv.Itoa(n.MTU))
	}
	if len(n.Addresses) > 0 {
		y.list(in, "addresses", texts(n.Addresses))
	}
}

// routes adds default routes and others.
func (y *yamlText) routes(n *plan.Interface, oldGateways bool) error {
	const in = "    "
	var routes []plan.Route
	var seen [2]bool
	gateways := slices.Clone(n.Gateways)
	for _, r := range n.Routes {
		if r.To.Bits() == 0 {
			gateways = append(gateways, r.Via)
		}
	}
	for _, g := range gateways {
		key, to, family := "gateway4", "0.0.0.0/0", 0
		if g.Is6() {
			key, to, family = "gateway6", "::/0", 1
		}
		if seen[family] {
			return fmt.Errorf("it has two default routes of one family: keep one gateway")
		}
		seen[family] = true
		if oldGateways {
			y.entry(in, key, g.String())
		} else {
			routes = append(routes, plan.Route{To: netip.MustParsePrefix(to), Via: g})
		}
	}
	for _, r := range n.Routes {
		if r.To.Bits() != 0 {
			routes = append(routes, r)
		}
	}
	if len(routes) > 0 {
		y.line(in, "routes:")
	}
	for _, r := range routes {
		y.entry(in+"- ", "to", r.To.String())
		y.entry(in+"  ", "via", r.Via.String())
	}
	return nil
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
