package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/netboot/dashboard"
	"github.com/alisw/kiln/netboot/dhcp"
	"github.com/alisw/kiln/plan"
)

// discoveredFile is the file of the state that has the unknown machines.
const discoveredFile = "discovered.json"

type discoverOptions struct {
	*globalOptions
	state stateOptions
	json  bool
}

func newDiscoverCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &discoverOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "discover [MAC]",
		Short: "List unknown machines that asked to boot from the network",
		Long: `Discover lists the machines that asked a kiln serve --discover to be booted, and that
the inventory doesn't have. They got no answer, and get none until they are in it.
With a MAC, it prints an entry for the inventory.`,
		Example: `  kiln discover
  kiln discover 52:54:00:12:34:56 >> hosts.yaml     # then give it a name and a profile`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			list, _ := o.read()
			var macs []string
			for _, m := range list {
				macs = append(macs, cobra.CompletionWithDesc(string(m.MAC), m.Firmware))
			}
			return macs, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: verb(func(_ context.Context, _ *cobra.Command, args []string) error { return runDiscover(o, args, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print them as JSON")
	o.state.flag(cmd)
	return cmd
}

// read gives the unknown machines that a server has stored.
func (o *discoverOptions) read() ([]dhcp.Unknown, error) {
	dir, err := o.state.directory()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, discoveredFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no server has looked for unknown machines here: kiln serve --discover does: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("the unknown machines: %w", err)
	}
	var list []dhcp.Unknown
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("the unknown machines: %s: %w: remove it; the server writes it anew", name, err)
	}
	return list, nil
}

func runDiscover(o *discoverOptions, args []string, u *ui.UI) error {
	list, err := o.read()
	if err != nil {
		return err
	}
	if len(args) == 1 {
		mac, err := plan.ParseMAC(args[0])
		if err != nil {
			return usagef("%s", err)
		}
		i := slices.IndexFunc(list, func(m dhcp.Unknown) bool { return m.MAC == mac })
		if i < 0 {
			return fmt.Errorf("no unknown machine with the MAC %s has asked: kiln discover lists those that did", mac)
		}
		if o.json {
			return printJSON(u, list[i])
		}
		u.Printf("%s", inventoryEntry(list[i]))
		return nil
	}
	if o.json {
		return printJSON(u, list)
	}
	if len(list) == 0 {
		u.Notef("no unknown machine has asked yet")
		return nil
	}
	w := tabwriter.NewWriter(u.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MAC\tFIRMWARE\tVENDOR\tASKED LAST")
	for _, m := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.MAC, visible(m.Firmware), visible(m.Vendor), m.Time.Local().Format(time.DateTime))
	}
	return w.Flush()
}

// inventoryEntry is what a machine is registered with.
func inventoryEntry(m dhcp.Unknown) string {
	return fmt.Sprintf("# asked to boot at %s: %s, %s\n- name: %s\n  profile: plain\n  interfaces: {lan: {mac: \"%s\", dhcp4: true}}\n",
		m.Time.UTC().Format(time.DateTime), visible(m.Firmware), visible(m.Vendor), "new-"+strings.ReplaceAll(string(m.MAC[9:]), ":", ""), m.MAC)
}

// machines are unknown ones as the dashboard has them.
func machines(list []dhcp.Unknown) []dashboard.Machine {
	var out []dashboard.Machine
	for _, m := range list {
		out = append(out, dashboard.Machine{MAC: m.MAC, Vendor: m.Vendor, Firmware: m.Firmware, First: m.Time, Last: m.Time, Times: 1, Entry: inventoryEntry(m)})
	}
	return out
}

// keepSightings stores unknown machines for kiln discover, until ctx ends.
func (s *serving) keepSightings(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var stored []dhcp.Unknown
	for first := true; ; first = false {
		if list := s.sightings.List(); first || !reflect.DeepEqual(list, stored) {
			data, err := json.MarshalIndent(list, "", " ")
			if err == nil {
				err = writeFile(filepath.Join(s.dir, discoveredFile), append(data, '\n'), false)
			}
			if err != nil {
				s.log.Error("the unknown machines can't be stored", "error", err)
			}
			stored = list
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
