package profiles

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// maxProblems is how many problems, and how many warnings, Check gathers before it says that there are
// more: nobody reads further, and a broken template is wrong for each host.
const maxProblems = 1000

// Check finds every problem of the site in dir: its settings, its profiles
// (whether a host uses them or not), and its hosts, each resolved and rendered.
// hosts counts those that it looked at.
func Check(ctx context.Context, dir string) (problems problem.List, hosts int, err error) {
	s, problems, err := Open(dir)
	if err != nil {
		return nil, 0, err
	}
	c := newChecker()
	c.add(problems)
	each := s.eachHost
	if s.unreadable {
		// Whatever else is missing may well stand in site.yaml.
		each = s.eachUnresolved
	} else {
		c.add(s.checkProfiles())
		c.add(s.checkAptOverrides())
		_, found := s.Vault()
		c.add(found)
	}
	found, err := each(ctx, func(r *resolved) bool {
		hosts++
		c.host(r)
		return c.errors < maxProblems
	})
	if err == nil && hosts == 0 && len(found) == 0 {
		found.Warnf(problem.Position{File: filepath.Join(dir, "hosts.yaml")}, "write one: - {name: build01, profile: plain}", "the inventory has no host")
	}
	if err != nil {
		return nil, 0, err
	}
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	c.add(found)
	c.problems.Sort()
	if c.errors >= maxProblems {
		c.problems.Addf(problem.Position{}, "mend these first", "there are more than %d problems", maxProblems)
	}
	return c.problems, hosts, nil
}

// checkProfiles checks each profile, and what the site says for all of them.
func (s *Site) checkProfiles() problem.List {
	var problems problem.List
	var reads varUse
	for _, name := range profileNames(s.profiles) {
		problems = append(problems, s.checkProfile(name, &reads)...)
	}
	reads.warn(s.File.Vars, "no profile", &problems)
	return problems
}

// checkProfile checks a profile by itself: on the default image, whatever
// hosts say. The variables that it reads or declares are added to reads.
func (s *Site) checkProfile(name string, reads *varUse) problem.List {
	p := s.profiles[name]
	if p.file.Abstract {
		return s.checkAbstract(p, reads)
	}
	prep := s.prepare(name, images.Default)
	reads.add(prep.reads)
	return prep.problems
}

// checkAbstract checks what can be said of a profile that hosts don't have: its
// templates may need what only those that extend it give.
func (s *Site) checkAbstract(p *profile, reads *varUse) problem.List {
	var problems problem.List
	for _, e := range p.file.Vars {
		reads.read(e.Key)
	}
	compose(p.name, s.profiles, &problems)
	for h, files := range p.half {
		for _, f := range files {
			if !f.isTemplate {
				continue
			}
			data, err := fs.ReadFile(p.fsys, f.path)
			if err != nil {
				problems.Addf(problem.Position{File: p.shown(f.path)}, "", "%s", err)
				continue
			}
			t := parseTemplate(p.shown(f.path), f.target, string(data), p.delimiters, half(h) == imageHalf, &problems)
			if t == nil {
				reads.any = true
				continue
			}
			reads.add(t.vars)
		}
	}
	checkReserve(p.file.Host.Reserve, &problems)
	return problems
}

// checkAptOverrides finds the site's settings of apt sources that no profile
// has.
func (s *Site) checkAptOverrides() problem.List {
	var problems problem.List
	var known []string
	for _, p := range s.profiles {
		for _, e := range p.file.Image.AptSources {
			known = append(known, e.Key)
		}
	}
	slices.Sort(known)
	for _, e := range s.File.Apt.Sources {
		if !slices.Contains(known, e.Key) {
			problems.Addf(e.Pos, strictyaml.DidYouMean(e.Key, known), "no profile has an apt source %q", e.Key)
		}
	}
	return problems
}

// claimed is who has a name or an address already, and where that was written:
// numbers alone, which the garbage collector needn't look through for each of
// 100,000 hosts.
type claimed struct{ host, file, line, column uint32 }

// checker gathers the problems of a site, and what no two hosts can share.
type checker struct {
	problems problem.List
	errors   int // among them: those that are more than warnings
	seen     map[problem.Problem]bool

	hosts, files []string // what claims count
	names        map[string]claimed
	macs         map[[6]byte]claimed
	addresses    map[[16]byte]claimed
}

func newChecker() *checker {
	return &checker{seen: map[problem.Problem]bool{}, names: map[string]claimed{}, macs: map[[6]byte]claimed{}, addresses: map[[16]byte]claimed{}}
}

// add adds problems that aren't there yet: those of a profile come with each
// of its hosts. Of warnings only the first ones are kept.
func (c *checker) add(l problem.List) {
	for _, p := range l {
		// The same template fails for each host: the first is named, once.
		key := p
		key.What, _, _ = strings.Cut(key.What, " (for the host ")
		if c.seen[key] || p.Warning && len(c.problems)-c.errors >= maxProblems {
			continue
		}
		c.seen[key] = true
		c.problems = append(c.problems, p)
		if !p.Warning {
			c.errors++
		}
	}
}

