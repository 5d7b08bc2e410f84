package packer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/scratch"
)

//go:generate packer-sdc mapstructure-to-hcl2 -type BuilderConfig

// BuilderConfig is what a template says of source "kiln".
type BuilderConfig struct {
	common.PackerConfig `mapstructure:",squash"`
	// Site is the folder of the site; default: the one here or above.
	Site string `mapstructure:"site"`
	// Profile is the profile's name.
	Profile string `mapstructure:"profile" required:"true"`
	// Image is the image definition's name; default: debian-12.
	Image string `mapstructure:"image"`
	// Formats are those of the files: raw, qcow2, netboot, tar; default: raw.
	Formats []string `mapstructure:"formats"`
	// OutputDirectory is where the files go; it must not be there yet.
	OutputDirectory string `mapstructure:"output_directory"`
}

// Builder is the builder kiln: it bakes natively.
type Builder struct {
	sites   Sites
	config  BuilderConfig
	formats []images.Format
}

// ConfigSpec is the options' types.
func (b *Builder) ConfigSpec() hcldec.ObjectSpec { return b.config.FlatMapstructure().HCL2Spec() }

// Prepare reads the options.
func (b *Builder) Prepare(raws ...any) (generated, warnings []string, err error) {
	if err := decode(&b.config, raws); err != nil {
		return nil, nil, err
	}
	c := &b.config
	if err := required("source kiln", "profile", c.Profile); err != nil {
		return nil, nil, err
	}
	if len(c.Formats) == 0 {
		c.Formats = []string{string(images.FormatRaw)}
	}
	if c.OutputDirectory == "" {
		c.OutputDirectory = "output-" + c.PackerBuildName
	}
	b.formats, err = images.ParseFormats(c.Formats)
	return nil, nil, err
}

// Run bakes, and exports the image. There is no machine to log in to: provisioners
// run afterwards, and those that want one fail.
func (b *Builder) Run(ctx context.Context, ui packersdk.Ui, hook packersdk.Hook) (packersdk.Artifact, error) {
	c := &b.config
	if err := b.free(ui); err != nil {
		return nil, err
	}
	show := progress{ui: ui, now: time.Now}
	ui.Say(fmt.Sprintf("Baking the profile %s natively", c.Profile))
	baked, err := b.sites.Bake(ctx, &BakeOptions{Site: c.Site, Profile: c.Profile, Definition: c.Image, Formats: b.formats, Events: show.event, Note: ui.Say})
	if err != nil {
		return nil, cancelled(ctx, fmt.Errorf("baking %s: %w", c.Profile, err))
	}
	a := &Artifact{baked: baked, dir: c.OutputDirectory, site: c.Site}
	if err := b.export(ctx, a); err != nil {
		return nil, cancelled(ctx, errors.Join(err, a.Destroy()))
	}
	if hook != nil {
		if err := hook.Run(ctx, packersdk.HookProvision, ui, noMachine{}, map[string]any{}); err != nil {
			return nil, cancelled(ctx, errors.Join(err, a.Destroy()))
		}
	}
	return a, nil
}

// cancelled says that it was, whatever a context's end has led to.
func cancelled(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return errors.New("the build was cancelled; nothing of it is left")
}

// free sees that the output's place is.
func (b *Builder) free(ui packersdk.Ui) error {
	dir := b.config.OutputDirectory
	switch _, err := os.Lstat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("output_directory: %w", err)
	case !b.config.PackerForce:
		return fmt.Errorf("output_directory: %s is there already: name another one, remove it, or have it removed by packer build -force", dir)
	}
	ui.Say("Removing " + dir)
	return os.RemoveAll(dir)
}

// export writes the image's files. The folder appears when all are there.
func (b *Builder) export(ctx context.Context, a *Artifact) (err error) {
	work, err := scratch.New(filepath.Dir(filepath.Clean(a.dir)), ".kiln-packer-")
	if err != nil {
		return fmt.Errorf("output_directory: %w", err)
	}
	defer func() { err = errors.Join(err, work.Remove()) }()
	made := filepath.Join(work.Path, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return fmt.Errorf("output_directory: %w", err)
	}
	m := a.baked.Manifest
	var names []string
	for _, f := range b.formats {
		name := m.ExportName(f)
		if err := bake.Export(ctx, nil, a.baked.Store, m, f, filepath.Join(made, name)); err != nil {
			return err
		}
		names = append(names, name)
	}
	manifest, err := os.ReadFile(a.baked.Store.Path(m.ID, images.ManifestName))
	if err != nil {
		return fmt.Errorf("the image's manifest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(made, images.ManifestName), manifest, 0o644); err != nil {
		return fmt.Errorf("the image's manifest: %w", err)
	}
	if a.files, err = filesBelow(made, a.dir, names); err != nil {
		return err
	}
	a.manifest = filepath.Join(a.dir, images.ManifestName)
	a.files = append(a.files, a.manifest)
	if err := os.Rename(made, a.dir); err != nil {
		return fmt.Errorf("output_directory: %w", err)
	}
	return nil
}

// filesBelow lists the files of a folder by names, those of folders one by one, as
// they will be called when it is at.
func filesBelow(dir, at string, names []string) ([]string, error) {
	var files []string
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			below, err := filepath.Rel(dir, path)
			files = append(files, filepath.Join(at, below))
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("the image's files: %w", err)
		}
	}
	return files, nil
}

// progress shows a bake's events in Packer's Ui: when a step begins and ends, and
// now and then how far it is.
type progress struct {
	ui    packersdk.Ui
	now   func() time.Time
	mu    sync.Mutex
	since time.Time // when the step began
	said  time.Time
	unit  string
}

// sayEvery is how often a step says how far it is.
const sayEvery = 15 * time.Second

func (p *progress) event(e bake.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	what := fmt.Sprintf("%d/%d %s", e.Number, e.Of, e.Step)
	switch e.State {
	case bake.StateStarted:
		p.since, p.said, p.unit = p.now(), p.now(), ""
	case bake.StateWaiting:
		p.ui.Say(what + ": another build is at it: waiting for that")
	case bake.StateProgress:
		if e.Unit != p.unit {
			p.since, p.unit = p.now(), e.Unit
		}
		if p.now().Sub(p.said) >= sayEvery {
			p.said = p.now()
			p.ui.Say(what + ": " + e.Measure(p.now().Sub(p.since)))
		}
	case bake.StateCached:
		p.ui.Say(what + ": as before")
	case bake.StateDone:
		p.ui.Say(fmt.Sprintf("%s: done in %.1f s", what, e.Seconds))
	}
}
