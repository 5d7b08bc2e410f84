package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
	"github.com/alisw/kiln/profiles/importing"
)

type importOptions struct {
	*globalOptions
	profile string
	extends []string
	as      string
	output  string
	owner   string
}

func newImportCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Make a profile of what a site has already",
		Long: `Import makes a profile's files of what a site has already: Puppet's ERB templates,
or a live directory such as /etc/nomad.d.`,
		Args: onlyVerbs,
		RunE: verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	cmd.AddCommand(newImportERBCommand(global, u), newImportDirCommand(global, u))
	return cmd
}

func (o *importOptions) profileFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.profile, "profile", "", "`NAME` of the profile to make; it must not exist yet")
	cmd.Flags().StringSliceVar(&o.extends, "extends", []string{"plain"}, "`PROFILES` that the new one extends")
	_ = cmd.RegisterFlagCompletionFunc("extends", completeSite(o.globalOptions, -1, func(_ *cobra.Command, site *profiles.Site, _ string) []string {
		var names []string
		for _, p := range site.ProfileInfos() {
			names = append(names, cobra.CompletionWithDesc(p.Name, p.Description))
		}
		return names
	}))
}

func newImportERBCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &importOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "erb FILE…",
		Short: "Translate Puppet's ERB templates",
		Long: `Erb translates Puppet's ERB templates, and Teigi's %TEIGI__key__% in them, into
Kiln's: to standard output, as FILE.tmpl into a directory (-o), or into a new
profile (--profile).

Each tag that can't be translated exactly is listed with its line, and the exit
status is 1. In the template, an action stands in its place that fails when it
is rendered: write that one by hand.`,
		Example: `  kiln import erb templates/etc/nomad.d/nomad.hcl.erb
  kiln import erb templates/etc/*/*.erb --profile ci
  kiln import erb consul.erb --profile ci --as /etc/consul.d/consul.hcl`,
		Args: cobra.MinimumNArgs(1),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runImportERB(ctx, o, args, u) }),
	}
	o.profileFlags(cmd)
	cmd.Flags().StringVar(&o.as, "as", "", "`PATH` of the file on hosts (default: what its own path says behind templates/)")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "`DIR` to write the templates to")
	cmd.MarkFlagsMutuallyExclusive("profile", "output")
	return cmd
}

func newImportDirCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &importOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "dir DIR --profile NAME",
		Short: "Take in a live directory byte for byte",
		Long: `Dir makes a profile of a directory such as /etc/nomad.d, or of a copy of it: its
files byte for byte, with owners and modes, in the profile's host half.

What can't come along is listed, and so is what looks like a secret; the exit
status is then 1.`,
		Example: `  kiln import dir /etc/nomad.d --profile ci
  kiln import dir backup/nomad.d --as /etc/nomad.d --owner root:root --profile ci`,
		Args: cobra.ExactArgs(1),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runImportDir(ctx, o, args, u) }),
	}
	o.profileFlags(cmd)
	cmd.Flags().StringVar(&o.as, "as", "", "`PATH` of the directory on hosts (default: its own)")
	cmd.Flags().StringVar(&o.owner, "owner", "", "`USER[:GROUP]` that all of it belongs to on hosts (default: who has it here)")
	_ = cmd.MarkFlagRequired("profile")
	return cmd
}

// maxERB bounds one ERB template, in bytes.
const maxERB = 4 << 20

func runImportERB(_ context.Context, o *importOptions, args []string, u *ui.UI) error {
	if o.as != "" && len(args) > 1 {
		return usagef("--as names the path of one file: import the others by themselves")
	}
	if o.profile == "" && o.output == "" && len(args) > 1 {
		return usagef("several templates need a place: --profile NAME, or -o DIR")
	}
	if o.as != "" && o.profile == "" {
		return usagef("--as says where a profile's file belongs: name the profile with --profile")
	}
	var results []importing.Result
	var problems problem.List
	for _, name := range args {
		src, err := readBounded(name, maxERB)
		if err != nil {
			return fmt.Errorf("reading the ERB template: %w", err)
		}
		r, err := importing.ERB(name, src)
		if err != nil {
			return err
		}
		results = append(results, r)
		problems = append(problems, r.Problems...)
	}
	switch {
	case o.profile != "":
		p := importing.Profile{Name: o.profile, Description: "Imported from ERB templates", Extends: o.extends}
		for _, r := range results {
			target, ok := o.as, o.as != ""
			if !ok {
				target, ok = importing.TargetPath(r.Source)
			}
			if !ok {
				return usagef("nothing says where on a host the file of %s belongs: say it with --as, such as --as /etc/nomad.d/%s", r.Source, r.Target)
			}
			p.Templates = append(p.Templates, importing.Template{Path: path.Clean(target), Result: r})
		}
		if err := o.writeProfile(p, u); err != nil {
			return err
		}
	case o.output != "":
		if err := importing.WriteTemplates(o.output, results); err != nil {
			return err
		}
	default:
		u.Printf("%s", results[0].Text)
	}
	return showImported(problems, u)
}

func runImportDir(_ context.Context, o *importOptions, args []string, u *ui.UI) error {
	owner, group, _ := strings.Cut(o.owner, ":")
	if group == "" {
		group = owner
	}
	tree, err := importing.Dir(args[0], importing.DirOptions{As: o.as, Owner: owner, Group: group})
	if err != nil {
		return err
	}
	p := importing.Profile{Name: o.profile, Description: "Imported from " + args[0], Extends: o.extends, Trees: []importing.Tree{tree}}
	if err := o.writeProfile(p, u); err != nil {
		return err
	}
	return showImported(tree.Problems, u)
}

func (o *importOptions) writeProfile(p importing.Profile, u *ui.UI) error {
	dir, err := o.directory()
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "profiles", p.Name)
	if err := importing.Write(to, p); err != nil {
		if errors.Is(err, importing.ErrExists) {
			return fmt.Errorf("%w; or look at the result alone, with another --profile", err)
		}
		return err
	}
	u.Notef("made the profile %s: look through it, then run kiln check", to)
	return nil
}

// showImported lists what an import couldn't do, and what is worth a look.
func showImported(problems problem.List, u *ui.UI) error {
	problems.Sort()
	for _, p := range problems {
		u.Notef("%s", p.Error())
	}
	if problems.Err() != nil {
		return errShown
	}
	return nil
}

// readBounded reads a file that isn't larger than limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes: that is no template", name, info.Size())
	}
	return os.ReadFile(name)
}
