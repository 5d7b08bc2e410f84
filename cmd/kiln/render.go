package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
)

// format is one way of bringing a host up.
type format struct {
	name      string
	what      string
	extension string // of a host's file with --all; empty for a directory
	halves    bool   // --for chooses between one half and both
	variants  bool   // --variant says for which system
	userData  bool   // a metadata service may hand it to the host, and to anyone on it
	// document makes the one text that it is; nil for seed and files.
	document func(*plan.Plan, render.Options) ([]byte, error)
}

var formats = []format{
	{name: "cloud-init", what: "cloud-init's user-data", extension: ".yaml", halves: true, userData: true, document: render.CloudInit},
	{name: "ignition", what: "an Ignition config", extension: ".ign", halves: true, variants: true, userData: true, document: render.Ignition},
	{name: "butane", what: "a Butane config, which becomes an Ignition config", extension: ".bu", halves: true, variants: true, userData: true, document: render.Butane},
	{name: "packer", what: "a Packer template that builds the golden image of the host's profile", extension: ".pkr.hcl", document: render.Packer},
	{name: "seed", what: "a NoCloud seed: a directory, or a volume labelled cidata", halves: true},
	{name: "files", what: "a tree of files with owners and modes, to look at and to compare", halves: true},
}

func formatNames() []string {
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = f.name
	}
	return names
}

type renderOptions struct {
	*globalOptions
	format      string
	target      string
	variant     string
	provisioner string
	platform    string
	output      string
	gzip        bool
	withSecrets bool
	all         bool
}

func newRenderCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &renderOptions{globalOptions: global}
	var list strings.Builder
	for _, f := range formats {
		fmt.Fprintf(&list, "  %-11s %s\n", f.name, f.what)
	}
	cmd := &cobra.Command{
		Use:   "render HOST | render --all -o DIR",
		Short: "Write what brings a host up",
		Long: `Render writes what brings a host up, in one of these formats:

` + list.String() + `
For a golden image of ours (--for golden) that is the host half; for somebody
else's cloud image (--for stock) it is both halves.

Where it goes: a single document to standard output, or to the file that -o
names. A seed goes to a directory (-o DIR), or into a vfat volume where the name
ends in .img, .raw or .vfat. A tree of files goes to a directory, or into an
archive where the name ends in .tar; without -o its list is printed.

With --all each host gets DIR/HOST and the format's ending, or a directory of
its own. A host with problems doesn't keep the others from being written; its
own files stay as they were, all problems are shown, and the exit status is 1.

The same site makes the same bytes. A file is replaced when the new one is
complete, or not at all.

Secrets stay references, and a host that gets such output says which one is
missing and starts no agent. --with-secrets puts their values in: only into
files, which are for their owner alone (mode 0600).`,
		Example: `  kiln render build01                                    # look at its user-data
  kiln render build01 --for stock -o build01.yaml        # for a stock cloud image
  kiln render build01 --format seed --with-secrets -o build01.img
  kiln render build01 --format files -o /tmp/build01     # a tree, to diff
  kiln render build01 --format ignition --variant fcos   # for an image that has the image half
  kiln render build01 --format packer --provisioner kiln -o build01.pkr.hcl
  kiln render --all --format seed -o seeds`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeHosts(global, 1),
		RunE: verb(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			return runRender(ctx, o, cmd.Flags().Changed, args, u)
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&o.format, "format", "f", "cloud-init", "`FORMAT`, one of "+strings.Join(formatNames(), ", "))
	f.StringVar(&o.target, "for", "golden", "`IMAGE` that it is for: golden, one of ours (the host half), or stock, somebody else's (both halves)")
	f.StringVar(&o.variant, "variant", string(render.Flatcar), "`SYSTEM` that a Butane or Ignition config is for: flatcar or fcos")
	f.StringVar(&o.provisioner, "provisioner", string(render.CloudInitProvisioner), "`PROVISIONER` that a Packer template has install the image half: cloud-init, with stock plugins alone, or kiln, Kiln's own plugin")
	f.StringVar(&o.platform, "platform", "", "`PLATFORM` where the host runs, which limits the size of its user-data: metal, openstack or ec2 (default: what the inventory says)")
	f.StringVarP(&o.output, "output", "o", "", "`FILE` or directory to write")
	f.BoolVar(&o.gzip, "gzip", false, "compress user-data; cloud-init unpacks it by itself")
	f.BoolVar(&o.withSecrets, "with-secrets", false, "put the secrets' values in; needs -o")
	f.BoolVar(&o.all, "all", false, "render every host of the inventory; needs -o DIR")
	complete(cmd, "format", formatNames()...)
	complete(cmd, "for", "golden", "stock")
	complete(cmd, "variant", string(render.Flatcar), string(render.FCOS))
	complete(cmd, "provisioner", string(render.CloudInitProvisioner), string(render.KilnProvisioner))
	complete(cmd, "platform", platforms...)
	return cmd
}

