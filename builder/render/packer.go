package render

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/zclconf/go-cty/cty"

	"github.com/alisw/kiln/plan"
)

// packerSource is one builder that the template can use: another one is
// another small file, and a line in packerSources.
type packerSource struct {
	kind      string // the builder's name in Packer: qemu
	plugin    string // the plugin's address
	version   string // which versions of it are known to do
	limit     int    // the most bytes of user-data that it can pass on; 0: no limit
	variables func(*plan.Image) []packerVariable
	// source fills the source block. What it does with user-data goes through
	// protectedUserData.
	source func(*packerBody, *plan.Image)
	// disk is the folder that the finished disk is in, as an expression's text;
	// empty where it isn't on this computer.
	disk string
}

func packerSources() []packerSource { return []packerSource{qemuSource(), openstackSource()} }

// protectedUserData is what a source passes on. Plugins run each string that
// they get through text/template, and so would eat the braces of go-sockaddr
// and consul-template.
const protectedUserData = "local.user_data_protected"

// packerName is the name of each source, and the middle of its address:
// qemu.golden.
const packerName = "golden"

// ImageUserData is the Image half alone as cloud-init's user-data, for a
// machine that becomes a golden image: it installs everything, and starts
// nothing of it.
func ImageUserData(p *plan.Plan) ([]byte, error) { return cloudConfig(p, imageOnly) }

// Packer is a Packer template, in HCL, that builds the golden image of the
// host's profile from a stock cloud image. Of the plan it has the Image half
// alone, and who brings that into the machine that Packer starts is the
// provisioner of the options: with cloud-init's, plugins that HashiCorp publishes
// are enough, and a script seals the machine; Kiln's has the site at hand, and
// does both.
//
// A source that can't pass on user-data as large as the profile's is left out
// with a comment, or an error where the host's platform is that source's.
func Packer(p *plan.Plan, o Options) ([]byte, error) {
	shape, err := shapeOf(o.Provisioner)
	if err != nil {
		return nil, err
	}
	userData, err := shape.userData(p)
	if err != nil {
		return nil, err
	}
	var sources []packerSource
	var left []string
	for _, s := range packerSources() {
		if s.limit == 0 || len(userData) <= s.limit {
			sources = append(sources, s)
			continue
		}
		if string(p.Host.Platform) == s.kind {
			return nil, &TooLargeError{p.Host.Name, p.Host.Platform, len(userData), s.limit, Options{Target: imageOnly}}
		}
		left = append(left, fmt.Sprintf("There is no %s source: the user-data has %d bytes, and it takes %d.", s.kind, len(userData), s.limit))
	}
	f := newPackerFile()
	f.comment(packerHeader(shape, &p.Image, sources, left)...)
	f.blank()
	packerRequirements(f, shape, sources)
	f.section("What a site changes.")
	packerVariables(f, shape, &p.Image, sources)
	for _, s := range sources {
		f.section("The machine that " + s.kind + " starts.")
		s.source(f.block("source", s.kind, packerName), &p.Image)
	}
	f.section("What becomes of it.")
	packerBuild(f, shape, &p.Image, sources)
	f.section(shape.localsTitle)
	if err := packerLocals(f, shape, p, userData); err != nil {
		return nil, err
	}
	return f.bytes()
}

func packerHeader(shape *packerShape, image *plan.Image, sources []packerSource, left []string) []string {
	lines := []string{
		fmt.Sprintf("Packer template of the golden image of the profile %q, on %s %s (%s).",
			image.Profile, image.Release.ID, cmp.Or(image.Release.Version, image.Release.Codename), image.Release.Architecture),
		"Made by kiln: change the profile, not this file.",
		"",
	}
	lines = append(lines, shape.about...)
	lines = append(lines, "")
	lines = append(lines, shape.install...)
	lines = append(lines, "    packer init FILE")
	for _, s := range sources {
		lines = append(lines, "    packer build -only='"+s.kind+".*' "+packerExample(s.kind)+" FILE")
	}
	lines = append(lines, "",
		"For qemu, make the key that Packer logs in with first: it is passed in",
		"meta-data, and gone from the finished image.",
		"",
		"    ssh-keygen -q -t ed25519 -N '' -f build_key",
		"",
		"OpenStack's own variables (OS_CLOUD, or OS_AUTH_URL and the rest) say where",
		"and as whom to build; the openstack plugin logs in even for packer validate.",
		"`packer inspect FILE` lists all variables.")
	for _, l := range left {
		lines = append(lines, "", l)
	}
	return lines
}

// packerExample is the variables that have no default.
func packerExample(kind string) string {
	if kind == "openstack" {
		return "-var flavor=m1.small -var source_image_name=NAME"
	}
	return "-var base_image_url=FILE-OR-URL -var base_image_checksum=sha512:HASH"
}

func packerRequirements(f *packerBody, shape *packerShape, sources []packerSource) {
	b := f.block("packer")
	b.set("required_version", cty.StringVal(">= 1.10.0"))
	plugins := b.block("required_plugins")
	require := func(name, source, version string) {
		plugins.set(name, cty.ObjectVal(map[string]cty.Value{"source": cty.StringVal(source), "version": cty.StringVal(version)}))
	}
	for _, s := range sources {
		require(s.kind, s.plugin, s.version)
	}
	if shape.plugin {
		require("kiln", kilnPlugin, kilnPluginVersion)
	}
}

