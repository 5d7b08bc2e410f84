package leftovers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entry is one of a Nomad client's, at ADDRESS:PORT; the ID is made of it.
func entry(node, address string, port int) Entry {
	return Entry{
		Node: node, NodeAddress: "192.0.2.250", ID: fmt.Sprintf("_nomad-client-%s-%d", address, port),
		Service: DefaultService, Address: address, Port: port, Source: "nomad",
	}
}

func with(e Entry, change func(*Entry)) Entry {
	change(&e)
	return e
}

func node(name, address, status string) Node {
	return Node{Name: name, Region: "global", Status: status, HTTPAddr: address}
}

// A host that has moved from .11 to .12.
var (
	old = entry("h", "192.0.2.11", 4646)
	now = entry("h", "192.0.2.12", 4646)
	at  = node("h", "192.0.2.12:4646", "ready")
)

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name    string
		state   State
		verdict Verdict // of old; Current is that nothing is found
		why     string
	}{
		{"a host that has moved", State{Entries: []Entry{old, now}, Nodes: []Node{at}}, Stale, "Nomad's node h is ready at 192.0.2.12:4646, and Consul's node has an entry for that, too"},
		{"its port has changed", State{Entries: []Entry{old, entry("h", "192.0.2.11", 5646)}, Nodes: []Node{node("h", "192.0.2.11:5646", "ready")}}, Stale, "ready at 192.0.2.11:5646"},
		{"it is in order", State{Entries: []Entry{old}, Nodes: []Node{node("h", "192.0.2.11:4646", "ready")}}, Current, ""},
		{"an entry of a server", State{Entries: []Entry{with(old, func(e *Entry) { e.ID = "_nomad-server-abc" }), now}, Nodes: []Node{at}}, Current, ""},
		{"an entry of a task", State{Entries: []Entry{with(old, func(e *Entry) { e.ID = "_nomad-task-abc-client" }), now}, Nodes: []Node{at}}, Current, ""},
		{"a prefix in the midst of an ID", State{Entries: []Entry{with(old, func(e *Entry) { e.ID = "x_nomad-client-abc" }), now}, Nodes: []Node{at}}, Current, ""},
		{"a prefix, and no more", State{Entries: []Entry{with(old, func(e *Entry) { e.ID = "_nomad-client-" }), now}, Nodes: []Node{at}}, Current, ""},
		{"not from Nomad", State{Entries: []Entry{with(old, func(e *Entry) { e.Source = "kubernetes" }), now}, Nodes: []Node{at}}, Current, ""},
		{"from nobody", State{Entries: []Entry{with(old, func(e *Entry) { e.Source = "" }), now}, Nodes: []Node{at}}, Current, ""},
		{"no entry that matches", State{Entries: []Entry{old}, Nodes: []Node{at}}, Unproven, "Consul's node has no entry for that"},
		{"the entry that matches isn't Nomad's", State{Entries: []Entry{old, with(now, func(e *Entry) { e.Source = "" })}, Nodes: []Node{at}}, Unproven, "Consul's node has no entry for that"},
		{"the entry that matches is a server's", State{Entries: []Entry{old, with(now, func(e *Entry) { e.ID = "_nomad-server-abc" })}, Nodes: []Node{at}}, Unproven, "Consul's node has no entry for that"},
		{"the entry that matches is on another node", State{Entries: []Entry{old, with(now, func(e *Entry) { e.Node = "i" })}, Nodes: []Node{at}}, Unproven, "Consul's node has no entry for that"},
		{"the node is down", State{Entries: []Entry{old, now}, Nodes: []Node{node("h", "192.0.2.12:4646", "down")}}, Unproven, "Nomad's node h is down, at 192.0.2.12:4646: only a ready one"},
		{"the node is initializing", State{Entries: []Entry{old, now}, Nodes: []Node{node("h", "192.0.2.12:4646", "initializing")}}, Unproven, "is initializing"},
		{"the node is disconnected", State{Entries: []Entry{old, now}, Nodes: []Node{node("h", "192.0.2.12:4646", "disconnected")}}, Unproven, "is disconnected"},
		{"the node is down, where it was", State{Entries: []Entry{old}, Nodes: []Node{node("h", "192.0.2.11:4646", "down")}}, Current, ""},
		{"a reinstalled host, whose old node is down", State{Entries: []Entry{old, now}, Nodes: []Node{node("h", "192.0.2.11:4646", "down"), at}}, Stale, "ready at 192.0.2.12:4646"},
		{"two ready nodes of the name", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("h", "192.0.2.13:4646", "ready")}}, Unproven, "2 ready nodes h, at 192.0.2.12:4646, 192.0.2.13:4646"},
		{"two ready nodes of the name, one of which it is", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("h", "192.0.2.11:4646", "ready")}}, Current, ""},
		{"two regions with nodes of the name", State{Entries: []Entry{old, now}, Nodes: []Node{at, {Name: "h", Region: "other", Status: "ready", HTTPAddr: "192.0.2.13:4646"}}}, Unproven, "2 ready nodes h"},
		{"Nomad has no such node", State{Entries: []Entry{old, now}}, Unproven, "Nomad has no node h"},
		{"short in Consul, with its domain in Nomad", State{Entries: []Entry{old, now}, Nodes: []Node{node("h.example.org", "192.0.2.12:4646", "ready")}}, Unproven, "Nomad has no node h, but h.example.org"},
		{"the other way round", State{Entries: []Entry{with(old, func(e *Entry) { e.Node = "h.example.org" })}, Nodes: []Node{at}}, Unproven, "no node h.example.org, but h: "},
		{"another case", State{Entries: []Entry{old, now}, Nodes: []Node{node("H", "192.0.2.12:4646", "ready")}}, Unproven, "no node h, but H: "},
		{"another domain is another host", State{Entries: []Entry{with(old, func(e *Entry) { e.Node = "h.example.org" })}, Nodes: []Node{node("h.example.com", "192.0.2.12:4646", "ready")}}, Unproven, "Nomad has no node h.example.org"},
		{"names don't match, but addresses do", State{Entries: []Entry{old}, Nodes: []Node{node("h.example.org", "192.0.2.11:4646", "ready")}}, Current, ""},
		{"IPv6, spelled in another way", State{Entries: []Entry{entry("h", "2001:DB8:0:0::1", 4646)}, Nodes: []Node{node("h", "[2001:db8::1]:4646", "ready")}}, Current, ""},
		{"IPv4 in IPv6", State{Entries: []Entry{entry("h", "::ffff:192.0.2.12", 4646)}, Nodes: []Node{at}}, Current, ""},
		{"IPv6 in brackets", State{Entries: []Entry{entry("h", "[2001:db8::1]", 4646)}, Nodes: []Node{node("h", "[2001:db8::1]:4646", "ready")}}, Current, ""},
		{"IPv6 that has changed", State{Entries: []Entry{entry("h", "2001:db8::1", 4646), entry("h", "2001:db8:0::2", 4646)}, Nodes: []Node{node("h", "[2001:db8::0:2]:4646", "ready")}}, Stale, "ready at [2001:db8::0:2]:4646"},
		{"an entry without an address", State{Entries: []Entry{entry("h", "", 4646), now}, Nodes: []Node{at}}, Unproven, "can't be compared with 192.0.2.12:4646"},
		{"an entry without a port", State{Entries: []Entry{entry("h", "192.0.2.12", 0), now}, Nodes: []Node{at}}, Unproven, "can't be compared"},
		{"an entry for all addresses", State{Entries: []Entry{entry("h", "0.0.0.0", 4646), now}, Nodes: []Node{at}}, Unproven, "can't be compared"},
		{"an entry with a name", State{Entries: []Entry{entry("h", "h.example.org", 4646), now}, Nodes: []Node{at}}, Unproven, "can't be compared"},
		{"Nomad advertises a name", State{Entries: []Entry{old, entry("h", "h.example.org", 4646)}, Nodes: []Node{node("h", "h.example.org:4646", "ready")}}, Unproven, "can't be compared with h.example.org:4646"},
		{"both have that name", State{Entries: []Entry{entry("h", "H.example.org", 4646)}, Nodes: []Node{node("h", "h.example.org:4646", "ready")}}, Current, ""},
		{"Nomad advertises no port", State{Entries: []Entry{entry("h", "192.0.2.12", 4646)}, Nodes: []Node{node("h", "192.0.2.12", "ready")}}, Unproven, "can't be compared"},
		{"Nomad advertises nothing", State{Entries: []Entry{old, now}, Nodes: []Node{node("h", "", "ready")}}, Unproven, "can't be compared"},
		{"the address is another host's now", State{Entries: []Entry{old, now, with(old, func(e *Entry) { e.Node = "i" })}, Nodes: []Node{at, node("i", "192.0.2.11:4646", "ready")}}, Stale, "ready at 192.0.2.12:4646"},
		{"another node registers itself through this one's agent", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("i", "192.0.2.11:4646", "ready")}}, Unproven, "it is the address of Nomad's node i"},
		{"such a node, which isn't ready yet", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("i", "192.0.2.11:4646", "initializing")}}, Unproven, "it is the address of Nomad's node i"},
		{"such a node, whose port isn't known", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("i", "192.0.2.11", "ready")}}, Unproven, "it is the address of Nomad's node i"},
		{"such a node, which is down", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("i", "192.0.2.11:4646", "down")}}, Stale, "ready at"},
		{"another Nomad on that host's address, at another port", State{Entries: []Entry{old, now}, Nodes: []Node{at, node("i", "192.0.2.11:5646", "ready")}}, Stale, "ready at"},
		{"Nomad can't be asked", State{Entries: []Entry{old, now}, Nodes: []Node{at}, Nomad: errors.New("down")}, Unproven, "has 2 entries of Nomad clients, and Nomad can't be asked"},
		{"Nomad can't be asked, and there is one entry", State{Entries: []Entry{old}, Nomad: errors.New("down")}, Current, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			subject := tt.state.Entries[0]
			verdict, why := Current, ""
			for _, f := range Judge(&tt.state) {
				if f.Node == subject.Node && f.ID == subject.ID {
					verdict, why = f.Verdict, f.Why
				}
			}
			if verdict != tt.verdict || !strings.Contains(why, tt.why) {
				t.Errorf("%s: %q; want %s: %q", verdict, why, tt.verdict, tt.why)
			}
		})
	}
}

