package profiles

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

type preparedKey struct{ profile, definition string }

// prepared is all of a plan that its hosts share: the Image half, whole, and
// the Host half with its templates still to be run.
type prepared struct {
	composed *composed
	image    plan.Image
	layer    plan.Layer  // of the host half; its files' contents are those without a template
	dynamic  []*hostFile // the files of layer that are rendered for each host
	vars     map[string]any
	reads    varUse       // the variables that the profile declares or its templates read
	known    [2]accounts  // by half
	problems problem.List // whatever the host
	// admins is what keeps the site's admins from hosts of this profile: nothing
	// is wrong with a profile that no host has.
	admins problem.List
	kinds  hostKinds
}

// hostFile is a file of the host half whose content is a template's.
type hostFile struct {
	index    int // in the layer's files
	template *fileTemplate
	profile  string
}

// Image resolves the Image half of a profile on an image definition.
func (s *Site) Image(profileName, definition string) (plan.Image, problem.List) {
	p := s.prepare(profileName, definition)
	return p.image, p.problems
}

// prepare composes a profile for an image definition, once.
func (s *Site) prepare(profileName, definition string) *prepared {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := preparedKey{profileName, definition}
	if p := s.prepared[key]; p != nil {
		return p
	}
	p := &prepared{}
	p.composed = compose(profileName, s.profiles, &p.problems)
	d := s.definitions[definition]
	p.vars = varsOf(p.composed.vars, s.File.Vars)
	p.known = [2]accounts{s.accounts(p.composed, imageHalf), s.accounts(p.composed, hostHalf)}
	b := builder{site: s, p: p, definition: d, problems: &p.problems}
	if s.profiles[profileName] == nil {
		p.problems.Addf(problem.Position{}, strictyaml.DidYouMean(profileName, s.Profiles()), "there is no profile %q", profileName)
	}
	for _, name := range p.composed.vars.keys() {
		p.reads.read(name)
	}
	b.image()
	b.host()
	checkReserve(p.composed.reserve, &p.problems)
	b.clashes()
	p.problems.Sort()
	s.prepared[key] = p
	return p
}

// varsOf is a profile's variables with the site's over them.
func varsOf(of items[any], site []varEntry) map[string]any {
	vars := make(map[string]any, len(of)+len(site))
	for _, it := range of {
		vars[it.key] = it.value
	}
	for _, e := range site {
		vars[e.Key] = e.Value
	}
	return vars
}

// builder makes a prepared profile.
type builder struct {
	site       *Site
	p          *prepared
	definition images.Definition
	problems   *problem.List
}

