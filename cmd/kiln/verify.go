package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

type verifyHostsOptions struct {
	*globalOptions
	all         bool
	ssh         bool
	sshUser     string
	sshConfig   string
	withSecrets bool
	expires     time.Duration
	skip        []string
	json        bool
}

func newVerifyCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &verifyHostsOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "verify HOST… | --all",
		Short: "Say where running hosts differ from their profiles",
		Long: `Verify asks Nomad and Consul whether hosts are what their profiles say: there, ready
and eligible, at the right address, with the right datacenter, meta, volumes,
drivers, reservation, version and certificate, registered once. With --ssh it also
logs in, and looks at the units, at files that differ from the plan, at the
certificates on the disk, and whether names are found there. It changes nothing, and doesn't mind who set
a host up.

Where Nomad and Consul are, and with which tokens and certificates they are asked,
NOMAD_ADDR, CONSUL_HTTP_ADDR and their like say, as for the nomad and consul
programs; without NOMAD_ADDR, it's the first of the servers in site.yaml.

The exit status is 0 if nothing differs, 1 if anything does or couldn't be looked at
on a host, and 2 if the cluster couldn't be asked at all.`,
		Example: `  kiln verify build01
  kiln verify --all
  kiln verify build01 build02 --ssh              # the hosts themselves, too
  kiln verify --all --json | jq -r '.hosts[] | select(.ok | not) | .host'`,
		ValidArgsFunction: completeHosts(global, -1),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runVerifyHosts(ctx, o, args, u)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "verify every host of the inventory")
	f.BoolVar(&o.ssh, "ssh", false, "look at the hosts themselves, too, over SSH")
	f.StringVar(&o.sshUser, "ssh-user", "", "`USER` to log in as: root, or somebody who may use sudo without a password (default: what ~/.ssh/config says)")
	f.StringVar(&o.sshConfig, "ssh-config", "", "`FILE` that takes the place of ~/.ssh/config")
	f.BoolVar(&o.withSecrets, "with-secrets", false, "resolve the secrets, and compare those on the hosts with them; none is shown")
	f.DurationVar(&o.expires, "expires-within", verify.DefaultExpires, "`TIME` that certificates must still be valid")
	f.StringSliceVar(&o.skip, "skip", nil, "`CHECKS` to leave out: "+strings.Join(checkNames(), ", "))
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	complete(cmd, "skip", checkNames()...)
	return cmd
}

func checkNames() []string {
	var names []string
	for _, c := range verify.Checks {
		names = append(names, string(c))
	}
	return names
}

// runVerifyHosts has its own exit statuses, as kiln diff: any error but errShown
// is trouble.
func runVerifyHosts(ctx context.Context, o *verifyHostsOptions, names []string, u *ui.UI) error {
	if err := o.check(names); err != nil {
		return err
	}
	reports, problems, err := o.verify(ctx, names, u)
	for _, p := range problems {
		u.Notef("%s", p.Error())
	}
	if err == nil && len(problems) > 0 && len(reports) == 0 {
		return errShown
	}
	if err == nil {
		err = showReports(reports, o.json, u)
	}
	switch {
	case err != nil:
		return &troubleError{err}
	case len(problems) > 0, slices.ContainsFunc(reports, func(r verify.Report) bool { return !r.OK }):
		return errShown
	}
	return nil
}

func (o *verifyHostsOptions) check(names []string) error {
	switch {
	case o.all && len(names) > 0:
		return usagef("--all verifies every host: leave %s out, or --all", names[0])
	case !o.all && len(names) == 0:
		return usagef("name hosts to verify, or verify all of them: kiln verify --all")
	case !o.ssh && (o.sshUser != "" || o.sshConfig != ""):
		return usagef("--ssh-user and --ssh-config go with --ssh: without it, hosts aren't logged in to")
	case !o.ssh && o.withSecrets:
		return usagef("--with-secrets goes with --ssh: the cluster shows no secrets to compare with")
	case o.expires <= 0:
		return usagef("--expires-within is a time such as 336h, not %s", o.expires)
	}
	for _, s := range o.skip {
		if !slices.Contains(checkNames(), s) {
			return usagef("there is no check %q: %s", s, strictyaml.DidYouMean(s, checkNames()))
		}
	}
	return nil
}

// verify gives the reports of hosts, in the order that they are named in, or that
// of the inventory. Those that have problems there have none: these are given
// beside, since what isn't sound in the inventory isn't what a host should be.
func (o *verifyHostsOptions) verify(ctx context.Context, names []string, u *ui.UI) ([]verify.Report, problem.List, error) {
	site, err := o.open()
	if err != nil {
		return nil, nil, err
	}
	v, err := o.verifier(site)
	if err != nil {
		return nil, nil, err
	}
	plans, problems, err := plansOf(ctx, site, names)
	if err != nil {
		return nil, nil, err
	}
	lock, err := images.ReadLock(site.Dir)
	if err != nil {
		return nil, nil, err
	}
	targets := make([]verify.Target, len(plans))
	versions := versionsFrom(site, lock)
	for i, p := range plans {
		targets[i] = verify.Target{Plan: p, Versions: versions(p)}
		if targets[i].Files, err = o.files(ctx, site, p); err != nil {
			return nil, nil, fmt.Errorf("the host %s: %w", p.Host.Name, err)
		}
	}
	progress := u.Progress("verified %d hosts")
	defer progress.End()
	reports := []verify.Report{}
	err = v.Hosts(ctx, targets, func(r verify.Report) {
		reports = append(reports, r)
		progress.Add(1)
	})
	return reports, problems, err
}

