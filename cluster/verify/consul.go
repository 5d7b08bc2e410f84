package verify

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// checkConsul judges what Consul's catalog has of a host, and whether it agrees
// with Nomad. node is nil where Nomad has none.
func checkConsul(r *results, e *expected, s *snapshot, node *nomad.Node, locked string) {
	if e.consul == nil {
		return
	}
	want, member := e.consul, s.memberOf(e)
	r.wants(CheckConsulNode)
	if member == nil {
		found := "none"
		if others := s.byAddress[want.address.String()]; len(others) > 0 {
			found = fmt.Sprintf("%s has its address %s", others[0].Node, want.address)
		}
		r.add(Finding{Check: CheckConsulNode, Expected: "a node called " + cmp.Or(want.name, e.host), Found: found,
			Fix: "does its agent run? kiln verify --ssh looks, and journalctl -u consul on the host says why it can't join"})
		return
	}
	if want.name != "" && !strings.EqualFold(want.name, member.Node) {
		r.add(Finding{Check: CheckConsulNode, Object: "name", Expected: want.name, Found: member.Node,
			Fix: "set node_name in the host's Consul configuration, and restart consul there"})
	}
	r.same(CheckConsulNode, "datacenter", want.datacenter, cmp.Or(member.Datacenter, want.datacenter),
		"bring the host's Consul configuration to the plan (kiln apply); or is another datacenter's Consul asked? CONSUL_HTTP_ADDR names it")
	role := map[bool]string{true: "a server", false: "a client"}
	r.same(CheckConsulServer, "", role[want.server], role[s.isServer[strings.ToLower(member.Node)]],
		"set server in the host's Consul configuration, and restart consul there")
	checkHealth(r, s.health[strings.ToLower(member.Node)])
	checkAddresses(r, want.address, member, node)
	if e.nomad != nil && e.nomad.client && e.nomad.service != "" {
		checkService(r, e.nomad.service, s.services[e.nomad.service], member, node)
	}
	version := member.Meta["consul-version"]
	if version == "" && node != nil {
		version = node.Attributes["consul.version"] // older Consuls don't say it themselves
	}
	checkVersion(r, CheckConsulVersion, "Consul", version, locked, s.consulServer)
}

// checkHealth is about the node itself, and about Nomad's client on it: what jobs
// register is their own business.
func checkHealth(r *results, checks consul.HealthChecks) {
	if !r.wants(CheckConsulHealth) {
		return
	}
	for _, c := range checks {
		own := c.ServiceID == "" || strings.HasPrefix(c.ServiceID, "_nomad-client-")
		if !own || c.Status == consul.HealthPassing {
			continue
		}
		r.add(Finding{Check: CheckConsulHealth, Object: c.Name, Expected: consul.HealthPassing, Found: c.Status,
			Fix: "is the host up, and can the servers reach its agents (TCP and UDP 8301, TCP 4646)?", Details: lines(c.Output, 3)})
	}
}

// checkAddresses wants one address: the plan's, Consul's and Nomad's.
func checkAddresses(r *results, want netip.Addr, member *consul.Node, node *nomad.Node) {
	if !r.wants(CheckConsulAddress) {
		return
	}
	switch {
	case want.IsValid() && literal(member.Address) != want:
		r.add(Finding{Check: CheckConsulAddress, Expected: want.String(), Found: member.Address,
			Fix: "look at advertise_addr in the host's Consul configuration, and at the address in the inventory"})
	case !want.IsValid() && node != nil && !sameAddress(member.Address, hostOf(node.HTTPAddr)):
		// Only the host knows its address: then the two agree, at least.
		r.add(Finding{Check: CheckConsulAddress, Expected: "Nomad's, " + hostOf(node.HTTPAddr), Found: member.Address,
			Fix: "the two agents found different addresses: advertise: in hosts.yaml or site.yaml says which one they are to take"})
	}
}

// checkService wants Nomad's client to be registered once on its node, where
// Nomad says that it is.
func checkService(r *results, name string, entries []*consul.CatalogService, member *consul.Node, node *nomad.Node) {
	if !r.wants(CheckConsulService) {
		return
	}
	var own []*consul.CatalogService
	for _, entry := range entries {
		if strings.EqualFold(entry.Node, member.Node) {
			own = append(own, entry)
		}
	}
	if len(own) == 0 {
		r.add(Finding{Check: CheckConsulService, Object: name, Expected: "registered once", Found: "not registered",
			Fix: "Nomad's agent can't register it: journalctl -u nomad on the host says why; is its Consul token good (agent:read, node:read, service:write)?"})
		return
	}
	at := func(s *consul.CatalogService) string { return cmp.Or(s.ServiceAddress, s.Address) }
	right := func(s *consul.CatalogService) bool { return node == nil || sameAddress(at(s), hostOf(node.HTTPAddr)) }
	slices.SortFunc(own, func(a, b *consul.CatalogService) int { return strings.Compare(a.ServiceID, b.ServiceID) })
	if len(own) == 1 {
		if !right(own[0]) {
			r.add(Finding{Check: CheckConsulService, Object: name, Expected: "at " + hostOf(node.HTTPAddr) + ", as Nomad says", Found: "at " + at(own[0]),
				Fix: "restart nomad on the host, which registers it anew; what is left then, kiln consul leftovers finds"})
		}
		return
	}
	f := Finding{Check: CheckConsulService, Object: name, Expected: "registered once", Found: fmt.Sprintf("registered %d times", len(own)),
		Fix: "kiln consul leftovers tells which of them is stale, and removes it"}
	for _, entry := range own {
		detail := fmt.Sprintf("%s at %s, port %d", entry.ServiceID, at(entry), entry.ServicePort)
		if !right(entry) {
			detail += ": not where Nomad says that it is"
		}
		f.Details = append(f.Details, detail)
	}
	r.add(f)
}

// lines are the first n lines of a text.
func lines(text string, n int) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && len(out) < n {
			out = append(out, line)
		}
	}
	return out
}