var platforms = []string{string(plan.PlatformMetal), string(plan.PlatformOpenStack), string(plan.PlatformEC2)}

// renderer is a call of kiln render, once it is known to make sense.
type renderer struct {
	format   format
	options  render.Options
	platform plan.Platform // empty: the host's own
	output   string        // empty: standard output
	secrets  plan.Resolver // nil: references stay
}

func runRender(ctx context.Context, o *renderOptions, set func(string) bool, args []string, u *ui.UI) error {
	r, err := newRenderer(o, set, args, u)
	if err != nil {
		return err
	}
	site, err := o.open()
	if err != nil {
		return err
	}
	if o.withSecrets {
		r.secrets = baking.Resolver(site)
	}
	if o.all {
		return r.all(ctx, site, u)
	}
	p, err := baking.HostPlan(ctx, site, args[0])
	if err != nil {
		return err
	}
	return r.one(ctx, p, u)
}

// newRenderer makes sense of the flags together.
func newRenderer(o *renderOptions, set func(string) bool, args []string, u *ui.UI) (*renderer, error) {
	i := slices.IndexFunc(formats, func(f format) bool { return f.name == o.format })
	if i < 0 {
		return nil, usagef("there is no format %q: %s", o.format, strictyaml.DidYouMean(o.format, formatNames()))
	}
	r := &renderer{format: formats[i], platform: plan.Platform(o.platform), output: o.output}
	if r.output == "-" {
		r.output = ""
	}
	if err := r.checkFlags(o, set); err != nil {
		return nil, err
	}
	if err := r.checkOutput(o, args, u); err != nil {
		return nil, err
	}
	target, err := render.ParseTarget(o.target)
	if err != nil {
		return nil, usageError{err}
	}
	variant, err := render.ParseVariant(o.variant)
	if err != nil {
		return nil, usageError{err}
	}
	provisioner, err := render.ParseProvisioner(o.provisioner)
	if err != nil {
		return nil, usageError{err}
	}
	r.options = render.Options{Target: target, Gzip: o.gzip, Variant: variant, Provisioner: provisioner}
	return r, nil
}

// checkFlags refuses flags that would do nothing.
func (r *renderer) checkFlags(o *renderOptions, set func(string) bool) error {
	switch {
	case o.platform != "" && !slices.Contains(platforms, o.platform):
		return usagef("there is no platform %q: %s", o.platform, strictyaml.DidYouMean(o.platform, platforms))
	case set("for") && !r.format.halves:
		return usagef("a %s template has the image half alone: leave --for out", r.format.name)
	case set("variant") && !r.format.variants:
		return usagef("--variant is for the formats butane and ignition, not for %s: leave it out", r.format.name)
	case set("provisioner") && r.format.name != "packer":
		return usagef("--provisioner is for the format packer, not for %s: leave it out", r.format.name)
	case o.gzip && r.format.name != "cloud-init" && r.format.name != "seed":
		return usagef("--gzip is for cloud-init's user-data and seeds: compress a file of format %s with gzip, if its reader takes that", r.format.name)
	case o.withSecrets && !r.format.halves:
		return usagef("a %s template never has secrets: leave --with-secrets out", r.format.name)
	}
	return nil
}