func (b *builder) image() {
	c, im := b.p.composed, &b.p.image
	im.Profile, im.Definition, im.Release = c.name, b.definition.Name, b.definition.Release
	for _, it := range c.packages {
		if !packageName().MatchString(it.key) {
			b.problems.Addf(it.origin.Position, "write the name of a package, without a version: kiln.lock has the versions", "%q is no package's name", it.key)
		}
		im.Packages = append(im.Packages, plan.Package{Name: it.key, Origin: it.origin})
	}
	slices.SortFunc(im.Packages, func(x, y plan.Package) int { return strings.Compare(x.Name, y.Name) })
	for _, it := range c.kernelArguments {
		if strings.ContainsFunc(it.key, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`$\\", r) }) {
			b.problems.Addf(it.origin.Position, "write one argument an entry, in plain characters", "%q can't be a kernel argument", it.key)
		}
		im.KernelArguments = append(im.KernelArguments, plan.Text{Value: it.key, Origin: it.origin})
	}
	b.aptSources()
	im.Layer = b.layer(imageHalf)
}

// aptSources merges the site's overrides into the profiles' sources.
func (b *builder) aptSources() {
	sources := slices.Clone(b.p.composed.aptSources)
	for _, e := range b.site.File.Apt.Sources {
		if it := sources.find(e.Key); it != nil {
			it.value = mergeAptSource(it.value, e.Value)
			if e.Value.Key.Set() || e.Value.Fingerprint.Set() {
				// A key of the site's own isn't to be had where the profile's is.
				it.value.KeyURL = e.Value.KeyURL
			}
			it.origin = plan.Origin{Position: e.Pos}
		}
	}
	for _, it := range sources {
		if src, ok := b.aptSource(it); ok {
			b.p.image.AptSources = append(b.p.image.AptSources, src)
		}
	}
	slices.SortFunc(b.p.image.AptSources, func(x, y plan.AptSource) int { return strings.Compare(x.Name, y.Name) })
}

func (b *builder) aptSource(it item[AptSourceFile]) (plan.AptSource, bool) {
	f, at := it.value, it.origin.Position
	src := plan.AptSource{Name: it.key, Components: texts(f.Components), KeyURL: f.KeyURL.V, Origin: it.origin}
	if !profileName().MatchString(it.key) {
		b.problems.Addf(at, "use lower-case letters, digits and dashes", "%q can't name an apt source", it.key)
	}
	for _, u := range f.URIs {
		switch {
		case !uriPattern().MatchString(u.V):
			b.problems.Addf(u.Pos, "write it as https://HOST/PATH or file:///PATH", "%q is no address of an apt repository", u.V)
		case strings.Contains(u.V, "@"):
			b.problems.Addf(u.Pos, "give the password in /etc/apt/auth.conf.d/, in the host half", "an image never holds a password: the address of the apt source %s has one", it.key)
		default:
			src.URIs = append(src.URIs, u.V)
		}
	}
	for _, suite := range f.Suites {
		src.Suites = append(src.Suites, strings.ReplaceAll(suite.V, "$(codename)", b.definition.Release.Codename))
	}
	for what, n := range map[string]int{"uris": len(f.URIs), "suites": len(f.Suites)} {
		if n == 0 {
			b.problems.Addf(at, "add them", "the apt source %s has no %s", it.key, what)
		}
	}
	for _, suite := range f.Suites {
		if flat := strings.HasSuffix(suite.V, "/"); flat == (len(f.Components) > 0) && suite.V != "" {
			b.problems.Addf(suite.Pos, "give components, such as main, unless the repository is flat: its suite ends in /, and it has none", "the suite %s of the apt source %s has %d components", suite.V, it.key, len(f.Components))
		}
	}
	for _, word := range slices.Concat(src.Suites, src.Components) {
		if !aptWord().MatchString(word) {
			b.problems.Addf(at, "use letters, digits and ./_-", "%q can't be a suite or component", word)
		}
	}
	fingerprint, ok := aptkey.Fingerprint(f.Fingerprint.V)
	if !ok {
		pos := at
		if f.Fingerprint.Set() {
			pos = f.Fingerprint.Pos
		}
		b.problems.Addf(pos, "write its 40 hexadecimal digits: gpg --show-keys FILE prints them", "the apt source %s has no valid fingerprint of its key", it.key)
		return src, false
	}
	src.Fingerprint = fingerprint
	b.aptKey(&src, f.Key)
	return src, true
}

// KeyFile is where the site keeps the key of the named apt source, unless it
// says otherwise.
func KeyFile(source string) string { return "keys/" + source + ".asc" }

// aptKey reads the key of an apt source from the site.
func (b *builder) aptKey(src *plan.AptSource, said text) {
	name := filepath.Join(b.site.Dir, said.Or(KeyFile(src.Name)))
	if filepath.IsAbs(said.V) {
		name = said.V
	}
	src.KeyFile = name
	data, err := regular.ReadFile(name)
	switch {
	case os.IsNotExist(err) && (!said.Set() || src.KeyURL != ""):
		// kiln keys fetch gets it; rendering what needs it says so.
		b.problems.Warnf(src.Origin.Position, "run kiln keys fetch, or copy the key to "+name, "the site doesn't hold the key %s of the apt source %s", src.Fingerprint, src.Name)
		return
	case err != nil:
		b.problems.Addf(said.Pos, "copy the key there", "the key of the apt source %s can't be read: %s", src.Name, err)
		return
	}
	at := said.Pos
	if !said.Set() {
		at = problem.Position{File: name, Line: 1, Column: 1}
	}
	key, err := aptkey.Parse(data)
	switch {
	case err != nil:
		b.problems.Addf(at, "", "the key of the apt source %s, %s: %s", src.Name, name, err)
		return
	case key.Fingerprint != src.Fingerprint:
		b.problems.Addf(at, "if the new key is to be trusted, write its fingerprint into the site", "the key of the apt source %s, %s, has the fingerprint %s, not %s", src.Name, name, key.Fingerprint, src.Fingerprint)
		return
	case !key.Expires.IsZero() && time.Until(key.Expires) < 90*24*time.Hour:
		verb := "expires"
		if time.Now().After(key.Expires) {
			verb = "has expired, so that apt refuses it,"
		}
		b.problems.Warnf(at, "get the key anew: kiln keys fetch", "the key of the apt source %s %s on %s", src.Name, verb, key.Expires.Format(time.DateOnly))
	}
	src.Key = key.Armored
}

func (b *builder) host() {
	l := b.layer(hostHalf)
	for _, a := range b.site.File.Admins {
		b.adminGroups(a)
		l.Users = append(l.Users, plan.User{
			Name: a.Name.V, UID: a.UID, Groups: texts(a.Groups), Shell: a.Shell.Or("/bin/bash"), Sudo: a.Sudo.V, SSHKeys: texts(a.SSHKeys),
			Origin: plan.Origin{Position: a.Pos},
		})
	}
	slices.SortFunc(l.Users, func(x, y plan.User) int { return strings.Compare(x.Name, y.Name) })
	b.p.layer = l
}

// layer makes what both halves have.
func (b *builder) layer(h half) plan.Layer {
	from := &b.p.composed.half[h]
	var l plan.Layer
	for _, it := range from.groups {
		checkUserName(text{V: it.key, Pos: it.origin.Position}, it.origin.Position, b.problems)
		l.Groups = append(l.Groups, plan.Group{Name: it.key, GID: it.value.GID, System: it.value.System.V, Origin: it.origin})
	}
	for _, it := range from.users {
		l.Users = append(l.Users, b.user(h, it))
	}
	for _, it := range from.directories {
		d := plan.Directory{Path: it.key, Owner: it.value.Owner.Or("root"), Group: it.value.Group.Or("root"), Mode: 0o755, Origin: it.origin}
		b.path(it.key, it.origin)
		b.mode(it.value.Mode, &d.Mode)
		b.owner(h, it.key, it.value.Owner, it.value.Group)
		l.Directories = append(l.Directories, d)
	}
	for _, it := range from.units {
		l.Units = append(l.Units, b.unit(it))
	}
	slices.SortFunc(l.Groups, func(x, y plan.Group) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(l.Users, func(x, y plan.User) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(l.Directories, func(x, y plan.Directory) int { return strings.Compare(x.Path, y.Path) })
	specs := slices.Clone(from.files)
	slices.SortFunc(specs, func(x, y item[fileSpec]) int { return strings.Compare(x.key, y.key) })
	for _, it := range specs {
		b.file(h, it, &l)
	}
	return l
}

// adminGroups checks that something creates the groups that an admin is to be
// in: the image half, the host half or a package.
func (b *builder) adminGroups(a AdminFile) {
	for _, g := range a.Groups {
		if g.Set() && !b.p.known[hostHalf].groups[g.V] {
			b.p.admins.Addf(g.Pos, "add it to the profile's groups:, or to what a package creates", "nothing in the profile %s creates the group %s, which the admin %s is to be in",
				b.p.composed.name, g.V, a.Name.V)
		}
	}
}

// groups checks that something creates the groups that who is to be in.
func (b *builder) groups(h half, who string, groups []text) {
	for _, g := range groups {
		if g.Set() && !b.p.known[h].groups[g.V] {
			b.problems.Addf(g.Pos, "add it to groups:, or to what a package creates", "nothing in the %s creates the group %s, which the %s is to be in", h, g.V, who)
		}
	}
}

func (b *builder) user(h half, it item[UserFile]) plan.User {
	f := it.value
	checkUserName(text{V: it.key, Pos: it.origin.Position}, it.origin.Position, b.problems)
	checkSSHKeys(f.SSHKeys, b.problems)
	for _, p := range []text{f.Home, f.Shell} {
		if p.Set() && !cleanPath(p.V) {
			b.problems.Addf(p.Pos, "write an absolute path", "%q is no path for the user %s", p.V, it.key)
		}
	}
	if strings.ContainsAny(f.Comment.V, ":\n\r") {
		b.problems.Addf(f.Comment.Pos, "leave them out", "a user's comment can't have colons or more than a line")
	}
	b.groups(h, "user "+it.key, append(slices.Clone(f.Groups), f.Group))
	return plan.User{
		Name: it.key, UID: f.UID, Group: f.Group.V, Groups: texts(f.Groups), Home: f.Home.V, Shell: f.Shell.V,
		Comment: f.Comment.V, System: f.System.V, Sudo: f.Sudo.V, SSHKeys: texts(f.SSHKeys), Origin: it.origin,
	}
}

func (b *builder) unit(it item[string]) plan.Unit {
	if !unitName().MatchString(it.key) {
		b.problems.Addf(it.origin.Position, "write it with its suffix: nomad.service", "%q is no unit's name", it.key)
	}
	state := plan.UnitState(it.value)
	switch state {
	case plan.UnitEnabled, plan.UnitDisabled, plan.UnitMasked:
	default:
		b.problems.Addf(it.origin.Position, "write enabled, disabled or masked", "the unit %s can't be %q", it.key, it.value)
	}
	return plan.Unit{Name: it.key, State: state, Origin: it.origin}
}

// file adds one file to the layer, or notes what keeps it out.
func (b *builder) file(h half, it item[fileSpec], l *plan.Layer) {
	spec := it.value
	f := plan.File{
		Path: it.key, Owner: spec.meta.Owner.Or("root"), Group: spec.meta.Group.Or("root"), Mode: 0o644,
		Target: spec.link(), Origin: it.origin,
	}
	if spec.source != nil && spec.source.executable {
		f.Mode = 0o755
	}
	b.path(f.Path, it.origin)
	b.mode(spec.meta.Mode, &f.Mode)
	b.owner(h, f.Path, spec.meta.Owner, spec.meta.Group)
	if f.Target != "" {
		if strings.ContainsFunc(f.Target, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			b.problems.Addf(it.origin.Position, "name a plain path", "the link %s leads to a path with control characters", f.Path)
		}
		l.Files = append(l.Files, f)
		return
	}
	data, err := spec.read()
	if err != nil {
		b.problems.Addf(it.origin.Position, "", "%s", err)
		return
	}
	if !spec.isTemplate() {
		f.Content = plan.Literal(data)
		l.Files = append(l.Files, f)
		return
	}
	name := spec.profile.shown(spec.source.path)
	t := parseTemplate(name, f.Path, string(data), spec.profile.delimiters, h == imageHalf, b.problems)
	if t == nil {
		b.p.reads.any = true // who knows what it would read
		return
	}
	b.p.reads.add(t.vars)
	if h == imageHalf {
		if !b.renderImage(t, spec.profile.name, &f) {
			return
		}
	} else {
		b.p.dynamic = append(b.p.dynamic, &hostFile{index: len(l.Files), template: t, profile: spec.profile.name})
	}
	l.Files = append(l.Files, f)
}

// renderImage runs a template of the image half.
func (b *builder) renderImage(t *fileTemplate, profileName string, f *plan.File) bool {
	data := map[string]any{"site": b.site.data, "vars": b.p.vars, "release": releaseData(b.definition.Release), "profile": b.p.composed.name}
	var buf bytes.Buffer
	if p := execute(t.tmpl, t.name, data, &buf); p != nil {
		*b.problems = append(*b.problems, *p)
		return false
	}
	none := func(string) (plan.Ref, problem.Position, bool) { return "", problem.Position{}, false }
	c, p := t.content(buf.Bytes(), profileName, &scope{secrets: none})
	if p != nil {
		*b.problems = append(*b.problems, *p)
		return false
	}
	f.Content = c
	return true
}

func releaseData(r plan.Release) map[string]any {
	return map[string]any{"id": r.ID, "codename": r.Codename, "version": r.Version, "architecture": r.Architecture}
}

func (b *builder) path(p string, at plan.Origin) {
	if !cleanPath(p) {
		b.problems.Addf(at.Position, "write it from the root, without . and ..", "%q is no absolute path", p)
	} else if generated(p) {
		b.problems.Addf(at.Position, "choose another", "Kiln itself writes %s", p)
	}
}

// generated tells whether Kiln makes the file at path by itself.
func generated(path string) bool {
	switch path {
	case "/etc/kiln/host.manifest", "/etc/kiln/host-ready", "/etc/kiln/host-ready.manifest", "/etc/kiln/disks", "/etc/kiln/directories.conf", "/etc/kiln/image.list", "/etc/tmpfiles.d/kiln.conf", "/etc/default/grub.d/90-kiln.cfg":
		return true
	}
	return strings.HasPrefix(path, "/etc/sudoers.d/90-kiln-")
}

func (b *builder) mode(said text, mode *fs.FileMode) {
	if !said.Set() {
		return
	}
	m, err := parseMode(said.V)
	if err != nil {
		b.problems.Addf(said.Pos, `write it in octal, in quotes: "0640"`, "%s", err)
		return
	}
	*mode = m
}

func parseMode(s string) (fs.FileMode, error) {
	digits := strings.TrimPrefix(s, "0o")
	var m fs.FileMode
	if len(digits) < 3 || len(digits) > 5 || strings.Trim(digits, "01234567") != "" {
		return 0, fmt.Errorf("%q is no mode", s)
	}
	for _, d := range digits {
		m = m<<3 | fs.FileMode(d-'0')
	}
	if m > 0o7777 {
		return 0, fmt.Errorf("%q is no mode", s)
	}
	return m, nil
}

// owner checks that something creates a file's owner and group.
func (b *builder) owner(h half, path string, owner, group text) {
	if owner.Set() && !b.p.known[h].users[owner.V] {
		b.problems.Addf(owner.Pos, "add the user to users:, or to what a package creates", "%s belongs to the user %s, which nothing in the %s creates", path, owner.V, h)
	}
	if group.Set() && !b.p.known[h].groups[group.V] {
		b.problems.Addf(group.Pos, "add the group to groups:, or to what a package creates", "%s belongs to the group %s, which nothing in the %s creates", path, group.V, h)
	}
}
