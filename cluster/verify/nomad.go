package verify

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// checkNomad judges a host's node, as Nomad's servers know it. node is nil where
// they have none.
func checkNomad(r *results, e *expected, s *snapshot, node *nomad.Node, locked string) {
	if e.nomad == nil {
		return
	}
	want := e.nomad
	r.same(CheckNomadRegion, "", want.region, cmp.Or(s.region, want.region),
		"ask the Nomad of the host's region: NOMAD_ADDR, or NOMAD_REGION, names it; or mend the region in site.yaml")
	if want.server {
		checkServer(r, e, s, locked)
	}
	if !want.client {
		return
	}
	same := s.nodesOf(e)
	r.wants(CheckNomadNode)
	if node == nil {
		r.add(Finding{Check: CheckNomadNode, Expected: "a node called " + cmp.Or(want.name, e.host), Found: "none",
			Fix: "does its agent run? kiln verify --ssh looks, and journalctl -u nomad on the host says why it can't join"})
		return
	}
	if want.name != "" && !strings.EqualFold(want.name, node.Name) {
		r.add(Finding{Check: CheckNomadNode, Object: "name", Expected: want.name, Found: node.Name,
			Fix: fmt.Sprintf("set name in the host's %s/nomad.hcl, and restart nomad there", nomadDir)})
	}
	checkLife(r, node)
	r.wants(CheckNomadDuplicate)
	for _, old := range same[1:] {
		checkDuplicate(r, same[0], old)
	}
	const restart = "bring the host's configuration to the plan (kiln apply), and restart nomad there"
	r.same(CheckNomadDatacenter, "", want.datacenter, node.Datacenter, restart)
	r.same(CheckNomadClass, "node_pool", want.pool, cmp.Or(node.NodePool, "default"), restart)
	r.same(CheckNomadClass, "node_class", cmp.Or(want.class, "none"), cmp.Or(node.NodeClass, "none"), restart)
	if at := hostOf(node.HTTPAddr); want.address.IsValid() && r.wants(CheckNomadAddress) && literal(at) != want.address {
		r.add(Finding{Check: CheckNomadAddress, Expected: want.address.String(), Found: cmp.Or(at, "none"),
			Fix: "look at advertise and bind_addr in the host's Nomad configuration, and at the address in the inventory"})
	}
	checkMeta(r, want, node)
	checkVolumes(r, want, node)
	checkDrivers(r, want, node)
	checkVersion(r, CheckNomadVersion, "Nomad", node.Attributes["nomad.version"], locked, s.nomadServers)
}

// checkServer judges a server of Nomad's, as the one that was asked knows it.
func checkServer(r *results, e *expected, s *snapshot, locked string) {
	if !r.wants(CheckNomadServer) {
		return
	}
	names := e.names(e.nomad.name)
	i := slices.IndexFunc(s.servers, func(m *nomad.AgentMember) bool {
		return slices.Contains(names, strings.ToLower(strings.TrimSuffix(m.Name, "."+e.nomad.region)))
	})
	if i < 0 {
		r.add(Finding{Check: CheckNomadServer, Expected: "a server called " + cmp.Or(e.nomad.name, e.host), Found: "none",
			Fix: "does its agent run, and does it reach the others (TCP and UDP 4648)? journalctl -u nomad on the host says"})
		return
	}
	m := s.servers[i]
	r.same(CheckNomadServer, "status", "alive", m.Status, "is the host up, and its agent? kiln verify --ssh looks at it")
	if e.nomad.address.IsValid() && literal(m.Addr) != e.nomad.address {
		r.add(Finding{Check: CheckNomadServer, Object: "address", Expected: e.nomad.address.String(), Found: m.Addr,
			Fix: "look at advertise and bind_addr in the host's Nomad configuration, and at the address in the inventory"})
	}
	if !e.nomad.client {
		checkVersion(r, CheckNomadVersion, "Nomad", m.Tags["build"], locked, nil)
	}
}