// checkOutput refuses places that the result can't go to.
func (r *renderer) checkOutput(o *renderOptions, args []string, u *ui.UI) error {
	ending := strings.ToLower(filepath.Ext(r.output))
	switch {
	case o.all && len(args) > 0:
		return usagef("--all renders every host: leave %s out, or --all", args[0])
	case !o.all && len(args) == 0:
		return usagef("name a host to render, or render all of them: kiln render --all -o DIR")
	case o.all && r.output == "":
		return usagef("--all needs a directory to write to: -o DIR")
	case o.withSecrets && r.output == "":
		return usagef("secrets are written to files that only their owner can read, not to standard output: name one with -o")
	case r.output != "" && r.intoDirectory(o.all) && isFile(r.output):
		return usagef("%s is a file: %s", r.output, r.otherPlace(o.all))
	case r.output == "" && r.format.name == "seed":
		return usagef("a seed is several files: name a directory with -o DIR, or a volume with -o FILE.img")
	case r.output == "" && o.gzip && u.OutIsTerminal:
		return usagef("compressed user-data is nothing for a terminal: name a file with -o")
	case r.format.name == "seed" && !o.all && ending == ".iso":
		return usagef("a seed's volume is vfat, not ISO 9660: call it %s, which cloud-init takes as well", strings.TrimSuffix(r.output, filepath.Ext(r.output))+".img")
	case r.format.name == "files" && !o.all && (ending == ".gz" || ending == ".tgz" || ending == ".zip"):
		return usagef("a tree goes to a directory, or into a .tar without compression")
	}
	return nil
}

// intoDirectory tells whether what is rendered becomes a directory.
func (r *renderer) intoDirectory(all bool) bool {
	ending := strings.ToLower(filepath.Ext(r.output))
	switch {
	case all:
		return true
	case r.format.name == "seed":
		return !slices.Contains(volumeEndings, ending)
	}
	return r.format.name == "files" && ending != ".tar"
}

// otherPlace is what to write instead of a file's name.
func (r *renderer) otherPlace(all bool) string {
	switch {
	case all:
		return "every host goes into one directory: name that"
	case r.format.name == "seed":
		return "a seed is a directory, or a volume where the name ends in .img: name one of these"
	}
	return "a tree goes to a directory, or into an archive where the name ends in .tar: name one of these"
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.IsDir()
}

// prepare is the host's plan as it is to be rendered.
func (r *renderer) prepare(ctx context.Context, p *plan.Plan) (*plan.Plan, error) {
	if r.platform != "" && r.platform != p.Host.Platform {
		changed := *p
		changed.Host.Platform = r.platform
		p = &changed
	}
	if r.secrets == nil {
		return p, nil
	}
	if refs := p.Host.References(); len(refs) > 0 && r.format.userData && p.Host.Platform != plan.PlatformMetal {
		return nil, fmt.Errorf("%s would get the secret %s through the metadata service of %s, which tells it to whoever asks from the host: "+
			"leave --with-secrets out, or bring it with a seed (--format seed); if it doesn't go there, say so: --platform metal",
			p.Host.Name, refs[0].Ref, p.Host.Platform)
	}
	return p.WithSecrets(ctx, r.secrets)
}

// one renders one host to where the caller says.
func (r *renderer) one(ctx context.Context, p *plan.Plan, u *ui.UI) error {
	p, err := r.prepare(ctx, p)
	if err != nil {
		return err
	}
	switch r.format.name {
	case "seed":
		return r.seed(p)
	case "files":
		return r.files(p, u)
	}
	text, err := r.format.document(p, r.options)
	if err != nil {
		return err
	}
	return r.write(text, u)
}

// write writes to the one file, or to standard output.
func (r *renderer) write(data []byte, u *ui.UI) error {
	if r.output != "" {
		return writeFile(r.output, data, r.secrets != nil)
	}
	if _, err := u.Out.Write(data); err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}

// volumeEndings are those of names that stand for a volume, not a directory.
var volumeEndings = []string{".img", ".raw", ".vfat"}

func (r *renderer) seed(p *plan.Plan) error {
	files, err := render.Seed(p, r.options)
	if err != nil {
		return err
	}
	if !slices.Contains(volumeEndings, strings.ToLower(filepath.Ext(r.output))) {
		return render.WriteSeed(r.output, files)
	}
	volume, err := render.SeedVolume(files)
	if err != nil {
		return fmt.Errorf("the seed of %s: %w", p.Host.Name, err)
	}
	return writeFile(r.output, volume, r.secrets != nil)
}

func (r *renderer) files(p *plan.Plan, u *ui.UI) error {
	tree, err := render.Files(p, r.options)
	if err != nil {
		return err
	}
	switch {
	case r.output == "":
		return r.write(tree.List(), u)
	case strings.ToLower(filepath.Ext(r.output)) != ".tar":
		return tree.WriteDir(r.output)
	}
	var b bytes.Buffer
	if err := tree.WriteTar(&b); err != nil {
		return err
	}
	return writeFile(r.output, b.Bytes(), r.secrets != nil)
}
