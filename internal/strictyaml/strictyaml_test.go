package strictyaml

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
)

// schema has a field of each kind.
type schema struct {
	Text   Value[string]      `yaml:"text"`
	Number Value[int]         `yaml:"number"`
	Share  Value[float64]     `yaml:"share"`
	Flag   bool               `yaml:"flag"`
	List   []Value[string]    `yaml:"list"`
	Map    Map[Value[string]] `yaml:"map"`
	Any    Map[any]           `yaml:"any"`
	Inner  *inner             `yaml:"inner"`
	Word   word               `yaml:"word"`
	Pos    problem.Position   `yaml:"-"`
}

type inner struct {
	A Value[string]    `yaml:"a"`
	B Value[string]    `yaml:"b"`
	P problem.Position `yaml:"-"`
}

// word is written as text or as {of: text}.
type word struct{ text string }

func (w *word) DecodeYAML(c *Context, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		w.text, _ = c.Scalar(n)
		return
	}
	var of struct {
		Of string `yaml:"of"`
	}
	c.Decode(n, &of)
	w.text = of.Of
}

func decode(text string) (schema, string) {
	var s schema
	var problems problem.List
	Decode([]byte(text), "f", 10, &s, &problems)
	return s, strings.TrimSpace(problems.Error())
}

func TestDecode(t *testing.T) {
	s, problems := decode(`
text: 1.9.7
number: 0x10
share: 1
flag: true
list: [a, 12, 2001-12-14, 1.10]
map: {k: v}
any: {s: text, n: 5, f: 1.5, b: false, l: [a, {x: y}], octal: 0o17, e: "", date: 2001-12-14}
inner: {a: x}
word: {of: w}
`)
	if problems != "" {
		t.Fatal(problems)
	}
	at := func(line, column int) problem.Position {
		return problem.Position{File: "f", Line: 10 + line, Column: column}
	}
	want := schema{
		Text: Value[string]{"1.9.7", at(2, 7)}, Number: Value[int]{16, at(3, 9)}, Share: Value[float64]{1, at(4, 8)}, Flag: true,
		List: []Value[string]{{"a", at(6, 8)}, {"12", at(6, 11)}, {"2001-12-14", at(6, 15)}, {"1.10", at(6, 27)}},
		Map:  Map[Value[string]]{{"k", at(7, 7), Value[string]{"v", at(7, 10)}}},
		Any: Map[any]{
			{"s", at(8, 7), "text"}, {"n", at(8, 16), 5}, {"f", at(8, 22), 1.5}, {"b", at(8, 30), false},
			{"l", at(8, 40), []any{"a", map[string]any{"x": "y"}}}, {"octal", at(8, 56), 15}, {"e", at(8, 69), ""}, {"date", at(8, 76), "2001-12-14"},
		},
		Inner: &inner{A: Value[string]{"x", at(9, 12)}, P: at(9, 8)}, Word: word{"w"}, Pos: at(2, 1),
	}
	if d := cmp.Diff(want, s, cmp.AllowUnexported(word{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestProblems(t *testing.T) {
	for text, want := range map[string]string{
		"txt: a\n":                          `f:11:1: unknown key "txt": did you mean "text"?`,
		"etxt: a\n":                         `f:11:1: unknown key "etxt": did you mean "text"?`,
		"text: {a: b}\n":                    "f:11:7: text was expected here, not a mapping",
		"text: yes\n":                       "",
		"text: true\n":                      `f:11:7: text was expected here, not the boolean true: write "true" in quotes if the word is meant`,
		"text: \"a\\0b\"\n":                 "f:11:7: this text has a NUL byte, which no file on a host can carry: remove it",
		"text:\n":                           "f:11:6: text has no value: give it one, or remove the line",
		"number: 1.0\n":                     "f:11:9: a whole number was expected here, not the number 1.0",
		"number: 99999999999999999999\n":    "f:11:9: a whole number was expected here, not the number 99999999999999999999",
		"number: 017\n":                     "f:11:9: 017 means one number to some readers of YAML and another to others: write it without the zero, or behind 0o if it is octal",
		"share: \"1\"\n":                    `f:11:8: a number was expected here, not the text "1"`,
		"flag: on\n":                        `f:11:7: true or false was expected here, not the text "on"`,
		"list: a\n":                         `f:11:7: a list was expected here, not the text "a": write its entries as a list, each behind a dash, or between [ and ]`,
		"map: [a]\n":                        "f:11:6: a mapping was expected here, not a list: write it as key: value",
		"map: {a: b, a: c}\n":               `f:11:13: "a" stands here twice: line 11 has it already: keep one of the two`,
		"map: {1: b, \"1\": c}\n":           `f:11:13: "1" stands here twice: line 11 has it already: keep one of the two`,
		"map: {[a]: b}\n":                   "f:11:7: a key must be a plain word, not a list",
		"any: {a: 1.10}\n":                  "f:11:10: 1.10 is a number, which would lose its last zero: write it in quotes to keep it as a text, such as a version; a number has no zero at its end",
		"any: {a: 010}\n":                   "f:11:10: 010 means one number to some readers of YAML and another to others: write it in quotes to keep it as a text",
		"any: {a: !!binary aGk=}\n":         "f:11:10: text was expected here, not a value tagged !!binary",
		"any: {a: ~}\n":                     `f:11:10: there is no value here: give it a value ("" for an empty text), or remove the line`,
		"any: {a: 99999999999999999999}\n":  "",
		"inner: 5\n":                        "f:11:8: a mapping was expected here, not the number 5: its keys are a, b",
		"inner: {<<: 5}\n":                  "f:11:13: only a mapping can be merged in here: name a mapping by its anchor: <<: *name",
		"inner: {<<: {a: 1, c: 2}, a: 3}\n": `f:11:20: unknown key "c": did you mean "a"?`,
		"inner: &x {<<: *x}\n":              "f:11:8: this repeats itself too often: write it out without aliases within aliases",
		"any: &x {a: *x}\n":                 "f:11:6: this repeats itself too often: write it out without aliases within aliases",
		"word: [a]\n":                       "f:11:7: a mapping was expected here, not a list: its keys are of",
		"- a\n":                             "f:11:1: a mapping was expected here, not a list: its keys are text, number, share, flag, list, map, any, inner, word",
		"text: a\n---\ntext: b\n":           "f:12:1: a second YAML document begins here, which would be ignored: keep one document in a file: remove the --- and what follows it, or move it to a file of its own",
		"text: a\nlist:\n - b\n  - c\n":     "",
		"text: a\nlist:\n- b\n number: 1\n": "f:14:2: this is not valid YAML: mapping values are not allowed in this context",
		"text: a\nflag: ]\n":                "f:12:1: this is not valid YAML: did not find expected node content",
		"text: \"a\nflag: true\n":           "f:11:1: this is not valid YAML: found unexpected end of stream",
		"text: a\n\n\nmap: {a: *b}\n":       "f:14:1: this is not valid YAML: unknown anchor 'b' referenced",
		"":                                  "",
		"# nothing\n":                       "",
		"text: \xff\n":                      "f:11:1: this is not valid YAML: invalid leading UTF-8 octet",
	} {
		if _, got := decode(text); got != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got, want)
		}
	}
}

// TestAliasesBounded: what expands without end ends.
func TestAliasesBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("any:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "  a%d: &a%d [%s]\n", i, i, strings.Join(slicesRepeat(fmt.Sprintf("*a%d", i-1), 10), ", "))
	}
	if _, got := decode(b.String()); !strings.HasSuffix(got, "this repeats itself too often: write it out without aliases within aliases") || strings.Contains(got, "\n") {
		t.Errorf("lists of lists: %.300s", got)
	}
	if _, got := decode("inner: &x {<<: [*x, *x, *x, *x, *x, *x]}\n"); !strings.HasPrefix(got, "f:11:8: this repeats itself too often") || strings.Contains(got, "\n") {
		t.Errorf("a mapping merged into itself: %.300s", got)
	}
}

// TestDepthBounded: what nests too deep is told so, once, without a word of
// aliases that it hasn't.
func TestDepthBounded(t *testing.T) {
	deep := strings.Repeat("[", 200) + strings.Repeat("]", 200)
	if _, got := decode("any: {k: [" + deep + ", " + deep + "]}\n"); !strings.HasSuffix(got, ": this nests too deep: write it flatter") || strings.Contains(got, "\n") {
		t.Errorf("got %s", got)
	}
	if _, got := decode("any: {k: " + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}\n"); got != "" {
		t.Errorf("40 levels: %s", got)
	}
}

