package profiles

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles/reserve"
)

type varEntry = strictyaml.Entry[any]

// Host resolves the host called name, which may lack the site's domain.
// Problems are those of this host and its profile; no plan is given where one
// of them is more than a warning.
func (s *Site) Host(ctx context.Context, name string) (*plan.Plan, problem.List, error) {
	var problems problem.List
	full := s.fullName(strings.ToLower(name))
	if !validDomain(full) {
		return nil, nil, fmt.Errorf("%q can't name a host: kiln hosts lists those of the inventory", name)
	}
	var found *HostFile
	var known []string
	var unread problem.List // what keeps the inventory from being read to its end
	search := func(all bool) error {
		unread = nil
		return s.eachEntry(ctx, &unread, func(e entry) bool {
			// Most entries are told apart without parsing them.
			short, _, _ := strings.Cut(full, ".")
			if !all && !bytes.Contains(e.text, []byte(short)) {
				return true
			}
			var own problem.List
			h := e.decode(&own)
			if h == nil || s.fullName(h.Name.V) != full {
				if h != nil {
					known = append(known, s.fullName(h.Name.V))
				}
				return true
			}
			found, problems = h, own
			return false
		})
	}
	for _, all := range []bool{false, true} {
		if err := search(all); err != nil {
			return nil, nil, err
		}
		if found != nil {
			p, more := s.resolve(found)
			problems = append(problems, more...)
			problems.Sort()
			if problems.Err() != nil {
				return nil, problems, nil
			}
			return p, problems, nil
		}
	}
	if len(unread) > 0 {
		return nil, unread, nil
	}
	return nil, nil, fmt.Errorf("the inventory has no host %s: %s", full, strictyaml.DidYouMean(full, known))
}

// Plans resolves every host, in the order of the inventory. yield gets the
// plan, or nil and the problems that keep the host from having one; it ends
// the reading by giving false. The list returned is what belongs to no host.
func (s *Site) Plans(ctx context.Context, yield func(name string, p *plan.Plan, problems problem.List) bool) (problem.List, error) {
	return s.eachHost(ctx, func(r *resolved) bool {
		return yield(r.name, r.plan, r.problems)
	})
}

// resolve makes a host's plan. What it returns beside problems is complete
// only where none is more than a warning.
func (s *Site) resolve(f *HostFile) (*plan.Plan, problem.List) {
	var problems problem.List
	sound := s.checkHostBasics(f, &problems)
	p := &plan.Plan{}
	h := &p.Host
	h.Origin = plan.Origin{Position: f.Pos}
	h.Name = s.fullName(f.Name.V)
	h.Hostname, _, _ = strings.Cut(h.Name, ".")
	h.Platform = plan.Platform(f.Platform.Or(string(plan.PlatformMetal)))
	h.Network = network(f.Interfaces, &problems)
	h.Disks = dataDisks(f.Disks, &problems)
	if f.Install != nil {
		h.Install = diskRule(*f.Install, &problems)
	}
	known := facts(f.Facts, &problems)
	checkReserve(f.Reserve, &problems)
	secrets := checkSecrets(f.Secrets, &problems)
	adv := s.advertised(f, h.Network, &problems)
	if !sound {
		return nil, problems
	}
	prep := s.prepare(f.Profile.V, f.Image.Or(images.Default))
	problems = append(problems, prep.problems...)
	problems = append(problems, prep.admins...)
	prep.reads.warn(f.Vars, "nothing in the profile "+prep.composed.name, &problems)
	p.Image, h.Layer = prep.image, prep.layer
	h.Reserved = reservation(prep.composed, f.Reserve)
	checkReserves(p, &problems)
	s.render(prep, f, p, hostFacts{known, adv, secrets}, &problems)
	return p, problems
}

// checkHostBasics checks what the rest of a host stands on.
func (s *Site) checkHostBasics(f *HostFile, problems *problem.List) bool {
	before := len(*problems)
	switch name := s.fullName(f.Name.V); {
	case !f.Name.Set():
		problems.Addf(f.Pos, "add name: …", "this host has no name")
	case !validDomain(name):
		problems.Addf(f.Name.Pos, "use lower-case letters, digits and dashes, with dots between", "%q can't name a host", f.Name.V)
	}
	switch p := s.profiles[f.Profile.V]; {
	case !f.Profile.Set():
		problems.Addf(f.Pos, "add profile: …, such as plain", "the host %s has no profile", f.Name.V)
	case p == nil:
		problems.Addf(f.Profile.Pos, strictyaml.DidYouMean(f.Profile.V, s.Profiles()), "there is no profile %q", f.Profile.V)
	case p.file.Abstract:
		problems.Addf(f.Profile.Pos, "write a profile that extends it", "the profile %s is abstract: no host can have it", p.name)
	}
	if _, ok := s.definitions[f.Image.Or(images.Default)]; !ok {
		problems.Addf(f.Image.Pos, strictyaml.DidYouMean(f.Image.V, s.Definitions()), "there is no image definition %q", f.Image.V)
	}
	switch p := plan.Platform(f.Platform.Or("metal")); p {
	case plan.PlatformMetal, plan.PlatformOpenStack, plan.PlatformEC2:
	default:
		problems.Addf(f.Platform.Pos, strictyaml.DidYouMean(string(p), []string{"metal", "openstack", "ec2"}), "there is no platform %q", p)
	}
	return len(*problems) == before
}

