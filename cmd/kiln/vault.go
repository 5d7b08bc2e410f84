package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cluster/vault"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/ui"
)

type vaultOptions struct {
	*globalOptions
	json, yes bool
}

func newVaultCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vault",
		Short: "Keep the cluster's Vault as the site wants it, and revoke tokens",
		Long: `Vault keeps the settings of the cluster's Vault as the section vault of site.yaml
says: token roles, the tune of the token mount, policies, and the JWT mount where
Nomad's tasks log in. It also revokes tokens.

The server and the token are those of the vault program: VAULT_ADDR, VAULT_TOKEN,
VAULT_CACERT and their like, or what vault login has left. Without VAULT_ADDR it is
the site's vault_address.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && !verbLike().MatchString(args[0]) {
				return errors.New("kiln vault has no such verb: known are apply, plan, revoke; tokens are given to none of them as an argument")
			}
			return onlyVerbs(cmd, args)
		},
		RunE: verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	// What was taken for a flag may be a token.
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return errors.New(tokenLike().ReplaceAllString(err.Error(), "[redacted]"))
	})
	cmd.AddCommand(newVaultPlanCommand(global, u), newVaultApplyCommand(global, u), newVaultRevokeCommand(global, u))
	return cmd
}

var (
	verbLike  = lazyregexp.New(`^[a-z]{1,12}$`)
	tokenLike = lazyregexp.New(`[A-Za-z0-9_.-]{20,}`)
)

// takesNothing is for verbs that somebody may give a token to: cobra's own error
// would show it.
func takesNothing(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument: write %s", cmd.CommandPath(), cmd.UseLine())
	}
	return nil
}

func newVaultPlanCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &vaultOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show how Vault differs from what the site wants",
		Long: `Plan reads the settings that the site names, and shows how Vault differs: what is
to be created (+), what is to be changed (~), and what is right (=). It writes
nothing. What the site doesn't name isn't looked at.

The exit status is 0 if all is as the site wants it, 1 if something differs, and 2
if anything is in the way of comparing.`,
		Example: `  kiln vault plan
  kiln vault plan --json | jq -r '.objects[] | select(.action != "keep") | .path'`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: verb(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := takesNothing(cmd, args); err != nil {
				return err
			}
			return runVaultPlan(ctx, o, u)
		}),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print the differences as JSON")
	return cmd
}

func newVaultApplyCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &vaultOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Set Vault to what the site wants",
		Long: `Apply shows what kiln vault plan does, asks, and then creates and changes what
differs, one object after the other. Each is read back, and compared again. Only the
settings that differ are sent; what the site doesn't name stays as it is, and
nothing is ever deleted. A second apply changes nothing.

Where something fails, it stops, and says what is done and what isn't; another
apply goes on from there.`,
		Example: `  kiln vault apply
  kiln vault apply --yes --json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: verb(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := takesNothing(cmd, args); err != nil {
				return err
			}
			if o.json && !o.yes {
				return usagef("what is asked before anything is changed isn't for programs: say --yes with --json")
			}
			return runVaultApply(ctx, o, u)
		}),
	}
	cmd.Flags().BoolVar(&o.yes, "yes", false, "don't ask")
	cmd.Flags().BoolVar(&o.json, "json", false, "print what was done as JSON (needs --yes)")
	return cmd
}

// vaultResult is what plan and apply print as JSON.
type vaultResult struct {
	*vault.Plan
	Same     bool         `json:"same"`
	Warnings problem.List `json:"warnings"`
}

// vaultCompared is Vault, and how it differs from what the site wants.
type vaultCompared struct {
	server   *vault.Server
	plan     *vault.Plan
	warnings problem.List
}

func (o *vaultOptions) compare(ctx context.Context, u *ui.UI) (*vaultCompared, error) {
	site, err := o.open()
	if err != nil {
		return nil, err
	}
	settings, problems := site.Vault()
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if settings == nil {
		return nil, errors.New("site.yaml has no section vault, which says what Vault is to be set to: kiln init DIR makes a site that shows one")
	}
	// All that is left are warnings.
	c := &vaultCompared{warnings: append(problem.List{}, problems...)}
	if !o.json {
		for _, p := range problems {
			u.Notef("%s", p.Error())
		}
	}
	if c.server, err = vault.Connect(baking.VaultAddress(site)); err != nil {
		return nil, err
	}
	c.plan, err = c.server.Compare(ctx, settings)
	return c, err
}

