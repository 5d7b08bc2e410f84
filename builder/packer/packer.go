// Package packer serves Kiln's baking to Packer: data sources, a provisioner, a
// builder and a post-processor, as thin adapters to packer-plugin-sdk. Nothing
// else of Kiln's imports the SDK.
//
// What a site says comes through Sites: who serves the plugin knows sites, this
// package knows plans.
package packer

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/plugin"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/plan"
)

// Sites is what the plugin needs of sites. A site is a path; "" or "." is the one
// here or above. Errors are ready to be shown.
type Sites interface {
	// Host is the plan of a host, with its secrets as references.
	Host(ctx context.Context, site, host string) (*plan.Plan, error)
	// Half is the Image half of a profile on an image definition, "" being the
	// default one.
	Half(ctx context.Context, site, profile, definition string) (*Half, error)
	// Bake bakes natively, and puts the image into the user's store.
	Bake(ctx context.Context, o *BakeOptions) (*Baked, error)
	// Search is what a finished disk is to be searched for: the site's secrets. Where
	// a profile is named, what its image half puts into images is allowed.
	Search(ctx context.Context, site, profile, definition string) (*Search, error)
}

// Half is the Image half of a profile, to be applied to a running machine.
type Half struct {
	Image plan.Image
	// Locked are the exact packages, from the site's lock; nil is that it has none.
	Locked *images.PackageSet
}

// BakeOptions say what to bake natively.
type BakeOptions struct {
	Site, Profile, Definition string
	Formats                   []images.Format
	Events                    func(bake.Event)
	Note                      func(string) // something to know that is no progress
}

// Baked is a natively baked image.
type Baked struct {
	Manifest *images.Manifest
	Store    *images.Store
	New      bool // the store didn't have it before
}

// Search is what finished disks are searched for, and what they may have.
type Search struct {
	Canaries []check.Canary
	Missed   []string // secrets that can't be had, and why
	Allowed  func(check, path string) bool
}

// Register adds all components to a plugin.
func Register(set *plugin.Set, sites Sites) {
	set.RegisterBuilder(plugin.DEFAULT_NAME, &Builder{sites: sites})
	set.RegisterProvisioner(plugin.DEFAULT_NAME, &Provisioner{sites: sites})
	set.RegisterDatasource("host", &HostData{sites: sites})
	set.RegisterDatasource("profile", &ProfileData{sites: sites})
	set.RegisterPostProcessor("check", &Check{sites: sites})
}

// decode reads what a template says of a component. Exclude names options that
// are interpolated later.
func decode(to any, raws []any, exclude ...string) error {
	return config.Decode(to, &config.DecodeOpts{
		Interpolate:        true,
		InterpolateContext: &interpolate.Context{},
		InterpolateFilter:  &interpolate.RenderFilter{Exclude: exclude},
	}, raws...)
}

// required finds options that are missing.
func required(component string, options ...string) error {
	var missing []string
	for i := 0; i+1 < len(options); i += 2 {
		if options[i+1] == "" {
			missing = append(missing, options[i])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s must be set", component, strings.Join(missing, " and "))
}