// Profiles lists the names of the profiles that a host can have.
func (s *Site) Profiles() []string {
	return slices.DeleteFunc(profileNames(s.profiles), func(n string) bool { return s.profiles[n].file.Abstract })
}

// checkReserve checks that shares are some.
func checkReserve(r *ReserveFile, problems *problem.List) {
	if r == nil {
		return
	}
	for _, v := range []strictyaml.Value[float64]{r.CPU, r.Memory, r.Disk} {
		if v.Set() && !(v.V >= 0 && v.V <= 1) {
			problems.Addf(v.Pos, "write a share from 0 to 1: 0.5 is half of the host", "a reservation of %s can't be", strconv.FormatFloat(v.V, 'g', -1, 64))
		}
	}
}

// reservation is what a host keeps: its own word, else its profile's.
func reservation(c *composed, own *ReserveFile) plan.Reservation {
	var r ReserveFile
	from := c.reserveFrom
	if c.reserve != nil {
		r = *c.reserve
	}
	if own != nil {
		r, from = mergeReserve(r, *own), plan.Origin{Position: own.Pos}
	}
	// Adding 0 takes the sign from a -0.
	return plan.Reservation{CPU: r.CPU.V + 0, Memory: r.Memory.V + 0, Disk: r.Disk.V + 0, Origin: from}
}

// reserveScript is what makes a reservation come true, before each start of
// Nomad: the profile alissandra has it.
const reserveScript = "/usr/lib/kiln/reserve"

// checkReserves finds a reservation that nothing on the host would make.
func checkReserves(p *plan.Plan, problems *problem.List) {
	r := p.Host.Reserved
	if r.CPU == 0 && r.Memory == 0 && r.Disk == 0 {
		return
	}
	if !slices.ContainsFunc(p.Image.Files, func(f plan.File) bool { return f.Path == reserveScript }) {
		problems.Addf(r.Origin.Position, "choose alissandra, or a profile that extends it", "the profile %s reserves nothing: it has no %s", p.Image.Profile, reserveScript)
	}
}

func dataDisks(said []DiskFile, problems *problem.List) []plan.DataDisk {
	var out []plan.DataDisk
	mounts := map[string]problem.Position{}
	rules := map[plan.DiskRule]string{}
	for _, f := range said {
		at := f.Pos
		if f.Mount.Set() {
			at = f.Mount.Pos
		}
		d := plan.DataDisk{Mount: f.Mount.V, Filesystem: f.Filesystem.Or("ext4"), Options: f.Options.V, Origin: plan.Origin{Position: f.Pos}}
		d.Disk = diskRule(f.Disk, problems)
		if !cleanPath(d.Mount) || strings.ContainsAny(d.Mount, " \t\\\"'") || path.Clean(d.Mount) != d.Mount {
			problems.Addf(at, "write an absolute path, such as /build", "%q is no directory to mount a disk on", d.Mount)
		}
		if first, twice := mounts[d.Mount]; twice {
			problems.Addf(at, "keep one of the two", "two disks for %s: the first stands at %s", d.Mount, first)
		}
		mounts[d.Mount] = at
		if other, twice := rules[d.Disk]; twice && d.Disk != (plan.DiskRule{}) {
			problems.Addf(f.Disk.Pos, "tell them apart by serial, wwn or path", "one rule picks the disks of both %s and %s", other, d.Mount)
		}
		rules[d.Disk] = d.Mount
		if d.Filesystem != "ext4" && d.Filesystem != "xfs" {
			problems.Addf(f.Filesystem.Pos, "write ext4 or xfs", "a disk can't be formatted with %q", d.Filesystem)
		}
		if strings.ContainsFunc(d.Options, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\'' || r == '\\' }) {
			problems.Addf(f.Options.Pos, "write them as noatime,nodev", "%q can't be mount options", d.Options)
		}
		if d.Disk == (plan.DiskRule{}) && f.Disk.Pos.Line == 0 {
			problems.Addf(f.Pos, "add disk: {serial: …}, or {min_size: 1TB}", "nothing says which disk %s is on", d.Mount)
		}
		out = append(out, d)
	}
	return out
}

