// Package images knows what an image is: the definitions of what Kiln can
// build images from.
package images

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// Default is the name of the definition that a host without one gets.
const Default = "debian-12"

//go:embed *.yaml
var shipped embed.FS

// Definition is one distribution's release, as an image is made of it.
type Definition struct {
	Name        string           `json:"name"`
	Description string           `json:"description"`
	Release     plan.Release     `json:"release"`
	Shipped     bool             `json:"shipped"` // comes with Kiln
	Pos         problem.Position `json:"-"`

	Kernel   string   `json:"kernel"`             // the kernel's package
	Firmware []string `json:"firmware,omitempty"` // packages that are installed where the mirror has them
	Packages []string `json:"packages"`           // what else every image has, whatever its profile
	// Suites come from the mirror, SecuritySuites from the security mirror.
	Suites         []string `json:"suites"`
	SecuritySuites []string `json:"security_suites,omitempty"`
	Components     []string `json:"components"` // those that a mirror lacks are left out
	Keyring        string   `json:"keyring"`    // the archive's keys, in the image and on the building machine
	KeyringPackage string   `json:"keyring_package"`
}

// DefinitionFile is an image definition as it is written: images/NAME.yaml.
type DefinitionFile struct {
	Description  strictyaml.Value[string] `yaml:"description" jsonschema_description:"What it is, in a line."`
	Distribution strictyaml.Value[string] `yaml:"distribution" jsonschema:"required" jsonschema_description:"The distribution, as os-release's ID names it: debian, ubuntu."`
	Version      strictyaml.Value[string] `yaml:"version" jsonschema:"required" jsonschema_description:"os-release's VERSION_ID."`
	Codename     strictyaml.Value[string] `yaml:"codename" jsonschema:"required" jsonschema_description:"os-release's VERSION_CODENAME."`
	Architecture strictyaml.Value[string] `yaml:"architecture" jsonschema:"enum=amd64,enum=arm64" jsonschema_description:"Debian's name of the architecture. Default: amd64."`
	Kernel       strictyaml.Value[string] `yaml:"kernel" jsonschema_description:"The kernel's package. Default: that of the shipped definition of this distribution, and so for all fields below. $(architecture) and $(codename) stand for this release's."`
	Firmware     *list                    `yaml:"firmware" jsonschema_description:"Packages with firmware: those that the mirror has are installed."`
	Packages     *list                    `yaml:"packages" jsonschema_description:"Packages that every image of it has, whatever its profile."`
	Suites       *list                    `yaml:"suites" jsonschema_description:"Suites of the mirror."`
	Security     *list                    `yaml:"security_suites" jsonschema_description:"Suites of the mirror with security updates."`
	Components   *list                    `yaml:"components" jsonschema_description:"Components of the mirror; those that it lacks are left out."`
	Keyring      strictyaml.Value[string] `yaml:"keyring" jsonschema_description:"Path of the file with the archive's keys."`
	KeyringPkg   strictyaml.Value[string] `yaml:"keyring_package" jsonschema_description:"The package that has the keyring."`
	Pos          problem.Position         `yaml:"-"`
}

// list is a list that may be empty on purpose.
type list = []strictyaml.Value[string]

// like names the shipped definition whose settings others of the distribution
// take where they have none of their own.
var like = map[string]string{"debian": "debian-12", "ubuntu": "ubuntu-24.04"}

// from fills in what images of d are made of. What d's file doesn't say is what
// other says, where there is one.
func (d *Definition) from(f *DefinitionFile, other *DefinitionFile) {
	if other == nil {
		other = &DefinitionFile{}
	}
	in := strings.NewReplacer("$(architecture)", d.Release.Architecture, "$(codename)", d.Release.Codename)
	one := func(v, o strictyaml.Value[string]) string { return in.Replace(v.Or(o.V)) }
	many := func(v, o *list) []string {
		if v == nil {
			v = o
		}
		if v == nil {
			return nil
		}
		all := make([]string, len(*v))
		for i, e := range *v {
			all[i] = in.Replace(e.V)
		}
		return all
	}
	d.Kernel, d.Keyring, d.KeyringPackage = one(f.Kernel, other.Kernel), one(f.Keyring, other.Keyring), one(f.KeyringPkg, other.KeyringPkg)
	d.Firmware, d.Packages, d.Components = many(f.Firmware, other.Firmware), many(f.Packages, other.Packages), many(f.Components, other.Components)
	d.Suites, d.SecuritySuites = many(f.Suites, other.Suites), many(f.Security, other.Security)
}

