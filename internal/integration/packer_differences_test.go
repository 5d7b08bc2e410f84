//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// knownDifference is an entry of the list of what may differ between the ways to make
// an image.
type knownDifference struct {
	line    int
	where   []string // the ways that it is about
	pattern string
	reason  string
}

const differencesFile = "testdata/packer-differences.txt"

type knownDifferences []*knownDifference

// newKnownDifferences reads the list: on each line the ways, between commas, a path's
// pattern and the reason. A pattern that ends in /** is for all below a folder.
func newKnownDifferences(t *testing.T) knownDifferences {
	t.Helper()
	b, err := os.ReadFile(differencesFile)
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseKnownDifferences(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func parseKnownDifferences(text string) (knownDifferences, error) {
	var list knownDifferences
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[1], "/") && !strings.HasPrefix(fields[1], "unit:") {
			return nil, fmt.Errorf("%s:%d: a line has ways, a pattern, and a reason of two words or more: %s", differencesFile, number, line)
		}
		list = append(list, &knownDifference{number, strings.Split(fields[0], ","), fields[1], strings.Join(fields[2:], " ")})
	}
	return list, nil
}

func (d *knownDifference) covers(way, name string) bool {
	if !slices.Contains(d.where, way) {
		return false
	}
	if folder, ok := strings.CutSuffix(d.pattern, "/**"); ok {
		return name == folder || strings.HasPrefix(name, folder+"/")
	}
	ok, err := filepath.Match(d.pattern, name)
	return ok && err == nil
}

// check wants no difference that isn't in the list, and no entry of this way that
// nothing differs for.
func (list knownDifferences) check(t *testing.T, way string, d *images.Diff) {
	t.Helper()
	for _, text := range list.wrong(way, d) {
		t.Error(text)
	}
}

func (list knownDifferences) wrong(way string, d *images.Diff) []string {
	var wrong []string
	used := map[*knownDifference]bool{}
	for _, name := range changedNames(d) {
		known := false
		for _, e := range list {
			if e.covers(way, name.of) {
				used[e], known = true, true
			}
		}
		if !known {
			wrong = append(wrong, fmt.Sprintf("%s: %s: %s, and %s doesn't have it", way, name.of, name.what, differencesFile))
		}
	}
	for _, e := range list {
		if slices.Contains(e.where, way) && !used[e] {
			wrong = append(wrong, fmt.Sprintf("%s:%d: nothing differs at %s in what %s makes: remove the entry", differencesFile, e.line, e.pattern, way))
		}
	}
	return wrong
}

type changedName struct{ of, what string }

// changedNames are the paths and units that differ, and how. Packages that differ
// have no path, and so can't be in the list.
func changedNames(d *images.Diff) []changedName {
	var list []changedName
	add := func(of, format string, args ...any) {
		list = append(list, changedName{of, fmt.Sprintf(format, args...)})
	}
	for _, c := range d.About {
		add(c.Name, "%s → %s", c.Before, c.After)
	}
	for _, c := range d.Kernel {
		add(c.Name, "%s → %s", c.Before, c.After)
	}
	for _, c := range d.Packages {
		add("package:"+c.Name, "%s", c.Change)
	}
	for _, c := range d.Files {
		add(c.Path, "%s %s", c.Change, strings.Join(c.What, ", "))
	}
	for _, c := range d.Modes {
		add(c.Path, "%s → %s", c.Before, c.After)
	}
	for _, c := range d.Units {
		add("unit:"+c.Name, "%s → %s", c.Before, c.After)
	}
	return list
}

// TestPackerDifferences has the list's reader refuse what says nothing, and the
// check find what is unlisted and what is unused.
func TestPackerDifferences(t *testing.T) {
	for _, bad := range []string{"qemu /etc/x because\n", "qemu etc/x no path\n", "/etc/x\n"} {
		if list, err := parseKnownDifferences(bad); err == nil {
			t.Errorf("%q is %+v", bad, list[0])
		}
	}
	list, err := parseKnownDifferences("# a comment\nqemu,stock /var/log/** logs of it\nstock /etc/x* made there\nqemu /etc/unused never there\n")
	if err != nil {
		t.Fatal(err)
	}
	d := &images.Diff{
		Files: []images.FileChange{{Path: "/var/log", Change: images.Changed}, {Path: "/var/log/a/b", Change: images.Added}},
		Modes: []images.ModeChange{{Path: "/etc/x1"}}, Packages: []images.PackageChange{{Name: "acl", Change: images.Added}},
	}
	for way, want := range map[string]string{
		"qemu":  "package:acl;/etc/x1;:4: nothing differs at /etc/unused",
		"stock": "package:acl",
	} {
		if got := strings.Join(list.wrong(way, d), "\n"); !inOrder(got, strings.Split(want, ";")) || strings.Count(got, "\n") != strings.Count(want, ";") {
			t.Errorf("%s: got\n%s", way, got)
		}
	}
}

func inOrder(text string, parts []string) bool {
	for _, p := range parts {
		_, rest, ok := strings.Cut(text, p)
		if !ok {
			return false
		}
		text = rest
	}
	return true
}
