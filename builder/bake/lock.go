package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// Update says which packages of a lock may move.
type Update struct {
	All      bool
	Security bool     // those that the distribution has a security update of
	Names    []string // these
}

// Any tells whether anything may move.
func (u *Update) Any() bool { return u.All || u.Security || len(u.Names) > 0 }

// Asked are the packages that the image is asked to have, both lists sorted;
// firmware is what only some mirrors have.
func Asked(o Options) (packages, firmware []string) {
	b := newBuilder(&o)
	return packagesOf(&b.definition, &b.image)
}

// Resolve asks apt what the image's packages are now. What the lock has of them
// stays as it is, but for what update says.
func Resolve(ctx context.Context, o Options, lock *images.Lock, update Update) (*images.PackageSet, error) {
	b := newBuilder(&o)
	sources, err := b.readSources(ctx)
	if err != nil {
		return nil, err
	}
	return b.resolve(ctx, sources, lock, update)
}

func (b *builder) resolve(ctx context.Context, sources []source, lock *images.Lock, update Update) (*images.PackageSet, error) {
	packages, firmware := packagesOf(&b.definition, &b.image)
	set := &images.PackageSet{
		Definition: b.definition.Name, Profiles: []string{b.image.Profile}, Time: epochOf(sources), Asked: packages, Firmware: firmware,
	}
	for i := range sources {
		s, err := sources[i].locked()
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(set.Sources, func(other images.LockedSource) bool { return other.Name == s.Name }) {
			set.Sources = append(set.Sources, s)
		}
	}
	dir, err := b.cache.Scratch("resolve")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Remove() }() // what is left is the next one's to remove
	r, err := b.newResolver(ctx, dir.Path, sources, kept(lock, set, update))
	if err != nil {
		return nil, err
	}
	if update.Security {
		if err := r.releaseSecurity(ctx); err != nil {
			return nil, err
		}
	}
	set.Packages, err = r.resolve(ctx, packages, firmware)
	return set, err
}

// resolvedStep resolves the packages of an image whose site has no lock: for the
// same release files they're the same. Out/packages.json has them.
func (b *builder) resolvedStep(sources []source) Step {
	packages, firmware := packagesOf(&b.definition, &b.image)
	s := Step{Name: stepResolve, Inputs: []Input{
		{"recipe", "1"}, {"apt", b.tools["apt-get"]}, {"architecture", b.definition.Release.Architecture},
		{"packages", strings.Join(packages, " ")}, {"firmware", strings.Join(firmware, " ")},
	}}
	for i := range sources {
		src := &sources[i]
		s.Inputs = append(s.Inputs, Input{"source " + src.name, src.deb822(hash(src.key))})
		for _, r := range src.releases {
			s.Inputs = append(s.Inputs, Input{"release " + r.suite + " of " + src.uri, r.sha256})
		}
	}
	s.Run = func(ctx context.Context, dir string) error {
		set, err := b.resolve(ctx, sources, nil, Update{})
		if err != nil {
			return err
		}
		data, err := json.Marshal(set)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, resolvedName), data, 0o644)
	}
	return s
}

const resolvedName = "packages.json"

// resolved gives the packages of an image whose site has no lock.
func (b *builder) resolved(ctx context.Context, sources []source) (*images.PackageSet, error) {
	r, err := b.do(ctx, b.resolvedStep(sources))
	if err != nil {
		return nil, err
	}
	var set images.PackageSet
	return &set, readJSON(r, resolvedName, &set)
}

// kept are the packages of the lock that stay: those of the same images first, then
// of others of the same definition, so that what is added to one takes what others
// have.
func kept(lock *images.Lock, set *images.PackageSet, update Update) []images.LockedPackage {
	if lock == nil || update.All {
		return nil
	}
	near := func(s *images.PackageSet) bool {
		return slices.ContainsFunc(s.Profiles, func(p string) bool { return slices.Contains(set.Profiles, p) })
	}
	var list []images.LockedPackage
	seen := map[string]bool{}
	for _, nearOnes := range []bool{true, false} {
		for i := range lock.Sets {
			s := &lock.Sets[i]
			if s.Definition != set.Definition || near(s) != nearOnes {
				continue
			}
			for _, p := range s.Packages {
				if !seen[p.Name] && !slices.Contains(update.Names, p.Name) {
					seen[p.Name] = true
					list = append(list, p)
				}
			}
		}
	}
	return list
}

