package apply

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// Options are the operator's choices.
type Options struct {
	// OtherName takes a host that calls itself otherwise, or that has none of the
	// inventory's MACs, for the one that is meant.
	OtherName bool
	// Network has a changed network take effect at once.
	Network bool
	// Restart names units that are to be restarted, too.
	Restart []string
}

// Change is one thing that isn't on a host as it is to be.
type Change struct {
	Kind string `json:"kind"` // file, link, directory, group, user, keys, unit, network
	Name string `json:"name"`
	What string `json:"what"` // what becomes of it
	// Diff is what changes in a text, as diff -u shows it, without any secret.
	Diff string `json:"diff,omitempty"`

	script  string   // what is done, as calls of apply.sh's functions
	content []byte   // that it needs; @ in script stands for its number
	expects string   // the state that Path must have still; empty: any
	does    []action // what has to follow
}

// Format prints what people may see, whatever the verb: the content isn't.
func (c Change) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s %s: %s", c.Kind, c.Name, c.What)
}

// Changes are all that a run would do on one host.
type Changes struct {
	Host  string   `json:"host"`
	List  []Change `json:"changes"`
	Units []string `json:"units"` // what follows: restart nomad.service, …
	// Pending is what an earlier run has left to do. It is among Units.
	Pending []string `json:"pending,omitempty"`
	// Notes are what a run doesn't do, and what else people should know.
	Notes []string `json:"notes,omitempty"`

	actions []action
	stale   []string // new files that an earlier run hasn't put in their places
	drained string   // Nomad's ID of the node that an earlier run has drained
	marked  bool     // the mark is taken away until all is there
	record  string   // the state of PendingPath
	// Those that the network is to give the host.
	addresses []string
}

// Nothing tells whether the host is as it is to be already.
func (c *Changes) Nothing() bool {
	return len(c.List) == 0 && len(c.actions) == 0 && c.drained == "" && len(c.stale) == 0
}

// Restarts tells whether Nomad, and with it the way to its jobs, is to be
// restarted, or the containers that are its jobs.
func (c *Changes) Restarts() bool {
	return slices.ContainsFunc(c.actions, func(a action) bool {
		return (a.unit == nomadUnit || a.unit == "docker.service") && a.verb != reload
	})
}

// planner collects the changes of one host.
type planner struct {
	want    *Want
	state   *State
	options Options
	*Changes
	problems []error
}

// Plan compares a host with what it is to be. The error is for a host that
// mustn't, or can't, be changed that way.
func Plan(w *Want, s *State, o Options) (*Changes, error) {
	p := &planner{want: w, state: s, options: o, Changes: &Changes{Host: w.Plan.Host.Name, List: []Change{}, Units: []string{}}}
	for i := range w.Plan.Host.Network.Interfaces {
		for _, a := range w.Plan.Host.Network.Interfaces[i].Addresses {
			p.addresses = append(p.addresses, a.Addr().String())
		}
	}
	if refs := w.Plan.Host.References(); len(refs) > 0 {
		return nil, fmt.Errorf("%s: the secret %s isn't resolved", w.Plan.Host.Name, refs[0].Ref)
	}
	if err := p.identity(); err != nil {
		return nil, err
	}
	p.leftToDo()
	p.accounts()
	p.directories()
	p.allFiles()
	p.leftovers()
	p.network()
	p.waitingNetwork()
	p.units()
	p.image()
	if len(p.problems) > 0 {
		return nil, errors.Join(p.problems...)
	}
	p.settleActions()
	return p.Changes, nil
}

// identity refuses a machine that isn't the inventory's.
func (p *planner) identity() error {
	h := &p.want.Plan.Host
	if !p.state.Systemd {
		return fmt.Errorf("%s: systemd isn't its init, and Kiln knows no other", h.Name)
	}
	if p.options.OtherName {
		return nil
	}
	if p.state.Hostname != h.Name && p.state.Hostname != h.Hostname {
		return fmt.Errorf("the machine at %s calls itself %s: is that the one? --other-name takes it nevertheless", h.Name, p.state.Hostname)
	}
	known := 0
	for i := range h.Network.Interfaces {
		if mac := string(h.Network.Interfaces[i].MAC); mac != "" {
			if known++; slices.Contains(p.state.MACs, mac) {
				return nil
			}
		}
	}
	if known > 0 {
		return fmt.Errorf("the machine at %s has none of the MACs that the inventory has for it (it has %s): is that the one? --other-name takes it nevertheless",
			h.Name, strings.Join(p.state.MACs, ", "))
	}
	return nil
}

// leftToDo reads what an earlier run has left.
func (p *planner) leftToDo() {
	p.record = stateOf(p.state.files[PendingPath])
	for _, line := range p.state.Pending {
		key, rest, _ := strings.Cut(line, " ")
		switch a, ok := parseAction(line); {
		case ok:
			p.actions = append(p.actions, a)
			p.Pending = append(p.Pending, line)
		case key == "stale":
			p.stale = append(p.stale, rest)
		case key == "drained":
			p.drained = rest
			p.Pending = append(p.Pending, "make its Nomad node eligible again")
		default:
			p.note("%s on it has a line that isn't understood, which stays out: %q", PendingPath, line)
		}
	}
	if p.state.Busy != "" {
		p.note("somebody is changing this host right now: %s", p.state.Busy)
	}
}

func (p *planner) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(p.Notes, n) {
		p.Notes = append(p.Notes, n)
	}
}

func (p *planner) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf("%s: %w", p.Host, fmt.Errorf(format, args...)))
}