func slicesRepeat(s string, n int) []string {
	l := make([]string, n)
	for i := range l {
		l[i] = s
	}
	return l
}

func TestMergeWins(t *testing.T) {
	s, problems := decode("any: &d {a: low}\ninner: {<<: [{a: first, b: second}, {a: no}], b: own}\n")
	if problems != "" || s.Inner.A.V != "first" || s.Inner.B.V != "own" {
		t.Errorf("%+v, %s", s.Inner, problems)
	}
}

func TestManyKeys(t *testing.T) {
	var b strings.Builder
	b.WriteString("map:\n")
	for i := range 100 {
		fmt.Fprintf(&b, "  k%d: v\n", i)
	}
	b.WriteString("  k3: again\n  k99: again\n")
	s, problems := decode(b.String())
	if len(s.Map) != 100 || problems != "f:112:3: \"k3\" stands here twice: line 15 has it already: keep one of the two\nf:113:3: \"k99\" stands here twice: line 111 has it already: keep one of the two" {
		t.Errorf("%d keys, %s", len(s.Map), problems)
	}
}

// FuzzDecode never panics, and says where each problem is.
func FuzzDecode(f *testing.F) {
	f.Add("text: a\nnumber: 5\nlist: [a]\nany: {a: &x [1, *x]}\ninner: {<<: {a: b}}\n")
	f.Add("map: {a: b, a: c}\nword: {of: x}\n---\n- \"\n")
	f.Add("? [a]\n: b\n")
	f.Add("%YAML 1.2\n---\ntext: !!binary aGk=\n...\n")
	f.Fuzz(func(t *testing.T, text string) {
		var s schema
		var problems problem.List
		Decode([]byte(text), "f", 0, &s, &problems)
		for _, p := range problems {
			if p.File != "f" || p.Line < 1 || p.Column < 1 {
				t.Errorf("no place: %s", p.Error())
			}
		}
	})
}
