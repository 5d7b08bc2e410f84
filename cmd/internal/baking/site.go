// Package baking is what the commands that bake have in common: which site is
// meant, what it says of an image, and where images and caches are.
package baking

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
	"github.com/alisw/kiln/secrets"
)

// SiteFile is the file that makes a folder a site.
const SiteFile = "site.yaml"

// ErrNoSite is that no site was named, and none is here or above.
var ErrNoSite = errors.New("there is no " + SiteFile + " here or above: name a site with --site DIR, or make one with kiln init DIR")

// SiteDirectory finds the site: where the caller says or the environment does,
// else here or above.
func SiteDirectory(said string) (string, error) {
	for _, said := range []string{said, os.Getenv("KILN_SITE")} {
		if said == "" {
			continue
		}
		// Who names the file means its site.
		if info, err := os.Stat(said); err == nil && !info.IsDir() && filepath.Base(said) == SiteFile {
			return filepath.Dir(said), nil
		}
		return said, nil
	}
	here, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("looking for the site: %w", err)
	}
	// Relative names are what an operator sees in problems, and can click on.
	for dir, shown := here, "."; ; dir, shown = filepath.Dir(dir), filepath.Join(shown, "..") {
		if _, err := os.Stat(filepath.Join(dir, SiteFile)); err == nil {
			return shown, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("looking for the site: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return "", ErrNoSite
		}
	}
}

// OpenSite opens the site that SiteDirectory finds, which must be without
// problems so far.
func OpenSite(said string) (*profiles.Site, error) {
	dir, err := SiteDirectory(said)
	if err != nil {
		return nil, err
	}
	s, problems, err := profiles.Open(dir)
	if err != nil {
		return nil, err
	}
	problems.Sort()
	return s, problems.Err()
}

// Resolver finds the secrets of a site.
func Resolver(site *profiles.Site) plan.Resolver {
	return &secrets.Resolver{Dir: site.Dir, VaultAddress: VaultAddress(site)}
}

// VaultAddress is where Vault is unless the environment says otherwise.
func VaultAddress(site *profiles.Site) string {
	return site.File.VaultAddress.Or("https://vault.service.consul:8200")
}

// HostPlan is the plan of one host, if nothing is wrong with it.
func HostPlan(ctx context.Context, site *profiles.Site, name string) (*plan.Plan, error) {
	p, problems, err := site.Host(ctx, name)
	if err != nil {
		return nil, err
	}
	return p, problems.Err()
}
