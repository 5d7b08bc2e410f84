package boot

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/alisw/kiln/plan"
)

// newDataDisk is the size, in bytes, of a data disk whose rule asks for none.
const newDataDisk = 8 << 30

// Hardware is what a machine needs to pass for a host's own: interfaces with
// its MACs, on networks of QEMU's own that suit its addresses, and empty data
// disks that its rules choose. notes are what the host will miss all the same.
func Hardware(h *plan.Host) (nics []NIC, disks []DataDisk, notes []string, err error) {
	nics, notes = interfaces(h.Network.Interfaces)
	for i := range h.Disks {
		d, err := dataDisk(&h.Disks[i])
		if err != nil {
			return nil, nil, nil, err
		}
		disks = append(disks, d)
	}
	return nics, disks, notes, nil
}

// interfaces are those that are hardware, in their order.
func interfaces(all []plan.Interface) (nics []NIC, notes []string) {
	for i := range all {
		n := &all[i]
		switch {
		case n.VLAN != nil:
			notes = append(notes, fmt.Sprintf("the VLAN %d (%s) leads nowhere: QEMU's own network has none", n.VLAN.ID, n.Name))
			continue
		case n.Bond != nil:
			continue
		case n.MAC == "":
			notes = append(notes, fmt.Sprintf("the interface %s has no mac in the inventory: the machine's has another name, and stays without its settings", n.Name))
		}
		nic := NIC{MAC: string(n.MAC)}
		nic.setNetwork(settings(n, all))
		nics = append(nics, nic)
	}
	return nics, notes
}

// settings are those of the interface whose addresses n carries: its own, or
// those of the bond that it's a member of.
func settings(n *plan.Interface, all []plan.Interface) *plan.Interface {
	for i := range all {
		if b := all[i].Bond; b != nil && slices.Contains(b.Members, n.Name) {
			return &all[i]
		}
	}
	return n
}

// setNetwork has QEMU's own network be the one that a host with fixed addresses
// expects: with its gateway, and its name server where that is in the network.
// IPv6 stays QEMU's own: hosts start without it, too.
func (nic *NIC) setNetwork(n *plan.Interface) {
	i := slices.IndexFunc(n.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() && p.Bits() <= 30 })
	if i < 0 {
		return
	}
	network := n.Addresses[i].Masked()
	taken := map[netip.Addr]bool{}
	for _, a := range n.Addresses {
		taken[a.Addr()] = true
	}
	// choose is the first of the candidates that can be had, else any free one.
	choose := func(candidates []netip.Addr) netip.Addr {
		for _, a := range candidates {
			if network.Contains(a) && !taken[a] {
				taken[a] = true
				return a
			}
		}
		for a := network.Addr().Next(); network.Contains(a); a = a.Next() {
			if !taken[a] {
				taken[a] = true
				return a
			}
		}
		return network.Addr() // of the four that there are; QEMU only wants them to differ
	}
	nic.Network = network
	nic.Gateway = choose(n.Gateways)
	nic.DNS = choose(n.DNS)
	nic.Lease = choose(nil)
}

// dataDisk is an empty disk that fits a host's rule.
func dataDisk(d *plan.DataDisk) (DataDisk, error) {
	r := d.Disk
	if r.Path != "" {
		return DataDisk{}, fmt.Errorf("%s: the disk of %s is the one at %s, which no virtual machine has: give its rule a serial, wwn or min_size instead", d.Origin, d.Mount, r.Path)
	}
	if !serialName().MatchString(r.Serial) {
		return DataDisk{}, fmt.Errorf("%s: the disk of %s has the serial %q, which QEMU can't give to one: give its rule a wwn or min_size instead", d.Origin, d.Mount, r.Serial)
	}
	if r.WWN != "" && !wwnName().MatchString(r.WWN) {
		return DataDisk{}, fmt.Errorf("%s: the disk of %s has the wwn %q, which QEMU can't give to one (only 0x and 16 hexadecimal digits): give its rule a serial or min_size instead", d.Origin, d.Mount, r.WWN)
	}
	size := max(r.MinSize, newDataDisk)
	if r.MaxSize > 0 {
		size = min(size, r.MaxSize)
	}
	const sector = 512
	size = (size + sector - 1) / sector * sector // QEMU rounds, too: down
	if r.MaxSize > 0 && size > r.MaxSize {
		size -= sector
	}
	return DataDisk{Size: size, Serial: r.Serial, WWN: r.WWN}, nil
}
