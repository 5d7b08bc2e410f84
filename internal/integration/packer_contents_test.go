//go:build integration

package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// contents gives the content of an image's file.
type contents func(name string) string

// contentsOf reads a disk's files.
func contentsOf(t *testing.T, disk string) contents {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	printed(t, exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", "raw", disk, raw))
	root := fmt.Sprintf("%s?offset=%d", raw, rootOffset(t, raw))
	return func(name string) string {
		text := printed(t, exec.CommandContext(t.Context(), program(t, "debugfs"), "-R", "cat "+name, root))
		if text == "" {
			t.Fatalf("%s can't be read from %s", name, disk)
		}
		return text
	}
}

// alike makes the same text of contents that differ only in what a name says: an
// argument follows it, after a colon, where it has one.
var alike = map[string]func(text, argument string) string{
	"content":    func(string, string) string { return "" },
	"order":      func(text, _ string) string { return ordered(text) },
	"without":    func(text, name string) string { return ordered(linesOf(name).ReplaceAllString(text, "")) },
	"number":     func(text, name string) string { return ordered(numberOf(name).ReplaceAllString(text, "${1}N:")) },
	"days":       func(text, _ string) string { return ordered(shadowDay.ReplaceAllString(text, "$1")) },
	"paragraphs": func(text, _ string) string { return orderedParagraphs(text) },
	"uuids":      func(text, _ string) string { return uuid.ReplaceAllString(text, "UUID") },
}

// alikeIn is the text as how, with its argument, makes it alike.
func alikeIn(how, text string) string {
	name, argument, _ := strings.Cut(how, ":")
	return alike[name](text, argument)
}

// isAlike tells whether how is a way to be alike.
func isAlike(how string) bool {
	name, argument, has := strings.Cut(how, ":")
	return alike[name] != nil && has == (name == "without" || name == "number") && has == (argument != "")
}

var (
	shadowDay = regexp.MustCompile(`(?m)^([^:\n]*:[^:\n]*:)[0-9]+`)
	uuid      = regexp.MustCompile(`\b([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9A-F]{4}-[0-9A-F]{4})\b`)
)

func linesOf(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `:.*\n`)
}

func numberOf(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^(` + regexp.QuoteMeta(name) + `:([^:0-9\n]*:)*)[0-9]+:`)
}

// ordered has a text's lines in the order of the alphabet, and so what stands
// between commas there, as the members of a group do.
func ordered(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		fields := strings.Split(line, ":")
		for j, f := range fields {
			members := strings.Split(f, ",")
			slices.Sort(members)
			fields[j] = strings.Join(members, ",")
		}
		lines[i] = strings.Join(fields, ":")
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// orderedParagraphs has each paragraph in a line.
func orderedParagraphs(text string) string {
	paragraphs := strings.Split(strings.Trim(text, "\n"), "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.ReplaceAll(p, "\n", " | ")
	}
	slices.Sort(paragraphs)
	return strings.Join(paragraphs, "\n") + "\n"
}

// TestPackerDifferences has the list's reader refuse what says nothing, and the
// check find what is unlisted, what is unused, and what differs in more than it may.
func TestPackerDifferences(t *testing.T) {
	for _, bad := range []string{"qemu /etc/x entry because\n", "qemu etc/x entry no path\n", "qemu /etc/x somehow it differs\n", "qemu /etc/x without it differs\n", "qemu /etc/x order:x it differs\n", "qemu /etc/x number: it differs\n", "/etc/x\n"} {
		if list, err := parseKnownDifferences(bad); err == nil {
			t.Errorf("%q is %+v", bad, list[0])
		}
	}
	list, err := parseKnownDifferences("# a comment\nqemu,stock /var/log/** entry logs of it\nstock /etc/x* entry made there\nqemu /etc/unused entry never there\nqemu /etc/passwd order made later\n")
	if err != nil {
		t.Fatal(err)
	}
	d := &images.Diff{
		Files: []images.FileChange{
			{Path: "/etc/passwd", Change: images.Changed, What: []string{"content"}},
			{Path: "/var/log", Change: images.Changed, What: []string{"attributes"}}, {Path: "/var/log/a/b", Change: images.Added},
			{Path: "/var/log/c", Change: images.Changed, What: []string{"content"}},
		},
		Modes: []images.ModeChange{{Path: "/etc/x1"}}, Packages: []images.PackageChange{{Name: "acl", Change: images.Added}},
	}
	before := func(string) string { return "a:1:x,y\nb:2\n" }
	for _, test := range []struct {
		way, after string
		want       []string
	}{
		{"qemu", "b:2\na:1:y,x\n", []string{"package:acl", "/var/log/c", "/etc/x1", ":4: nothing differs at /etc/unused"}},
		{"qemu", "b:3\na:1:y,x\n", []string{"package:acl", "/etc/passwd differs in more than order:\n-b:2\n+b:3", "/var/log/c", "/etc/x1", ":4: nothing"}},
		{"stock", "", []string{"package:acl", "/etc/passwd", "/var/log/c"}},
	} {
		got := list.wrong(test.way, d, before, func(string) string { return test.after })
		if len(got) != len(test.want) || !inOrder(strings.Join(got, "\n"), test.want) {
			t.Errorf("%s: got\n%s", test.way, strings.Join(got, "\n"))
		}
	}
}

// TestPackerAlike has each way to be alike forget what it is called after, and
// nothing else.
func TestPackerAlike(t *testing.T) {
	for _, test := range []struct {
		how, a, b string
		same      bool
	}{
		{"order", "x:1:a,b\ny\n", "y\nx:1:b,a\n", true},
		{"order", "x\ny\n", "x\n", false},
		{"order", "x:1\n", "x:2\n", false},
		{"days", "x:!:20000:0:99999\ny:*:1:\n", "y:*:2:\nx:!:20001:0:99999\n", true},
		{"days", "x:!:20000:0:99999\n", "x:*:20000:0:99999\n", false},
		{"days", "x:!:20000:0:99999\n", "x:!:20000:0:9\n", false},
		{"paragraphs", "a: 1\nb: 2\n\nc: 3\n", "c: 3\n\na: 1\nb: 2\n", true},
		{"paragraphs", "a: 1\nb: 2\n\nc: 3\n", "c: 3\nb: 2\n\na: 1\n", false},
		{"without:b", "a:1\nb:2\n", "a:1\n", true},
		{"without:b", "a:1\nbb:2\n", "a:1\n", false},
		{"number:b", "a:x:1:7\nb:x:2:8\n", "b:x:3:8\na:x:1:7\n", true},
		{"number:b", "b:x:2:8\n", "b:x:2:9\n", false},
		{"number:b", "b:x:2:8\n", "", false},
		{"number:b", "b:100000:65536\n", "b:165536:65536\n", true},
		{"number:b", "b:100000:65536\n", "b:100000:65535\n", false},
		{"content", "a", "b", true},
		{"uuids", "5307c06f-fd12-8aa1-83a2-471cf161cea8 / D32B-FF2A", "5307c06f-fd12-8aa1-83a2-471cf161cea9 / D32B-FF2B", true},
		{"uuids", "5307c06f-fd12-8aa1-83a2-471cf161cea8 /", "5307c06f-fd12-8aa1-83a2-471cf161cea8 /x", false},
	} {
		if same := alikeIn(test.how, test.a) == alikeIn(test.how, test.b); same != test.same {
			t.Errorf("%s: %q and %q: the same is %t", test.how, test.a, test.b, same)
		}
	}
}
