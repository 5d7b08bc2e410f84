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
	how     string // entry, or one of alike
	reason  string
}

// A content that differs is listed with what doesn't count in it. All else, such as
// a mode, is listed as entry.
const (
	differentEntry = "entry"
	anyContent     = "content"
)

const differencesFile = "testdata/packer-differences.txt"

type knownDifferences []*knownDifference

// newKnownDifferences reads the list: on each line the ways, between commas, a path's
// pattern, how it may differ, and the reason. A pattern that ends in /** is for all
// below a folder.
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
		if len(fields) < 5 || !strings.HasPrefix(fields[1], "/") && !strings.HasPrefix(fields[1], "unit:") {
			return nil, fmt.Errorf("%s:%d: a line has ways, a pattern, how it differs, and a reason of two words or more: %s", differencesFile, number, line)
		}
		if how := fields[2]; how != differentEntry && !isAlike(how) {
			return nil, fmt.Errorf("%s:%d: %s is no way to differ", differencesFile, number, how)
		}
		list = append(list, &knownDifference{number, strings.Split(fields[0], ","), fields[1], fields[2], strings.Join(fields[3:], " ")})
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
func (list knownDifferences) check(t *testing.T, way string, d *images.Diff, before, after contents) {
	t.Helper()
	for _, text := range list.wrong(way, d, before, after) {
		t.Error(text)
	}
}

func (list knownDifferences) wrong(way string, d *images.Diff, before, after contents) []string {
	var wrong []string
	used := map[*knownDifference]bool{}
	for _, name := range changedNames(d) {
		known := false
		for _, e := range list {
			if !e.covers(way, name.of) || name.content != (e.how != differentEntry) {
				continue
			}
			used[e], known = true, true
			if name.content && e.how != anyContent {
				wrong = append(wrong, e.more(way, name.of, before(name.of), after(name.of))...)
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

// more is what differs in a file's content besides what may.
func (d *knownDifference) more(way, name, before, after string) []string {
	before, after = alikeIn(d.how, before), alikeIn(d.how, after)
	if before == after {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s differs in more than %s:\n%s", way, name, d.how, lineDiff(before, after))}
}

type changedName struct {
	of, what string
	content  bool // is what differs
}

// changedNames are the paths and units that differ, and how. Packages that differ
// have no path, and so can't be in the list.
func changedNames(d *images.Diff) []changedName {
	var list []changedName
	add := func(of, format string, args ...any) {
		list = append(list, changedName{of: of, what: fmt.Sprintf(format, args...)})
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
		for _, what := range c.What {
			list = append(list, changedName{c.Path, c.Change + " " + what, what == "content"})
		}
		if len(c.What) == 0 {
			add(c.Path, "%s", c.Change)
		}
	}
	for _, c := range d.Modes {
		add(c.Path, "%s → %s", c.Before, c.After)
	}
	for _, c := range d.Units {
		add("unit:"+c.Name, "%s → %s", c.Before, c.After)
	}
	return list
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
