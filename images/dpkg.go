package images

import (
	"bufio"
	"io"
	"slices"
	"strings"
)

// Installed is a package that a dpkg has installed.
type Installed struct {
	Name         string
	Version      string
	Architecture string
	Depends      bool // it needs other packages
}

// ReadInstalled lists the packages that dpkg's status file has as installed, by name.
func ReadInstalled(status io.Reader) ([]Installed, error) {
	var list []Installed
	var p Installed
	installed := false
	err := EachField(status, func(key, value string) {
		switch key {
		case "":
			if p.Name != "" && installed {
				list = append(list, p)
			}
			p, installed = Installed{}, false
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Architecture = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		case "Depends", "Pre-Depends":
			p.Depends = true
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Installed) int {
		return strings.Compare(a.Name+":"+a.Architecture, b.Name+":"+b.Architecture)
	})
	return list, nil
}

// EachField reads paragraphs, as dpkg and apt keep them: it calls each with the
// fields of one after the other, and with two empty texts at its end. Lines that go
// on with a field are no fields.
func EachField(r io.Reader, each func(key, value string)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if line := lines.Text(); line == "" || line[0] != ' ' && line[0] != '\t' {
			key, value, _ := strings.Cut(line, ":")
			each(key, strings.TrimSpace(value))
		}
	}
	each("", "")
	return lines.Err()
}
