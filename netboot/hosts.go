package netboot

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/alisw/kiln/plan"
)

// Inventory is the registered hosts, indexed: each look-up takes the same time
// for ten hosts as for 100,000.
type Inventory struct {
	hosts     []Host
	byMAC     map[plan.MAC]*Host
	byName    map[string]*Host // in lower case; nil where a short name is of several
	byAddress map[netip.Addr]*Host
}

// NewHosts indexes hosts, which it keeps. A MAC or a name of two hosts is an
// error, all of which are told at once: which of the two would be installed?
func NewHosts(hosts []Host) (*Inventory, error) {
	in := &Inventory{
		hosts: hosts, byMAC: make(map[plan.MAC]*Host, len(hosts)),
		byName: make(map[string]*Host, 2*len(hosts)), byAddress: make(map[netip.Addr]*Host, len(hosts)),
	}
	var errs []error
	for i := range hosts {
		h := &hosts[i]
		name := strings.ToLower(h.Name)
		if _, ok := in.byName[name]; ok {
			errs = append(errs, fmt.Errorf("the inventory has two hosts %s: rename or remove one", h.Name))
			continue
		}
		in.byName[name] = h
		for _, nic := range h.NICs {
			if other, ok := in.byMAC[nic.MAC]; ok {
				if other == h {
					errs = append(errs, fmt.Errorf("host %s has the MAC %s twice: give each interface its own", h.Name, nic.MAC))
				} else {
					errs = append(errs, fmt.Errorf("hosts %s and %s have the same MAC %s: correct one", other.Name, h.Name, nic.MAC))
				}
				continue
			}
			in.byMAC[nic.MAC] = h
			for _, a := range nic.Addresses {
				if _, ok := in.byAddress[a.Addr()]; !ok {
					in.byAddress[a.Addr()] = h
				}
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	in.addShortNames()
	return in, nil
}

// addShortNames comes after all full ones, which go before.
func (in *Inventory) addShortNames() {
	full := make(map[string]bool, len(in.byName))
	for name := range in.byName {
		full[name] = true
	}
	for i := range in.hosts {
		short, _, qualified := strings.Cut(strings.ToLower(in.hosts[i].Name), ".")
		if !qualified || full[short] {
			continue
		}
		if other, ok := in.byName[short]; ok && other != &in.hosts[i] {
			in.byName[short] = nil
			continue
		}
		in.byName[short] = &in.hosts[i]
	}
}

// ByMAC finds the host that has an interface of that MAC.
func (in *Inventory) ByMAC(mac plan.MAC) (*Host, bool) {
	h, ok := in.byMAC[mac]
	return h, ok
}

// ByName finds a host by its name, short or fully qualified, in either case. A
// short name that several hosts share finds none of them.
func (in *Inventory) ByName(name string) (*Host, bool) {
	h := in.byName[strings.ToLower(name)]
	return h, h != nil
}

// ByAddress finds the host that has an address: the first of the inventory, if
// several do.
func (in *Inventory) ByAddress(a netip.Addr) (*Host, bool) {
	h, ok := in.byAddress[a]
	return h, ok
}

// All are the hosts, in the order of the inventory.
func (in *Inventory) All() []Host { return in.hosts }
