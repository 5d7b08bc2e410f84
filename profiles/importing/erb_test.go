package importing

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"text/template"

	"github.com/hashicorp/hcl"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/quote"
)

var update = flag.Bool("update", false, "write the golden files anew (and fail, so that no run passes by it)")

func golden(t *testing.T, file, got string) {
	t.Helper()
	name := filepath.Join("testdata", file)
	want, err := os.ReadFile(name)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s was written anew: look at the difference, and run the test without -update", name)
		return
	}
	t.Errorf("%s differs (go test -update writes it anew); got:\n%s", name, got)
}

// templates are those that Puppet's ERB renders too: puppet.rb.
var templates = []string{"consul.hcl", "nomad.hcl", "awkward.hcl", "script.sh", "kiln.service", "config.yaml", "dnsmasq.conf"}

func translate(t *testing.T, file string) Result {
	t.Helper()
	src, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ERB(file, src)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGolden(t *testing.T) {
	for _, name := range append([]string{"hard.hcl"}, templates...) {
		t.Run(name, func(t *testing.T) {
			r := translate(t, name+".erb")
			golden(t, name+".tmpl", r.Text)
			var b strings.Builder
			fmt.Fprintf(&b, "delimiters %s %s\n", r.Delimiters.Left, r.Delimiters.Right)
			for _, v := range r.Vars {
				fmt.Fprintf(&b, "line %d: variable %s, Puppet's %s: %s\n", v.Line, v.Name, v.Ruby, v.Kind)
			}
			for _, s := range r.Secrets {
				fmt.Fprintf(&b, "line %d: secret %s\n", s.Line, s.Name)
			}
			fmt.Fprintln(&b, r.Problems.Error())
			golden(t, name+".report", b.String())
			if (r.Problems.Err() != nil) != (name == "hard.hcl") {
				t.Errorf("what could be translated in %s: %v", name, r.Problems.Err())
			}
		})
	}
}

// testData is a template's data, and the secrets.
type testData struct {
	data    map[string]any
	secrets map[string]string
}

func readData(t *testing.T) testData {
	t.Helper()
	raw, err := os.ReadFile("testdata/data.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vars    map[string]any    `yaml:"vars"`
		Secrets map[string]string `yaml:"secrets"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	return testData{map[string]any{
		"vars":    file.Vars,
		"site":    map[string]any{"domain": "example.org"},
		"release": map[string]any{"codename": "bookworm", "version": "12"},
		"host": map[string]any{
			"name": "build01.example.org", "hostname": "build01", "advertise": "192.0.2.11",
			"facts": map[string]any{"cores": 16, "memory_mib": 65536},
		},
	}, file.Secrets}
}

var errFail = errors.New("fail was called")

func funcs(secrets map[string]string) template.FuncMap {
	fm := template.FuncMap{
		"secret": func(name string) (string, error) {
			s, ok := secrets[name]
			if !ok {
				return "", fmt.Errorf("no secret %q", name)
			}
			return s, nil
		},
		"join": func(sep string, list []any) string {
			words := make([]string, len(list))
			for i, v := range list {
				words[i] = fmt.Sprint(v)
			}
			return strings.Join(words, sep)
		},
		"fail": func(message string) (string, error) { return "", fmt.Errorf("%w: %s", errFail, message) },
	}
	for _, f := range quote.Formats() {
		fm[string(f)] = func(v any) (string, error) { return quote.As(f, v) }
	}
	return fm
}

func render(r Result, d testData) (string, error) {
	tmpl, err := template.New(r.Target).Delims(r.Delimiters.Left, r.Delimiters.Right).Option("missingkey=error").Funcs(funcs(d.secrets)).Parse(r.Text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = tmpl.Execute(&b, d.data)
	return b.String(), err
}

func parseHCL(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := hcl.Decode(&v, text); err != nil {
		t.Fatalf("HCL 1 doesn't take it: %v\n%s", err, text)
	}
	return v
}

// meaning is what the program that reads the file makes of it.
func meaning(t *testing.T, name, text string) any {
	t.Helper()
	switch filepath.Ext(name) {
	case ".hcl":
		return parseHCL(t, text)
	case ".yaml":
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return v
	case ".sh":
		return run(t, strings.ReplaceAll(text, "$(hostname -f)", "$(echo host)"))
	case ".service":
		_, text, _ = strings.Cut(text, "\n") // a comment with the tag in it
		return strings.ReplaceAll(text, `"`, "")
	}
	return text
}

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return string(out)
}

