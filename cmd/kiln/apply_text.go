package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/internal/ui"
)

// fail keeps how far a host's run has come.
func (r *applyResult) fail(err error) {
	r.Error = err.Error()
	var partial *apply.PartialError
	if errors.As(err, &partial) {
		r.Done, r.Left, r.Error = partial.Done, partial.Left, partial.Err.Error()
	}
}

func names(wants []*apply.Want) string {
	all := make([]string, len(wants))
	for i, w := range wants {
		all[i] = w.Plan.Host.Name
	}
	return strings.Join(all, ", ")
}

// printChanges shows what is to be done on a host, or is about to be.
func printChanges(u *ui.UI, c *apply.Changes, now bool) error {
	out := bufio.NewWriter(u.Out)
	if c.Nothing() {
		fmt.Fprintf(out, "%s is as it is to be\n", c.Host)
	} else {
		fmt.Fprintf(out, "%s:\n", c.Host)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i := range c.List {
		ch := &c.List[i]
		fmt.Fprintf(w, "  %s\t%s\t%s\n", ch.Kind, ch.Name, ch.What)
	}
	for _, unit := range c.Units {
		fmt.Fprintf(w, "  then\t%s\n", unit)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the changes: %w", err)
	}
	for _, p := range c.Pending {
		fmt.Fprintf(out, "  left by an earlier run: %s\n", p)
	}
	for i := range c.List {
		for line := range strings.Lines(c.List[i].Diff) {
			fmt.Fprintf(out, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	for _, n := range c.Notes {
		fmt.Fprintf(out, "  note: %s\n", n)
	}
	if !now && !c.Nothing() {
		fmt.Fprintf(out, "Nothing was changed: kiln apply %s --yes does it\n", c.Host)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("printing the changes: %w", err)
	}
	return nil
}
