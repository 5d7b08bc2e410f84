package quote_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/hcl"
	hcl2 "github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"golang.org/x/text/unicode/norm"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/quote"
)

// hostile are texts that some format's syntax gives a meaning to.
var hostile = []string{
	"", " ", "  lead and trail  ", "plain", "a\"b", `"`, `""`, `'`, `'''`, "`", "\"}${HOME}{{key}}%{\\\nend",
	"${x}", "$${x}", "$$${x}", "%{if}", "%%{x}", "$", "%", "${", "$ {", "}", "{", `\`, `\\`, `\u0024{x}`, `\${x}`, `\n`, `\"`,
	"\n", "\r", "\r\n", "\t", "a\tb", "\a\b\f\v\x01\x1b[31m", "\x7f", "\u0085", "\u009f", "\u00a0", "\u2028\u2029", "\ufeff", "a\ufeffb", "\ufeff${x}",
	"\ue123", "\ufffd", "\ufffe\uffff", "\U0001f600 \U0010ffff", "日本語", "é", "\u0301", "#", "# comment", "// x", "/* x */", "<<EOF", "- a", "a: b", "a:", ": a", "? a",
	"null", "~", "true", "yes", "no", "on", "0", "007", "0x1f", "1e3", ".5", "1_000", "12:30:00", "2024-01-01", ".inf", "<<", "=", "&a", "*a", "!!str", "|", ">", "@x", "%x", "---", "...",
	"-", "--", "-n", "!x", "$(id)", "`id`", "$HOME", "~root", "*", "a b", "a;b", "a&&b", "\\\n", "x\\", "[x]", "{x: y}", "kiln-secret:vault://kv/a#b",
}

// errRefused are texts that no format can carry.
var errRefused = []string{"\x00", "a\x00b", "\xff", "a\xc3", "\xed\xa0\x80"}

func asHCL1(text string) (any, error) {
	var m map[string]any
	if err := hcl.Unmarshal([]byte("v = "+text+"\nafter = 1\n"), &m); err != nil {
		return nil, err
	}
	if len(m) != 2 || m["after"] != 1 {
		return nil, fmt.Errorf("it reached beyond its place: %v", m)
	}
	return flat1(m["v"]), nil
}

// flat1 undoes that HCL 1 gives each object as a list of objects.
func flat1(v any) any {
	switch v := v.(type) {
	case []map[string]any:
		if len(v) == 1 {
			return flat1(v[0])
		}
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			out[k] = flat1(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = flat1(v[i])
		}
		return out
	}
	return v
}

func asHCL2(text string) (any, error) {
	file, diags := hclsyntax.ParseConfig([]byte("v = "+text+"\nafter = 1\n"), "x.hcl", hcl2Start)
	if diags.HasErrors() {
		return nil, diags
	}
	attrs, diags := file.Body.JustAttributes()
	if diags.HasErrors() || len(attrs) != 2 {
		return nil, fmt.Errorf("it reached beyond its place: %v %v", attrs, diags)
	}
	// Without any variable or function: an interpolation would fail.
	v, diags := attrs["v"].Expr.Value(nil)
	if diags.HasErrors() {
		return nil, diags
	}
	return flat2(v), nil
}

func flat2(v cty.Value) any {
	switch t := v.Type(); {
	case t == cty.String:
		return v.AsString()
	case t == cty.Bool:
		return v.True()
	case t == cty.Number:
		return v.AsBigFloat()
	case t.IsTupleType():
		out := []any{}
		for _, e := range v.AsValueSlice() {
			out = append(out, flat2(e))
		}
		return out
	case t.IsObjectType():
		out := map[string]any{}
		for k, e := range v.AsValueMap() {
			out[k] = flat2(e)
		}
		return out
	}
	return v
}

func asYAML(text string) (any, error) {
	var m map[string]any
	// In a block's place, and inside a flow mapping.
	for _, doc := range []string{"v: " + text + "\nafter: 1\n", "{v: " + text + ", after: 1}\n", "- " + text} {
		if strings.HasPrefix(doc, "- ") {
			var l []any
			if err := yaml.Unmarshal([]byte(doc), &l); err != nil {
				return nil, err
			}
			if len(l) != 1 || !same(l[0], m["v"]) {
				return nil, fmt.Errorf("in a list it's %v", l)
			}
			continue
		}
		m = nil
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			return nil, err
		}
		if len(m) != 2 || m["after"] != 1 {
			return nil, fmt.Errorf("it reached beyond its place: %v", m)
		}
	}
	return m["v"], nil
}

