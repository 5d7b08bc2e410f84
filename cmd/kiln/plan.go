package main

import (
	"bufio"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/ui"
)

type planOptions struct {
	*globalOptions
	json bool
}

func newPlanCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &planOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "plan HOST",
		Short: "Show what a host will be, and where each value comes from",
		Long: `Plan shows a host resolved: both halves, all inheritance and all templates done.
Each value has the profile, file and line that it comes from. In the place of
each secret stands its reference.`,
		Example: `  kiln plan build01
  kiln plan build01 --json | jq -r '.host.files[].path'
  diff <(kiln plan build01) <(kiln plan build02)`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeHosts(global, 1),
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runPlan(ctx, o, args, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print it as JSON")
	return cmd
}

func runPlan(ctx context.Context, o *planOptions, args []string, u *ui.UI) error {
	site, err := o.open()
	if err != nil {
		return err
	}
	p, err := baking.HostPlan(ctx, site, args[0])
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(u, p)
	}
	out := bufio.NewWriter(u.Out)
	printPlan(out, p)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("printing the plan: %w", err)
	}
	return nil
}
