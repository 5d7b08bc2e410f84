package render

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/alisw/kiln/plan"
)

// networkText is an ini file being written, as systemd-networkd and
// NetworkManager both read it.
type networkText struct{ strings.Builder }

// section starts a section.
func (t *networkText) section(name string) {
	if t.Len() > 0 {
		t.WriteByte('\n')
	}
	t.WriteString("[" + name + "]\n")
}

// set adds a setting, but for an empty one.
func (t *networkText) set(key, value string) {
	if value != "" {
		t.WriteString(key + "=" + value + "\n")
	}
}

// ignitionNetwork is the host's network as the files of what sets it up on
// that variant. Ignition knows nothing of networks itself.
func ignitionNetwork(n *plan.Network, variant Variant) ([]plan.File, error) {
	if len(n.Interfaces) == 0 {
		return nil, nil
	}
	net := ignitionNet{interfaces: withMembers(append([]plan.Interface(nil), n.Interfaces...)), master: map[string]string{}, vlans: map[string][]string{}}
	for i := range net.interfaces {
		if err := checkInterface(&net.interfaces[i]); err != nil {
			return nil, fmt.Errorf("%s: the interface %q: %w", net.interfaces[i].Origin, net.interfaces[i].Name, err)
		}
	}
	for i := range net.interfaces {
		in := &net.interfaces[i]
		if in.Bond != nil {
			for _, member := range in.Bond.Members {
				net.master[member] = in.Name
			}
		}
		if in.VLAN != nil {
			net.vlans[in.VLAN.Link] = append(net.vlans[in.VLAN.Link], in.Name)
		}
	}
	write := net.networkd
	if variant == FCOS {
		write = net.networkManager
	}
	var files []plan.File
	for i := range net.interfaces {
		made, err := write(&net.interfaces[i])
		if err != nil {
			return nil, fmt.Errorf("%s: the interface %s: %w", net.interfaces[i].Origin, net.interfaces[i].Name, err)
		}
		for _, f := range made {
			f.Origin = net.interfaces[i].Origin
			files = append(files, f)
		}
	}
	return files, nil
}

// ignitionNet is a host's interfaces and how they hang together.
type ignitionNet struct {
	interfaces []plan.Interface
	master     map[string]string   // member → its bond
	vlans      map[string][]string // link → the VLANs on it
}

// hardware tells whether an interface is none that the host makes up.
func hardware(in *plan.Interface) bool { return in.Bond == nil && in.VLAN == nil }

// checkInterface refuses what would end a setting in an ini file, or be a path.
func checkInterface(in *plan.Interface) error {
	if !isPlain(in.Name, "_.-") || in.Name[0] == '.' || len(in.Name) > 15 {
		return fmt.Errorf("a name has up to 15 letters, digits, dots, - and _")
	}
	for _, s := range in.Search {
		if !isPlain(s, "~._-") {
			return fmt.Errorf("%q is no domain to search in", s)
		}
	}
	if in.Bond != nil && !isPlain(in.Bond.Mode, ".-") {
		return fmt.Errorf("%q is no mode of a bond", in.Bond.Mode)
	}
	var seen [2]bool
	for _, g := range in.Gateways {
		if seen[family(g)] {
			return fmt.Errorf("it has two gateways of one family: keep one, and write the other as a route")
		}
		seen[family(g)] = true
	}
	return nil
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// linkFile has udev give hardware the plan's name, whatever the kernel calls
// it: templates may choose an address by an interface's name.
func linkFile(in *plan.Interface) []plan.File {
	if !hardware(in) || in.MAC == "" {
		return nil
	}
	var t networkText
	t.section("Match")
	t.set("PermanentMACAddress", string(in.MAC))
	t.section("Link")
	t.set("Name", in.Name)
	return []plan.File{rootFile("/etc/systemd/network/10-kiln-"+in.Name+".link", 0o644, []byte(t.String()))}
}
