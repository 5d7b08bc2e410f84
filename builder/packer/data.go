package packer

import (
	"context"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/hcl2helper"
	"github.com/zclconf/go-cty/cty"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/plan"
)

//go:generate packer-sdc mapstructure-to-hcl2 -type HostConfig,HostOutput,ProfileConfig,ProfileOutput

// HostConfig is what a template says of data "kiln-host".
type HostConfig struct {
	common.PackerConfig `mapstructure:",squash"`
	// Site is the folder of the site; default: the one here or above.
	Site string `mapstructure:"site"`
	// Host is the host's name.
	Host string `mapstructure:"host" required:"true"`
	// Target is golden, for an image of Kiln's, or stock, for a cloud image.
	Target string `mapstructure:"target"`
}

// HostOutput is what data "kiln-host" gives. Secrets are references in it.
type HostOutput struct {
	UserData      string            `mapstructure:"user_data"`
	MetaData      string            `mapstructure:"meta_data"`
	NetworkConfig string            `mapstructure:"network_config"`
	Profile       string            `mapstructure:"profile"`
	Image         string            `mapstructure:"image"`
	Files         map[string]string `mapstructure:"files"`
}

// HostData is the data source kiln-host.
type HostData struct {
	sites  Sites
	config HostConfig
	target render.Target
}

// nothing is what goes with an error: to Packer it has to be a value even then.
var nothing = cty.NullVal(cty.EmptyObject)

// ConfigSpec is the options' types.
func (d *HostData) ConfigSpec() hcldec.ObjectSpec { return d.config.FlatMapstructure().HCL2Spec() }

// OutputSpec is the result's types.
func (d *HostData) OutputSpec() hcldec.ObjectSpec {
	return (&HostOutput{}).FlatMapstructure().HCL2Spec()
}

// Configure reads the options.
func (d *HostData) Configure(raws ...any) error {
	if err := decode(&d.config, raws); err != nil {
		return err
	}
	if err := required("kiln-host", "host", d.config.Host); err != nil {
		return err
	}
	if d.config.Target == "" {
		d.config.Target = render.Golden.String()
	}
	var err error
	d.target, err = render.ParseTarget(d.config.Target)
	return err
}

// Execute resolves the host, and renders it.
func (d *HostData) Execute() (cty.Value, error) {
	p, err := d.sites.Host(context.Background(), d.config.Site, d.config.Host)
	if err != nil {
		return nothing, err
	}
	o := render.Options{Target: d.target}
	out := HostOutput{Profile: p.Image.Profile, Image: p.Image.Definition}
	for _, part := range []struct {
		to     *string
		render func() ([]byte, error)
	}{
		{&out.UserData, func() ([]byte, error) { return render.CloudInit(p, o) }},
		{&out.MetaData, func() ([]byte, error) { return render.MetaData(p, o) }},
		{&out.NetworkConfig, func() ([]byte, error) { return render.NetworkConfig(p) }},
	} {
		text, err := part.render()
		if err != nil {
			return nothing, err
		}
		*part.to = string(text)
	}
	tree, err := render.Files(p, o)
	if err != nil {
		return nothing, err
	}
	out.Files = textFiles(tree)
	return hcl2helper.HCL2ValueFromConfig(out, d.OutputSpec()), nil
}

// ProfileConfig is what a template says of data "kiln-profile".
type ProfileConfig struct {
	common.PackerConfig `mapstructure:",squash"`
	// Site is the folder of the site; default: the one here or above.
	Site string `mapstructure:"site"`
	// Profile is the profile's name.
	Profile string `mapstructure:"profile" required:"true"`
	// Image is the image definition's name; default: debian-12.
	Image string `mapstructure:"image"`
}

// ProfileOutput is what data "kiln-profile" gives.
type ProfileOutput struct {
	UserData string            `mapstructure:"user_data"`
	MetaData string            `mapstructure:"meta_data"`
	Image    string            `mapstructure:"image"`
	Packages []string          `mapstructure:"packages"`
	Files    map[string]string `mapstructure:"files"`
}

// ProfileData is the data source kiln-profile.
type ProfileData struct {
	sites  Sites
	config ProfileConfig
}

// ConfigSpec is the options' types.
func (d *ProfileData) ConfigSpec() hcldec.ObjectSpec { return d.config.FlatMapstructure().HCL2Spec() }

// OutputSpec is the result's types.
func (d *ProfileData) OutputSpec() hcldec.ObjectSpec {
	return (&ProfileOutput{}).FlatMapstructure().HCL2Spec()
}

// Configure reads the options.
func (d *ProfileData) Configure(raws ...any) error {
	if err := decode(&d.config, raws); err != nil {
		return err
	}
	return required("kiln-profile", "profile", d.config.Profile)
}

// Execute resolves the profile, and renders its Image half.
func (d *ProfileData) Execute() (cty.Value, error) {
	half, err := d.sites.Half(context.Background(), d.config.Site, d.config.Profile, d.config.Image)
	if err != nil {
		return nothing, err
	}
	p := &plan.Plan{Image: half.Image}
	userData, err := render.ImageUserData(p)
	if err != nil {
		return nothing, err
	}
	metaData, err := render.ImageMetaData(p)
	if err != nil {
		return nothing, err
	}
	tree, err := render.ImageTree(&p.Image)
	if err != nil {
		return nothing, err
	}
	out := ProfileOutput{UserData: string(userData), MetaData: string(metaData), Image: p.Image.Definition, Packages: []string{}, Files: textFiles(tree)}
	for _, pkg := range p.Image.Packages {
		out.Packages = append(out.Packages, pkg.Name)
	}
	return hcl2helper.HCL2ValueFromConfig(out, d.OutputSpec()), nil
}

// textFiles are the tree's regular files that HCL can hold: those of text.
func textFiles(t *render.Tree) map[string]string {
	files := map[string]string{}
	for _, e := range t.Entries {
		if !e.Dir && e.Target == "" && utf8.Valid(e.Content) {
			files[e.Path] = string(e.Content)
		}
	}
	return files
}
