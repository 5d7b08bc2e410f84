package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/netboot/state"
	tables "github.com/alisw/kiln/netboot/status"
	"github.com/alisw/kiln/netboot/web"
)

type statusOptions struct {
	*globalOptions
	state  stateOptions
	server serverOptions
	watch  bool
	json   bool
}

func newStatusCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &statusOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "status [HOST…]",
		Short: "Show where the installations of hosts are",
		Long: `Status shows each host that was ever armed, and where it is on its way:

  armed ▶ booted ▶ writing n% ▶ written ▶ first boot ▶ ready

or that it failed, in which of these, and why; or that it is armed in vain, as its
image or its entry in the inventory is gone, and what to do. With --watch the table stays, and
changes with them, until ^C.`,
		Example: `  kiln status
  kiln status --watch
  kiln status --json | jq -r '.[] | select(.stage == "failed") | .host'`,
		ValidArgsFunction: completeHosts(global, -1),
		Annotations:       map[string]string{endsByItself: "yes"},
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runStatus(ctx, o, args, u) }),
	}
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "show changes as they come, until ^C")
	cmd.Flags().BoolVar(&o.json, "json", false, "print it as JSON; with --watch, one line a change")
	o.state.flag(cmd)
	o.server.flags(cmd)
	return cmd
}

// statusOf is what is printed of records as JSON: without the hashes of what hosts
// prove themselves with.
func statusOf(list []*state.Record) []*state.Record {
	out := make([]*state.Record, len(list))
	for i, r := range list {
		out[i] = r.Public()
	}
	return out
}

func runStatus(ctx context.Context, o *statusOptions, args []string, u *ui.UI) error {
	names, err := o.names(ctx, args)
	if err != nil {
		return err
	}
	if !o.server.set() && !o.watch && o.state.missing() {
		// Who only looks makes none.
		list, err := only(nil, names)
		if err != nil {
			return err
		}
		return o.show(list, u)
	}
	source, err := openTarget(&o.state, &o.server)
	if err != nil {
		return err
	}
	if !o.watch {
		list, err := source.records(ctx)
		if err != nil {
			return err
		}
		if list, err = only(list, names); err != nil {
			return err
		}
		return o.show(list, u)
	}
	changed, err := source.watch(ctx)
	if err != nil {
		return err
	}
	for {
		list, err := source.records(ctx)
		if err == nil {
			list, err = only(list, names)
		}
		if err == nil {
			err = o.show(list, u)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // that's how it ends
		case <-changed:
		case <-time.After(time.Second): // times go on
			if o.json {
				select {
				case <-ctx.Done():
					return nil
				case <-changed:
				}
			}
		}
	}
}

// names are the hosts' full names, as far as the inventory has them.
func (o *statusOptions) names(ctx context.Context, args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	site, err := o.open()
	if err != nil && !errors.Is(err, baking.ErrNoSite) {
		return nil, err
	}
	names := make([]string, len(args))
	for i, name := range args {
		names[i] = name
		if site != nil {
			if p, _, err := site.Host(ctx, name); err == nil && p != nil {
				names[i] = p.Host.Name
			}
		}
	}
	return names, nil
}

// only are the records of those hosts, or all where none is named.
func only(list []*state.Record, names []string) ([]*state.Record, error) {
	if len(names) == 0 {
		return list, nil
	}
	var out []*state.Record
	for _, name := range names {
		r := named(list, name)
		if r == nil {
			return nil, fmt.Errorf("%s: %w: kiln arm does that", name, state.ErrUnknown)
		}
		out = append(out, r)
	}
	return out, nil
}

// named is the record of a host by its full name, or by the name before the domain
// if no other host has that; nil: there is none.
func named(list []*state.Record, name string) *state.Record {
	var short []*state.Record
	for _, r := range list {
		if strings.EqualFold(r.Host, name) {
			return r
		}
		if first, _, _ := strings.Cut(r.Host, "."); strings.EqualFold(first, name) {
			short = append(short, r)
		}
	}
	if len(short) != 1 {
		return nil
	}
	return short[0]
}

// show prints the records; on a terminal that is watched, over what it showed before.
func (o *statusOptions) show(list []*state.Record, u *ui.UI) error {
	if o.json && o.watch {
		data, err := json.Marshal(statusOf(list))
		if err != nil {
			return err
		}
		u.Printf("%s\n", data)
		return nil
	}
	if o.json {
		return printJSON(u, statusOf(list))
	}
	var values []state.Record
	for _, r := range list {
		values = append(values, *r)
	}
	var options tables.Options
	fd := int(os.Stdout.Fd())
	onTerminal := u.Out == os.Stdout && term.IsTerminal(fd)
	if onTerminal {
		if width, height, err := term.GetSize(fd); err == nil {
			options.Width = width
			if o.watch {
				options.Height = height
			}
		}
		options.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	table := tables.Table(values, time.Now(), options)
	if o.watch && onTerminal {
		table = "\x1b[H\x1b[2J" + table
	}
	u.Printf("%s", table)
	return nil
}

func (s localState) records(context.Context) ([]*state.Record, error) {
	list, damaged, err := s.List()
	for _, d := range damaged {
		list = append(list, &state.Record{Host: d.Host, Stage: state.Failed, Error: d.Error()})
	}
	return list, err
}

func (s localState) watch(ctx context.Context) (<-chan struct{}, error) { return s.Watch(ctx), nil }

func (c *operatorClient) records(ctx context.Context) ([]*state.Record, error) {
	var answer web.Status
	if err := c.do(ctx, "GET", "status", nil, &answer); err != nil {
		return nil, err
	}
	for _, d := range answer.Damaged {
		answer.Hosts = append(answer.Hosts, &state.Record{Host: d.Host, Stage: state.Failed, Error: d.Error})
	}
	return answer.Hosts, nil
}

// watch asks every second.
func (c *operatorClient) watch(ctx context.Context) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}
	}()
	return changed, nil
}
