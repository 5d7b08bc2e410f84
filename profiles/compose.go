package profiles

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// A composed profile is a profile and all that it extends, merged: maps key by
// key, lists end to end, files by path with the later one winning. It is made
// once, and serves every host of the profile.

// item is one inherited thing, under its name or path.
type item[T any] struct {
	key    string
	value  T
	origin plan.Origin // where it was said last
}

// items keep the order in which their keys first appeared.
type items[T any] []item[T]

func (l *items[T]) find(key string) *item[T] {
	for i := range *l {
		if (*l)[i].key == key {
			return &(*l)[i]
		}
	}
	return nil
}

// add merges v into what stands under the key, or appends it.
func (l *items[T]) add(key string, v T, origin plan.Origin, merge func(old, v T) T) {
	if it := l.find(key); it != nil {
		it.value, it.origin = merge(it.value, v), origin
		return
	}
	*l = append(*l, item[T]{key, v, origin})
}

func (l *items[T]) keys() []string {
	keys := make([]string, len(*l))
	for i, it := range *l {
		keys[i] = it.key
	}
	return keys
}

// remove takes out the named ones; one that isn't there is a problem.
func (l *items[T]) remove(names []text, kind string, problems *problem.List) {
	for _, n := range names {
		before := len(*l)
		*l = slices.DeleteFunc(*l, func(it item[T]) bool { return it.key == n.V })
		if len(*l) == before {
			problems.Addf(n.Pos, strictyaml.DidYouMean(n.V, l.keys()), "no %s %q was inherited that could be removed", kind, n.V)
		}
	}
}

// fileSpec is a file: what is said about it, and where its content comes from.
type fileSpec struct {
	meta    FileFile
	profile *profile    // whose content it is
	source  *folderFile // in that profile's folder; nil for a link or content written in profile.yaml
}

type composedHalf struct {
	groups      items[GroupFile]
	users       items[UserFile]
	directories items[DirectoryFile]
	files       items[fileSpec]
	units       items[string]
}

type composed struct {
	name        string
	abstract    bool
	description string
	chain       []string // the profiles it is made of, first to last
	vars        items[any]
	reserve     *ReserveFile
	reserveFrom plan.Origin
	half        [2]composedHalf

	packages        items[PackageFile]
	aptSources      items[AptSourceFile]
	kernelArguments items[string]
}

// compose merges the profile called name with what it extends.
func compose(name string, all map[string]*profile, problems *problem.List) *composed {
	c := &composed{name: name}
	for _, p := range linearize(name, all, problems) {
		c.chain = append(c.chain, p.name)
		c.abstract, c.description = p.file.Abstract, p.file.Description.V
		for _, e := range p.file.Vars {
			c.vars.add(e.Key, e.Value, origin(p, e.Pos), mergeVar)
		}
		c.addImage(p, problems)
		c.addHost(p, problems)
	}
	return c
}

func origin(p *profile, pos problem.Position) plan.Origin {
	return plan.Origin{Profile: p.name, Position: pos}
}

// mergeVar merges maps key by key and appends lists; anything else is replaced.
func mergeVar(old, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if o, ok := old.(map[string]any); ok {
			merged := make(map[string]any, len(o)+len(v))
			for k, x := range o {
				merged[k] = x
			}
			for k, x := range v {
				if before, ok := merged[k]; ok {
					x = mergeVar(before, x)
				}
				merged[k] = x
			}
			return merged
		}
	case []any:
		if o, ok := old.([]any); ok {
			return append(slices.Clone(o), v...)
		}
	}
	return v
}

func replace[T any](_, v T) T { return v }

func (c *composed) addImage(p *profile, problems *problem.List) {
	f := &p.file.Image
	c.packages.remove(f.Remove.Packages, "package", problems)
	c.aptSources.remove(f.Remove.AptSources, "apt source", problems)
	c.kernelArguments.remove(f.Remove.KernelArguments, "kernel argument", problems)
	for _, e := range f.Packages {
		c.packages.add(e.Name.V, e, origin(p, e.Pos), func(old, v PackageFile) PackageFile {
			v.Creates.Users = slices.Concat(old.Creates.Users, v.Creates.Users)
			v.Creates.Groups = slices.Concat(old.Creates.Groups, v.Creates.Groups)
			return v
		})
	}
	for _, e := range f.AptSources {
		c.aptSources.add(e.Key, e.Value, origin(p, e.Pos), mergeAptSource)
	}
	for _, a := range f.KernelArguments {
		c.kernelArguments.add(a.V, a.V, origin(p, a.Pos), replace)
	}
	c.addHalf(p, imageHalf, HostHalfFile{
		Groups: f.Groups, Users: f.Users, Directories: f.Directories, Files: f.Files, Units: f.Units, Remove: f.Remove.common(),
	}, problems)
}

func (c *composed) addHost(p *profile, problems *problem.List) {
	if r := p.file.Host.Reserve; r != nil {
		merged := *r
		if c.reserve != nil {
			merged = mergeReserve(*c.reserve, *r)
		}
		c.reserve, c.reserveFrom = &merged, origin(p, r.Pos)
	}
	c.addHalf(p, hostHalf, p.file.Host, problems)
}

