package baking

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// Missed is a secret that isn't searched for, and why.
type Missed struct {
	Secret string `json:"secret"`
	Why    string `json:"why"`
}

// Canaries are the site's secrets, to be searched for, and those that can't be.
func Canaries(ctx context.Context, site *profiles.Site) (canaries []check.Canary, missed []Missed, err error) {
	resolver := Resolver(site)
	for _, s := range site.File.Secrets {
		ref, err := plan.ParseRef(s.Value.V)
		if err != nil {
			continue // opening the site has said so
		}
		value, err := resolver.Resolve(ctx, ref)
		switch {
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case err != nil:
			missed = append(missed, Missed{s.Key, err.Error()})
			continue
		}
		c := check.Canary{Name: s.Key + " (" + string(ref) + ")", Value: value}
		if len(check.TooShort([]check.Canary{c})) > 0 {
			missed = append(missed, Missed{s.Key, fmt.Sprintf("with less than %d bytes, it stands anywhere by chance: take a longer one", check.LeastCanary)})
			continue
		}
		canaries = append(canaries, c)
	}
	return canaries, missed, nil
}

// PlannedPaths are where a profile puts something into an image on a definition. A
// site that doesn't have them any more plans nothing.
func PlannedPaths(site *profiles.Site, profile, definition string) (map[string]bool, error) {
	known := slices.ContainsFunc(site.ProfileInfos(), func(p profiles.ProfileInfo) bool { return p.Name == profile && !p.Abstract })
	if _, ok := site.Definition(definition); !ok || !known {
		return nil, nil
	}
	image, problems := site.Image(profile, definition)
	paths, err := render.ImagePaths(&image)
	return paths, errors.Join(problems.Err(), err)
}
