package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/builder/packer"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// sites is what the plugin's components know of sites.
type sites struct{}

// open opens a site: "." is the one here, or where there is none, above.
func open(site string) (*profiles.Site, error) {
	if site == "." {
		site = ""
	}
	s, err := baking.OpenSite(site)
	if err != nil {
		return nil, fmt.Errorf("the site: %w", err)
	}
	return s, nil
}

func (sites) Host(ctx context.Context, site, host string) (*plan.Plan, error) {
	s, err := open(site)
	if err != nil {
		return nil, err
	}
	return baking.HostPlan(ctx, s, host)
}

func (sites) Half(_ context.Context, site, profile, definition string) (*packer.Half, error) {
	s, err := open(site)
	if err != nil {
		return nil, err
	}
	o, problems, err := baking.Options(s, targetOf(profile, definition))
	if err == nil {
		problems.Sort()
		err = problems.Err()
	}
	if err != nil {
		return nil, err
	}
	lock, err := images.ReadLock(s.Dir)
	if err != nil {
		return nil, err
	}
	half := &packer.Half{Image: o.Image}
	if lock != nil {
		if half.Locked, err = bake.LockedSet(lock, o); err != nil {
			return nil, err
		}
	}
	return half, nil
}

func targetOf(profile, definition string) baking.Target {
	return baking.Target{Profile: profile, Definition: cmp.Or(definition, images.Default)}
}

func (sites) Bake(ctx context.Context, o *packer.BakeOptions) (*packer.Baked, error) {
	s, err := open(o.Site)
	if err != nil {
		return nil, err
	}
	builds, err := baking.Builds(ctx, s, []baking.Target{targetOf(o.Profile, o.Definition)}, func(m baking.Missed) {
		o.Note(fmt.Sprintf("The secret %s isn't searched for in images: %s", m.Secret, m.Why))
	})
	if err != nil {
		return nil, err
	}
	b := &builds[0]
	if err := bake.CheckOwner(b.Cache, b.Store); err != nil {
		return nil, err
	}
	before, err := b.Store.List()
	if err != nil {
		return nil, err
	}
	b.Formats, b.Events = o.Formats, o.Events
	var m *images.Manifest
	if os.Geteuid() == 0 {
		m, err = bake.Build(ctx, *b)
	} else {
		m, err = bakeOutside(ctx, b.Store, o)
	}
	if err != nil {
		return nil, err
	}
	baked := &packer.Baked{Manifest: m, Store: b.Store, New: true}
	for _, old := range before {
		baked.New = baked.New && old.ID != m.ID
	}
	return baked, nil
}

func (sites) Search(ctx context.Context, site, profile, definition string) (*packer.Search, error) {
	s, err := open(site)
	if err != nil {
		return nil, err
	}
	search := &packer.Search{}
	if profile != "" {
		t := targetOf(profile, definition)
		paths, err := baking.PlannedPaths(s, t.Profile, t.Definition)
		if err != nil {
			return nil, err
		}
		search.Allowed = check.Planned(paths)
	}
	canaries, missed, err := baking.Canaries(ctx, s)
	if err != nil {
		return nil, err
	}
	search.Canaries = canaries
	for _, m := range missed {
		search.Missed = append(search.Missed, fmt.Sprintf("the secret %s: %s", m.Secret, m.Why))
	}
	return search, nil
}
