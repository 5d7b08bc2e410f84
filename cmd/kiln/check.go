package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type checkOptions struct {
	*globalOptions
	json   bool
	strict bool
}

func newCheckCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &checkOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find every problem of the site",
		Long: `Check finds every problem of the whole site at once: its settings, its profiles
(whether a host uses them or not), and its hosts, each of them resolved and
rendered. A line for each:

  FILE:LINE:COLUMN: what is wrong: how to mend it

The exit status is 1 if there is any. Warnings, which may be meant so, don't
count, unless --strict is given.`,
		Example: `  kiln check
  kiln check --strict --json | jq -r '.problems[].file' | sort -u`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runCheck(ctx, o, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print the problems as JSON")
	cmd.Flags().BoolVar(&o.strict, "strict", false, "let warnings fail, too")
	return cmd
}

// checkResult is what kiln check --json prints.
type checkResult struct {
	Problems problem.List `json:"problems"`
	Hosts    int          `json:"hosts"`
	Errors   int          `json:"errors"`
	Warnings int          `json:"warnings"`
}

func runCheck(ctx context.Context, o *checkOptions, u *ui.UI) error {
	dir, err := o.directory()
	if err != nil {
		return err
	}
	problems, hosts, err := profiles.Check(ctx, dir)
	if err != nil {
		return err
	}
	r := checkResult{Problems: problems, Hosts: hosts}
	for _, p := range problems {
		if p.Warning {
			r.Warnings++
		} else {
			r.Errors++
		}
	}
	if o.json {
		if r.Problems == nil {
			r.Problems = problem.List{}
		}
		if err := printJSON(u, r); err != nil {
			return err
		}
	} else {
		for _, p := range problems {
			u.Printf("%s\n", p.Error())
		}
		u.Printf("%s, %s in %s\n", count(r.Errors, "problem"), count(r.Warnings, "warning"), count(r.Hosts, "host"))
	}
	if r.Errors > 0 || o.strict && r.Warnings > 0 {
		return errShown
	}
	return nil
}

// count is a number with its noun: no problems, 1 problem, 2 problems.
func count(n int, noun string) string {
	switch n {
	case 0:
		return "no " + noun + "s"
	case 1:
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// printJSON prints v as JSON for people and programs.
func printJSON(u *ui.UI, v any) error {
	enc := json.NewEncoder(u.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("printing JSON: %w", err)
	}
	return nil
}
