package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/internal/ui"
)

type imageCheckOptions struct {
	*globalOptions
	json bool
}

func newImagesCheckCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &imageCheckOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "check IMAGE",
		Short: "Look for what no golden image may have, in its finished disk",
		Long: `Check reads an image's disk as it is shipped, without mounting it and without root,
and looks for what no golden image may have: identities, keys, logs, caches, rights
for everybody, units that would fail, resolvers and proxies, leases, passwords, and
texts that look like secrets. A line for each:

  CHECK: PATH: what is wrong: how to mend it

In a site, what the profile itself puts into the image is allowed, and the site's own
secrets are searched for: as they are, in base64 and hexadecimal digits, in compressed
files, and in what deleted files have left. Those that can't be had here are named.

The exit status is 1 if something is found.`,
		Example:           "  kiln images check alissandra\n  kiln images check 4f1c2e --json | jq -r '.findings[].path'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeImages,
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runImagesCheck(ctx, o, args[0], u)
		}),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print the findings as JSON")
	return cmd
}

// imageCheckResult is what kiln images check --json prints.
type imageCheckResult struct {
	Image    string          `json:"image"`
	Profile  string          `json:"profile"`
	OK       bool            `json:"ok"`
	Findings []check.Finding `json:"findings"`
	// Searched are the site's secrets that were searched for, by their names.
	Searched []string        `json:"searched"`
	Missed   []baking.Missed `json:"not_searched"`
}

func runImagesCheck(ctx context.Context, o *imageCheckOptions, what string, u *ui.UI) error {
	store, m, err := findImage(what)
	if err != nil {
		return err
	}
	if !m.Has(images.FormatRaw) {
		return fmt.Errorf("the image %s is a tree alone, without a disk to check", m.Short())
	}
	release, err := store.Use(m.ID)
	if err != nil {
		return err
	}
	defer release()
	r := imageCheckResult{Image: m.ID, Profile: m.Profile, Findings: []check.Finding{}, Searched: []string{}, Missed: []baking.Missed{}}
	// No verdicts: all of the disk is searched, whatever its manifest says.
	options := check.Options{}
	if err := o.fromSite(ctx, m, &options, &r, u); err != nil {
		return err
	}
	progress := u.Progress("checked %d MB")
	shown := 0
	options.Progress = func(done, _ int64) {
		n := int(done / 1_000_000)
		progress.Add(n - shown)
		shown = n
	}
	findings, err := check.Disk(ctx, store.Path(m.ID, rawArtifact(m)), options)
	progress.End()
	if err != nil {
		return err
	}
	r.OK, r.Findings = len(findings) == 0, append(r.Findings, findings...)
	if o.json {
		err = printJSON(u, r)
	} else {
		showImageCheck(u, m, &r)
	}
	if err == nil && !r.OK {
		err = errShown
	}
	return err
}

func rawArtifact(m *images.Manifest) string {
	i := slices.IndexFunc(m.Artifacts, func(a images.Artifact) bool { return a.Format == images.FormatRaw })
	return m.Artifacts[i].Name
}

func showImageCheck(u *ui.UI, m *images.Manifest, r *imageCheckResult) {
	for i := range r.Findings {
		u.Printf("%s\n", r.Findings[i].String())
	}
	for _, s := range r.Missed {
		u.Notef("the secret %s wasn't searched for: %s", s.Secret, s.Why)
	}
	u.Printf("%s (%s on %s): %s, by %s, with %s of the site's\n", m.Short(), m.Profile, m.Definition,
		count(len(r.Findings), "finding"), count(len(check.Checks), "check"), count(len(r.Searched), "secret"))
}

// fromSite adds what the site knows: the profile's own files, and the secrets. It's
// no error that there is no site, unless one was named.
func (o *imageCheckOptions) fromSite(ctx context.Context, m *images.Manifest, options *check.Options, r *imageCheckResult, u *ui.UI) error {
	if _, err := o.directory(); err != nil {
		u.Notef("there is no site here: only what looks like a secret is searched for, and no file is a profile's own (--site DIR names one)")
		return nil
	}
	site, err := o.open()
	if err != nil {
		return err
	}
	paths, err := baking.PlannedPaths(site, m.Profile, m.Definition)
	if err != nil {
		return err
	}
	options.Allowed = check.Planned(paths)
	var missed []baking.Missed
	if options.Canaries, missed, err = baking.Canaries(ctx, site); err != nil {
		return err
	}
	r.Missed = append(r.Missed, missed...)
	for _, c := range options.Canaries {
		name, _, _ := strings.Cut(c.Name, " ")
		r.Searched = append(r.Searched, name)
	}
	return nil
}
