package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type lockOptions struct {
	*globalOptions
	profiles []string
	image    string
	update   bool
	security bool
}

func newLockCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &lockOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "lock [--update [PACKAGE…]]",
		Short: "Write down the exact packages of the site's images",
		Long: `Lock has apt itself resolve the packages of all images of the site, against each
image's own sources and keys, and writes them to kiln.lock: name, version, architecture,
hash, source. From then on kiln build takes exactly these, or fails. The images are
those that hosts have, and with --profile others.

What is in the lock already stays as it is. --update moves everything, or the
packages that are named, and --security what there is a security update of.`,
		Example: `  kiln lock
  kiln lock --security
  kiln lock --update nomad consul`,
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runLock(ctx, o, args, u) }),
	}
	cmd.Flags().BoolVar(&o.update, "update", false, "take newer versions: of the packages that are named, else of all")
	cmd.Flags().BoolVar(&o.security, "security", false, "take newer versions of what there is a security update of")
	cmd.Flags().StringSliceVar(&o.profiles, "profile", nil, "`PROFILES` to lock that no host has (yet)")
	cmd.Flags().StringVar(&o.image, "image", "", "image `DEFINITION` for --profile (default: "+images.Default+")")
	_ = cmd.RegisterFlagCompletionFunc("profile", completeProfiles(global))
	return cmd
}

func runLock(ctx context.Context, o *lockOptions, names []string, u *ui.UI) error {
	if len(names) > 0 && !o.update {
		return usageError{fmt.Errorf("to take another version of a package, say --update: kiln lock --update %s", strings.Join(names, " "))}
	}
	update := bake.Update{All: o.update && len(names) == 0, Security: o.security, Names: names}
	if update.All && update.Security {
		return usageError{errors.New("--update without packages moves everything, security updates too: leave one of --update and --security out")}
	}
	if o.image != "" && len(o.profiles) == 0 {
		return usageError{errors.New("--image goes with --profile: the images of the site's hosts are locked anyway")}
	}
	site, err := o.open()
	if err != nil {
		return err
	}
	old, err := images.ReadLock(site.Dir)
	if err != nil {
		return err
	}
	if err := known(old, names); err != nil {
		return err
	}
	targets, err := lockTargets(ctx, site, old, o.profiles, o.image)
	if err != nil {
		return err
	}
	lock, err := resolveAll(ctx, site, targets, old, update, u)
	if err != nil {
		return err
	}
	showChanges(u, old, lock)
	return writeFile(filepath.Join(site.Dir, images.LockFile), lock.Encode(), false)
}

// known refuses packages to update that the lock doesn't have.
func known(lock *images.Lock, names []string) error {
	for _, n := range names {
		if lock == nil {
			return fmt.Errorf("the site has no %s yet, so there is no %s to update: run kiln lock first", images.LockFile, n)
		}
		if !slices.ContainsFunc(lock.Sets, func(s images.PackageSet) bool { return s.Package(n) != nil }) {
			return fmt.Errorf("%s has no package %s: is its name right?", images.LockFile, n)
		}
	}
	return nil
}

// lockTargets are the images of the site: those that its hosts have, those that
// are in the lock, and the ones that are asked for.
func lockTargets(ctx context.Context, site *profiles.Site, old *images.Lock, names []string, definition string) ([]baking.Target, error) {
	list, err := buildTargets(ctx, site, names, definition)
	if err != nil {
		return nil, err
	}
	add := func(t baking.Target) {
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	problems, err := site.HostInfos(ctx, func(h profiles.HostInfo) bool {
		add(baking.Target{Profile: h.Profile, Definition: h.Image})
		return true
	})
	if len(names) > 0 && errors.Is(err, profiles.ErrNoInventory) {
		err = nil // what is asked for is there without any host
	}
	if err := errors.Join(err, problems.Err()); err != nil || old == nil {
		return list, err
	}
	infos := site.ProfileInfos()
	for i := range old.Sets {
		for _, name := range old.Sets[i].Profiles {
			isThere := slices.ContainsFunc(infos, func(p profiles.ProfileInfo) bool { return p.Name == name && !p.Abstract })
			if _, ok := site.Definition(old.Sets[i].Definition); ok && isThere {
				add(baking.Target{Profile: name, Definition: old.Sets[i].Definition})
			}
		}
	}
	return list, nil
}

func resolveAll(ctx context.Context, site *profiles.Site, targets []baking.Target, old *images.Lock, update bake.Update, u *ui.UI) (*images.Lock, error) {
	cache, err := baking.CacheDir()
	if err != nil {
		return nil, err
	}
	lock := &images.Lock{}
	for _, t := range targets {
		b, problems, err := baking.Options(site, t)
		if err := errors.Join(err, problems.Err()); err != nil {
			return nil, err
		}
		b.Cache = cache
		packages, firmware := bake.Asked(b)
		if set := lock.Find(t.Definition, packages, firmware); set != nil {
			set.Profiles = append(set.Profiles, t.Profile)
			slices.Sort(set.Profiles)
			continue
		}
		if set := old.Find(t.Definition, packages, firmware); set != nil && !update.Any() {
			again := *set
			again.Profiles = []string{t.Profile}
			lock.Sets = append(lock.Sets, again)
			continue
		}
		u.Notef("%s on %s: apt resolves %d packages and what they need …", t.Profile, t.Definition, len(packages))
		set, err := bake.Resolve(ctx, b, old, update)
		if err != nil {
			return nil, fmt.Errorf("locking %s on %s: %w", t.Profile, t.Definition, err)
		}
		lock.Sets = append(lock.Sets, *set)
	}
	return lock, nil
}

// showChanges prints what is other than before, by image definition.
func showChanges(u *ui.UI, old, now *images.Lock) {
	before, after := versionsOf(old), versionsOf(now)
	keys := map[string]bool{}
	for k := range before {
		keys[k] = true
	}
	for k := range after {
		keys[k] = true
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	changes := 0
	for _, k := range sorted {
		was, is := before[k], after[k]
		if was == is {
			continue
		}
		changes++
		if old == nil {
			continue // all of them
		}
		u.Printf("%s: %s → %s\n", k, cmp.Or(was, "none"), cmp.Or(is, "none"))
	}
	switch {
	case old == nil:
		u.Printf("locked %d packages of %d images in %s: keep it in git\n", changes, len(now.Sets), images.LockFile)
	case changes == 0:
		u.Printf("nothing has changed in %s\n", images.LockFile)
	}
}

// versionsOf are a lock's, by definition and package.
func versionsOf(l *images.Lock) map[string]string {
	versions := map[string]string{}
	if l == nil {
		return versions
	}
	for i := range l.Sets {
		s := &l.Sets[i]
		for j := range s.Packages {
			p := &s.Packages[j]
			versions[s.Definition+" "+p.Name] = p.Version
		}
	}
	return versions
}