// addHalf adds what both halves have.
func (c *composed) addHalf(p *profile, h half, f HostHalfFile, problems *problem.List) {
	into := &c.half[h]
	into.groups.remove(f.Remove.Groups, "group", problems)
	into.users.remove(f.Remove.Users, "user", problems)
	into.directories.remove(f.Remove.Directories, "directory", problems)
	into.files.remove(f.Remove.Files, "file", problems)
	into.units.remove(f.Remove.Units, "unit", problems)
	for _, e := range f.Groups {
		into.groups.add(e.Key, e.Value, origin(p, e.Pos), mergeGroup)
	}
	for _, e := range f.Users {
		into.users.add(e.Key, e.Value, origin(p, e.Pos), mergeUser)
	}
	for _, e := range f.Directories {
		into.directories.add(e.Key, e.Value, origin(p, e.Pos), func(old, v DirectoryFile) DirectoryFile {
			return DirectoryFile{later(old.Owner, v.Owner), later(old.Group, v.Group), later(old.Mode, v.Mode)}
		})
	}
	for _, e := range f.Units {
		into.units.add(e.Key, e.Value.V, origin(p, e.Pos), replace)
	}
	c.addFiles(p, h, f.Files, problems)
}

// addFiles adds the files of the profile's folder, then what profile.yaml says
// of files.
func (c *composed) addFiles(p *profile, h half, said strictyaml.Map[FileFile], problems *problem.List) {
	files := &c.half[h].files
	for i := range p.half[h] {
		f := &p.half[h][i]
		files.add(f.target, fileSpec{profile: p, source: f}, plan.Origin{Profile: p.name, Position: problem.Position{File: p.shown(f.path), Line: 1, Column: 1}}, mergeFile)
	}
	for _, e := range said {
		content := e.Value.Link.Set() || e.Value.Content.Set()
		old := files.find(e.Key)
		switch {
		case e.Value.Link.Set() && e.Value.Content.Set():
			problems.Addf(e.Pos, "keep one of the two", "%s has a link and a content", e.Key)
			continue
		case content && old != nil && old.value.profile == p && old.value.source != nil:
			problems.Addf(e.Pos, "keep one of the two", "two files for one path: %s has a content here, and stands in %s", e.Key, p.shown(old.value.source.path))
			continue
		case !content && old == nil:
			problems.Addf(e.Pos, strictyaml.DidYouMean(e.Key, files.keys()),
				"there is no file %s in the profile's folder %s/, nor in one that it extends", e.Key, h.folder())
			continue
		}
		spec := fileSpec{meta: e.Value}
		at := origin(p, e.Pos)
		if content {
			spec.profile = p
		} else {
			at = old.origin
		}
		files.add(e.Key, spec, at, mergeFile)
	}
}

// later is v where it was written, else old.
func later[T any](old, v strictyaml.Value[T]) strictyaml.Value[T] {
	if v.Set() {
		return v
	}
	return old
}

func laterPointer[T any](old, v *T) *T {
	if v != nil {
		return v
	}
	return old
}

func mergeFile(old, v fileSpec) fileSpec {
	merged := old
	merged.meta.Owner = later(old.meta.Owner, v.meta.Owner)
	merged.meta.Group = later(old.meta.Group, v.meta.Group)
	merged.meta.Mode = later(old.meta.Mode, v.meta.Mode)
	if v.profile != nil {
		merged.profile, merged.source = v.profile, v.source
		merged.meta.Link, merged.meta.Content = v.meta.Link, v.meta.Content
	}
	return merged
}

func mergeGroup(old, v GroupFile) GroupFile {
	return GroupFile{laterPointer(old.GID, v.GID), later(old.System, v.System)}
}

func mergeUser(old, v UserFile) UserFile {
	return UserFile{
		UID: laterPointer(old.UID, v.UID), Group: later(old.Group, v.Group), Groups: appendNew(old.Groups, v.Groups),
		Home: later(old.Home, v.Home), Shell: later(old.Shell, v.Shell), Comment: later(old.Comment, v.Comment),
		System: later(old.System, v.System), Sudo: later(old.Sudo, v.Sudo), SSHKeys: appendNew(old.SSHKeys, v.SSHKeys),
	}
}

func appendNew(old, v []text) []text {
	out := slices.Clone(old)
	for _, t := range v {
		if !slices.ContainsFunc(out, func(o text) bool { return o.V == t.V }) {
			out = append(out, t)
		}
	}
	return out
}

func mergeReserve(old, v ReserveFile) ReserveFile {
	return ReserveFile{later(old.CPU, v.CPU), later(old.Memory, v.Memory), later(old.Disk, v.Disk), v.Pos}
}

// mergeAptSource merges field by field; lists are replaced, as a repository
// has one set of addresses.
func mergeAptSource(old, v AptSourceFile) AptSourceFile {
	merged := AptSourceFile{
		URIs: old.URIs, Suites: old.Suites, Components: old.Components,
		Key: later(old.Key, v.Key), KeyURL: later(old.KeyURL, v.KeyURL), Fingerprint: later(old.Fingerprint, v.Fingerprint), Pos: v.Pos,
	}
	if v.URIs != nil {
		merged.URIs = v.URIs
	}
	if v.Suites != nil {
		merged.Suites = v.Suites
	}
	if v.Components != nil {
		merged.Components = v.Components
	}
	return merged
}

// read is the content of the file as its profile has it.
func (f fileSpec) read() ([]byte, error) {
	if f.source == nil {
		return []byte(f.meta.Content.V), nil
	}
	data, err := fs.ReadFile(f.profile.fsys, f.source.path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.profile.shown(f.source.path), err)
	}
	return data, nil
}

// link is the target of a symbolic link; empty for a file.
func (f fileSpec) link() string {
	if f.source != nil {
		return f.source.link
	}
	return f.meta.Link.V
}

// isTemplate tells whether the file is to be rendered.
func (f fileSpec) isTemplate() bool { return f.source != nil && f.source.isTemplate }

// cleanPath tells whether p is absolute, and its shortest spelling.
func cleanPath(p string) bool {
	return strings.HasPrefix(p, "/") && p != "/" && !strings.Contains(p, "//") && !strings.HasSuffix(p, "/") &&
		!strings.Contains(p+"/", "/./") && !strings.Contains(p+"/", "/../") && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
}