func (c *vaultCompared) print(o *vaultOptions, u *ui.UI) error {
	if o.json {
		return printJSON(u, vaultResult{c.plan, c.plan.Same(), c.warnings})
	}
	return printVaultPlan(u.Out, c.plan)
}

// runVaultPlan has its own exit statuses: any error but errShown is trouble.
func runVaultPlan(ctx context.Context, o *vaultOptions, u *ui.UI) error {
	c, err := o.compare(ctx, u)
	if err == nil {
		err = c.print(o, u)
	}
	switch {
	case err != nil:
		return &troubleError{err}
	case !c.plan.Same():
		return errShown
	}
	return nil
}

func runVaultApply(ctx context.Context, o *vaultOptions, u *ui.UI) error {
	c, err := o.compare(ctx, u)
	if err != nil {
		return err
	}
	if !o.json {
		if err := c.print(o, u); err != nil {
			return err
		}
	}
	if !c.plan.Same() && !o.yes {
		switch yes, err := confirm(ctx, u, "Set Vault at "+visible(c.plan.Address)+" to that?"); {
		case err != nil:
			return err
		case !yes:
			return errors.New("nothing was changed, since the answer wasn't yes")
		}
	}
	err = c.server.Apply(ctx, c.plan, func(s *vault.State) {
		if !o.json {
			u.Printf("done: %s\n", s)
		}
	})
	if err != nil {
		var left []string
		for i := range c.plan.States {
			switch s := &c.plan.States[i]; {
			case s.Unsure:
				left = append(left, s.String()+" (nobody knows: kiln vault plan tells)")
			case !s.Done:
				left = append(left, s.String())
			}
		}
		u.Notef("not done: %s: another kiln vault apply goes on from there", strings.Join(left, ", "))
	}
	if o.json {
		err = errors.Join(err, c.print(o, u))
	}
	return err
}

var vaultSigns = map[vault.Action]string{vault.Keep: "=", vault.Create: "+", vault.Update: "~"}

func printVaultPlan(out io.Writer, p *vault.Plan) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	n := map[vault.Action]int{}
	for i := range p.States {
		s := &p.States[i]
		n[s.Action]++
		fmt.Fprintf(w, "%s %s  (%s)\n", vaultSigns[s.Action], s, s.Path)
		for _, c := range s.Changes {
			printVaultChange(w, &c)
		}
	}
	fmt.Fprintf(w, "Vault at %s: %d to create, %d to change, %d as the site wants it\n", visible(p.Address), n[vault.Create], n[vault.Update], n[vault.Keep])
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the differences: %w", err)
	}
	return nil
}

// printVaultChange prints a policy by the lines that differ.
func printVaultChange(w io.Writer, c *vault.Change) {
	before, _ := c.Before.(string)
	after, _ := c.After.(string)
	if c.Setting != "policy" && !strings.Contains(before+after, "\n") {
		value := vaultValue(c.After)
		if c.Before != nil {
			value = vaultValue(c.Before) + " → " + value
		}
		fmt.Fprintf(w, "    %s\t%s\n", c.Setting, visible(value))
		return
	}
	gone, come := images.ChangedParts(before, after, "\n")
	if before == "" {
		gone = nil
	}
	if len(gone)+len(come) == 0 {
		fmt.Fprintf(w, "    %s\tits lines stand in another order, or more than once\n", c.Setting)
		return
	}
	fmt.Fprintf(w, "    %s\n", c.Setting)
	for _, l := range gone {
		fmt.Fprintf(w, "      - %s\n", visible(l))
	}
	for _, l := range come {
		fmt.Fprintf(w, "      + %s\n", visible(l))
	}
}

// vaultValue is a value for people.
func vaultValue(v any) string {
	switch v := v.(type) {
	case vault.Seconds:
		if text := v.String(); text != fmt.Sprintf("%ds", int64(v)) {
			return fmt.Sprintf("%s (%ds)", text, int64(v))
		}
		return v.String()
	case []string:
		if len(v) == 0 {
			return "none"
		}
		return strings.Join(v, ", ")
	case map[string]string:
		var pairs []string
		for k, name := range v {
			pairs = append(pairs, k+"="+name)
		}
		slices.Sort(pairs)
		return vaultValue(pairs)
	case string:
		if v == "" {
			return "none"
		}
		return v
	}
	return fmt.Sprint(v)
}
