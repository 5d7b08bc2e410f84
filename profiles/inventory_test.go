package profiles

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
)

// splitNames gives the names of the hosts in an inventory, with the line of
// each, and what is wrong.
func splitNames(text string) (names []string, lines []int, problems problem.List) {
	_ = splitInventory(strings.NewReader(text), "hosts.yaml", &problems, func(e entry) bool {
		if h := e.decode(&problems); h != nil {
			names, lines = append(names, h.Name.V), append(lines, h.Name.Pos.Line)
		}
		return true
	})
	return names, lines, problems
}

func TestSplitInventory(t *testing.T) {
	for what, c := range map[string]struct {
		text  string
		names []string
		lines []int
		wrong string
	}{
		"nothing":                  {"", nil, nil, ""},
		"blank lines and comments": {"\n# a\n\n- name: a\n\n# b\n  profile: p\n  # c\n- name: b\n\n", []string{"a", "b"}, []int{4, 9}, ""},
		"a document's start":       {"# a\n--- # b\n- name: a\n", []string{"a"}, []int{3}, ""},
		"a version":                {"%YAML 1.2\n---\n- name: a\n", []string{"a"}, []int{3}, ""},
		"a document's end":         {"- name: a\n...\n\n# b\n", []string{"a"}, []int{1}, ""},
		"a byte-order mark":        {"\ufeff- name: a\n- name: b\n", []string{"a", "b"}, []int{1, 2}, ""},
		"only a byte-order mark":   {"\ufeff", nil, nil, ""},
		"CRLF":                     {"- name: a\r\n  profile: p\r\n\r\n- name: b\r\n", []string{"a", "b"}, []int{1, 4}, ""},
		"no newline at the end":    {"- name: a\n- name: b", []string{"a", "b"}, []int{1, 2}, ""},
		"a dash alone":             {"-\n  name: a\n- \n  name: b\n", []string{"a", "b"}, []int{2, 4}, ""},
		"flow":                     {"- {name: a,\n   profile: p}\n- {\n  name: b\n  }\n", []string{"a", "b"}, []int{1, 4}, ""},
		"text of several lines":    {"- name: a\n  vars:\n    x: |\n      - name: no\n\n      # no\n    y: \"\n      - no\"\n- name: b\n", []string{"a", "b"}, []int{1, 9}, ""},
		"a list at an indent":      {"- name: a\n  vars:\n    x:\n    - 1\n    - 2\n- name: b\n", []string{"a", "b"}, []int{1, 6}, ""},
		"the empty list":           {"# none yet\n[]\n", nil, nil, ""},
		"anchors":                  {"- name: &n a\n  vars: {x: *n}\n", []string{"a"}, []int{1}, ""},
		"an alias across hosts":    {"- name: &n a\n- name: *n\n", []string{"a"}, []int{1}, "hosts.yaml:2:1: this is not valid YAML: unknown anchor 'n' referenced"},
		"a tab":                    {"- name: a\n\tprofile: p\n- name: b\n", []string{"b"}, []int{3}, "hosts.yaml:2:2: this is not valid YAML: found a tab character that violates indentation"},
		"a second document":        {"- name: a\n---\n- name: b\n", []string{"a"}, []int{1}, "hosts.yaml:2:1: " + secondDocument},
		"two starts":               {"---\n---\n- name: b\n", nil, nil, "hosts.yaml:2:1: " + secondDocument},
		"a host behind the start":  {"--- - name: a\n", nil, nil, "hosts.yaml:1:1: something stands behind"},
		"a host behind the end":    {"- name: a\n...\n- name: b\n", []string{"a"}, []int{1}, "hosts.yaml:3:1: the list of hosts has ended"},
		"a host behind []":         {"[]\n- name: b\n", nil, nil, "hosts.yaml:2:1: the list of hosts has ended"},
		"a mapping":                {"hosts:\n- name: a\n", nil, nil, "hosts.yaml:1:1: this line is no part of a list"},
		"a key outdented":          {"- name: a\nprofile: p\n- name: b\n", []string{"a"}, []int{1}, "hosts.yaml:2:1: this line is no part of a list"},
		"all indented":             {"  - name: a\n", nil, nil, "hosts.yaml:1:1: this line belongs to no host"},
		"a dash and no space":      {"-name: a\n", nil, nil, "hosts.yaml:1:1: this line is no part of a list"},
		"old Mac's line breaks":    {"- name: a\r- name: b\r", nil, nil, "hosts.yaml:1:1: a line break of another kind"},
		"hidden by a comment":      {"# a\r- name: a\n- name: b\n", nil, nil, "hosts.yaml:1:1: this line has a line break of another kind"},
	} {
		t.Run(what, func(t *testing.T) {
			names, lines, problems := splitNames(c.text)
			if d := cmp.Diff(c.names, names); d != "" {
				t.Errorf("the hosts (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.lines, lines); d != "" {
				t.Errorf("their lines (-want +got):\n%s", d)
			}
			if got := problems.Error(); !strings.HasPrefix(got, c.wrong) || c.wrong == "" && got != "" || len(problems) > 1 {
				t.Errorf("the problems are %q, not %q", got, c.wrong)
			}
		})
	}
}

// lineBreak is any that YAML 1.1 knows.
var lineBreak = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// FuzzInventory: what the stream finds without a problem is what YAML says of
// the whole file.
func FuzzInventory(f *testing.F) {
	for _, s := range []string{
		"", "- name: a\n", "---\n- name: a\n  profile: p\n- {name: b, profile: p}\n", "- name: a\n---\n- name: b\n", "[]\n", "# x\r- name: a\n",
		"\ufeff- name: a\r\n  vars:\r\n    x: |\r\n      - b\r\n", "- name: &a b\n  vars: {x: *a}\n", "- - name: a\n", "-\n-\tname: a\n", "- \"a\n- b\"\n",
		"- name: a\n  vars:\n    x: >-\n\n      - y\n# z\n      w\n", "...\n- name: a\n", "- name: a\u2028- name: b\n", "- <<: {name: a}\n", "%TAG ! x\n---\n- name: a\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var problems problem.List
		var each []any
		err := splitInventory(strings.NewReader(text), "hosts.yaml", &problems, func(e entry) bool {
			e.decode(&problems)
			var one []any
			if err := yaml.Unmarshal(e.text, &one); err == nil {
				each = append(each, one...)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Line > len(lineBreak.FindAllString(text, -1))+1 {
				t.Errorf("a problem at no line of the text: %s", p.Error())
			}
		}
		var whole []any
		if len(problems) > 0 || yaml.Unmarshal([]byte(text), &whole) != nil {
			return
		}
		if len(whole)+len(each) > 0 && !reflect.DeepEqual(whole, each) {
			t.Errorf("host by host: %#v\nas a whole:   %#v", each, whole)
		}
	})
}
