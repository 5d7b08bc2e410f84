package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"golang.org/x/mod/semver"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// fileTemplate is one .tmpl file, parsed.
type fileTemplate struct {
	name   string // the file's name as errors show it
	image  bool   // stands in the image half
	tmpl   *template.Template
	uris   map[string]problem.Position // where the template names a secret itself
	places map[string]problem.Position // where the template first uses a secret's name
	vars   varUse                      // the variables that the template reads
	// computed is where the template first uses a secret whose name it computes.
	computed problem.Position
}

// mark stands around the place of a secret in a template's output: no value
// and no template can hold a NUL byte.
const mark = "\x00"

// secretUse is what the function secret gives: only quoting takes it further.
type secretUse struct{ name string }

// String gives the secret's place in a file without a quoting of its own.
func (s secretUse) String() string { return s.marked(quote.FormatRaw) }

func (s secretUse) marked(f quote.Format) string {
	return mark + string(f) + " " + s.name + mark
}

// templateError is what went wrong in running a template: found by a function
// of ours.
type templateError struct {
	what, fix string
}

func (e *templateError) Error() string {
	if e.fix == "" {
		return e.what
	}
	return e.what + ": " + e.fix
}

// parseTemplate parses a .tmpl file. What is wrong with it is added to
// problems, and gives nil.
func parseTemplate(name, target, text string, delimiters [2]string, image bool, problems *problem.List) *fileTemplate {
	if i := strings.Index(text, mark); i >= 0 {
		problems.Addf(positionIn(name, text, i), "remove it, or the ending .tmpl of the file's name", "a template can't hold a NUL byte")
		return nil
	}
	t := &fileTemplate{name: name, image: image, uris: map[string]problem.Position{}, places: map[string]problem.Position{}}
	tmpl, err := template.New(name).Delims(delimiters[0], delimiters[1]).Option("missingkey=error").Funcs(functions(&scope{})).Parse(text)
	if err != nil {
		pos, message := splitTemplateError(name, err)
		problems.Addf(pos, "", "the template can't be parsed: %s", message)
		return nil
	}
	t.tmpl = tmpl
	t.vars = varsRead(tmpl)
	format, held := quote.FormatOf(target)
	before := len(*problems)
	for _, associated := range tmpl.Templates() {
		if associated.Tree == nil {
			continue
		}
		c := treeCheck{t: t, text: text, format: format, held: held, problems: problems}
		c.list(associated.Tree.Root)
	}
	if len(*problems) > before {
		return nil
	}
	if !held {
		for _, associated := range tmpl.Templates() {
			if associated.Tree != nil {
				writeThrough(associated.Tree, associated.Tree.Root)
			}
		}
	}
	return t
}

var templatePlace = lazyregexp.New(`^:(\d+)(?::(\d+))?: (?:executing (?:"[^"]*"|\S+) )?(?s:(.*))$`)

// splitTemplateError takes text/template's errors apart.
func splitTemplateError(name string, err error) (problem.Position, string) {
	pos := problem.Position{File: name, Line: 1, Column: 1}
	rest, ok := strings.CutPrefix(err.Error(), "template: "+name)
	if !ok {
		return pos, err.Error()
	}
	m := templatePlace().FindStringSubmatch(rest)
	if m == nil {
		return pos, rest
	}
	pos.Line, _ = strconv.Atoi(m[1])
	if m[2] != "" {
		column, _ := strconv.Atoi(m[2])
		pos.Column = column + 1
	}
	return pos, strings.TrimPrefix(m[3], "at ")
}

// writeThrough lets what a template writes into a file without a quoting of its
// own pass through the function write.
func writeThrough(tree *parse.Tree, l *parse.ListNode) {
	if l == nil {
		return
	}
	branch := func(b *parse.BranchNode) {
		writeThrough(tree, b.List)
		writeThrough(tree, b.ElseList)
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.ActionNode:
			if len(n.Pipe.Decl) == 0 {
				id := parse.NewIdentifier("write").SetPos(n.Pos).SetTree(tree)
				n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{id}})
			}
		case *parse.IfNode:
			branch(&n.BranchNode)
		case *parse.RangeNode:
			branch(&n.BranchNode)
		case *parse.WithNode:
			branch(&n.BranchNode)
		}
	}
}

// write refuses what text/template would write in a form of its own: "<no
// value>" for nothing, and Go's syntax for lists and maps.
func write(v any) (any, error) {
	const fix = "give it a default, ask for it with if or with, or write a list's entries one by one (range, join)"
	if v == nil {
		return nil, &templateError{"there is no value to write here", fix}
	}
	switch reflect.TypeOf(v).Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return nil, &templateError{"a list or map can't be written into a line", fix}
	case reflect.String:
		if strings.Contains(reflect.ValueOf(v).String(), mark) && reflect.TypeOf(v) != quotedType {
			return nil, &templateError{"a text with a NUL byte can't be written", "remove that"}
		}
	}
	return v, nil
}

// quoted is text from a quoting function, which may have places of secrets.
type quoted string

var quotedType = reflect.TypeFor[quoted]()

// scope is what the functions of a template know beyond its data.
type scope struct {
	secrets func(name string) (plan.Ref, problem.Position, bool)
}

