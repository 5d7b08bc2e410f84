package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
)

type applyOptions struct {
	*globalOptions
	apply.Options
	yes       bool
	json      bool
	drain     bool
	deadline  time.Duration
	sshUser   string
	sshConfig string
}

func newApplyCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &applyOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "apply HOST...",
		Short: "Bring running hosts to what the site says of them",
		Long: `Apply brings running hosts to their plans, over ssh: files, directories, users,
SSH keys and units of both halves. Without --yes it only shows what it would do:
each file's difference, with references in the places of secrets.

Only units whose files change are restarted, or reloaded where that is enough.
What can't be changed in place (packages, kernel arguments, numbers of users) is
named, and left as it is. The network's configuration is written, and takes
effect at the next boot, or at once with --network.

Hosts are changed one after the other; the first failure stops it. A run that is
interrupted ends between two steps, says what is done and what isn't, and the
next run does the rest: also restarts that were due.

ssh is yours: with your keys, your agent, your ~/.ssh/config. Whoever it logs in
as must be root, or may use sudo without a password. Secrets go through its
standard input, and into files that are for their owner from the first byte.`,
		Example: `  kiln apply build01                   # what would change
  kiln apply build01 --yes             # change it
  kiln apply build01 build02 --yes --drain`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeHosts(global, -1),
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runApply(ctx, o, args, u) }),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "change the hosts; without it, only show what would change")
	f.BoolVar(&o.json, "json", false, "print it as JSON")
	f.BoolVar(&o.drain, "drain", false, "drain the Nomad node before Nomad or Docker is restarted, and make it eligible again afterwards")
	f.DurationVar(&o.deadline, "drain-deadline", time.Hour, "`TIME` that jobs have to leave the node; then they are stopped")
	f.BoolVar(&o.Network, "network", false, "have a changed network take effect at once; the connection may end by that")
	f.StringArrayVar(&o.Restart, "restart", nil, "`UNIT` to restart, too, where anything changes: docker.service, for instance, isn't by itself")
	f.BoolVar(&o.OtherName, "other-name", false, "take a machine that has another name, or none of the inventory's MACs")
	f.StringVar(&o.sshUser, "ssh-user", "", "`USER` to log in as: root, or somebody who may use sudo without a password (default: what ~/.ssh/config says)")
	f.StringVar(&o.sshConfig, "ssh-config", "", "`FILE` that takes the place of ~/.ssh/config")
	_ = cmd.MarkFlagFilename("ssh-config")
	return cmd
}

// applyResult is what is printed of one host.
type applyResult struct {
	*apply.Changes
	Applied bool     `json:"applied"`
	Done    []string `json:"done,omitempty"` // where it was stopped half-way
	Left    []string `json:"left,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func runApply(ctx context.Context, o *applyOptions, args []string, u *ui.UI) error {
	if o.drain && o.deadline <= 0 {
		return usagef("--drain-deadline is a time, such as 30m")
	}
	wants, err := o.wants(ctx, args)
	if err != nil {
		return err
	}
	drainer, err := o.drainer()
	if err != nil {
		return err
	}
	results := []*applyResult{}
	for i, w := range wants {
		r := &applyResult{Changes: &apply.Changes{Host: w.Plan.Host.Name, List: []apply.Change{}, Units: []string{}}}
		results = append(results, r)
		if err = o.host(ctx, w, drainer, r, u); err == nil {
			continue
		}
		r.fail(err)
		if rest := len(wants) - i - 1; rest > 0 {
			err = fmt.Errorf("%w\n  Not touched: %s", err, names(wants[i+1:]))
		}
		break
	}
	if o.json {
		if jsonErr := printJSON(u, results); jsonErr != nil && err == nil {
			err = jsonErr
		}
	}
	return err
}

// wants are the hosts as they are to be. All are known before the first is
// touched: a secret that is missing mustn't stop it in the middle.
func (o *applyOptions) wants(ctx context.Context, args []string) ([]*apply.Want, error) {
	site, err := o.open()
	if err != nil {
		return nil, err
	}
	secrets := baking.Resolver(site)
	var wants []*apply.Want
	seen := map[string]bool{}
	for _, name := range args {
		p, err := baking.HostPlan(ctx, site, name)
		if err != nil {
			return nil, err
		}
		if seen[p.Host.Name] {
			continue
		}
		seen[p.Host.Name] = true
		w, err := wantOf(ctx, p, secrets)
		if err != nil {
			return nil, err
		}
		wants = append(wants, w)
	}
	return wants, nil
}

// wantOf is what a host of a plan is to be.
func wantOf(ctx context.Context, p *plan.Plan, secrets plan.Resolver) (*apply.Want, error) {
	p, err := p.WithSecrets(ctx, secrets)
	if err != nil {
		return nil, err
	}
	layer, err := render.OnHost(p)
	if err != nil {
		return nil, err
	}
	network, err := render.NetworkConfig(p)
	if err != nil {
		return nil, err
	}
	return &apply.Want{Plan: p, Layer: layer, Network: network, Leave: sourcesOfBuilds(p.Image.AptSources)}, nil
}

// drainer asks Nomad where the environment, or its own default, says.
func (o *applyOptions) drainer() (*apply.Drainer, error) {
	nomad, err := cluster.NewNomad("")
	if err != nil {
		return nil, err
	}
	return &apply.Drainer{Nomad: nomad, Drain: o.drain, Deadline: o.deadline}, nil
}

// host shows what is to be done on one host, and does it where it was told to.
func (o *applyOptions) host(ctx context.Context, w *apply.Want, drainer *apply.Drainer, r *applyResult, u *ui.UI) (err error) {
	dialer := &remote.Dialer{User: o.sshUser, Config: o.sshConfig}
	conn, err := dialer.Dial(w.Plan.Host.Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	state, err := apply.Gather(ctx, conn, w)
	if err != nil {
		return err
	}
	changes, err := apply.Plan(w, state, o.Options)
	if err != nil {
		return err
	}
	r.Changes = changes
	if !o.json {
		if err := printChanges(u, changes, o.yes); err != nil {
			return err
		}
	}
	if !o.yes {
		return nil
	}
	progress := func(step string, done bool) {
		if !done {
			u.Notef("%s: %s", changes.Host, step)
		}
	}
	if err := changes.Run(ctx, conn, drainer, progress); err != nil {
		if ctx.Err() != nil && !o.json {
			// That it was interrupted is all that is said of it otherwise.
			u.Notef("%s", err)
		}
		return err
	}
	r.Applied = true
	return nil
}
