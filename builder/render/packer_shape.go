package render

import (
	"fmt"

	"github.com/zclconf/go-cty/cty"

	"github.com/alisw/kiln/plan"
)

// Provisioner is what brings the Image half into the machine that Packer starts.
type Provisioner string

// The provisioners; empty is cloud-init.
const (
	// CloudInitProvisioner has cloud-init do it, from the user-data that the machine
	// starts with: Packer needs no plugin of Kiln's, and no site.
	CloudInitProvisioner Provisioner = "cloud-init"
	// KilnProvisioner is the plugin's own, which takes the profile from the site when
	// the template is built. cloud-init only lets Packer in.
	KilnProvisioner Provisioner = "kiln"
)

// ParseProvisioner reads a provisioner as the command line spells it.
func ParseProvisioner(s string) (Provisioner, error) {
	switch p := Provisioner(s); p {
	case CloudInitProvisioner, KilnProvisioner:
		return p, nil
	}
	return "", fmt.Errorf("no provisioner is called %q: use cloud-init, for a template that needs no plugin of Kiln's, or kiln, for one that does", s)
}

// Kiln's own plugin, and the versions that know what templates say.
const (
	kilnPlugin        = "github.com/alisw/kiln"
	kilnPluginVersion = ">= 0.1.0"
)

// packerShape is what a template of one provisioner has that another's hasn't.
type packerShape struct {
	about        []string // what it does, for its head
	install      []string // what comes before packer init
	plugin       bool     // whether Kiln's own plugin is needed
	userData     func(*plan.Plan) ([]byte, error)
	variables    []packerVariable
	provisioners []func(*packerBody, *plan.Image)
	localsTitle  string
	scripts      []packerScript
}

// packerScript is a script among the template's locals.
type packerScript struct {
	name   string
	script func(*plan.Plan) (string, error)
}

func shapeOf(p Provisioner) (*packerShape, error) {
	switch p {
	case CloudInitProvisioner, "":
		return cloudInitShape(), nil
	case KilnProvisioner:
		return kilnShape(), nil
	}
	_, err := ParseProvisioner(string(p))
	return nil, err
}

func cloudInitShape() *packerShape {
	return &packerShape{
		about: []string{
			"It starts a stock cloud image, has cloud-init install the image half of the",
			"profile there, seals the result and keeps it. It holds no secret and nothing",
			"of any one host.",
		},
		userData:     ImageUserData,
		provisioners: []func(*packerBody, *plan.Image){runScript("wait"), runScript("seal")},
		localsTitle:  "The image half, and the scripts around it.",
		scripts:      []packerScript{{"wait", waitScript}, {"seal", sealScript}},
	}
}

// letIn is user-data that leaves a stock image as it is. The key that Packer logs
// in with comes from meta-data.
const letIn = `#cloud-config
# cloud-init lets Packer in. What the image gets comes from the kiln provisioner.
package_update: false
`

func kilnShape() *packerShape {
	return &packerShape{
		about: []string{
			"It starts a stock cloud image, where cloud-init lets Packer in and nothing",
			"more; Kiln's own provisioner takes the image half of the profile from the site",
			"(the variable site), applies it over SSH, and seals the result. It holds no",
			"secret and nothing of any one host.",
		},
		install: []string{
			"    packer plugins install --path PATH/packer-plugin-kiln " + kilnPlugin,
		},
		plugin:   true,
		userData: func(*plan.Plan) ([]byte, error) { return []byte(letIn), nil },
		variables: []packerVariable{{
			name:        "site",
			description: "The folder of Kiln's site that has the profile.",
			value:       cty.StringVal("."),
			condition:   `var.site != ""`,
			message:     "The site must be a folder: . is the one that Packer is run in.",
		}},
		provisioners: []func(*packerBody, *plan.Image){runScript("wait"), provisionWithKiln},
		localsTitle:  "What the machine starts with.",
		scripts:      []packerScript{{"wait", waitScript}},
	}
}

// runScript has the machine run one of the scripts.
func runScript(name string) func(*packerBody, *plan.Image) {
	return func(b *packerBody, _ *plan.Image) {
		shell := b.block("provisioner", "shell")
		shell.expr("inline", "[local."+name+"]")
		shell.expr("environment_vars", `["BUILD_USER=${var.ssh_username}"]`)
		shell.set("execute_command", cty.StringVal("sudo env {{ .Vars }} sh -eu {{ .Path }}"))
	}
}

// provisionWithKiln has Kiln's own provisioner apply the profile, and seal.
func provisionWithKiln(b *packerBody, image *plan.Image) {
	kiln := b.block("provisioner", "kiln")
	ofSite(kiln, image)
}

// checkWithKiln has Kiln's own post-processor look at the finished disk of a source.
func checkWithKiln(b *packerBody, image *plan.Image, only cty.Value) {
	check := b.block("post-processor", "kiln-check")
	check.set("only", only)
	ofSite(check, image)
}

// ofSite says where the plugin finds the profile, and what it is resolved for.
func ofSite(b *packerBody, image *plan.Image) {
	b.expr("site", "var.site")
	b.set("profile", cty.StringVal(image.Profile))
	b.set("image", cty.StringVal(image.Definition))
}