func asJSON(text string) (any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("there is more than one value in %s", text)
	}
	return v, nil
}

// same compares what was written with what a parser read: numbers by their
// value, lists and maps by what is in them.
func same(a, b any) bool {
	ra, rb := reflect.ValueOf(a), reflect.ValueOf(b)
	if na, ok := number(a); ok {
		nb, ok := number(b)
		return ok && na.Cmp(nb) == 0
	}
	if !ra.IsValid() || !rb.IsValid() || ra.Kind() != rb.Kind() {
		return false
	}
	switch ra.Kind() {
	case reflect.Slice:
		if ra.Len() != rb.Len() {
			return false
		}
		for i := range ra.Len() {
			if !same(ra.Index(i).Interface(), rb.Index(i).Interface()) {
				return false
			}
		}
		return true
	case reflect.Map:
		if ra.Len() != rb.Len() {
			return false
		}
		for _, k := range ra.MapKeys() {
			e := rb.MapIndex(k)
			if !e.IsValid() || !same(ra.MapIndex(k).Interface(), e.Interface()) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

func number(v any) (*big.Rat, bool) {
	switch v := v.(type) {
	case *big.Float:
		r, _ := new(big.Rat).SetString(v.Text('f', -1))
		return r, r != nil
	case int, int64, uint64, float64, json.Number:
		return new(big.Rat).SetString(fmt.Sprint(v))
	}
	return nil, false
}

type parser struct {
	name  string
	quote func(any) (string, error)
	parse func(string) (any, error)
}

var parsers = []parser{
	{"HCL 1", quote.HCL, asHCL1}, {"HCL 2", quote.HCL, asHCL2},
	{"YAML", quote.YAML, asYAML}, {"JSON", quote.JSON, asJSON}, {"JSON as YAML", quote.JSON, asYAML},
}

func TestTextsAreReadBack(t *testing.T) {
	for _, p := range parsers {
		for _, s := range hostile {
			check(t, p, s)
			check(t, p, []any{s, s})
			check(t, p, map[string]any{"k." + s: s, "a": []any{s, map[string]any{"b": s}}})
		}
	}
}

func TestValuesAreReadBack(t *testing.T) {
	for _, p := range parsers {
		for _, v := range []any{
			0, -1, 42, math.MaxInt64, math.MinInt64, 0.5, -2.25, 1e6, 1e-7, 3.0, true, false,
			[]any{}, []any{1, "x", true, 0.5}, []any{[]any{"a"}, []any{}}, map[string]any{},
			map[string]any{"a b": 1, "c.d": "x", "e": map[string]any{"f": []any{1, 2}}}, []any{map[string]any{"a": 1}, map[string]any{"a": 2}},
		} {
			check(t, p, v)
		}
	}
}

func check(t *testing.T, p parser, v any) {
	t.Helper()
	text, err := p.quote(v)
	if err != nil {
		t.Errorf("%s: %q is refused: %v", p.name, v, err)
		return
	}
	if strings.ContainsAny(text, "\n\r") {
		t.Errorf("%s: %q takes more than one line: %q", p.name, v, text)
	}
	got, err := p.parse(text)
	if err != nil {
		t.Errorf("%s: %q becomes %s, which can't be read: %v", p.name, v, text, err)
	} else if !same(v, got) {
		t.Errorf("%s: %q becomes %s, which is read as %q", p.name, v, text, got)
	}
}

func TestTextsThatNoFormatCarries(t *testing.T) {
	for _, f := range quote.Formats() {
		for _, s := range errRefused {
			for _, v := range []any{s, []string{s}} {
				if text, err := quote.As(f, v); err == nil {
					t.Errorf("%s: %q becomes %q", f, v, text)
				}
			}
		}
	}
	for _, f := range []quote.Format{quote.FormatHCL, quote.FormatYAML, quote.FormatJSON} {
		if text, err := quote.As(f, map[string]string{"a\x00": "b"}); err == nil {
			t.Errorf("%s: a key with NUL becomes %q", f, text)
		}
	}
}

func TestRefused(t *testing.T) {
	type unknown struct{ A int }
	var nobody *netip.Addr
	for _, tt := range []struct {
		name   string
		format quote.Format
		value  any
		want   string
	}{
		{"nothing", quote.FormatHCL, nil, "there is no value"},
		{"a list with nothing in it", quote.FormatYAML, []any{nil}, "there is no value"},
		{"a pointer to nothing", quote.FormatShell, nobody, "there is no value"},
		{"a struct", quote.FormatHCL, unknown{}, "unknown can't be written"},
		{"a map by numbers", quote.FormatJSON, map[int]string{}, "keys of type int"},
		{"not a number", quote.FormatHCL, math.NaN(), "no number"},
		{"infinity", quote.FormatYAML, math.Inf(-1), "no number"},
		{"not in normal form C", quote.FormatHCL, "e\u0301", "normal form C"},
		{"a key not in normal form C", quote.FormatHCL, map[string]string{"e\u0301": ""}, "normal form C"},
		{"64 bits", quote.FormatHCL, uint64(math.MaxUint64), "too large for HCL"},
		{"a large float", quote.FormatHCL, 1e30, "too large for HCL"},
		{"a long key", quote.FormatYAML, []any{map[string]any{strings.Repeat("k", 1100): 1}}, "YAML takes 1024"},
		{"a map for a shell", quote.FormatShell, map[string]string{}, "one by one"},
		{"a list in a list for a shell", quote.FormatShell, []any{[]any{}}, "one by one"},
		{"a list in a line", quote.FormatRaw, []string{"a"}, "one by one"},
		{"a newline in a line", quote.FormatRaw, "a\nb", "control character U+000A"},
		{"a next line in a line", quote.FormatRaw, "a\u0085b", "control character U+0085"},
		{"a dollar for systemd", quote.FormatSystemd, "a$b", "holds a $"},
		{"no format", "toml", "a", `no format is called "toml"`},
	} {
		text, err := quote.As(tt.format, tt.value)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v; want an error with %q", tt.name, text, err, tt.want)
		}
	}
}

// An error of this package may be shown though the value was a secret.
func TestErrorsDontShowTheValue(t *testing.T) {
	for _, f := range quote.Formats() {
		for _, s := range []string{"canary\x00", "canary\n\u0301e\u0301$\x7f", "canary\xff"} {
			if _, err := quote.As(f, s); err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
}

func TestLine(t *testing.T) {
	for v, want := range map[any]string{
		"a b": "a b", "": "", 7: "7", true: "true", netip.MustParseAddr("2001:db8::1"): "2001:db8::1", "${x}\"'\\": "${x}\"'\\", 2.5: "2.5", float32(0.1): "0.1", uint8(3): "3",
	} {
		if got, err := quote.Line(v); err != nil || got != want {
			t.Errorf("%v: got %q, %v, want %q", v, got, err, want)
		}
	}
}

// shells are those whose words are tried; sh itself is one of them on Debian.
var shells = []string{"sh", "dash", "bash"}

// inShell runs each shell there is with the text as words of its own, and
// returns what they are.
func inShell(t testing.TB, text string, shells ...string) map[string][]string {
	t.Helper()
	words := map[string][]string{}
	for _, shell := range shells {
		if _, err := exec.LookPath(shell); err != nil && shell != "sh" {
			continue
		}
		cmd := exec.Command(shell, "-c", `printf '%s\0' `+text)
		cmd.Env = []string{"HOME=/wrong", "PATH=/nonexistent", "LC_ALL=C"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %s: %v: %s", shell, text, err, out)
			continue
		}
		words[shell] = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	}
	if len(words) == 0 {
		t.Fatal("no shell was tried")
	}
	return words
}

func TestShell(t *testing.T) {
	// All at once, since a shell takes its time to start.
	text, err := quote.Shell(hostile)
	if err != nil {
		t.Fatal(err)
	}
	for shell, got := range inShell(t, text, shells...) {
		if !reflect.DeepEqual(got, hostile) {
			t.Errorf("%s: got %q\nwant %q", shell, got, hostile)
		}
	}
	for v, want := range map[any]string{7: "'7'", true: "'true'", "": "''", "it's": `'it'\''s'`} {
		if got, err := quote.Shell(v); err != nil || got != want {
			t.Errorf("%v: got %s, %v, want %s", v, got, err, want)
		}
	}
}

// The integration tests ask the real systemd; these are the spellings that it
// agreed with.
func TestSystemd(t *testing.T) {
	for v, want := range map[any]string{
		"plain": "plain", "/a/b=c": "/a/b=c", "": `""`, "a b": `"a b"`, "50%": "50%%", `"`: `"\""`, `'`: `"'"`, `\x`: `"\\x"`, ";": `";"`,
		"a\nb": `"a\nb"`, "a\tb": `"a\tb"`, "\x1b\r": `"\x1b\x0d"`, "\x7f": `"\x7f"`, "é": "é", "\u2028": "\"\u2028\"", "\u00a0": "\"\u00a0\"", 3: "3", "{{x}}": "{{x}}",
	} {
		if got, err := quote.Systemd(v); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", v, got, err, want)
		}
	}
	if got, err := quote.Systemd([]string{"a b", "c"}); err != nil || got != `"a b" c` {
		t.Errorf("a list: got %s, %v", got, err)
	}
}

func TestFormatOf(t *testing.T) {
	for name, want := range map[string]quote.Format{
		"nomad.hcl": "hcl", "a.pkr.hcl": "hcl", "x.yaml": "yaml", "x.yml": "yaml", "x.json": "json", "run.sh": "sh", "consul.service": "systemd", "build.mount": "systemd",
		"dnsmasq.conf": "", "README": "", "x.": "", "": "",
	} {
		if got, ok := quote.FormatOf(name); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
	}
}

func TestJSONStaysReadable(t *testing.T) {
	var b bytes.Buffer
	for _, v := range []any{"<a href=\"x\">&", "日本", []any{"a", 1}, map[string]any{"b": 1, "a": "x"}} {
		s, err := quote.JSON(v)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(s + "\n")
	}
	if want := "\"<a href=\\\"x\\\">&\"\n\"日本\"\n[\"a\", 1]\n{\"a\": \"x\", \"b\": 1}\n"; b.String() != want {
		t.Errorf("got %s", b.String())
	}
}

func seed(f *testing.F) {
	for _, s := range append(append([]string{"e\u0301", strings.Repeat("k", 1023)}, hostile...), errRefused...) {
		f.Add(s)
	}
}

func FuzzHCL(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := quote.HCL(s); err != nil {
			if utf8.ValidString(s) && !strings.Contains(s, "\x00") && norm.NFC.IsNormalString(s) {
				t.Errorf("%q is refused: %v", s, err)
			}
			return
		}
		for _, p := range parsers[:2] {
			check(t, p, s)
			check(t, p, map[string]any{"k." + s: []any{s}})
		}
	})
}

func FuzzYAML(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := quote.YAML(s); err != nil {
			if utf8.ValidString(s) && !strings.Contains(s, "\x00") {
				t.Errorf("%q is refused: %v", s, err)
			}
			return
		}
		for _, p := range parsers[2:] {
			check(t, p, s)
		}
		if _, err := quote.YAML(map[string]any{s: s}); err == nil {
			check(t, parsers[2], map[string]any{s: []any{s}})
		} else if len(strconv.Quote(s)) < 1000 {
			t.Errorf("%q is refused as a key: %v", s, err)
		}
	})
}

func FuzzShell(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, s string) {
		text, err := quote.Shell(s)
		if err != nil {
			if utf8.ValidString(s) && !strings.Contains(s, "\x00") {
				t.Errorf("%q is refused: %v", s, err)
			}
			return
		}
		for shell, got := range inShell(t, text, "sh") {
			if len(got) != 1 || got[0] != s {
				t.Errorf("%s: %q becomes %s, which is read as %q", shell, s, text, got)
			}
		}
	})
}

var hcl2Start = hcl2.Pos{Line: 1, Column: 1}
