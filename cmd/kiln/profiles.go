package main

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type profilesOptions struct {
	*globalOptions
	json bool
}

func newProfilesCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &profilesOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "profiles",
		Short: "List the profiles that hosts can have",
		Long: `Profiles lists the profiles that come with Kiln, and the site's own, which
replace shipped ones of the same name. An abstract one is only for others to
extend.`,
		Example:           "  kiln profiles\n  kiln profiles --json",
		Args:              onlyVerbs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runProfiles(ctx, o, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print them as JSON")
	cmd.AddCommand(newProfilesShowCommand(global, u))
	return cmd
}

func newProfilesShowCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	return &cobra.Command{
		Use:   "show PROFILE [FILE]",
		Short: "List a profile's files, or print one",
		Long: `Show lists the files of a profile, a shipped one's included, or prints one of
them as it is: what stands behind a place such as
kiln:profiles/plain/profile.yaml:52:5.`,
		Example:           "  kiln profiles show plain\n  kiln profiles show plain host/etc/nomad.d/nomad.hcl.tmpl",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeProfileFiles(global),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runProfilesShow(ctx, global, args, u)
		}),
	}
}

func runProfilesShow(_ context.Context, o *globalOptions, args []string, u *ui.UI) error {
	dir, err := o.directory()
	if err != nil {
		return err
	}
	site, _, err := profiles.Open(dir)
	if err != nil {
		return err
	}
	files := site.ProfileFiles(args[0])
	if files == nil {
		var names []string
		for _, p := range site.ProfileInfos() {
			names = append(names, p.Name)
		}
		return fmt.Errorf("there is no profile %q: there are %s", args[0], strings.Join(names, ", "))
	}
	if len(args) == 1 {
		for _, name := range fileNames(files) {
			u.Printf("%s\n", name)
		}
		return nil
	}
	data, err := fs.ReadFile(files, path.Clean(args[1]))
	if err != nil {
		return fmt.Errorf("the profile %s has no file %s: kiln profiles show %[1]s lists them", args[0], args[1])
	}
	if _, err := u.Out.Write(data); err != nil {
		return fmt.Errorf("printing %s: %w", args[1], err)
	}
	return nil
}

// fileNames lists the files below a folder, in order.
func fileNames(files fs.FS) []string {
	var names []string
	_ = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return nil
	})
	return names
}

func runProfiles(_ context.Context, o *profilesOptions, u *ui.UI) error {
	dir, err := o.directory()
	if err != nil {
		return err
	}
	site, _, err := profiles.Open(dir)
	if err != nil {
		return err
	}
	infos := site.ProfileInfos()
	if o.json {
		return printJSON(u, infos)
	}
	w := tabwriter.NewWriter(u.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PROFILE\tEXTENDS\tFROM\tDESCRIPTION")
	for _, p := range infos {
		from := p.Directory
		if p.Shipped {
			from = "kiln"
		}
		name := p.Name
		if p.Abstract {
			name += " (abstract)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, orDash(p.Extends), from, p.Description)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the profiles: %w", err)
	}
	return nil
}