// releaseSecurity takes from what stays as it is those packages that the security
// suites have a newer version of.
func (r *resolver) releaseSecurity(ctx context.Context) error {
	out, err := r.b.run.Output(ctx, r.command("apt-get", "indextargets", "--format", "$(RELEASE) $(FILENAME)", "Identifier: Packages"))
	if err != nil {
		return fmt.Errorf("listing the security suites: %w", err)
	}
	secure := map[string]string{}
	for line := range strings.Lines(string(out)) {
		release, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains(r.b.definition.SecuritySuites, release) {
			continue
		}
		versions, err := versionsIn(file)
		if err != nil {
			return fmt.Errorf("reading the security suites: %w", err)
		}
		for name, version := range versions {
			if newer, err := r.newer(ctx, version, secure[name]); err != nil {
				return err
			} else if newer {
				secure[name] = version
			}
		}
	}
	var failed error
	r.kept = slices.DeleteFunc(r.kept, func(p images.LockedPackage) bool {
		if secure[p.Name] == "" || failed != nil {
			return false
		}
		newer, err := r.newer(ctx, secure[p.Name], p.Version)
		failed = err
		return newer
	})
	if failed != nil {
		return failed
	}
	return r.keep(ctx)
}

// versionsIn reads the versions in a Packages file, by package.
func versionsIn(file string) (map[string]string, error) {
	versions := map[string]string{}
	name := ""
	err := eachField(file, func(key, value string) {
		switch key {
		case "Package":
			name = value
		case "Version":
			versions[name] = value
		}
	})
	return versions, err
}

// newer compares versions as dpkg does; none is older than any.
func (r *resolver) newer(ctx context.Context, a, b string) (bool, error) {
	if b == "" || a == b {
		return b == "", nil
	}
	err := r.b.run.Run(ctx, run.Command{Name: "dpkg", Args: []string{"--compare-versions", a, "gt", b}, Install: "it belongs to Debian"})
	if e, ok := errors.AsType[*run.Error](err); ok && e.ExitStatus() == 1 {
		return false, nil
	}
	return err == nil, err
}

// lockedSet are the image's packages in the lock.
func (b *builder) lockedSet(lock *images.Lock) (*images.PackageSet, error) {
	return lockedSet(lock, &b.definition, &b.image)
}

// LockedSet is what the lock has for an image.
func LockedSet(lock *images.Lock, o Options) (*images.PackageSet, error) {
	return lockedSet(lock, &o.Definition, &o.Image)
}

func lockedSet(lock *images.Lock, definition *images.Definition, image *plan.Image) (*images.PackageSet, error) {
	packages, firmware := packagesOf(definition, image)
	set := lock.Find(definition.Name, packages, firmware)
	if set == nil {
		return nil, fmt.Errorf("%s has no packages for the profile %s on %s as they are now: run kiln lock (with --profile %s --image %s where no host has it)",
			images.LockFile, image.Profile, definition.Name, image.Profile, definition.Name)
	}
	return set, nil
}

// lockedSources are the sources as they were when the packages were locked. No
// mirror is asked.
func (b *builder) lockedSources(ctx context.Context, set *images.PackageSet) ([]source, error) {
	list, err := b.sourceList(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		s := &list[i]
		now, err := s.locked()
		if err != nil {
			return nil, err
		}
		j := slices.IndexFunc(set.Sources, func(l images.LockedSource) bool { return l.Name == now.Name })
		if j < 0 {
			return nil, fmt.Errorf("%s has no apt source %s, which the image has now: run kiln lock", images.LockFile, now.Name)
		}
		locked := set.Sources[j]
		if !slices.Equal(now.Fingerprints, locked.Fingerprints) {
			return nil, fmt.Errorf("the apt source %s is trusted through the key %s now, and was locked with %s: if that is meant, run kiln lock --update",
				now.Name, strings.Join(now.Fingerprints, ", "), strings.Join(locked.Fingerprints, ", "))
		}
		s.suites, s.components = locked.Suites, locked.Components
	}
	return list, nil
}

