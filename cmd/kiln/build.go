package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type buildOptions struct {
	*globalOptions
	image   string
	formats []string
	sign    string
	json    bool
	explain bool
}

func newBuildCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &buildOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "build [PROFILE…]",
		Short: "Bake profiles into golden images",
		// Unmounting and removing takes as long as it takes.
		Annotations: map[string]string{endsByItself: "yes"},
		Long: `Build bakes the Image half of each profile into a golden image: a disk that
boots on UEFI and BIOS machines, and gets its host data at its first boot. Without
a profile, it bakes those that the site's hosts have.

The result is an image ID, which is the hash of what is in the image, with a
manifest and SHA256SUMS in the store (kiln images). What was built before isn't
built again. ^C leaves nothing half-built behind. What is wrong with one profile
keeps no other from being built.

It needs Debian's mmdebstrap, and uidmap where it isn't run as root: then it works
in a user namespace, with the subordinate IDs of /etc/subuid and /etc/subgid. The
image is the same. Packages come from the mirror in this machine's apt configuration,
unless site.yaml names another.`,
		Example: `  kiln build alissandra
  kiln build plain alissandra --format qcow2
  kiln build alissandra --image debian-12-cloud --json | jq .`,
		ValidArgsFunction: completeProfiles(global),
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runBuild(ctx, o, args, u) }),
	}
	cmd.Flags().StringVar(&o.image, "image", "", "image `DEFINITION` to build from (default: "+images.Default+")")
	cmd.Flags().StringSliceVar(&o.formats, "format", []string{string(images.FormatRaw)}, "`FORMATS` beside the raw disk: qcow2, netboot, tar")
	cmd.Flags().StringVar(&o.sign, "sign", "", "secret key `FILE` of minisign's to sign the images' manifests with (as kiln images sign does)")
	cmd.Flags().BoolVar(&o.explain, "explain", false, "say why each step is made anew: which of its inputs have changed")
	cmd.Flags().BoolVar(&o.json, "json", false, "print the progress, and the images at the end, as JSON: an event a line")
	complete(cmd, "format", "raw", "qcow2", "netboot", "tar")
	_ = cmd.RegisterFlagCompletionFunc("image", completeSite(global, -1, func(_ *cobra.Command, site *profiles.Site, _ string) []string { return site.Definitions() }))
	return cmd
}

// completeProfiles offers the profiles that hosts can have.
func completeProfiles(global *globalOptions) cobra.CompletionFunc {
	return completeSite(global, -1, func(_ *cobra.Command, site *profiles.Site, _ string) []string {
		var names []string
		for _, p := range site.ProfileInfos() {
			if !p.Abstract {
				names = append(names, cobra.CompletionWithDesc(p.Name, p.Description))
			}
		}
		return names
	})
}

func runBuild(ctx context.Context, o *buildOptions, names []string, u *ui.UI) error {
	formats, err := images.ParseFormats(o.formats)
	if err != nil {
		return usageError{err}
	}
	site, err := o.open()
	if err != nil {
		return err
	}
	targets, err := buildTargets(ctx, site, names, o.image)
	if err != nil {
		return err
	}
	if _, err := baking.CacheSize(); err != nil {
		return usageError{err}
	}
	show := newBuildProgress(u, o.json)
	show.explain = o.explain
	builds, err := baking.Builds(ctx, site, targets, func(m baking.Missed) {
		u.Notef("the secret %s isn't searched for in images: %s", m.Secret, m.Why)
	})
	if err != nil {
		return err
	}
	cache := builds[0].Cache
	store, err := baking.OpenStore()
	if err != nil {
		return err
	}
	for i := range builds {
		builds[i].Store, builds[i].Formats, builds[i].Events = store, formats, show.event
	}
	if err := asOwner(ctx, "kiln build", cache, store); err != nil {
		return err
	}
	sign, err := newSigner(ctx, o.sign, store, u)
	if err != nil {
		return err
	}
	return buildAll(ctx, builds, store, sign, show)
}

// buildAll builds one image after the other. What is wrong with one keeps no other
// from being built; what is wrong with the machine does.
func buildAll(ctx context.Context, builds []bake.Options, store *images.Store, sign *signer, show *buildProgress) error {
	var failed []string
	for i := range builds {
		b := &builds[i]
		m, err := bake.Build(ctx, *b)
		show.end()
		if err == nil {
			err = sign.built(ctx, m)
		}
		if err == nil {
			show.built(m, store)
			continue
		}
		what := b.Image.Profile + " on " + b.Definition.Name
		err = fmt.Errorf("building %s: %w", what, err)
		if ctx.Err() == nil {
			show.failed(b, err)
		}
		if ctx.Err() != nil || len(builds) == 1 || errors.Is(err, bake.ErrMachine) {
			return err
		}
		show.u.Notef("kiln: %s", err)
		failed = append(failed, what)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d images weren't built: %s", len(failed), len(builds), strings.Join(failed, ", "))
	}
	return nil
}

