package baking

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/profiles"
)

// Target is one image to build.
type Target struct{ Profile, Definition string }

// Options are what the site says of an image.
func Options(site *profiles.Site, t Target) (bake.Options, problem.List, error) {
	definition, ok := site.Definition(t.Definition)
	if !ok {
		return bake.Options{}, nil, fmt.Errorf("there is no image definition %q: %s", t.Definition, strictyaml.DidYouMean(t.Definition, site.Definitions()))
	}
	if slices.ContainsFunc(site.ProfileInfos(), func(p profiles.ProfileInfo) bool { return p.Name == t.Profile && p.Abstract }) {
		return bake.Options{}, nil, fmt.Errorf("the profile %s is abstract: build one that extends it", t.Profile)
	}
	image, problems := site.Image(t.Profile, t.Definition)
	return bake.Options{Image: image, Definition: definition, Mirror: mirror(site, definition)}, problems, nil
}

// mirror is where the site has its packages from.
func mirror(site *profiles.Site, d images.Definition) bake.Mirror {
	m := bake.Mirror{URI: site.File.Apt.Mirror.V, Security: site.File.Apt.Security.V}
	key := filepath.Join(site.Dir, "keys", d.Release.ID+".asc")
	if _, err := os.Stat(key); !errors.Is(err, fs.ErrNotExist) {
		m.Key = key
	}
	return m
}

// Builds are the images of the targets, ready to be built: with the site's lock
// and secrets, and the user's cache and store. All problems of all targets are
// known before anything is built. Missed is told of each secret that finished
// images aren't searched for.
func Builds(ctx context.Context, site *profiles.Site, targets []Target, missed func(Missed)) ([]bake.Options, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	store, err := OpenStore()
	if err != nil {
		return nil, err
	}
	size, err := CacheSize()
	if err != nil {
		return nil, err
	}
	lock, err := images.ReadLock(site.Dir)
	if err != nil {
		return nil, err
	}
	canaries := sync.OnceValues(func() ([]check.Canary, error) {
		list, without, err := Canaries(ctx, site)
		for _, m := range without {
			missed(m)
		}
		return list, err
	})
	builds := make([]bake.Options, 0, len(targets))
	var problems problem.List
	for _, t := range targets {
		b, found, err := Options(site, t)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		b.Lock, b.Cache, b.CacheSize, b.Store = lock, cache, size, store
		b.Canaries = func(context.Context) ([]check.Canary, error) { return canaries() }
		builds = append(builds, b)
	}
	problems.Sort()
	return builds, problems.Err()
}
