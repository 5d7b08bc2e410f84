package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

type armOptions struct {
	*globalOptions
	state        stateOptions
	server       serverOptions
	image        string
	yes          bool
	withoutNomad bool
	json         bool
}

func newArmCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &armOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "arm HOST…",
		Short: "Have a host's next network boot install its image",
		Long: `Arm lets hosts be installed: each one's next boot from the network writes its image
to its disk, once. All that is on that disk is lost; arm says which disk it is, and
asks, or takes --yes for the answer. Data disks keep every byte.

The image is the newest one of the host's profile that was built as a netboot set
(kiln build PROFILE --format netboot), or the one of --image. In a site with public
keys (keys/*.pub), one of them must have signed it.

Where the site names a Nomad, or NOMAD_ADDR does, a host on which jobs run is
refused: drain it first.

Only who may write the server's state can arm; from elsewhere, --server asks the
server over HTTPS, with the operator's token in KILN_OPERATOR_TOKEN. The server has
the images then; the site's rules for the disk have to be the same there and here.`,
		Example: `  kiln arm build01
  kiln arm build01 build02 --yes
  kiln arm build01 --image 4f1c2e
  kiln status --watch`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeHosts(global, -1),
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runArm(ctx, o, args, u) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "`IMAGE` to install: an ID, or the beginning of one")
	f.BoolVarP(&o.yes, "yes", "y", false, "don't ask whether the disks may be wiped")
	f.BoolVar(&o.withoutNomad, "without-nomad", false, "don't ask Nomad whether jobs run on the hosts")
	f.BoolVar(&o.json, "json", false, "print what is armed as JSON")
	o.state.flag(cmd)
	o.server.flags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("image", completeImages)
	return cmd
}

func runArm(ctx context.Context, o *armOptions, args []string, u *ui.UI) error {
	site, err := o.open()
	if err != nil {
		return err
	}
	// A server has the images, and asks Nomad, itself.
	a, err := newArmer(site, !o.withoutNomad && !o.server.set())
	if err != nil {
		return err
	}
	defer a.close()
	a.elsewhere = o.server.set()
	// All are known before the first is armed.
	var list []*state.Arming
	seen := map[string]bool{}
	for _, name := range args {
		arming, err := a.prepare(ctx, name, o.image)
		if err != nil {
			return err
		}
		arming.By = who()
		if !seen[arming.Host] {
			list = append(list, arming)
		}
		seen[arming.Host] = true
	}
	target, err := o.target()
	if err != nil {
		return err
	}
	if !o.yes {
		if err := o.ask(ctx, list, u); err != nil {
			return err
		}
	}
	if !o.server.set() {
		if err := o.holdImages(a.store); err != nil {
			u.Notef("images that hosts are armed with can be removed: %v", err)
		}
	}
	armed := []*state.Record{}
	for i, arming := range list {
		r, err := target.arm(ctx, *arming)
		if err != nil {
			if i > 0 {
				err = fmt.Errorf("%w: before it, %d were armed (kiln status)", err, i)
			}
			return err
		}
		armed = append(armed, r)
		if !o.json {
			u.Printf("%s is armed: its next boot from the network installs %.12s on %s\n", r.Host, r.Image, r.Disk)
		}
	}
	if o.json {
		return printJSON(u, statusOf(armed))
	}
	return nil
}

// holdImages has the store know of the state, so that nothing is removed there that a
// host is armed with.
func (o *armOptions) holdImages(store *images.Store) error {
	dir, err := o.state.directory()
	if err != nil {
		return err
	}
	return store.AddHolder(dir)
}

// armTarget is where hosts are armed and looked at: the state itself, or a server.
type armTarget interface {
	arm(ctx context.Context, a state.Arming) (*state.Record, error)
	disarm(ctx context.Context, host, by string) (*state.Record, error)
	records(ctx context.Context) ([]*state.Record, error)
	// watch tells of changes until ctx ends.
	watch(ctx context.Context) (<-chan struct{}, error)
}

func (o *armOptions) target() (armTarget, error) {
	t, err := openTarget(&o.state, &o.server)
	if c, ok := t.(*operatorClient); ok && err == nil {
		c.withoutNomad = o.withoutNomad
	}
	return t, err
}

func openTarget(s *stateOptions, server *serverOptions) (armTarget, error) {
	if server.set() {
		if s.dir != "" {
			return nil, usagef("--state and --server: name one of both, the state's folder or the server that has it")
		}
		return server.client()
	}
	store, err := s.open()
	if err != nil {
		return nil, err
	}
	return localState{store}, nil
}

// localState is a state whose folder is here.
type localState struct{ *state.Store }

func (s localState) arm(_ context.Context, a state.Arming) (*state.Record, error) { return s.Arm(a) }

func (s localState) disarm(_ context.Context, host, by string) (*state.Record, error) {
	return s.Disarm(host, by)
}

// errNotArmed is that the answer wasn't yes.
var errNotArmed = errors.New("nothing was armed, since the answer wasn't yes")

// ask shows what would be wiped, and asks.
func (o *armOptions) ask(ctx context.Context, list []*state.Arming, u *ui.UI) error {
	if u.Err != nil {
		w := tabwriter.NewWriter(u.Err, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "HOST\tIMAGE\tALL OF THIS DISK IS LOST")
		for _, a := range list {
			image := a.Image
			if image == "" {
				image = "(the newest)"
			}
			fmt.Fprintf(w, "%s\t%s %.12s\t%s\n", a.Host, a.Profile, image, a.Disk)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	question := fmt.Sprintf("Wipe that disk of %s at its next boot from the network?", list[0].Host)
	if len(list) > 1 {
		question = fmt.Sprintf("Wipe these disks of %d hosts at their next boot from the network?", len(list))
	}
	yes, err := confirm(ctx, u, question)
	if err == nil && !yes {
		err = errNotArmed
	}
	return err
}

type disarmOptions struct {
	*globalOptions
	state  stateOptions
	server serverOptions
}

func newDisarmCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &disarmOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "disarm HOST…",
		Short: "Take the arming of hosts back, or end their installation",
		Long: `Disarm takes back what kiln arm did. A host that is being installed fails by it: its
installer is told to stop, and the disk, as far as it is written, doesn't boot.`,
		Example:           "  kiln disarm build01",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeHosts(global, -1),
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runDisarm(ctx, o, args, u) }),
	}
	o.state.flag(cmd)
	o.server.flags(cmd)
	return cmd
}

func runDisarm(ctx context.Context, o *disarmOptions, args []string, u *ui.UI) error {
	if !o.server.set() && o.state.missing() {
		// There is nothing to take back, and none is made for that.
		return fmt.Errorf("%s: %w: kiln arm does that", args[0], state.ErrUnknown)
	}
	target, err := openTarget(&o.state, &o.server)
	if err != nil {
		return err
	}
	// The names are as the inventory has them, where there is one; what was taken out
	// of it, or isn't sound, can be disarmed still.
	site, siteErr := o.open()
	var armed []*state.Record
	var errs []error
	for _, name := range args {
		var p *plan.Plan
		if siteErr == nil {
			p, _, _ = site.Host(ctx, name)
		}
		if p != nil {
			name = p.Host.Name
		} else {
			if armed == nil {
				if armed, err = target.records(ctx); err != nil {
					return err
				}
			}
			if r := named(armed, name); r != nil {
				name = r.Host
			}
		}
		r, err := target.disarm(ctx, name, who())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		u.Printf("%s: %s\n", r.Host, r.State())
	}
	return errors.Join(errs...)
}