// lockedBase is the base step, from the packages of the lock and nothing else.
func (b *builder) lockedBase(sources []source, set *images.PackageSet) Step {
	s := Step{Name: stepBase}
	add := func(name, value string) { s.Inputs = append(s.Inputs, Input{name, value}) }
	add("recipe", "locked 3") // counts the changes of what Run does
	add("mmdebstrap", b.tools["mmdebstrap"])
	add("apt", b.tools["apt-get"])
	add("release", b.definition.Release.Codename)
	add("kernel", b.definition.Kernel)
	add("clock", strconv.FormatInt(b.epoch, 10))
	add("asked", strings.Join(set.Asked, " "))
	add("firmware", strings.Join(set.Firmware, " "))
	add("held", strings.Join(b.held(sources, set), " "))
	if script, err := baseSeal(); err == nil {
		add("seal", hash([]byte(script)))
	}
	for i := range set.Packages {
		p := &set.Packages[i]
		add("package "+p.Name, p.Version+" "+p.Architecture+" "+p.SHA256)
	}
	s.Run = func(ctx context.Context, dir string) error {
		if err := b.bakeLocked(ctx, dir, sources, set); err != nil {
			return err
		}
		if b.definition.Kernel != "" {
			// Most of what makes it boot is the same whatever a profile adds.
			if err := disk.Install(filepath.Join(dir, "tree"), nil, disk.NewIDs(s.Key())); err != nil {
				return err
			}
		}
		return b.sealBase(ctx, dir)
	}
	return s
}

// held are the packages that aren't the distribution's: they stay on the host as
// they were locked.
func (b *builder) held(sources []source, set *images.PackageSet) []string {
	var names []string
	if b.locked == nil {
		return nil
	}
	for i := range set.Packages {
		p := &set.Packages[i]
		if slices.ContainsFunc(sources, func(s source) bool { return s.plan != nil && s.lockName() == p.Source }) {
			names = append(names, p.Name)
		}
	}
	return names
}

// fetchLocked gets what the cache lacks.
func (b *builder) fetchLocked(ctx context.Context, sources []source, set *images.PackageSet) error {
	uris := map[string][]string{}
	for i := range sources {
		uris[sources[i].lockName()] = append(uris[sources[i].lockName()], sources[i].uri)
	}
	return b.packages.fetch(ctx, set.Packages, uris, func(done, total int64) {
		b.cache.tell(Event{Step: stepBase, State: StateProgress, Done: done, Total: total, Unit: unitBytes, Message: "fetching packages"})
	})
}

func (b *builder) bakeLocked(ctx context.Context, dir string, sources []source, set *images.PackageSet) error {
	if err := b.fetchLocked(ctx, sources, set); err != nil {
		return err
	}
	repository := filepath.Join(dir, "repository")
	if err := os.Mkdir(repository, 0o755); err != nil {
		return err
	}
	if err := b.packages.repository(ctx, repository, b.definition.Release.Codename, set.Packages); err != nil {
		return err
	}
	if err := b.mmdebstrap(ctx, dir, []source{{name: "locked", uri: "file://" + repository, local: true}}, set.Asked, set.Firmware, b.held(sources, set)); err != nil {
		return err
	}
	if err := asLocked(filepath.Join(dir, "tree"), set); err != nil {
		return err
	}
	return os.RemoveAll(repository)
}

// asLocked compares the packages of the tree with the lock's.
func asLocked(tree string, set *images.PackageSet) error {
	installed, err := readStatus(tree)
	if err != nil {
		return err
	}
	var wrong []string
	seen := map[string]bool{}
	for _, p := range installed {
		seen[p.Name] = true
		if l := set.Package(p.Name); l == nil || l.Version != p.Version || l.Architecture != p.Architecture {
			wrong = append(wrong, p.Name+" "+p.Version+" isn't in the lock")
		}
	}
	for i := range set.Packages {
		if p := &set.Packages[i]; !seen[p.Name] {
			wrong = append(wrong, p.String()+" wasn't installed")
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the image's packages aren't those that were resolved: %s: run kiln lock --update", strings.Join(wrong, "; "))
	}
	return nil
}
