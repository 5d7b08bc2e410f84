package images

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
)

// LockFile is the name of the site's lock.
const LockFile = "kiln.lock"

// lockVersion is that of the lock's format.
const lockVersion = 1

// Lock is kiln.lock: the exact packages of the site's images, as apt resolved them
// once. No address stands in it: whoever builds from it may use another mirror.
type Lock struct {
	Sets []PackageSet
}

// PackageSet is what one image definition with one list of packages comes to.
// Profiles that ask for the same packages share one.
type PackageSet struct {
	Definition string
	Profiles   []string // those that were locked with it, sorted; for readers
	// Time is when the newest of the sources was last changed, Unix seconds: the
	// clock of builds from this set.
	Time     int64
	Asked    []string // packages by name, as they were asked for, sorted
	Firmware []string // packages that are wanted if the mirror has them, sorted
	Sources  []LockedSource
	Packages []LockedPackage // by name
}

// LockedSource is an apt repository that packages came from.
type LockedSource struct {
	Name         string
	Suites       []string
	Components   []string
	Fingerprints []string // of the keys that it may be signed with
}

// LockedPackage is one package, as a file.
type LockedPackage struct {
	Name         string
	Version      string
	Architecture string
	SHA256       string
	Size         int64
	Source       string // a LockedSource's name
	Path         string // below the source's address
}

// lockFile is the lock as it is written.
type lockFile struct {
	Version strictyaml.Value[int] `yaml:"kiln_lock"`
	Sets    []setFile             `yaml:"images"`
}

type setFile struct {
	Definition strictyaml.Value[string]   `yaml:"image"`
	Profiles   []strictyaml.Value[string] `yaml:"profiles"`
	Time       strictyaml.Value[int]      `yaml:"time"`
	Asked      []strictyaml.Value[string] `yaml:"asked"`
	Firmware   []strictyaml.Value[string] `yaml:"firmware"`
	Sources    []sourceFile               `yaml:"sources"`
	Packages   []packageFile              `yaml:"packages"`
}

type sourceFile struct {
	Name         strictyaml.Value[string]   `yaml:"name"`
	Suites       []strictyaml.Value[string] `yaml:"suites"`
	Components   []strictyaml.Value[string] `yaml:"components"`
	Fingerprints []strictyaml.Value[string] `yaml:"fingerprints"`
}

type packageFile struct {
	Name         strictyaml.Value[string] `yaml:"name"`
	Version      strictyaml.Value[string] `yaml:"version"`
	Architecture strictyaml.Value[string] `yaml:"arch"`
	Source       strictyaml.Value[string] `yaml:"source"`
	Size         strictyaml.Value[int]    `yaml:"size"`
	SHA256       strictyaml.Value[string] `yaml:"sha256"`
	Path         strictyaml.Value[string] `yaml:"path"`
}

// ReadLock reads the lock of the site in dir; nil is that it has none.
func ReadLock(dir string) (*Lock, error) {
	path := filepath.Join(dir, LockFile)
	data, err := regular.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the lock: %w", err)
	}
	l, problems := ParseLock(data, path)
	return l, problems.Err()
}