// shippedFiles are those that were asked for, by name.
var shippedFiles sync.Map

// shippedFile is the file of a definition that ships, whatever the site has.
func shippedFile(name string) *DefinitionFile {
	if d, ok := shippedFiles.Load(name); ok {
		return d.(*DefinitionFile)
	}
	data, err := shipped.ReadFile(name + ".yaml")
	if err != nil {
		return nil
	}
	var d DefinitionFile
	var problems problem.List
	strictyaml.Decode(data, name+".yaml", 0, &d, &problems)
	shippedFiles.Store(name, &d)
	return &d
}

// Load reads the definitions that ship, and those in the folder dir, which
// replace shipped ones of the same name. A dir that doesn't exist adds none.
func Load(dir string, problems *problem.List) (map[string]Definition, error) {
	definitions := map[string]Definition{}
	if err := load(shipped, "", definitions, problems); err != nil {
		return nil, err
	}
	for name, d := range definitions {
		d.Shipped = true
		definitions[name] = d
	}
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return definitions, nil
	}
	if err := load(os.DirFS(dir), dir, definitions, problems); err != nil {
		return nil, err
	}
	return definitions, nil
}

// Names lists the definitions in order.
func Names(definitions map[string]Definition) []string {
	names := make([]string, 0, len(definitions))
	for n := range definitions {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func load(fsys fs.FS, dir string, into map[string]Definition, problems *problem.List) error {
	files, err := fs.Glob(fsys, "*.y*ml")
	if err != nil {
		return fmt.Errorf("listing the image definitions: %w", err)
	}
	for _, f := range files {
		shown := filepath.Join(dir, f)
		switch ext := filepath.Ext(f); {
		case ext == ".yml":
			problems.Addf(problem.Position{File: shown}, "rename it to end in .yaml", "this image definition isn't read")
			continue
		case ext != ".yaml":
			continue
		}
		if dir == "" {
			shown = "kiln:images/" + f
		}
		data, err := regular.ReadFS(fsys, f)
		if err != nil {
			return fmt.Errorf("reading the image definition %s: %w", shown, err)
		}
		var d DefinitionFile
		before := len(*problems)
		if !strictyaml.Decode(data, shown, 0, &d, problems) {
			if len(*problems) > before {
				continue
			}
			problems.Addf(problem.Position{File: shown, Line: 1, Column: 1}, "give it distribution, version and codename", "this image definition is empty")
			continue
		}
		for key, v := range map[string]strictyaml.Value[string]{"distribution": d.Distribution, "version": d.Version, "codename": d.Codename} {
			const fix = "take it from the release's /etc/os-release"
			if v.V == "" {
				problems.Addf(d.Pos, fix, "the image definition has no %s", key)
			} else if strings.Trim(v.V, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
				problems.Addf(v.Pos, fix, "%q is no %s", v.V, key)
			}
		}
		if a := d.Architecture.Or("amd64"); a != "amd64" && a != "arm64" {
			problems.Addf(d.Architecture.Pos, "write amd64 or arm64", "there is no architecture %q", a)
		}
		name := strings.TrimSuffix(f, ".yaml")
		definition := Definition{
			Name: name, Description: d.Description.V, Pos: d.Pos,
			Release: plan.Release{ID: d.Distribution.V, Version: d.Version.V, Codename: d.Codename.V, Architecture: d.Architecture.Or("amd64")},
		}
		definition.from(&d, shippedFile(like[d.Distribution.V]))
		into[name] = definition
	}
	return nil
}
