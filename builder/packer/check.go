package packer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/scratch"
)

//go:generate packer-sdc mapstructure-to-hcl2 -type CheckConfig

// CheckConfig is what a template says of post-processor "kiln-check".
type CheckConfig struct {
	common.PackerConfig `mapstructure:",squash"`
	// Site is the folder of the site, whose secrets the disk is searched for;
	// default: none, or that of an image of the builder kiln.
	Site string `mapstructure:"site"`
	// Profile is the profile that the image is of: what that puts into images is
	// allowed. It needs a site.
	Profile string `mapstructure:"profile"`
	// Image is the image definition's name; default: debian-12.
	Image string `mapstructure:"image"`
}

// Check is the post-processor kiln-check: it looks for what no golden image may
// have, in finished disks of any builder.
type Check struct {
	sites  Sites
	config CheckConfig
	run    run.Runner
}

// ConfigSpec is the options' types.
func (c *Check) ConfigSpec() hcldec.ObjectSpec { return c.config.FlatMapstructure().HCL2Spec() }

// Configure reads the options.
func (c *Check) Configure(raws ...any) error {
	if err := decode(&c.config, raws); err != nil {
		return err
	}
	if c.config.Profile != "" && c.config.Site == "" {
		return errors.New("kiln-check: profile needs a site, which has the profile")
	}
	return nil
}

// PostProcess checks the artifact's disks, and hands on the artifact. That is kept
// in any case.
func (c *Check) PostProcess(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) (packersdk.Artifact, bool, bool, error) {
	err := c.check(ctx, ui, artifact)
	if err != nil && ctx.Err() != nil {
		err = errors.New("the check was cancelled")
	}
	return artifact, true, true, err
}

func (c *Check) check(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) error {
	var disks []disk
	for _, name := range artifact.Files() {
		format, err := formatOf(name)
		if err != nil {
			return err
		}
		if format != "" {
			disks = append(disks, disk{name, format})
		}
	}
	if len(disks) == 0 {
		return fmt.Errorf("kiln-check: none of the artifact's files is a disk, raw or qcow2: it has %s", cmp.Or(strings.Join(artifact.Files(), ", "), "no files"))
	}
	options, err := c.options(ctx, ui, artifact)
	if err != nil {
		return err
	}
	var found []string
	for _, d := range disks {
		ui.Say("Checking " + d.name)
		findings, err := c.findings(ctx, d, options)
		if err != nil {
			return err
		}
		for i := range findings {
			text := filepath.Base(d.name) + ": " + findings[i].String()
			ui.Error(text)
			found = append(found, text)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("kiln-check: no golden image may have these %d things:\n%s", len(found), strings.Join(found, "\n"))
	}
	ui.Say(fmt.Sprintf("Nothing was found that no golden image may have, by %d checks, with %d of the site's secrets", len(check.Checks), len(options.Canaries)))
	return nil
}

// options are what the site, if any, has to say.
func (c *Check) options(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) (check.Options, error) {
	site, profile, definition := c.config.Site, c.config.Profile, c.config.Image
	if artifact.BuilderId() == BuilderID {
		state := func(name string) string {
			s, _ := artifact.State(name).(string)
			return s
		}
		site = cmp.Or(site, state(StateSite), ".")
		profile, definition = cmp.Or(profile, state(StateProfile)), cmp.Or(definition, state(StateDefinition))
	}
	if site == "" {
		ui.Say("No site is named: only what looks like a secret is searched for")
		return check.Options{}, nil
	}
	s, err := c.sites.Search(ctx, site, profile, definition)
	if err != nil {
		return check.Options{}, err
	}
	for _, m := range s.Missed {
		ui.Say("Not searched for: " + m)
	}
	return check.Options{Canaries: s.Canaries, Allowed: s.Allowed}, nil
}

// disk is a file that is one.
type disk struct{ name, format string }

// The formats of disks, as qemu-img calls them.
const (
	formatRaw   = "raw"
	formatQCOW2 = "qcow2"
)

// formatOf looks at a file's first bytes; "" is that it's no disk. Names say
// nothing: the qemu builder's have none of the usual ends.
func formatOf(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("kiln-check: the artifact's file: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	head := make([]byte, 1024)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("kiln-check: reading %s: %w", name, err)
	}
	head = head[:n]
	switch {
	case check.IsQCOW2(head):
		return formatQCOW2, nil
	case len(head) > 520 && (string(head[512:520]) == "EFI PART" || isBootSector(head) && !isKernel(head)):
		return formatRaw, nil
	}
	return "", nil
}

// isBootSector tells whether a file begins with a sector that a BIOS would boot:
// a disk without a GPT has one, which is to be refused, not overlooked.
func isBootSector(head []byte) bool { return head[510] == 0x55 && head[511] == 0xaa }

// isKernel tells whether it is Linux's, whose first sector looks like a disk's.
func isKernel(head []byte) bool { return string(head[514:518]) == "HdrS" }

// findings checks a disk; qcow2 is converted for that, beside the file, where
// there is room for disks.
func (c *Check) findings(ctx context.Context, d disk, o check.Options) (found []check.Finding, err error) {
	raw := d.name
	if d.format == formatQCOW2 {
		work, err := scratch.New(filepath.Dir(d.name), ".kiln-check-")
		if err != nil {
			return nil, fmt.Errorf("kiln-check: %w", err)
		}
		defer func() { err = errors.Join(err, work.Remove()) }()
		raw = filepath.Join(work.Path, "disk.raw")
		if err := check.Unpack(ctx, c.run, d.name, raw); err != nil {
			return nil, fmt.Errorf("kiln-check: reading %s: %w", d.name, err)
		}
	}
	found, err = check.Disk(ctx, raw, o)
	if err != nil {
		return nil, fmt.Errorf("kiln-check: %s: %w", d.name, err)
	}
	return found, nil
}