func diskRule(f DiskRuleFile, problems *problem.List) plan.DiskRule {
	before := len(*problems)
	r := plan.DiskRule{Serial: f.Serial.V, WWN: f.WWN.V, Path: f.Path.V}
	for _, v := range []text{f.Serial, f.WWN, f.Path} {
		if v.Set() && (v.V == "" || v.V == "-" || strings.ContainsFunc(v.V, func(c rune) bool { return c <= ' ' || c > '~' || c == '\'' || c == '"' || c == '\\' })) {
			problems.Addf(v.Pos, "write it as lsblk -o NAME,SERIAL,WWN,SIZE shows it", "%q can't tell a disk", v.V)
		}
	}
	if f.Path.Set() && !(cleanPath(f.Path.V) && strings.HasPrefix(f.Path.V, "/dev/")) {
		problems.Addf(f.Path.Pos, "write one below /dev/disk, which stays the same at each boot", "%q is no path of a disk", f.Path.V)
	}
	r.MinSize, r.MaxSize = size(f.MinSize, problems), size(f.MaxSize, problems)
	if r.MaxSize != 0 && r.MinSize > r.MaxSize {
		problems.Addf(f.MinSize.Pos, "swap them", "no disk has at least %s and at most %s", f.MinSize.V, f.MaxSize.V)
	}
	if r == (plan.DiskRule{}) && f.Pos.Line != 0 && len(*problems) == before {
		problems.Addf(f.Pos, "add serial, wwn, path or min_size", "this picks no disk")
	}
	return r
}

