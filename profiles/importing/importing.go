// Package importing makes a profile's files of what a site has already:
// Puppet's ERB templates become Kiln templates, and a live directory such as
// /etc/nomad.d comes in byte for byte.
//
// An import never drops anything in silence. What can't be translated exactly
// is listed with its line, and in its place stands an action that fails when
// the template is rendered; so nothing that was half understood reaches a host.
package importing

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/problem"
)

// Delimiters stand around each action of a template.
type Delimiters struct {
	Left, Right string
}

// DefaultDelimiters are those of a profile that sets none.
var DefaultDelimiters = Delimiters{"{{", "}}"}

// Result is one ERB template, translated.
type Result struct {
	Source string // the file that it was read from
	Target string // the base name on a host: without .erb
	// Text is the Kiln template, with Delimiters around its actions: ones that
	// the source doesn't hold, so that its own braces survive. A profile has one
	// pair for all its templates: WithDelimiters gives the same text with another.
	Text       string
	Delimiters Delimiters
	// Vars are the variables that the template needs, sorted by name.
	Vars []Var
	// Secrets are the secrets that the template needs, sorted by name.
	Secrets []SecretUse
	// Problems are what could not be translated, and what is worth a look.
	Problems problem.List

	pieces []piece
}

// Var is a variable that a translated template takes from .vars.
type Var struct {
	Name string // as in .vars.NAME
	Ruby string // as the ERB template has it: @port, scope['nomad::port']
	Line int    // where it is used first
	Kind Kind   // what its uses ask of its value
}

// Kind is what a template's uses of a variable ask of its value. Several can
// hold for one variable.
type Kind uint

// The kinds of values.
const (
	KindText   Kind = 1 << iota // stands in quotes: any scalar
	KindBare                    // stands without quotes: a number, true or false, or a list
	KindNumber                  // a number
	KindList                    // a list
	KindMap                     // a map
	KindSwitch                  // decides a condition: true or false
)

// String says what a value of kind k has to be.
func (k Kind) String() string {
	switch {
	case k&KindMap != 0:
		return "a map"
	case k&KindList != 0:
		return "a list"
	case k&KindNumber != 0:
		return "a number"
	case k&KindBare != 0:
		return "not in quotes there: a number, true or false, or a list"
	case k&KindText != 0:
		return "a string"
	case k&KindSwitch != 0:
		return "true or false"
	}
	return "any value"
}

// SecretUse is a secret that a translated template takes.
type SecretUse struct {
	Name string // as in secret "NAME"
	Line int    // where it is used first
}

// TargetPath is where on a host the file that an ERB template makes belongs,
// as far as the template's own path says it: what stands behind a folder
// templates (templates/etc/nomad.d/nomad.hcl.erb), else the agents' usual
// folders. ok is false where nothing says it.
func TargetPath(file string) (target string, ok bool) {
	clean := strings.TrimSuffix(filepath.ToSlash(filepath.Clean(file)), ".erb")
	parts := strings.Split(clean, "/")
	for i := len(parts) - 3; i >= 0; i-- {
		if parts[i] == "templates" && slices.Contains([]string{"etc", "usr", "lib", "opt", "var"}, parts[i+1]) {
			return "/" + path.Join(parts[i+1:]...), true
		}
	}
	switch base := path.Base(clean); base {
	case "consul.hcl", "consul.json":
		return "/etc/consul.d/" + base, true
	case "nomad.hcl", "nomad.json":
		return "/etc/nomad.d/" + base, true
	}
	return "", false
}
