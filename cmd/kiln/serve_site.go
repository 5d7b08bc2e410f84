package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/web"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// servedSite is the site as a server has it: another one once its files changed.
// Requests that run go on with what they began with.
type servedSite struct {
	options *globalOptions
	log     *slog.Logger
	store   *state.Store
	state   string // its directory
	address string // that hosts reach it at; empty: whichever leads to a host
	port    int    // of plain HTTP
	now     atomic.Pointer[siteNow]
}

// siteNow is what was read of a site at one time.
type siteNow struct {
	site  *profiles.Site
	hosts *netboot.Inventory
	keys  []string
	lock  *images.Lock
	seen  string // what the files looked like: see fingerprint
}

// load reads the site. What is wrong with single hosts leaves these out; what is
// wrong with the site is an error, and the server keeps what it has.
func (s *servedSite) load(ctx context.Context) error {
	dir, err := s.options.directory()
	if err != nil {
		return err
	}
	n := &siteNow{seen: fingerprint(dir)}
	if n.site, err = s.options.open(); err != nil {
		return err
	}
	hosts, problems, err := bootableHosts(ctx, n.site)
	if err != nil {
		return err
	}
	for _, p := range problems {
		s.log.Warn("a host isn't booted, as its entry isn't sound", "problem", p.Error())
	}
	if n.hosts, err = netboot.NewHosts(hosts); err != nil {
		return err
	}
	keys, err := images.SiteKeys(dir)
	if err != nil {
		return err
	}
	for _, k := range keys {
		n.keys = append(n.keys, k.Text())
	}
	if n.lock, err = images.ReadLock(dir); err != nil {
		return err
	}
	s.now.Store(n)
	s.log.Info("the site is read", "site", dir, "hosts", len(hosts), "keys", len(keys))
	return nil
}

// reloadEvery is how often the site's files are looked at.
const reloadEvery = 5 * time.Second

// watch loads the site anew whenever its files have changed, or now has something,
// until ctx ends. asked is called for the latter, and changed once it is loaded.
func (s *servedSite) watch(ctx context.Context, now <-chan os.Signal, asked, changed func()) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	failed := ""
	for {
		must := false
		select {
		case <-ctx.Done():
			return
		case <-now:
			asked()
			must = true
		case <-tick.C:
		}
		seen := fingerprint(s.now.Load().site.Dir)
		if !must && (seen == s.now.Load().seen || seen == failed) {
			continue
		}
		if err := s.load(ctx); err != nil {
			failed = seen
			s.log.Error("the site has changed, and isn't sound: what was read before stays", "error", err)
			continue
		}
		changed()
	}
}

// fingerprint is what a site's files look like from outside.
func fingerprint(dir string) string {
	var b strings.Builder
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintln(&b, path, err)
			return nil
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != dir {
			return fs.SkipDir // git's
		}
		if info, err := d.Info(); err == nil {
			fmt.Fprintln(&b, path, info.Size(), info.ModTime().UnixNano(), info.Mode())
		}
		return nil
	})
	return b.String()
}

// registered are the hosts as they are now.
func (s *servedSite) registered() netboot.Hosts { return s.now.Load().hosts }

func (s *servedSite) keys() []string { return s.now.Load().keys }

// plan is a host's, with its secrets.
func (s *servedSite) plan(ctx context.Context, host string) (*plan.Plan, error) {
	site := s.now.Load().site
	p, err := baking.HostPlan(ctx, site, host)
	if err != nil {
		return nil, err
	}
	return p.WithSecrets(ctx, baking.Resolver(site))
}

// check tells whether a host's data can be had, before anything is written.
func (s *servedSite) check(ctx context.Context, host string) error {
	p, err := s.plan(ctx, host)
	if err == nil {
		_, err = render.Seed(p, render.Options{Target: render.Golden})
	}
	return err
}

