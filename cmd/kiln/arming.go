package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// armer makes hosts ready to be armed: it knows the images, and asks Nomad.
type armer struct {
	site  *profiles.Site
	store *images.Store
	keys  []images.PublicKey
	nomad *cluster.Nomad // nil: isn't asked
	// elsewhere is that a server has the images, and finds the one that is meant.
	elsewhere bool
	// used are what keeps images until the state does, by ID.
	used map[string]func()
}

// hold lets nobody remove an image before its host is armed, or the armer is closed.
func (a *armer) hold(id string) error {
	if a.used[id] != nil {
		return nil
	}
	release, err := a.store.Use(id)
	if err != nil {
		return err
	}
	if a.used == nil {
		a.used = map[string]func(){}
	}
	a.used[id] = release
	return nil
}

func (a *armer) close() {
	for _, release := range a.used {
		release()
	}
}

// newArmer makes an armer of a site. Where the site or the environment names a
// Nomad, it is asked what runs on a host.
func newArmer(site *profiles.Site, askNomad bool) (*armer, error) {
	a := &armer{site: site}
	var err error
	if a.store, err = baking.OpenStore(); err != nil {
		return nil, err
	}
	if a.keys, err = images.SiteKeys(site.Dir); err != nil {
		return nil, err
	}
	if address := nomadOf(site); askNomad && (address != "" || os.Getenv("NOMAD_ADDR") != "") {
		a.nomad, err = cluster.NewNomad(address)
	}
	return a, err
}

// prepare says what a host is to be armed with: with the image that is meant, or,
// where none is, with the newest one of its profile. Nothing is changed, and the image
// stays until the armer is closed.
func (a *armer) prepare(ctx context.Context, host, image string) (*state.Arming, error) {
	p, err := baking.HostPlan(ctx, a.site, host)
	if err != nil {
		return nil, err
	}
	h := bootableHost(p)
	if len(h.NICs) == 0 {
		return nil, fmt.Errorf("%s: the host %s has no MAC: nobody could tell that it's the one which boots; give an interface of it one", p.Host.Origin, h.Name)
	}
	if clash := slices.Index(h.Data, h.Install); clash >= 0 && h.Install != (plan.DiskRule{}) {
		return nil, fmt.Errorf("%s: the disk to install on and the one of %s have the same rule: one of them has to be another", p.Host.Origin, p.Host.Disks[clash].Mount)
	}
	if !a.elsewhere {
		m, err := a.image(p, image)
		if err != nil {
			return nil, err
		}
		if err := a.hold(m.ID); err != nil {
			return nil, err
		}
		image = m.ID
	}
	if err := a.idle(ctx, h.Name); err != nil {
		return nil, err
	}
	arming := &state.Arming{Host: h.Name, Image: image, Profile: p.Image.Profile, Disk: describeDisk(&p.Host), Install: h.Install, Data: h.Data}
	for _, n := range h.NICs {
		arming.MACs = append(arming.MACs, n.MAC)
	}
	return arming, nil
}

// image finds an image that the host can be installed with.
func (a *armer) image(p *plan.Plan, what string) (*images.Manifest, error) {
	var m *images.Manifest
	var err error
	if what == "" {
		m, err = a.newest(p)
	} else {
		m, err = a.store.Find(what)
	}
	if err != nil {
		return nil, err
	}
	build := fmt.Sprintf("kiln build %s --image %s --format netboot", p.Image.Profile, p.Image.Definition)
	switch {
	case m.Profile != p.Image.Profile || m.Release != p.Image.Release:
		return nil, fmt.Errorf("%s: the host %s is a %s on %s, and the image %s a %s on %s: arm it with one of its own (%s)",
			p.Host.Origin, p.Host.Name, p.Image.Profile, p.Image.Definition, m.Short(), m.Profile, m.Definition, build)
	case !m.Has(images.FormatNetboot):
		return nil, fmt.Errorf("the image %s isn't there as a netboot set: %s makes it", m.Short(), build)
	case m.Release.Architecture != "amd64":
		return nil, fmt.Errorf("the image %s is for %s: hosts of amd64 alone are booted from the network", m.Short(), m.Release.Architecture)
	case len(a.keys) > 0:
		if _, _, err := a.store.Verified(m.ID, a.keys); err != nil {
			return nil, fmt.Errorf("the image %s isn't installed anywhere: %w: sign it with the key of %s (kiln images sign %[1]s --key FILE)", m.Short(), err, keyNames(a.keys))
		}
	}
	return m, nil
}

// newest is the newest image of a host's profile that it could boot as.
func (a *armer) newest(p *plan.Plan) (*images.Manifest, error) {
	list, err := a.store.List()
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m.Profile == p.Image.Profile && m.Release == p.Image.Release && m.Has(images.FormatNetboot) {
			return m, nil
		}
	}
	return nil, fmt.Errorf("there is no netboot set of %s on %s: kiln build %[1]s --image %[2]s --format netboot makes one", p.Image.Profile, p.Image.Definition)
}

// errUnasked is that nobody knows what runs on a host.
var errUnasked = errors.New("whether jobs run on it isn't known: --without-nomad arms it nevertheless")

// idle refuses a host on which jobs run.
func (a *armer) idle(ctx context.Context, host string) error {
	if a.nomad == nil {
		return nil
	}
	running, err := a.nomad.Running(ctx, host)
	if err != nil {
		return fmt.Errorf("%s isn't armed: %w: %w", host, err, errUnasked)
	}
	if n := len(running); n > 0 {
		shown := strings.Join(running[:min(n, 5)], ", ")
		if n > 5 {
			shown += fmt.Sprintf(" and %d more", n-5)
		}
		return fmt.Errorf("%s isn't armed: %s still run on it: drain it (nomad node drain -enable -self, on the host), and arm it then", host, shown)
	}
	return nil
}

// describeDisk says which disk will be wiped.
func describeDisk(h *plan.Host) string {
	rule := h.Install.Words(func(n int64) string { return fmt.Sprintf("%.4g GiB", float64(n)/(1<<30)) })
	switch {
	case rule != "":
		return "the disk with " + rule
	case len(h.Disks) > 0:
		return "its only disk beside that of " + mounts(h.Disks)
	}
	return "its only disk"
}

func mounts(disks []plan.DataDisk) string {
	var list []string
	for _, d := range disks {
		list = append(list, d.Mount)
	}
	return strings.Join(list, " and ")
}
