// Package leftovers finds entries of Nomad clients in Consul's catalog that were
// never deregistered, and removes them.
//
// A Nomad client registers itself in Consul under an ID that is a hash of the
// address it advertises. A host that changes its address registers anew, and
// nobody takes the old entry back: Nomad reaps its tasks' entries alone, and the
// host's Consul agent keeps what it was told, and tells the servers again. With
// verify_https_client the entry has no check that could fail, either.
//
// [Judge] is the rule that says which entries those are: pure, over what a
// [Source] gathered. What it doesn't prove is never touched. A [Remover] removes
// an entry where that lasts: on the agent that registered it, or in the catalog
// where that agent is gone or knows nothing of it.
package leftovers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Entry is a service of Consul's catalog.
type Entry struct {
	Node        string // Consul's name of the node that it is on
	NodeID      string // Consul's, may be empty
	NodeAddress string // where the node's Consul agent is
	ID          string // the service's
	Service     string // its name
	Address     string // its own address, may be empty
	Port        int
	Source      string // its meta external-source
}

// Node is a client that Nomad's servers know.
type Node struct {
	Name   string
	Region string
	Status string // ready, down, initializing, disconnected
	// HTTPAddr is the address and port that it advertises. Without a port, no entry
	// matches it.
	HTTPAddr string
}

// State is what the rule judges.
type State struct {
	Entries []Entry
	Nodes   []Node
	// Nomad says why Nomad's nodes are unknown, or known in part; nil where all are
	// in Nodes.
	Nomad error
	// Filtered tells that Consul's token may not see all entries.
	Filtered bool
}

// Verdict is what the rule says of an entry.
type Verdict string

// The verdicts.
const (
	// Current is an entry in order, or one that the rule isn't about.
	Current Verdict = "current"
	// Stale is an entry that is proven to be left over.
	Stale Verdict = "stale"
	// Unproven is an entry that looks like one left over, but may be none.
	Unproven Verdict = "cannot prove"
)

// Finding is an entry that isn't in order.
type Finding struct {
	Entry
	Verdict Verdict // Stale or Unproven
	Why     string  // what proves it, or what is missing for a proof
	// NomadAddress is where Nomad's ready node of that name is, if it has just one.
	NomadAddress string
}

const (
	clientPrefix = "_nomad-client-"
	nomadSource  = "nomad"
	statusReady  = "ready"
	statusDown   = "down"
)

// ofClient tells whether Nomad's agent registered the entry for its client. Those
// of its server and of tasks have other prefixes, and are Nomad's own business.
func (e *Entry) ofClient() bool {
	return len(e.ID) > len(clientPrefix) && strings.HasPrefix(e.ID, clientPrefix) && e.Source == nomadSource
}

// Judge finds the entries that are left over, and those that may be, by node,
// address and ID. An entry is [Stale] only if all of this holds:
//
//   - Nomad's client registered it: its ID begins with _nomad-client-, and its
//     external-source is nomad;
//   - Nomad has exactly one ready node of the Consul node's name, and that one
//     advertises another address;
//   - the Consul node has an entry for the address that it does advertise;
//   - the entry isn't that of another Nomad node, which registers itself through
//     this Consul node's agent.
func Judge(s *State) []Finding {
	j := newJudge(s)
	var found []Finding
	for _, e := range s.Entries {
		if !e.ofClient() {
			continue
		}
		f := j.judge(e)
		if f.Verdict != Current {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Endpoint(), b.Endpoint()), strings.Compare(a.ID, b.ID))
	})
	return found
}

type judge struct {
	nomad   error
	nodes   []Node
	byName  map[string][]Node  // Nomad's
	entries map[string][]Entry // of clients, by Consul's node
}

func newJudge(s *State) *judge {
	j := &judge{nomad: s.Nomad, nodes: slices.Clone(s.Nodes), byName: map[string][]Node{}, entries: map[string][]Entry{}}
	// What is said of one of several mustn't depend on the order that they came in.
	slices.SortFunc(j.nodes, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.HTTPAddr, b.HTTPAddr), strings.Compare(a.Status, b.Status))
	})
	for _, n := range j.nodes {
		j.byName[n.Name] = append(j.byName[n.Name], n)
	}
	for _, e := range s.Entries {
		if e.ofClient() {
			j.entries[e.Node] = append(j.entries[e.Node], e)
		}
	}
	return j
}