// seed is what an installation is delivered.
func (s *servedSite) seed(ctx context.Context, host string) ([]protocol.SeedFile, error) {
	p, err := s.plan(ctx, host)
	if err != nil {
		return nil, err
	}
	r, err := s.store.Get(p.Host.Name)
	if err != nil {
		return nil, err
	}
	own := s.address
	if own == "" {
		if own, err = ownAddress(r.Address); err != nil {
			return nil, err
		}
	}
	return installedSeed(p, fmt.Sprintf("http://%s%s%s", net.JoinHostPort(own, fmt.Sprint(s.port)), protocol.PathFirstBoot, r.Install))
}

// ownAddress is the address that this machine has for another one.
func ownAddress(other string) (string, error) {
	// Nothing is sent: UDP's connect only chooses a route.
	c, err := net.Dial("udp", net.JoinHostPort(other, "9"))
	if err != nil {
		return "", fmt.Errorf("finding the own address for %s: %w", other, err)
	}
	defer c.Close()
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return "", fmt.Errorf("finding the own address for %s: there is none", other)
	}
	return a.IP.String(), nil
}

// given is a host's seed as people may see it: with references in the places of
// secrets.
func (s *servedSite) given(ctx context.Context, host string) ([]protocol.SeedFile, error) {
	p, err := baking.HostPlan(ctx, s.now.Load().site, host)
	if err != nil {
		return nil, err
	}
	return installedSeed(p, "")
}

// verify tells whether the cluster has a host as it should be.
func (s *servedSite) verify(ctx context.Context, host string) (bool, []string, error) {
	n := s.now.Load()
	p, err := baking.HostPlan(ctx, n.site, host)
	if err != nil {
		return false, nil, err
	}
	v, err := newVerifier(n.site)
	if err != nil {
		return false, nil, err
	}
	report, err := v.Host(ctx, verify.Target{Plan: p, Versions: versionsFrom(n.site, n.lock)(p)})
	if err != nil {
		return false, nil, err
	}
	var findings []string
	for _, f := range report.Findings {
		if f.Old() {
			continue // it was this host, before it was installed again
		}
		findings = append(findings, fmt.Sprintf("%s: expected %s, found %s: %s", f.Check, f.Expected, f.Found, f.Fix))
	}
	return len(findings) == 0, findings, nil
}

// arm arms a host for an operator who asks over HTTPS.
func (s *servedSite) arm(ctx context.Context, host string, req web.ArmRequest) (*state.Record, error) {
	a, err := newArmer(s.now.Load().site, !req.WithoutNomad)
	if err != nil {
		return nil, err
	}
	defer a.close()
	arming, err := a.prepare(ctx, host, req.Image)
	if err != nil {
		return nil, err
	}
	if rules := req.Rules; rules != nil && (rules.Install != arming.Install || !slices.Equal(rules.Data, arming.Data)) {
		return nil, fmt.Errorf("%s isn't armed: the rules for its disks have changed on the server just now", host)
	}
	arming.By = req.By
	if err := a.store.AddHolder(s.state); err != nil {
		s.log.Warn("images that hosts are armed with can be removed", "error", err)
	}
	return s.store.Arm(*arming)
}

// records are the state as the dashboard has it.
type records struct{ *state.Store }

// List implements dashboard.Records.
func (r records) List() ([]state.Record, error) {
	list, damaged, err := r.Store.List()
	if err != nil {
		return nil, err
	}
	var out []state.Record
	for _, one := range list {
		out = append(out, *one.Public())
	}
	for _, d := range damaged {
		out = append(out, state.Record{Host: d.Host, Stage: state.Failed, Error: d.Error()})
	}
	return out, nil
}

// Get implements dashboard.Records.
func (r records) Get(host string) (state.Record, bool, error) {
	one, err := r.Store.Get(host)
	if errors.Is(err, state.ErrUnknown) {
		return state.Record{}, false, nil
	}
	if err != nil {
		return state.Record{}, false, err
	}
	return *one.Public(), true, nil
}