func (p *planner) add(c Change) {
	p.List = append(p.List, c)
	p.actions = append(p.actions, c.does...)
}

// settleActions puts what follows into its order.
func (p *planner) settleActions() {
	for _, unit := range p.options.Restart {
		// Once, with a change; or nothing would ever be as it is to be.
		if len(p.List) > 0 {
			p.actions = append(p.actions, action{start, unit})
		} else {
			p.note("nothing changes, so %s isn't restarted", unit)
		}
	}
	if len(p.actions) > 0 && p.marked {
		p.actions = append(p.actions, action{restart, hostUnit})
	}
	p.actions = p.want.order(p.actions)
	for _, a := range p.actions {
		p.Units = append(p.Units, a.String())
	}
}

// directories are made at once, but for those on data disks: kiln-host.service
// makes them when the disks are mounted.
func (p *planner) directories() {
	for i := range p.want.Layer.Directories {
		d := &p.want.Layer.Directories[i]
		p.owner(d.Path, d.Owner, d.Group)
		e := p.state.files[d.Path]
		c := Change{Kind: "directory", Name: d.Path, What: "new", script: call("folder", octal(d.Mode), d.Owner, d.Group, d.Path)}
		switch {
		case p.state.large[d.Path] || e != nil && e.kind == tar.TypeReg:
			p.problem("%s is no directory there: move away what it is", d.Path)
			continue
		case e != nil && e.kind == tar.TypeSymlink:
			continue // whoever made it a link means another place
		case e != nil:
			if c.What = ownership(e, d.Mode, d.Owner, d.Group); c.What == "" {
				continue
			}
		}
		if p.onDataDisk(d.Path) {
			c.script, c.does = "", []action{{restart, hostUnit}}
			c.What += ", made by " + hostUnit
		}
		p.add(c)
	}
}

func (p *planner) onDataDisk(path string) bool {
	return p.want.hasUnit(hostUnit) && slices.ContainsFunc(p.want.Plan.Host.Disks, func(d plan.DataDisk) bool {
		return path == d.Mount || strings.HasPrefix(path, d.Mount+"/")
	})
}

// owner sees that a user and a group are there, or will be.
func (p *planner) owner(path, owner, group string) {
	const way = "a package makes it, which has to be installed first"
	if p.state.users[owner] == nil && !slices.ContainsFunc(p.want.Layer.Users, func(u plan.User) bool { return u.Name == owner }) {
		p.problem("%s is to belong to the user %s, who isn't on the host: %s", path, owner, way)
	}
	if _, there := p.state.groups[group]; !there && !p.makesGroup(group) {
		p.problem("%s is to belong to the group %s, which isn't on the host: %s", path, group, way)
	}
}

func (p *planner) makesGroup(name string) bool {
	return slices.ContainsFunc(p.want.Layer.Groups, func(g plan.Group) bool { return g.Name == name }) ||
		slices.ContainsFunc(p.want.Layer.Users, func(u plan.User) bool { return u.Name == name && primaryGroup(&u) == name })
}

// ownership says what of an entry's mode and owner is to change; empty: nothing.
func ownership(e *entry, mode fs.FileMode, owner, group string) string {
	var what []string
	if e.mode != mode {
		what = append(what, fmt.Sprintf("mode %s → %s", octal(e.mode), octal(mode)))
	}
	if e.owner != owner || e.group != group {
		what = append(what, fmt.Sprintf("owner %s:%s → %s:%s", e.owner, e.group, owner, group))
	}
	return strings.Join(what, ", ")
}

func octal(m fs.FileMode) string { return fmt.Sprintf("%04o", uint32(m)&0o7777) }

// call is a call of one of apply.sh's functions.
func call(words ...string) string {
	for i, w := range words {
		words[i] = quote.Word(w)
	}
	return strings.Join(words, " ")
}

// network compares what netplan reads with the plan. Only a host whose network
// cloud-init gave to netplan, as in a golden image, is changed.
func (p *planner) network() {
	if p.want.Network == nil {
		return
	}
	e := p.state.files[netplanPath]
	if e == nil || e.kind != tar.TypeReg {
		p.note("its network isn't compared: there is no %s, which golden images have", netplanPath)
		return
	}
	same, err := sameNetwork(e.content, p.want.Network)
	if err != nil {
		p.problem("%s: %w", netplanPath, err)
		return
	}
	if same {
		return
	}
	text := netplanText(p.want.Network)
	c := Change{
		Kind: "network", Name: netplanPath, What: "changed", Diff: diffOf(netplanPath, e.content, text), content: text,
		script: call("valid_network", "@") + "\n" + call("put", "@", "0600", "root", "root", netplanPath), expects: stateOf(e),
	}
	p.changesNetwork(&c)
	p.add(c)
}

// changesNetwork is for a change of a file that says what the network is to be: at
// once, or the host remembers until it boots that it isn't yet.
func (p *planner) changesNetwork(c *Change) {
	c.script += "\n: >\"$waiting\""
	if p.options.Network {
		c.does = append(c.does, action{verb: network})
	} else {
		p.note(networkNote)
	}
}

// waitingNetwork has a network count that an earlier run has only written.
func (p *planner) waitingNetwork() {
	switch {
	case p.state.Waits && p.options.Network:
		p.actions = append(p.actions, action{verb: network})
	case p.state.Waits:
		p.note(networkNote)
	}
}

// netplanText is a network-config as a file of netplan's.
func netplanText(config []byte) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by kiln apply: change the site, not this.\nnetwork:\n")
	for line := range bytes.Lines(config) {
		b.WriteString("  ")
		b.Write(line)
	}
	return b.Bytes()
}