// TestJudgeFindsOne: one host among hundreds has moved.
func TestJudgeFindsOne(t *testing.T) {
	var s State
	for i := range 300 {
		name := fmt.Sprintf("build%03d", i)
		address := fmt.Sprintf("10.0.%d.%d", i/200, i%200+1)
		s.Entries = append(s.Entries, entry(name, address, 4646))
		s.Nodes = append(s.Nodes, node(name, address+":4646", "ready"))
	}
	s.Entries = append(s.Entries, entry("build077", "10.0.9.9", 4646))
	found := Judge(&s)
	if len(found) != 1 || found[0].Verdict != Stale || found[0].ID != "_nomad-client-10.0.9.9-4646" || found[0].NomadAddress != "10.0.0.78:4646" {
		t.Errorf("found %+v", found)
	}
}

// proven is the rule, as the notes have it, in other words than Judge's.
func proven(s *State, e Entry) bool {
	if s.Nomad != nil || !strings.HasPrefix(e.ID, "_nomad-client-") || e.Source != "nomad" {
		return false
	}
	var ready []netip.AddrPort
	for _, n := range s.Nodes {
		if n.Name == e.Node && n.Status == "ready" {
			at, err := netip.ParseAddrPort(n.HTTPAddr)
			if err != nil {
				return false
			}
			ready = append(ready, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
		}
	}
	own, ok := addrPort(e)
	if len(ready) != 1 || !ok || own == ready[0] {
		return false
	}
	return slices.ContainsFunc(s.Entries, func(o Entry) bool {
		at, ok := addrPort(o)
		return ok && o.Node == e.Node && at == ready[0] && strings.HasPrefix(o.ID, "_nomad-client-") && o.Source == "nomad"
	})
}

func addrPort(e Entry) (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(e.Address)
	return netip.AddrPortFrom(ip.Unmap(), uint16(e.Port)), err == nil && !ip.IsUnspecified()
}

// random makes a state of few names and addresses, so that much coincides.
func random(next func(n int) int) *State {
	pick := func(words ...string) string { return words[next(len(words))] }
	s := &State{}
	if next(12) == 0 {
		s.Nomad = errors.New("down")
	}
	for range 1 + next(6) {
		e := entry(pick("a", "a", "a", "a", "b", "a.example.org", "A"), pick("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1", "2001:DB8::1", "", "0.0.0.0", "name"), 4646+next(2))
		e.ID = pick("_nomad-client-", "_nomad-client-", "_nomad-client-", "_nomad-client-", "_nomad-client-", "_nomad-client-", "_nomad-server-", "_nomad-task-", "") + pick("1", "2", "3", "4")
		e.Source = pick("nomad", "nomad", "nomad", "nomad", "nomad", "nomad", "", "kubernetes")
		s.Entries = append(s.Entries, e)
	}
	for range 1 + next(3) {
		s.Nodes = append(s.Nodes, node(pick("a", "a", "b", "a.example.org", "A"), pick("192.0.2.1:4646", "192.0.2.1:4646", "192.0.2.2:4646", "192.0.2.2:4646", "192.0.2.2:4647", "[2001:db8::1]:4646", "[::ffff:192.0.2.1]:4646", "", "192.0.2.1", "name:4646", "192.0.2.1:4647", "192.0.2.2:4647"),
			pick("ready", "ready", "ready", "down", "initializing", "disconnected")))
	}
	return s
}

// check holds what Judge finds against the rule, and gives how much was stale.
func check(t *testing.T, s *State) int {
	t.Helper()
	found := Judge(s)
	stale := 0
	for _, f := range found {
		if f.Why == "" || f.Verdict != Stale && f.Verdict != Unproven {
			t.Errorf("%+v without a reason, in %+v", f, s)
		}
		if f.Verdict != Stale {
			continue
		}
		stale++
		if !proven(s, f.Entry) {
			t.Errorf("%+v isn't proven by %+v", f, s)
		}
	}
	// The order of what was gathered means nothing.
	other := &State{Entries: slices.Clone(s.Entries), Nodes: slices.Clone(s.Nodes), Nomad: s.Nomad}
	slices.Reverse(other.Entries)
	slices.Reverse(other.Nodes)
	verdicts := func(found []Finding) (all []string) {
		for _, f := range found {
			all = append(all, fmt.Sprint(f.Node, " ", f.ID, " ", f.Endpoint(), " ", f.Verdict, " ", f.Why))
		}
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff(verdicts(found), verdicts(Judge(other))); diff != "" {
		t.Errorf("in another order, of %+v (-want +got):\n%s", s, diff)
	}
	return stale
}

// others tells whether another node of Nomad's may have registered the entry.
func others(s *State, e Entry) bool {
	return slices.ContainsFunc(s.Nodes, func(n Node) bool {
		return n.Name != e.Node && n.Status != "down" && e.mayBe(n)
	})
}

func TestNothingOutsideTheRule(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	stale := 0
	for range 8_000 {
		s := random(r.IntN)
		n := check(t, s)
		stale += n
		for _, e := range s.Entries {
			if proven(s, e) && !others(s, e) {
				n--
			}
		}
		if n < 0 {
			t.Errorf("%d entries more are proven in %+v", -n, s)
		}
		if t.Failed() {
			return
		}
	}
	if stale < 80 {
		t.Errorf("%d entries were stale: the states are no trial", stale)
	}
}

func FuzzJudge(f *testing.F) {
	f.Add([]byte{1, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		check(t, random(func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		}))
	})
}

func TestJudgeIsSorted(t *testing.T) {
	s := &State{
		Entries: []Entry{entry("i", "192.0.2.9", 4646), entry("h", "192.0.2.9", 1), entry("h", "192.0.2.11", 1), entry("h", "192.0.2.12", 4646), entry("i", "192.0.2.13", 4646)},
		Nodes:   []Node{at, node("i", "192.0.2.13:4646", "ready")},
	}
	var got []string
	for _, f := range Judge(s) {
		got = append(got, f.Node+" "+f.Endpoint())
	}
	if diff := cmp.Diff([]string{"h 192.0.2.11:1", "h 192.0.2.9:1", "i 192.0.2.9:4646"}, got); diff != "" {
		t.Error(diff)
	}
}