func (j *judge) judge(e Entry) Finding {
	f := Finding{Entry: e, Verdict: Unproven}
	if j.nomad != nil {
		// One entry alone is never proven stale, so that it isn't worth a word.
		if len(j.entries[e.Node]) < 2 {
			f.Verdict = Current
			return f
		}
		f.Why = fmt.Sprintf("Consul's node has %d entries of Nomad clients, and Nomad can't be asked which is right", len(j.entries[e.Node]))
		return f
	}
	var ready []Node
	for _, n := range j.byName[e.Node] {
		if n.Status != statusReady {
			continue
		}
		if e.compare(n) == same {
			f.Verdict = Current
			return f
		}
		ready = append(ready, n)
	}
	switch len(ready) {
	case 0:
		j.withoutReady(&f)
	case 1:
		f.NomadAddress = ready[0].HTTPAddr
		j.besideReady(&f, ready[0])
	default:
		f.Why = fmt.Sprintf("Nomad has %d ready nodes %s, at %s: whose entry this is isn't known", len(ready), e.Node, addresses(ready))
	}
	return f
}

// besideReady judges an entry that isn't that of Nomad's one ready node of the name.
func (j *judge) besideReady(f *Finding, ready Node) {
	if f.compare(ready) == unknown {
		f.Why = fmt.Sprintf("its address can't be compared with %s, which Nomad's node %s advertises: only two IP addresses, each with a port, prove anything", ready.HTTPAddr, ready.Name)
		return
	}
	if !j.registers(ready) {
		f.Why = fmt.Sprintf("Nomad's node %s is ready at %s, but Consul's node has no entry for that: its Nomad may not have registered itself yet", ready.Name, ready.HTTPAddr)
		return
	}
	for _, n := range j.nodes {
		if n.Name == f.Node || n.Status == statusDown || !f.mayBe(n) {
			continue
		}
		if !j.registers(n) {
			f.Why = fmt.Sprintf("it is the address of Nomad's node %s, which has no entry at a Consul node of its own, and may register itself through this one's agent", n.Name)
			return
		}
	}
	f.Verdict = Stale
	f.Why = fmt.Sprintf("Nomad's node %s is ready at %s, and Consul's node has an entry for that, too", ready.Name, ready.HTTPAddr)
}

// registers tells whether the Consul node of n's name has an entry for n's address.
func (j *judge) registers(n Node) bool {
	return slices.ContainsFunc(j.entries[n.Name], func(e Entry) bool { return e.compare(n) == same })
}

// withoutReady judges an entry where Nomad has no ready node of the name.
func (j *judge) withoutReady(f *Finding) {
	var similar string
	for _, n := range j.nodes {
		if (n.Name == f.Node || n.Status != statusDown) && f.compare(n) == same {
			f.Verdict = Current
			return
		}
		if similar == "" && alike(n.Name, f.Node) {
			similar = n.Name
		}
	}
	switch named := j.byName[f.Node]; {
	case len(named) > 0:
		f.Why = fmt.Sprintf("Nomad's node %s is %s, at %s: only a ready one proves anything", f.Node, statuses(named), addresses(named))
	case similar != "":
		f.Why = fmt.Sprintf("Nomad has no node %s, but %s: that they are the same is only proven if they are called the same; give both agents one name", f.Node, similar)
	default:
		f.Why = fmt.Sprintf("Nomad has no node %s", f.Node)
	}
}

// alike tells whether two names that differ look like those of one host: but for
// upper case, or for the domain.
func alike(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	shortA, domainA, _ := strings.Cut(a, ".")
	shortB, domainB, _ := strings.Cut(b, ".")
	return shortA == shortB && (domainA == domainB || domainA == "" || domainB == "")
}

func addresses(nodes []Node) string {
	return list(nodes, func(n Node) string { return n.HTTPAddr })
}

func statuses(nodes []Node) string {
	return list(nodes, func(n Node) string { return n.Status })
}

// list has each word once, sorted.
func list(nodes []Node, word func(Node) string) string {
	words := make([]string, len(nodes))
	for i, n := range nodes {
		words[i] = word(n)
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), ", ")
}