var units = map[string]float64{
	"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}

// ParseSize reads an amount of bytes: 500GB, 1TiB. ok is false where s is none.
func ParseSize(s string) (bytes int64, ok bool) {
	digits := strings.TrimRight(s, "BKMGTibkmgtI ")
	unit, known := units[strings.ToUpper(strings.TrimSpace(s[len(digits):]))]
	n, err := strconv.ParseFloat(digits, 64)
	if b := n * unit; !known || err != nil || !(b >= 1) || b > math.MaxInt64/2 {
		return 0, false
	}
	return int64(n * unit), true
}

// size reads an amount of bytes; 0 where none is written.
func size(v text, problems *problem.List) int64 {
	if !v.Set() {
		return 0
	}
	n, ok := ParseSize(v.V)
	if !ok {
		problems.Addf(v.Pos, "write it as 64GiB or 500GB", "%q is no size", v.V)
	}
	return n
}

// facts reads what the inventory knows of the hardware.
func facts(f FactsFile, problems *problem.List) reserve.Facts {
	const fix = "write what the host has, or leave it out to have it measured"
	memory := size(f.Memory, problems)
	switch {
	case f.Cores.Set() && (f.Cores.V < 1 || f.Cores.V > 1<<16):
		problems.Addf(f.Cores.Pos, fix, "no host has %d processors", f.Cores.V)
	case f.MHz.Set() && (f.MHz.V < 1 || f.MHz.V > 1<<31):
		problems.Addf(f.MHz.Pos, fix, "no host has %d MHz", f.MHz.V)
	case memory > 0 && memory < 1<<20:
		problems.Addf(f.Memory.Pos, fix, "no host has %s of memory", f.Memory.V)
	default:
		return reserve.Facts{Cores: f.Cores.V, MHz: int64(f.MHz.V), MemoryMiB: memory >> 20}
	}
	return reserve.Facts{}
}

// advertised is the address that the host's agents give to others.
func (s *Site) advertised(f *HostFile, n plan.Network, problems *problem.List) advertise {
	if f.Advertise != nil {
		a := checkAdvertise(f.Advertise, problems)
		if name := f.Advertise.Interface; name.Set() && len(n.Interfaces) > 0 &&
			!slices.ContainsFunc(n.Interfaces, func(i plan.Interface) bool { return i.Name == name.V }) {
			problems.Addf(name.Pos, "name one of its interfaces", "the host %s has no interface %s", f.Name.V, name.V)
		}
		if a.literal {
			checkOwnAddress(f, n, problems)
		}
		return a
	}
	for _, i := range n.Interfaces {
		for _, p := range i.Addresses {
			if !p.Addr().IsLinkLocalUnicast() {
				return advertise{p.Addr().String(), true}
			}
		}
	}
	return s.advertise
}

// checkOwnAddress warns of an advertised address that no interface has: it may
// be meant so, behind a NAT.
func checkOwnAddress(f *HostFile, n plan.Network, problems *problem.List) {
	a, err := netip.ParseAddr(f.Advertise.Address.V)
	if err != nil {
		return
	}
	any := false
	for _, i := range n.Interfaces {
		for _, p := range i.Addresses {
			any = true
			if p.Addr() == a {
				return
			}
		}
	}
	if any {
		problems.Warnf(f.Advertise.Address.Pos, "", "the host %s advertises %s, which none of its interfaces has", f.Name.V, a)
	}
}

// hostFacts is what templates need to know of a host beyond its plan.
type hostFacts struct {
	facts     reserve.Facts
	advertise advertise
	secrets   map[string]reference // the host's own
}

// render runs the templates of the host half.
func (s *Site) render(prep *prepared, f *HostFile, p *plan.Plan, known hostFacts, problems *problem.List) {
	data := map[string]any{
		"site": s.data, "vars": hostVars(prep.vars, f.Vars), "release": releaseData(p.Image.Release), "profile": p.Image.Profile,
		"host": hostData(&p.Host, known.advertise, known.facts),
	}
	k := s.kindOf(prep, f.Vars, len(known.secrets) > 0)
	r := k.runners.Get().(*runner)
	defer k.runners.Put(r)
	r.scope.secrets = s.secretsOver(known.secrets)
	p.Host.Files = slices.Clone(prep.layer.Files)
	for i, df := range prep.dynamic {
		if c := k.shared[i]; c != nil {
			p.Host.Files[df.index].Content = *c
			continue
		}
		pr := execute(r.templates[i], df.template.name, data, &r.buf)
		if pr == nil {
			p.Host.Files[df.index].Content, pr = df.template.content(r.buf.Bytes(), df.profile, &r.scope)
		}
		switch {
		case pr == nil:
		case known.advertise.value == "" && strings.Contains(pr.What, "no \"advertise\""):
			problems.Addf(f.Name.Pos, "give it an address under interfaces:, or advertise: here or in site.yaml: {interface: NAME} or {network: CIDR}",
				"nothing says which address the agents of the host %s advertise", p.Host.Name)
		default:
			pr.What += " (for the host " + p.Host.Name + ")"
			*problems = append(*problems, *pr)
		}
	}
}

// secretsOver looks secrets up by name: among a host's own, then the site's.
func (s *Site) secretsOver(own map[string]reference) func(string) (plan.Ref, problem.Position, bool) {
	return func(name string) (plan.Ref, problem.Position, bool) {
		ref, ok := own[name]
		if !ok {
			ref, ok = s.secrets[name]
		}
		return ref.ref, ref.pos, ok
	}
}

func hostVars(shared map[string]any, own strictyaml.Map[any]) map[string]any {
	if len(own) == 0 {
		return shared
	}
	vars := make(map[string]any, len(shared)+len(own))
	for k, v := range shared {
		vars[k] = v
	}
	for _, e := range own {
		vars[e.Key] = e.Value
	}
	return vars
}

// hostData is what templates see as .host.
func hostData(h *plan.Host, adv advertise, known reserve.Facts) map[string]any {
	interfaces := make([]map[string]any, len(h.Network.Interfaces))
	for i, n := range h.Network.Interfaces {
		addresses := make([]string, len(n.Addresses))
		for j, a := range n.Addresses {
			addresses[j] = a.String()
		}
		interfaces[i] = map[string]any{"name": n.Name, "mac": string(n.MAC), "addresses": addresses}
	}
	disks := make([]map[string]any, len(h.Disks))
	for i, d := range h.Disks {
		disks[i] = map[string]any{
			"mount": d.Mount, "filesystem": d.Filesystem, "options": d.Options, "serial": d.Disk.Serial, "wwn": d.Disk.WWN,
			"path": d.Disk.Path, "min_size": d.Disk.MinSize, "max_size": d.Disk.MaxSize,
		}
	}
	data := map[string]any{
		"name": h.Name, "hostname": h.Hostname, "platform": string(h.Platform), "interfaces": interfaces, "disks": disks,
		"facts":    map[string]any{"cores": known.Cores, "mhz": known.MHz, "memory_mib": known.MemoryMiB},
		"reserve":  map[string]any{"cpu": h.Reserved.CPU, "memory": h.Reserved.Memory, "disk": h.Reserved.Disk},
		"reserved": reserve.FromFacts(h.Reserved, known).Data(),
	}
	// Without one, a template that asks for it fails.
	if adv.value != "" {
		data["advertise"], data["advertise_literal"] = adv.value, adv.literal
	}
	return data
}
