package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type hostsOptions struct {
	*globalOptions
	json bool
}

func newHostsCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &hostsOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "hosts",
		Short: "List the hosts of the inventory",
		Long: `Hosts lists the hosts in the order of the inventory: hosts.yaml, then
hosts/*.yaml. With --json, an array with one host a line.`,
		Example: `  kiln hosts
  kiln hosts --json | jq -r '.[] | select(.profile == "ci") | .name'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runHosts(ctx, o, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print them as JSON")
	return cmd
}

func runHosts(ctx context.Context, o *hostsOptions, u *ui.UI) error {
	dir, err := o.directory()
	if err != nil {
		return err
	}
	// What is wrong elsewhere in the site doesn't keep its hosts from being listed.
	site, _, err := profiles.Open(dir)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(u.Out)
	show, end := hostTable(out)
	if o.json {
		show, end = hostArray(out)
	}
	var printErr error
	problems, err := site.HostInfos(ctx, func(h profiles.HostInfo) bool {
		printErr = show(h)
		return printErr == nil
	})
	if err != nil {
		return err
	}
	if printErr == nil {
		printErr = end()
	}
	if printErr == nil {
		printErr = out.Flush()
	}
	if printErr != nil {
		return fmt.Errorf("printing the hosts: %w", printErr)
	}
	problems.Sort()
	return problems.Err()
}

// tableRows is how many rows of a table are lined up with each other: an
// inventory may be long, and is never held in memory.
const tableRows = 1000

func hostTable(out *bufio.Writer) (show func(profiles.HostInfo) error, end func() error) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	rows := 0
	show = func(h profiles.HostInfo) error {
		if rows == 0 {
			fmt.Fprintln(w, "HOST\tPROFILE\tIMAGE\tPLATFORM\tADDRESSES\tMACS")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, h.Profile, h.Image, h.Platform, orDash(h.Addresses), orDash(h.MACs))
		if rows++; rows%tableRows == 0 {
			return w.Flush()
		}
		return nil
	}
	return show, w.Flush
}

func orDash(words []string) string {
	if len(words) == 0 {
		return "-"
	}
	return strings.Join(words, ",")
}

// hostArray prints a JSON array host by host.
func hostArray(out *bufio.Writer) (show func(profiles.HostInfo) error, end func() error) {
	before := "[\n"
	show = func(h profiles.HostInfo) error {
		text, err := json.Marshal(h)
		if err != nil {
			return err
		}
		_, _ = out.WriteString(before)
		_, err = out.Write(text)
		before = ",\n"
		return err
	}
	end = func() error {
		if before == "[\n" {
			_, err := out.WriteString("[]\n")
			return err
		}
		_, err := out.WriteString("\n]\n")
		return err
	}
	return show, end
}
