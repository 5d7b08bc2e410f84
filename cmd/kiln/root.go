package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

// globalOptions are those of every verb.
type globalOptions struct {
	site string
}

func newRootCommand(u *ui.UI) *cobra.Command {
	o := &globalOptions{}
	root := &cobra.Command{
		Use:   "kiln",
		Short: "Turn host profiles into user-data, seeds and images",
		Long: `Kiln turns host profiles into golden images, per-host user-data and network
boots for Nomad, Consul and Vault clusters: one description of a host, every
way to bring it up.

What it reads is a site: a directory with site.yaml, an inventory in hosts.yaml
or hosts/*.yaml, and profiles/. kiln init makes a small one to start from.`,
		Example: `  kiln init mysite && cd mysite
  kiln keys fetch
  kiln check
  kiln render build01 -o build01.yaml`,
		Args:              onlyVerbs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		RunE:              verb(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	root.SetOut(u.Out)
	root.SetErr(u.Err)
	root.PersistentFlags().StringVar(&o.site, "site", "", "`DIR` of the site (default: $KILN_SITE, else the one above the current directory that has site.yaml)")
	_ = root.MarkPersistentFlagDirname("site")
	root.AddCommand(
		newInitCommand(u), newCheckCommand(o, u), newHostsCommand(o, u), newProfilesCommand(o, u), newPlanCommand(o, u), newRenderCommand(o, u),
		newLockCommand(o, u), newCacheCommand(o, u), newBuildCommand(o, u), newBootCommand(o, u), newImagesCommand(o, u), newDiffCommand(u),
		newServeCommand(o, u), newArmCommand(o, u), newDisarmCommand(o, u), newStatusCommand(o, u), newDiscoverCommand(o, u), newVerifyCommand(o, u), newApplyCommand(o, u), newConsulCommand(u), newVaultCommand(o, u),
		newImportCommand(o, u), newKeysCommand(o, u), newSchemaCommand(u), newVersionCommand(u), newManCommand(),
		&cobra.Command{Use: "exit-status", Short: "What the exit statuses mean", Long: exitStatusHelp},
	)
	root.SetHelpCommand(newHelpCommand())
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil && completion != root {
		completion.Args = onlyVerbs
		completion.RunE = verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() })
	}
	explainArguments(root)
	return root
}

// newHelpCommand is cobra's, but that a verb which isn't there is an error.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB]",
		Short:   "Help about any verb",
		Long:    "Help shows what a verb does, its flags and examples, as VERB --help does.",
		Example: "  kiln help render\n  kiln help exit-status",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			of, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return verbsBelow(of), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			if err != nil || of == nil {
				return onlyVerbs(cmd.Root(), args)
			}
			if len(rest) > 0 {
				return onlyVerbs(of, rest)
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// explainArguments has each verb say what to write where it is called with too
// few arguments, or with too many.
func explainArguments(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		explainArguments(c)
	}
	takes := cmd.Args
	if takes == nil || cmd.HasSubCommands() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if takes(cmd, args) == nil {
			return nil
		}
		if len(cmd.ValidArgs) > 0 && len(args) > 0 && !slices.Contains(cmd.ValidArgs, args[0]) {
			return fmt.Errorf("%s takes no %q: %s", cmd.CommandPath(), args[0], strictyaml.DidYouMean(args[0], cmd.ValidArgs))
		}
		for n := len(args) - 1; n >= 0; n-- {
			if takes(cmd, args[:n]) == nil {
				return fmt.Errorf("%s has no use for %q: write %s", cmd.CommandPath(), args[n], cmd.UseLine())
			}
		}
		return fmt.Errorf("%s needs more than that: write %s", cmd.CommandPath(), cmd.UseLine())
	}
}

// onlyVerbs is for a command that has others below it and does nothing itself.
func onlyVerbs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s has no verb %q: %s", cmd.CommandPath(), args[0], strictyaml.DidYouMean(args[0], verbsBelow(cmd)))
}

// verbsBelow lists the verbs and topics that stand behind cmd.
func verbsBelow(cmd *cobra.Command) []string {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			known = append(known, c.Name())
		}
	}
	return known
}

// verb makes a function what cobra runs: its errors are failures, while those
// that come before it are about how kiln was called.
func verb(f func(context.Context, *cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd.Context(), cmd, args); err != nil {
			return &failure{err}
		}
		return nil
	}
}

// directory finds the site: where the caller says, else here or above.
func (o *globalOptions) directory() (string, error) { return baking.SiteDirectory(o.site) }

// open opens the site, which must be without problems so far.
func (o *globalOptions) open() (*profiles.Site, error) { return baking.OpenSite(o.site) }