// ParseLock reads a lock; file is how problems name it.
func ParseLock(data []byte, file string) (*Lock, problem.List) {
	var f lockFile
	var problems problem.List
	if !strictyaml.Decode(data, file, 0, &f, &problems) || f.Version.V != lockVersion {
		if len(problems) == 0 {
			pos := f.Version.Pos
			pos.File = file
			problems.Addf(pos, "where a newer Kiln wrote it, take that one; else remove it, and kiln lock writes it anew", "this is no lock that this Kiln can read: kiln_lock isn't %d", lockVersion)
		}
		return nil, problems
	}
	l := &Lock{}
	for i := range f.Sets {
		l.Sets = append(l.Sets, f.Sets[i].set(&problems))
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return l, nil
}

var (
	lockedName    = lazyregexp.New(`^[a-z0-9][a-z0-9+.-]+$`)
	lockedVersion = lazyregexp.New(`^[0-9][A-Za-z0-9.+:~-]*$`)
	lockedHash    = lazyregexp.New(`^[0-9a-f]{64}$`)
	lockedWord    = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

const mendLock = "don't edit it by hand: take back the change, or remove the file and run kiln lock"

func (f *setFile) set(problems *problem.List) PackageSet {
	s := PackageSet{
		Definition: f.Definition.V, Profiles: texts(f.Profiles), Time: int64(f.Time.V), Asked: texts(f.Asked), Firmware: texts(f.Firmware),
	}
	known := map[string]bool{}
	for _, source := range f.Sources {
		known[source.Name.V] = true
		s.Sources = append(s.Sources, LockedSource{source.Name.V, texts(source.Suites), texts(source.Components), texts(source.Fingerprints)})
	}
	seen := map[string]bool{}
	for i := range f.Packages {
		p := f.Packages[i].locked()
		if what := p.wrong(known); what != "" {
			problems.Addf(f.Packages[i].Name.Pos, mendLock, "the package %q of the lock has %s", p.Name, what)
			continue
		}
		if seen[p.Name] {
			problems.Addf(f.Packages[i].Name.Pos, mendLock, "the lock has the package %s twice for one image", p.Name)
		}
		seen[p.Name] = true
		s.Packages = append(s.Packages, p)
	}
	slices.SortFunc(s.Packages, func(a, b LockedPackage) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func (f *packageFile) locked() LockedPackage {
	return LockedPackage{f.Name.V, f.Version.V, f.Architecture.V, f.SHA256.V, int64(f.Size.V), f.Source.V, f.Path.V}
}

// wrong says what of a package nobody could have locked; "" is nothing.
func (p *LockedPackage) wrong(sources map[string]bool) string {
	switch {
	case !lockedName().MatchString(p.Name):
		return "a name that no package can have"
	case !lockedVersion().MatchString(p.Version):
		return fmt.Sprintf("no version, but %q", p.Version)
	case !lockedWord().MatchString(p.Architecture):
		return fmt.Sprintf("no architecture, but %q", p.Architecture)
	case !lockedHash().MatchString(p.SHA256):
		return fmt.Sprintf("no SHA-256, but %q", p.SHA256)
	case p.Size <= 0:
		return "no size"
	case !sources[p.Source]:
		return fmt.Sprintf("the source %q, which the lock doesn't say of the image", p.Source)
	case !fs.ValidPath(p.Path):
		return fmt.Sprintf("no path below its source, but %q", p.Path)
	}
	return ""
}

func texts(list []strictyaml.Value[string]) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.V)
	}
	return out
}

// Find is the set of an image definition and what its image asks for; nil is that
// the lock has none.
func (l *Lock) Find(definition string, asked, firmware []string) *PackageSet {
	if l == nil {
		return nil
	}
	for i := range l.Sets {
		s := &l.Sets[i]
		if s.Definition == definition && slices.Equal(s.Asked, asked) && slices.Equal(s.Firmware, firmware) {
			return s
		}
	}
	return nil
}

// Package is the set's package of that name; nil is none.
func (s *PackageSet) Package(name string) *LockedPackage {
	i, ok := slices.BinarySearchFunc(s.Packages, name, func(p LockedPackage, name string) int { return strings.Compare(p.Name, name) })
	if !ok {
		return nil
	}
	return &s.Packages[i]
}

// String names the file as dpkg names it.
func (p *LockedPackage) String() string { return p.Name + " " + p.Version }

// Encode writes the lock: sorted, a package a line, so that what changes shows in a
// diff as what it is.
func (l *Lock) Encode() []byte {
	var b bytes.Buffer
	b.WriteString("# Written by kiln lock: the exact packages of this site's images. Keep it in git,\n" +
		"# and don't edit it. kiln build takes these and nothing else.\n")
	fmt.Fprintf(&b, "kiln_lock: %d\nimages:%s\n", lockVersion, none(len(l.Sets)))
	sets := slices.Clone(l.Sets)
	slices.SortFunc(sets, func(a, b PackageSet) int {
		return cmp.Or(strings.Compare(a.Definition, b.Definition), slices.Compare(a.Profiles, b.Profiles), slices.Compare(a.Asked, b.Asked))
	})
	for _, s := range sets {
		fmt.Fprintf(&b, "- image: %s\n  profiles: %s\n  time: %d\n  asked: %s\n", flow(s.Definition), flowList(s.Profiles), s.Time, flowList(s.Asked))
		fmt.Fprintf(&b, "  firmware: %s\n  sources:%s\n", flowList(s.Firmware), none(len(s.Sources)))
		for _, source := range s.Sources {
			fmt.Fprintf(&b, "  - {name: %s, suites: %s, components: %s, fingerprints: %s}\n",
				flow(source.Name), flowList(source.Suites), flowList(source.Components), flowList(source.Fingerprints))
		}
		fmt.Fprintf(&b, "  packages:%s\n", none(len(s.Packages)))
		for _, p := range s.Packages {
			fmt.Fprintf(&b, "  - {name: %s, version: %q, arch: %s, source: %s, size: %d, sha256: %q, path: %s}\n",
				flow(p.Name), p.Version, flow(p.Architecture), flow(p.Source), p.Size, p.SHA256, flow(p.Path))
		}
	}
	return b.Bytes()
}

// none is what stands for a list without entries.
func none(entries int) string {
	if entries == 0 {
		return " []"
	}
	return ""
}

var plainInFlow = lazyregexp.New(`^[A-Za-z][A-Za-z0-9._/+-]*$`)

// flow is a text within YAML's braces: quoted unless nobody could take it for
// anything else.
func flow(s string) string {
	if plainInFlow().MatchString(s) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(s)) {
		return s
	}
	return strconv.Quote(s)
}

func flowList(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = flow(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}