// files are those to compare with the host's.
func (o *verifyHostsOptions) files(ctx context.Context, site *profiles.Site, p *plan.Plan) ([]verify.File, error) {
	if !o.ssh {
		return nil, nil
	}
	if o.withSecrets {
		resolved, err := p.WithSecrets(ctx, baking.Resolver(site))
		if err != nil {
			return nil, err
		}
		p = resolved
	}
	return filesOf(p)
}

// verifier asks the cluster of the site.
func (o *verifyHostsOptions) verifier(site *profiles.Site) (*verify.Verifier, error) {
	v, err := newVerifier(site)
	if err != nil {
		return nil, err
	}
	v.Expires = o.expires
	for _, s := range o.skip {
		v.Skip = append(v.Skip, verify.Check(s))
	}
	if o.ssh {
		v.SSH = &remote.Dialer{User: o.sshUser, Config: o.sshConfig}
	}
	return v, nil
}

// newVerifier asks the Nomad and the Consul that the environment names, else the
// site.
func newVerifier(site *profiles.Site) (*verify.Verifier, error) {
	v := &verify.Verifier{}
	var err error
	if v.Nomad, err = cluster.NewNomad(nomadOf(site)); err != nil {
		return nil, err
	}
	v.Consul, err = cluster.NewConsul("")
	return v, err
}

// nomadOf is where the site's Nomad answers: at its first server. A site without
// servers has none.
func nomadOf(site *profiles.Site) string {
	join := site.File.Servers.Join
	if len(join) == 0 {
		return ""
	}
	scheme := "http"
	if site.File.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(join[0].V, "4646")
}

// plansOf are those of the hosts with these names, or of all, each once. A host
// with problems has none: they are given beside.
func plansOf(ctx context.Context, site *profiles.Site, names []string) (plans []*plan.Plan, problems problem.List, err error) {
	seen := map[string]bool{}
	add := func(p *plan.Plan, found problem.List) {
		if found.Err() != nil {
			problems = append(problems, found...)
		} else if p != nil && !seen[p.Host.Name] {
			seen[p.Host.Name] = true
			plans = append(plans, p)
		}
	}
	for _, name := range names {
		p, found, err := site.Host(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		add(p, found)
	}
	if len(names) == 0 {
		found, err := site.Plans(ctx, func(_ string, p *plan.Plan, found problem.List) bool {
			add(p, found)
			return ctx.Err() == nil
		})
		if err := errors.Join(err, ctx.Err()); err != nil {
			return nil, nil, err
		}
		add(nil, found)
	}
	problems = slices.DeleteFunc(problems, func(p problem.Problem) bool { return p.Warning })
	problems.Sort()
	return plans, problems, nil
}

// versionsFrom finds what the lock has of the agents, for the image that a host
// is of.
func versionsFrom(site *profiles.Site, lock *images.Lock) func(*plan.Plan) verify.Versions {
	known := map[baking.Target]verify.Versions{}
	return func(p *plan.Plan) verify.Versions {
		key := baking.Target{Profile: p.Image.Profile, Definition: p.Image.Definition}
		if v, ok := known[key]; ok || lock == nil {
			return v
		}
		var v verify.Versions
		if definition, ok := site.Definition(p.Image.Definition); ok {
			packages, firmware := bake.Asked(bake.Options{Image: p.Image, Definition: definition})
			if set := lock.Find(p.Image.Definition, packages, firmware); set != nil {
				v = verify.Versions{Nomad: versionIn(set, "nomad"), Consul: versionIn(set, "consul")}
			}
		}
		known[key] = v
		return v
	}
}

func versionIn(set *images.PackageSet, name string) string {
	if p := set.Package(name); p != nil {
		return p.Version
	}
	return ""
}

// filesOf are all files that a host has by its plan, those that Kiln makes for it
// among them.
func filesOf(p *plan.Plan) ([]verify.File, error) {
	whole := *p
	// Without its key, a source can't be written down; kiln check says so.
	whole.Image.AptSources = slices.DeleteFunc(slices.Clone(p.Image.AptSources), func(s plan.AptSource) bool { return len(s.Key) == 0 })
	tree, err := render.Files(&whole, render.Options{Target: render.Stock})
	if err != nil {
		return nil, err
	}
	own, buildOnly := map[string]plan.File{}, sourcesOfBuilds(p.Image.AptSources)
	for _, f := range p.Host.Files {
		own[f.Path] = f
	}
	var files []verify.File
	for _, e := range tree.Entries {
		f, ok := own[e.Path]
		if !ok {
			f = plan.File{Path: e.Path, Owner: e.Owner, Group: e.Group, Mode: e.Mode, Target: e.Target, Content: plan.Literal(e.Content)}
		}
		// The manifest has hashes of what was delivered, with or without secrets.
		if e.Path != render.ManifestPath && !buildOnly[e.Path] {
			files = append(files, verify.File{File: f, Dir: e.Dir})
		}
	}
	return files, nil
}

// sourcesOfBuilds are the files of apt sources that are folders of the building
// machine. In an image of ours they are disabled, in others not: neither is a
// difference.
func sourcesOfBuilds(sources []plan.AptSource) map[string]bool {
	files := map[string]bool{}
	for _, s := range sources {
		if !slices.ContainsFunc(s.URIs, func(uri string) bool { return !bake.IsLocal(uri) }) {
			files["/etc/apt/sources.list.d/"+s.Name+".sources"] = true
		}
	}
	return files
}