// checkLife is whether jobs can come to the node.
func checkLife(r *results, node *nomad.Node) {
	if node.Status != nomad.NodeStatusReady {
		found := node.Status
		if node.StatusUpdatedAt > 0 {
			found += " since " + time.Unix(node.StatusUpdatedAt, 0).UTC().Format(time.DateTime)
		}
		r.add(Finding{Check: CheckNomadNode, Object: "status", Expected: nomad.NodeStatusReady, Found: found,
			Fix: "is the host up, and its agent? kiln verify --ssh looks at it"})
	}
	if !r.wants(CheckNomadEligible) {
		return
	}
	short := shortID(node.ID)
	switch {
	case node.Drain || node.DrainStrategy != nil:
		r.add(Finding{Check: CheckNomadEligible, Expected: nomad.NodeSchedulingEligible, Found: "draining",
			Fix: "once it is drained and done with: nomad node drain -disable " + short})
	case node.SchedulingEligibility != nomad.NodeSchedulingEligible:
		r.add(Finding{Check: CheckNomadEligible, Expected: nomad.NodeSchedulingEligible, Found: node.SchedulingEligibility,
			Fix: "if nobody keeps jobs from it on purpose: nomad node eligibility -enable " + short})
	}
}

// checkDuplicate names another entry of the same name: one that the host had
// before it was installed again, or another host that took its name.
func checkDuplicate(r *results, own, other *nomadNode) {
	found := fmt.Sprintf("also %s at %s, %s", shortID(other.ID), cmp.Or(other.Address, "no address"), other.Status)
	fix := fmt.Sprintf("it is an old entry, of before an installation perhaps: Nomad forgets it in a day, or at once with: nomad system gc (node %s)", shortID(other.ID))
	if other.Status == nomad.NodeStatusReady {
		fix = "two hosts have this name: give each its own in its Nomad configuration, or stop the agent of the one that is wrong"
	}
	r.add(Finding{Check: CheckNomadDuplicate, Object: shortID(other.ID), Expected: "one node of this name, " + shortID(own.ID), Found: found, Fix: fix})
}

// Old tells whether a finding is of what the host was before: an entry that isn't
// ready, of the same name, which Nomad will forget.
func (f Finding) Old() bool {
	return f.Check == CheckNomadDuplicate && !strings.HasSuffix(f.Found, ", "+nomad.NodeStatusReady)
}

func checkMeta(r *results, want *nomadAgent, node *nomad.Node) {
	for _, name := range slices.Sorted(maps.Keys(want.meta)) {
		r.same(CheckNomadMeta, name, want.meta[name], node.Meta[name],
			"jobs that ask for ${meta."+name+"} aren't placed as meant: set it in client { meta { } }, and restart nomad; was it changed by nomad node meta apply?")
	}
}

func checkVolumes(r *results, want *nomadAgent, node *nomad.Node) {
	say := func(path string, readOnly bool) string {
		if readOnly {
			return path + ", read-only"
		}
		return path
	}
	for _, name := range slices.Sorted(maps.Keys(want.volumes)) {
		w, found := want.volumes[name], "none"
		if have := node.HostVolumes[name]; have != nil {
			found = say(have.Path, have.ReadOnly)
		}
		r.same(CheckNomadVolume, name, say(w.path, w.readOnly), found,
			fmt.Sprintf("jobs that ask for the volume %s don't get it: write host_volume %q into client { }, and restart nomad", name, name))
	}
}

func checkDrivers(r *results, want *nomadAgent, node *nomad.Node) {
	for _, name := range want.drivers {
		if !r.wants(CheckNomadDriver) {
			return
		}
		found, d := "none", node.Drivers[name]
		switch {
		case d == nil:
		case !d.Detected:
			found = "not detected"
		case !d.Healthy:
			found = "unhealthy"
		default:
			continue
		}
		if d != nil && d.HealthDescription != "" {
			found += ": " + d.HealthDescription
		}
		r.add(Finding{Check: CheckNomadDriver, Object: name, Expected: "detected and healthy", Found: found,
			Fix: fmt.Sprintf("install and start what the driver %s needs on the host, or take it out of the profile", name)})
	}
}

// hostOf is an address without its port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// shortID is as much of an ID as nomad's own tables show, and its verbs take.
func shortID(id string) string { return id[:min(len(id), 8)] }

// sameAddress tells whether two texts are one address.
func sameAddress(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return a == b
	}
	return x.Unmap() == y.Unmap()
}

// numbers reads a list of numbers and ranges, as cpusets and lists of ports are
// written: 0-3,8. ok is false where it is none.
func numbers(list string) (set map[int]bool, ok bool) {
	set = map[int]bool{}
	for piece := range strings.SplitSeq(list, ",") {
		if piece = strings.TrimSpace(piece); piece == "" {
			continue
		}
		first, last, isRange := strings.Cut(piece, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA != nil || errB != nil || a < 0 || b < a || b > 1<<16 {
			return nil, false
		}
		for n := a; n <= b; n++ {
			set[n] = true
		}
	}
	return set, true
}