// TestAsPuppet compares with what Puppet's ERB makes of the same templates and
// values; puppet.rb recorded it.
func TestAsPuppet(t *testing.T) {
	d := readData(t)
	for _, name := range templates {
		t.Run(name, func(t *testing.T) {
			text, err := render(translate(t, name+".erb"), d)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join("testdata", name+".puppet"))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := meaning(t, name, text), meaning(t, name, string(want)); !reflect.DeepEqual(got, want) {
				t.Errorf("Kiln makes\n%v\nand Puppet\n%v", got, want)
			}
		})
	}
}

// hostile is what a value may hold, and must arrive as.
const hostile = "\"}${HOME}{{key}}%{\\ %s [[ ]] \u00e9 */ # '"

func TestHostileValues(t *testing.T) {
	const src = `name = "<%= @x %>"
part = "a\t%d-<%= @x %>-\"b\"-<%= @x %>\\"
listed = ["<%= @l.join('", "') %>"]
each = [<%= @l.map { |s| "\"#{s}:1\"" }.join(', ') %>]
secret = "%TEIGI__s__%"
# <%= @x %>
block "<%= @x %>" {
  joined = "<%= @l.join(',') %>"
}
`
	r, err := ERB("x.hcl.erb", []byte(src))
	if err != nil || r.Problems.Err() != nil {
		t.Fatal(err, r.Problems)
	}
	d := testData{map[string]any{"vars": map[string]any{"x": hostile, "l": []any{hostile, "b"}}}, map[string]string{"s": hostile + "\n"}}
	text, err := render(r, d)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"name": hostile, "part": "a\t%d-" + hostile + "-\"b\"-" + hostile + "\\", "listed": []any{hostile, "b"},
		"each": []any{hostile + ":1", "b:1"}, "secret": hostile + "\n",
		"block": []map[string]any{{hostile: []map[string]any{{"joined": hostile + ",b"}}}},
	}
	if got := parseHCL(t, text); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestHostileShell(t *testing.T) {
	const src = "A=<%= @x %>\nB=\"in $HOME-<%= @x %>\"\nC='<%= @x %>-c'\n# <%= @x %>\nprintf '%s\\n' \"$A\" \"$B\" \"$C\"\n"
	r, err := ERB("x.sh.erb", []byte(src))
	if err != nil || r.Problems.Err() != nil {
		t.Fatal(err, r.Problems)
	}
	value := hostile + "`echo x`"
	text, err := render(r, testData{data: map[string]any{"vars": map[string]any{"x": value}}})
	if err != nil {
		t.Fatal(err)
	}
	want := value + "\nin /h-" + value + "\n" + value + "-c\n"
	if got := run(t, "HOME=/h\n"+text); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestFails makes sure that each place that couldn't be translated stops the
// template that it stands in.
func TestFails(t *testing.T) {
	for _, tt := range []struct{ name, src, problem string }{
		{"x.hcl", `a = "<%= @x.foo %>"`, `x.hcl.erb:1:5: "<%= @x.foo %>" could not be translated`},
		{"x.hcl", "a = 1\nb = 8<%= @x %>", `x.hcl.erb:2:6: <%= @x %> could not be translated: put the whole value in quotes`},
		{"x.hcl", `a = "x-%TEIGI__k__%"`, `a secret can only be a whole string`},
		{"x.hcl", `a = %TEIGI__k__%`, `put it in quotes`},
		{"x.hcl", `a = "${b.<%= @x %>}"`, `take the tag out of ${…}`},
		{"x.hcl", `a = "<% if @x %>b<% end %>"`, `write the whole string in each branch`},
		{"x.hcl", `a = "b\<%= @x %>"`, `could not be translated`},
		{"x.hcl", `a = "<%= "x\"y" + @x %>"`, `could not be translated`},
		{"x.hcl", `a = "<%= @x.join('","') %>b"`, `could not be translated`},
		{"x.hcl", "a = <<E\n<%= @x %>\nE\n", `write the heredoc as a string in quotes`},
		{"x.hcl", "<% if @y %>#<% end %> a = \"<%= @x %>\"", `different places of the file's syntax`},
		{"x.hcl", "<% while true %>\na = 1\n<% end %>", `<% while true %> could not be translated`},
		{"x.hcl", "<% if @a =~ /x/ %>\na = 1\n<% end %>", `<% if @a =~ /x/ %> could not be translated`},
		{"x.hcl", "<% if @y %>\na = 1\n<% elsif foo %>\na = 2\n<% end %>", `<% elsif foo %> could not be translated`},
		{"x.hcl", "a = 1\n<% end %>", `nothing is open that it could close`},
		{"x.hcl", "<% unless @y %>\na = 1", `a block is never closed`},
		{"x.hcl", "a = \"<%= @x", `close it with %>`},
		{"x.hcl", "a = <%= x %>", `<%= x %> could not be translated`},
		{"x.hcl", "<% if @y %><% z = 1 %><% end %>a = <%= z %>", `<%= z %> could not be translated`},
		{"x.hcl", "a = \"<%= @a_b %> <%= scope['a::b'] %>\"", `could not be translated`},
		{"x.hcl", "a = <%= nil %>", `could not be translated`},
		{"x.json", `{"a": "b-<%= @x.strip %>"}`, `could not be translated`},
		{"x.yaml", "a: b-<%= @x %>\n", `make the tag the whole value`},
		{"x.yaml", "a: |\n  b-<%= @x %>\n", `write the block scalar as a string`},
		{"x.sh", "cat <<E\n<%= @x %>\nE\n", `set a variable of the shell to it`},
		{"x.sh", "A=`echo <%= @x %>`\n", `set a variable of the shell to it`},
		{"x.service", "[Service]\nExecStart=/bin/x %i-<%= @x %>\n", `write the word without quotes, specifiers and variables`},
		{"x.conf", "a <%= @x.capitalize %>\n", `could not be translated`},
	} {
		r, err := ERB(tt.name+".erb", []byte(tt.src))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Problems.Err(); err == nil || !strings.Contains(err.Error(), tt.problem) {
			t.Errorf("%s: the problems are %v, and should say %s", tt.src, err, tt.problem)
		}
		d := testData{map[string]any{"vars": map[string]any{"x": "v", "y": false, "a": "a", "a_b": "c"}}, map[string]string{"k": "s"}}
		if out, err := render(r, d); !errors.Is(err, errFail) {
			t.Errorf("%s renders as %q (%v), and should fail; the template:\n%s", tt.src, out, err, r.Text)
		}
	}
}

// TestUnsetFails: a variable that nobody set is no empty string.
func TestUnsetFails(t *testing.T) {
	r, err := ERB("x.hcl.erb", []byte(`a = "b-<%= @x %>"`))
	if err != nil {
		t.Fatal(err)
	}
	for _, vars := range []map[string]any{{}, {"x": nil}, {"x": []any{"a"}}} {
		if out, err := render(r, testData{data: map[string]any{"vars": vars}}); err == nil {
			t.Errorf("with %v it renders as %s", vars, out)
		}
	}
}

func TestNoTemplate(t *testing.T) {
	for name, src := range map[string]string{"x.hcl.epp": "a", "x.bin.erb": "a\x00b", "y.bin.erb": "\xff\xfe"} {
		if _, err := ERB(name, []byte(src)); err == nil {
			t.Errorf("%s was taken for an ERB template", name)
		}
	}
}

func TestLiteralSecretInTemplate(t *testing.T) {
	r, err := ERB("consul.hcl.erb", []byte("\nencrypt = \"c2VjcmV0IHNlY3JldCBzZWNyZXQ=\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	text := r.Problems.Error()
	if !strings.Contains(text, "consul.hcl.erb:2") || strings.Contains(text, "c2Vj") {
		t.Errorf("the problems are: %s", text)
	}
}

func TestDelimiters(t *testing.T) {
	for src, want := range map[string]string{
		"a = 1":                      "{{",
		`a = "{{ key }}"`:            "[[",
		`a = [["{{"]] # <%= @x %>`:   "[%",
		`a = "{{ [[ [% [%%"`:         "[%%%",
		"m { <%= @k %> = 1 }":        "{{",
		"m {<%= @k %> = 1 }":         "[[", // {{{ would begin one character early
		"m {<%= @k %> = [<%= @v %>]": "[%",
	} {
		r, err := ERB("x.hcl.erb", []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		if r.Delimiters.Left != want {
			t.Errorf("%s: the delimiters are %s, not %s", src, r.Delimiters.Left, want)
		}
		if _, err := r.WithDelimiters(Delimiters{"{{", "}}"}); (err == nil) != (want == "{{") {
			t.Errorf("%s with the usual delimiters: %v", src, err)
		}
	}
}

func TestTargetPath(t *testing.T) {
	for file, want := range map[string]string{
		"code/templates/etc/nomad.d/nomad.hcl.erb": "/etc/nomad.d/nomad.hcl",
		"templates/etc/x/y.conf.erb":               "/etc/x/y.conf",
		"consul.hcl.erb":                           "/etc/consul.d/consul.hcl",
		"other.conf.erb":                           "",
		"templates/other.conf.erb":                 "",
	} {
		if got, ok := TargetPath(file); got != want || ok != (want != "") {
			t.Errorf("%s goes to %q, not %q", file, got, want)
		}
	}
}

func FuzzERB(f *testing.F) {
	for _, name := range append([]string{"hard.hcl"}, templates...) {
		src, err := os.ReadFile(filepath.Join("testdata", name+".erb"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name, src)
	}
	for _, src := range []string{"<%", "<%=%>", "<%-%>", "\"<%= %>\"", "<%# */ }} -%>\n{{", "a=\"<%=\"#{\"}\"%>", "{<%=@a%>", "<% } %><% @a.each { |x| %>"} {
		f.Add("x.hcl", []byte(src))
	}
	f.Fuzz(func(t *testing.T, name string, src []byte) {
		r, err := ERB(name+".erb", src)
		if err != nil {
			return
		}
		_, err = template.New("x").Delims(r.Delimiters.Left, r.Delimiters.Right).Funcs(funcs(nil)).Parse(r.Text)
		if err != nil {
			t.Fatalf("%v\nfrom %q\nmade %q", err, src, r.Text)
		}
	})
}

// TestDocumentation runs the example of docs/import.md.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/import.md")
	if err != nil {
		t.Fatal(err)
	}
	example := func(language string) string {
		_, rest, _ := strings.Cut(string(page), "```"+language+"\n")
		text, _, ok := strings.Cut(rest, "```")
		if !ok {
			t.Fatalf("the page has no example of %s", language)
		}
		return text
	}
	r, err := ERB("consul.hcl.erb", []byte(example("erb")))
	if err != nil {
		t.Fatal(err)
	}
	if want := example("template"); r.Text != want {
		t.Errorf("the example gives\n%s", r.Text)
	}
}