// packerVariable is one thing that a site may set.
type packerVariable struct {
	name, description string
	value             cty.Value // the default; it has the variable's type
	// condition must hold for the variable, else message, a full sentence, is
	// shown; both are empty where any value does.
	condition, message string
}

func packerVariables(f *packerBody, shape *packerShape, image *plan.Image, sources []packerSource) {
	list := []packerVariable{{
		name:        "image_name",
		description: "The name of the finished image.",
		value:       cty.StringVal(imageName(image)),
		condition:   matches("image_name", `^[A-Za-z0-9][A-Za-z0-9._-]*$`),
		message:     "The image_name may have letters, digits, dots, dashes and underscores.",
	}, {
		name:        "ssh_username",
		description: "The user whom the stock image's cloud-init makes by itself. The sealed image has it no more.",
		value:       cty.StringVal(image.Release.ID),
		condition:   matches("ssh_username", `^[a-z_][a-z0-9_-]*$`),
		message:     "The ssh_username must be the name of a user.",
	}, {
		name:        "ssh_timeout",
		description: "How long to wait for the machine to let Packer log in, such as 20m.",
		value:       cty.StringVal("20m"),
		condition:   matches("ssh_timeout", `^([0-9]+(ms|s|m|h))+$`),
		message:     "The ssh_timeout must be a duration, such as 90s or 20m.",
	}}
	list = append(list, shape.variables...)
	for _, s := range sources {
		list = append(list, s.variables(image)...)
	}
	for _, v := range list {
		b := f.block("variable", v.name)
		b.set("description", cty.StringVal(v.description))
		switch {
		case v.value.Type() == cty.Bool:
			b.expr("type", "bool")
		case v.value.Type() == cty.Number:
			b.expr("type", "number")
		case v.value.Type() == cty.String:
			b.expr("type", "string")
		default:
			b.expr("type", "list(string)")
		}
		b.set("default", v.value)
		if v.condition != "" {
			check := b.block("validation")
			check.expr("condition", v.condition)
			check.set("error_message", cty.StringVal(v.message))
		}
	}
}

// matches is the condition that the variable matches a regular expression.
func matches(name, regexp string) string {
	return `can(regex("` + strings.ReplaceAll(regexp, `\`, `\\`) + `", var.` + name + `))`
}

// matchesOrEmpty is matches for a variable that may stay empty.
func matchesOrEmpty(name, regexp string) string {
	return "var." + name + ` == "" || ` + matches(name, regexp)
}

// imageName is a default for the finished image's name.
func imageName(image *plan.Image) string {
	name := strings.Map(func(r rune) rune {
		if isPlain(string(r), "._-") {
			return r
		}
		return '-'
	}, image.Profile+"-"+image.Definition)
	return strings.Trim(name, "-._")
}

func packerBuild(f *packerBody, shape *packerShape, image *plan.Image, sources []packerSource) {
	b := f.block("build")
	names := make([]cty.Value, len(sources))
	for i, s := range sources {
		names[i] = cty.StringVal("source." + s.kind + "." + packerName)
	}
	b.set("sources", cty.TupleVal(names))
	for _, provision := range shape.provisioners {
		b.blank()
		provision(b, image)
	}
	for _, s := range sources {
		if s.disk == "" {
			continue
		}
		only := cty.TupleVal([]cty.Value{cty.StringVal(s.kind + "." + packerName)})
		if shape.plugin {
			b.blank()
			checkWithKiln(b, image, only)
		}
		b.blank()
		checksum := b.block("post-processor", "checksum")
		checksum.set("only", only)
		checksum.set("checksum_types", cty.TupleVal([]cty.Value{cty.StringVal("sha256")}))
		checksum.expr("output", `"`+s.disk+`/SHA256SUMS"`)
	}
	b.blank()
	manifest := b.block("post-processor", "manifest")
	manifest.expr("output", `"${var.image_name}.manifest.json"`)
	manifest.set("strip_path", cty.True)
	manifest.set("custom_data", cty.ObjectVal(map[string]cty.Value{
		"profile":      cty.StringVal(image.Profile),
		"definition":   cty.StringVal(image.Definition),
		"release":      cty.StringVal(image.Release.Codename),
		"architecture": cty.StringVal(image.Release.Architecture),
	}))
}

func packerLocals(f *packerBody, shape *packerShape, p *plan.Plan, userData []byte) error {
	b := f.block("locals")
	b.text("user_data", string(userData))
	b.blank()
	b.comment("Plugins take {{ in any string for the start of a Go template.")
	b.expr("user_data_protected", `replace(local.user_data, "{{", "{{ \"{{\" }}")`)
	for _, s := range shape.scripts {
		text, err := s.script(p)
		if err != nil {
			return err
		}
		b.blank()
		b.text(s.name, text)
	}
	return nil
}