// buildTargets are the images that were asked for, or those that the site's
// hosts have.
func buildTargets(ctx context.Context, site *profiles.Site, names []string, definition string) ([]baking.Target, error) {
	var list []baking.Target
	for _, n := range names {
		if t := (baking.Target{Profile: n, Definition: cmp.Or(definition, images.Default)}); !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	if len(names) > 0 {
		return list, nil
	}
	seen := map[baking.Target]bool{}
	problems, err := site.HostInfos(ctx, func(h profiles.HostInfo) bool {
		t := baking.Target{Profile: h.Profile, Definition: h.Image}
		if definition != "" {
			t.Definition = definition
		}
		if !seen[t] {
			seen[t] = true
			list = append(list, t)
		}
		return true
	})
	if err == nil {
		err = problems.Err()
	}
	if err == nil && len(list) == 0 {
		err = errors.New("the site has no hosts: name the profiles to build (kiln profiles lists them)")
	}
	return list, err
}

// buildProgress shows a build: a line that is drawn over itself on a terminal,
// lines elsewhere, or events as JSON.
type buildProgress struct {
	u    *ui.UI
	json bool
	// explain is that reasons are said, too.
	explain bool

	mu    sync.Mutex
	drawn time.Time // when the line was drawn; zero where none is
	since time.Time // when the step began
	said  time.Time // when a log was last told of it
	unit  string    // of what it counts
}

func newBuildProgress(u *ui.UI, asJSON bool) *buildProgress {
	return &buildProgress{u: u, json: asJSON}
}

const (
	drawEvery = 100 * time.Millisecond
	sayEvery  = 30 * time.Second // in a log
)

func (p *buildProgress) event(e bake.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.json {
		p.line(e)
		return
	}
	what := fmt.Sprintf("%s: %d/%d %s", e.Profile, e.Number, e.Of, e.Step)
	switch e.State {
	case bake.StateStarted:
		p.reasons(what, "is made", e.Because)
		p.since, p.said, p.unit = time.Now(), time.Now(), ""
		p.show(what + " …")
	case bake.StateWaiting:
		p.clear()
		p.u.Notef("%s: another build is at it: waiting for that", what)
	case bake.StateProgress:
		if e.Unit != p.unit {
			p.since, p.unit = time.Now(), e.Unit // it counts something else now
		}
		if p.u.ErrIsTerminal && time.Since(p.drawn) >= drawEvery {
			p.show(what + ": " + e.Measure(time.Since(p.since)))
		} else if !p.u.ErrIsTerminal && time.Since(p.said) >= sayEvery {
			p.said = time.Now()
			p.u.Notef("%s: %s", what, e.Measure(time.Since(p.since)))
		}
	case bake.StateCached:
		p.clear()
		p.u.Notef("%s: as before", what)
		p.reasons(what, "is there from an earlier build, and another one than last time", e.Because)
	case bake.StateDone:
		p.clear()
		p.u.Notef("%s: done in %.1f s", what, e.Seconds)
	case bake.StateFailed:
		p.clear()
	}
}

// reasons says why a step is another one than the last time.
func (p *buildProgress) reasons(what, how string, because []string) {
	if !p.explain || len(because) == 0 {
		return
	}
	p.clear()
	p.u.Notef("%s %s, because", what, how)
	for _, b := range because {
		p.u.Notef("    %s", b)
	}
}

// show draws the line anew, on a terminal.
func (p *buildProgress) show(text string) {
	if !p.u.ErrIsTerminal {
		return
	}
	const width = 79
	if r := []rune(text); len(r) > width {
		text = string(r[:width-1]) + "…"
	}
	_, _ = fmt.Fprintf(p.u.Err, "\r%s\x1b[K", text)
	p.drawn = time.Now()
}

func (p *buildProgress) clear() {
	if !p.drawn.IsZero() {
		_, _ = fmt.Fprint(p.u.Err, "\r\x1b[K")
		p.drawn = time.Time{}
	}
}

func (p *buildProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *buildProgress) line(v any) {
	data, err := json.Marshal(v)
	if err == nil {
		p.u.Printf("%s\n", data)
	}
}

// built prints the result.
func (p *buildProgress) built(m *images.Manifest, store *images.Store) {
	if p.json {
		p.line(struct {
			Image *imageInfo `json:"image"`
		}{infoOf(m, store)})
		return
	}
	p.u.Printf("%s  %s on %s  %s\n", m.ID, m.Profile, m.Definition, store.Path(m.ID, ""))
}

// failed tells machines why an image wasn't built.
func (p *buildProgress) failed(b *bake.Options, err error) {
	if p.json {
		p.line(struct {
			Profile    string `json:"profile"`
			Definition string `json:"definition"`
			Error      string `json:"error"`
		}{b.Image.Profile, b.Definition.Name, err.Error()})
	}
}