func (c *checker) addf(at problem.Position, fix, format string, args ...any) {
	var l problem.List
	l.Addf(at, fix, format, args...)
	c.add(l)
}

// claim is that of the latest host.
func (c *checker) claim(at problem.Position) claimed {
	if n := len(c.files); n == 0 || c.files[n-1] != at.File {
		c.files = append(c.files, at.File)
	}
	return claimed{uint32(len(c.hosts) - 1), uint32(len(c.files) - 1), uint32(at.Line), uint32(at.Column)}
}

// position is where a claim was written.
func (c *checker) position(of claimed) problem.Position {
	return problem.Position{File: c.files[of.file], Line: int(of.line), Column: int(of.column)}
}

func (c *checker) host(r *resolved) {
	c.add(r.problems)
	if r.file == nil || !r.file.Name.Set() {
		return
	}
	c.hosts = append(c.hosts, r.name)
	if first, twice := c.names[r.name]; twice {
		c.addf(r.file.Name.Pos, "remove one of the two, or rename it", "the host %s stands here twice: first at %s", r.name, c.position(first))
	} else {
		c.names[r.name] = c.claim(r.file.Name.Pos)
	}
	for _, e := range r.file.Interfaces {
		c.mac(e.Value.MAC)
		for _, a := range e.Value.Addresses {
			c.address(a)
		}
	}
}

func (c *checker) mac(said text) {
	mac, err := plan.ParseMAC(said.V)
	if err != nil {
		return
	}
	var key [6]byte
	for i := range key {
		n, _ := strconv.ParseUint(string(mac[3*i:3*i+2]), 16, 8) // what ParseMAC gives is hexadecimal
		key[i] = byte(n)
	}
	if first, taken := c.macs[key]; taken {
		c.addf(said.Pos, "each interface has a MAC of its own", "the MAC %s is that of %s already, at %s", mac, c.hosts[first.host], c.position(first))
		return
	}
	c.macs[key] = c.claim(said.Pos)
}

func (c *checker) address(said text) {
	p, err := netip.ParsePrefix(said.V)
	if err != nil || p.Addr().IsLinkLocalUnicast() { // which is one link's own
		return
	}
	key := p.Addr().As16()
	if first, taken := c.addresses[key]; taken {
		c.addf(said.Pos, "give each its own", "the address %s is that of %s already, at %s", p.Addr(), c.hosts[first.host], c.position(first))
		return
	}
	c.addresses[key] = c.claim(said.Pos)
}

// ProfileInfo is what there is to say of a profile in a line.
type ProfileInfo struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Extends     []string `json:"extends,omitempty"`
	Abstract    bool     `json:"abstract,omitempty"`
	Shipped     bool     `json:"shipped"`
	Directory   string   `json:"directory"`
}

// ProfileInfos describes the profiles, in the order of their names.
func (s *Site) ProfileInfos() []ProfileInfo {
	var infos []ProfileInfo
	for _, n := range profileNames(s.profiles) {
		p := s.profiles[n]
		infos = append(infos, ProfileInfo{n, p.file.Description.V, texts(p.file.Extends), p.file.Abstract, p.shipped, p.dir})
	}
	return infos
}

// ProfileFiles is the folder of a profile, a shipped one's included; nil where
// there is none of that name.
func (s *Site) ProfileFiles(name string) fs.FS {
	if p := s.profiles[name]; p != nil {
		return p.fsys
	}
	return nil
}

// HostInfo is what there is to say of a host in a line.
type HostInfo struct {
	Name      string   `json:"name"`
	Profile   string   `json:"profile"`
	Image     string   `json:"image"`
	Platform  string   `json:"platform"`
	MACs      []string `json:"macs,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// HostInfos calls yield for each host, in the order of the inventory.
func (s *Site) HostInfos(ctx context.Context, yield func(HostInfo) bool) (problem.List, error) {
	var problems problem.List
	err := s.eachEntry(ctx, &problems, func(e entry) bool {
		f := e.decode(&problems)
		if f == nil {
			return true
		}
		info := HostInfo{
			Name: s.fullName(f.Name.V), Profile: f.Profile.V, Image: f.Image.Or(images.Default), Platform: f.Platform.Or(string(plan.PlatformMetal)),
		}
		for _, i := range f.Interfaces {
			if mac, err := plan.ParseMAC(i.Value.MAC.V); err == nil {
				info.MACs = append(info.MACs, string(mac))
			}
			info.Addresses = append(info.Addresses, texts(i.Value.Addresses)...)
		}
		return yield(info)
	})
	if err != nil {
		return problems, fmt.Errorf("listing the hosts: %w", err)
	}
	return problems, nil
}