// functions are what templates can call. docs/templates.md describes each.
func functions(s *scope) template.FuncMap {
	fm := template.FuncMap{
		"secret": func(name string) (secretUse, error) {
			if name == "" || strings.ContainsAny(name, mark+" ") {
				return secretUse{}, &templateError{fmt.Sprintf("%q is no name of a secret", name), ""}
			}
			return secretUse{name}, nil
		},
		"hasSecret": func(name string) bool {
			_, _, ok := s.secrets(name)
			return ok
		},
		"join": func(separator string, list any) (string, error) { return joinList(separator, list) },
		"fail": func(message string) (string, error) { return "", &templateError{message, ""} },
		"default": func(otherwise, v any) any {
			if truth, ok := template.IsTrue(v); !ok || !truth {
				return otherwise
			}
			return v
		},
		"hostPort":      hostPort,
		"versionBefore": versionBefore,
		"printf":        printf,
		"print":         func(args ...any) (string, error) { return printed(fmt.Sprint, args) },
		"println":       func(args ...any) (string, error) { return printed(fmt.Sprintln, args) },
		"write":         write,
	}
	for _, f := range quote.Formats() {
		fm[string(f)] = func(v any) (quoted, error) {
			if use, ok := v.(secretUse); ok {
				return quoted(use.marked(f)), nil
			}
			text, err := quote.As(f, v)
			return quoted(text), err
		}
	}
	return fm
}

func joinList(separator string, list any) (string, error) {
	var words []string
	switch l := list.(type) {
	case []string:
		words = l
	case []any:
		for _, v := range l {
			w, err := quote.Line(v)
			if err != nil {
				return "", fmt.Errorf("join: %w", err)
			}
			words = append(words, w)
		}
	default:
		return "", fmt.Errorf("join takes a list, not %T", list)
	}
	return strings.Join(words, separator), nil
}

// hostPort is an address or name with a port, an IPv6 address in brackets: also
// one that a go-sockaddr template chooses in an IPv6 network, which it names.
func hostPort(host string, port int) (string, error) {
	if host == "" || port < 1 || port > 65535 {
		return "", &templateError{fmt.Sprintf("%q and %d are no host and port", host, port), "write hostPort HOST PORT"}
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// versionBefore compares versions by their numbers. An empty one is before
// none: a site that doesn't say its version gets what is current.
func versionBefore(v, than string) (bool, error) {
	if v == "" {
		return false, nil
	}
	for _, each := range []string{v, than} {
		if !semver.IsValid("v" + each) {
			return false, fmt.Errorf("%q is no version: write it as 1.9.7", each)
		}
	}
	return semver.Compare(numbers(v), numbers(than)) < 0, nil
}

// numbers is a version without what follows its numbers: 1.9.7-beta.1+ent has
// all that 1.9.7 has.
func numbers(v string) string {
	v, _, _ = strings.Cut(v, "+")
	v, _, _ = strings.Cut(v, "-")
	return "v" + v
}

// execute runs the template into buf, which it empties first.
func execute(t *template.Template, name string, data any, buf *bytes.Buffer) *problem.Problem {
	buf.Reset()
	err := t.Execute(boundedWriter{buf}, data)
	if err == nil {
		return nil
	}
	pos, message := splitTemplateError(name, err)
	p := &problem.Problem{Position: pos, What: "the template doesn't render: " + message}
	var own *templateError
	if errors.As(err, &own) {
		p.What, p.Fix = own.what, own.fix
	} else if m := missingKey().FindStringSubmatch(message); m != nil {
		p.What = fmt.Sprintf("the template uses %s, but there is no %q", m[1], m[2])
		p.Fix = "give it a value, such as under vars: in the profile, the site or the host"
	}
	return p
}

var missingKey = lazyregexp.New(`^<([^>]*)>: map has no entry for key "([^"]*)"$`)

// maxRendered bounds one rendered file, in bytes.
const maxRendered = 16 << 20

var errTooLarge = errors.New("the file grows over 16 MiB")

// boundedWriter keeps a template that writes without end from taking all memory.
type boundedWriter struct{ buf *bytes.Buffer }

func (w boundedWriter) Write(p []byte) (int, error) {
	if w.buf.Len()+len(p) > maxRendered {
		return 0, errTooLarge
	}
	return w.buf.Write(p)
}

var _ io.Writer = boundedWriter{}

// secret finds the secret that the template calls name, and where that was
// said: in the template, where it is a reference, else where the name was given
// to it.
func (t *fileTemplate) secret(name, profile string, s *scope) (plan.Ref, plan.Origin, bool) {
	if strings.Contains(name, "://") {
		at, literal := t.uris[name]
		if !literal {
			at = t.computed
		}
		ref, err := plan.ParseRef(name)
		return ref, plan.Origin{Profile: profile, Position: at}, err == nil
	}
	ref, at, ok := s.secrets(name)
	return ref, plan.Origin{Position: at}, ok
}

// content makes a rendered template's output a Content, with the places of
// its secrets.
func (t *fileTemplate) content(out []byte, profile string, s *scope) (plan.Content, *problem.Problem) {
	var c plan.Content
	for {
		i := bytes.IndexByte(out, mark[0])
		if i < 0 {
			c.AppendText(bytes.Clone(out))
			return c, nil
		}
		c.AppendText(bytes.Clone(out[:i]))
		out = out[i+1:]
		end := bytes.IndexByte(out, mark[0])
		format, name, ok := strings.Cut(string(out[:max(end, 0)]), " ")
		if end < 0 || !ok {
			return c, &problem.Problem{Position: problem.Position{File: t.name, Line: 1, Column: 1}, What: "the template writes a NUL byte"}
		}
		out = out[end+1:]
		ref, from, ok := t.secret(name, profile, s)
		if !ok {
			at, literal := t.places[name]
			if !literal {
				at = t.computed
			}
			return c, &problem.Problem{
				Position: at, What: fmt.Sprintf("there is no secret called %q", name),
				Fix: "say where it is to be found, in site.yaml: secrets: {" + name + ": teigi://HOSTGROUP/KEY}",
			}
		}
		c.AppendSecret(ref, quote.Format(format), from)
	}
}
