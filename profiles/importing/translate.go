package importing

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
)

// maxTemplate bounds the size of a template, in bytes.
const maxTemplate = 4 << 20

// ERB translates a Puppet ERB template to a Kiln template. name is its file:
// what it is called without .erb decides how values are quoted in it. What
// can't be translated is among the Result's Problems; the error is for what
// is no text template at all.
func ERB(name string, src []byte) (Result, error) {
	switch {
	case strings.HasSuffix(name, ".epp"):
		return Result{}, fmt.Errorf("%s is a template in Puppet's own language (EPP), not ERB: translate it by hand", name)
	case len(src) > maxTemplate:
		return Result{}, fmt.Errorf("%s has %d bytes: a template has %d at most", name, len(src), maxTemplate)
	case bytes.IndexByte(src, 0) >= 0 || !utf8.Valid(src):
		return Result{}, fmt.Errorf("%s is no UTF-8 text: import it as a file of a directory", name)
	}
	// What stands in quotes at one place and without at another is known only
	// at the end: hence twice.
	first := newTranslator(name, string(src), nil)
	first.run()
	t := newTranslator(name, string(src), first.vars)
	t.run()
	return t.result(), nil
}

// piece is a part of the produced template: text, or an action.
type piece struct {
	text    string
	action  bool
	comment bool
	// It takes the white space before it, or behind it.
	trimLeft, trimRight bool
}

// block is an if or a loop that is still open.
type block struct {
	offset  int
	loop    bool
	dropped bool // nothing of it is in the template: its end isn't either
	hasElse bool
	state   string // of the target's syntax, where the block began
	last    byte
	locals  map[string]bool
	broken  bool // its branches end in different states
}

type translator struct {
	name, src string
	target    string
	format    quote.Format
	held      bool // the target has a quoting of its own

	tokens []token
	i, o   int    // the cursor: a token, and a place in its text
	at     int    // offset of the tag that is being translated
	state  string // where the cursor is in the target's syntax; empty: nowhere special
	last   byte   // the last byte of what was written, with x for a value; 0 at the start
	pieces []piece
	blocks []block
	locals map[string]bool

	writing     bool // an expression is compiled to be written, not to decide
	before      map[string]*Var
	vars        map[string]*Var
	secrets     map[string]int
	problems    problem.List
	warnedTruth map[string]bool
	warnedFact  map[string]bool
	usesAddress bool
}

func newTranslator(name, src string, before map[string]*Var) *translator {
	t := &translator{
		name: name, src: src, target: strings.TrimSuffix(path.Base(name), ".erb"), tokens: scan(src), before: before,
		locals: map[string]bool{}, vars: map[string]*Var{}, secrets: map[string]int{}, warnedTruth: map[string]bool{}, warnedFact: map[string]bool{},
	}
	t.format, t.held = quote.FormatOf(t.target)
	if !t.held {
		t.format = quote.FormatRaw
	}
	return t
}

func (t *translator) run() {
	switch t.format {
	case quote.FormatHCL, quote.FormatJSON:
		t.runBraced()
	case quote.FormatShell:
		t.runShell()
	case quote.FormatSystemd, quote.FormatYAML:
		t.runLines()
	default:
		t.runRaw()
	}
	for i := len(t.blocks) - 1; i >= 0; i-- {
		b := t.blocks[i]
		t.failf(b.offset, "close it with <% end %>", "a block is never closed")
		if !b.dropped {
			t.action("end")
		}
	}
}

func (t *translator) result() Result {
	r := Result{Source: t.name, Target: t.target, Problems: t.problems, pieces: t.pieces}
	for _, name := range slices.Sorted(maps.Keys(t.vars)) {
		r.Vars = append(r.Vars, *t.vars[name])
	}
	for _, name := range slices.Sorted(maps.Keys(t.secrets)) {
		r.Secrets = append(r.Secrets, SecretUse{name, t.secrets[name]})
	}
	r.Problems = append(r.Problems, literalSecrets(t.name, []byte(t.src))...)
	r.Problems.Sort()
	r.Delimiters = CommonDelimiters(r)
	r.Text, _ = r.WithDelimiters(r.Delimiters)
	return r
}

// use notes that the template needs the variable, and what for.
func (t *translator) use(name string, k Kind) {
	if v := t.vars[name]; v != nil {
		v.Kind |= k
	}
}

// claim takes name for the Ruby variable, unless it stands for another one.
func (t *translator) claim(name, ruby string) bool {
	v := t.vars[name]
	if v == nil {
		v = &Var{Name: name, Ruby: ruby, Line: t.position(t.at).Line}
		t.vars[name] = v
	}
	return v.Ruby == ruby
}

// text writes s as it is.
func (t *translator) text(s string) {
	if s == "" {
		return
	}
	t.last = s[len(s)-1]
	if n := len(t.pieces); n > 0 && !t.pieces[n-1].action {
		t.pieces[n-1].text += s
		return
	}
	t.pieces = append(t.pieces, piece{text: s})
}

// action writes an action.
func (t *translator) action(code string) {
	t.pieces = append(t.pieces, piece{text: code, action: true})
}

// value writes an action that gives a value, quoted for the target.
func (t *translator) value(code string) {
	if t.format == quote.FormatJSON || t.format == quote.FormatYAML || t.held {
		code += " | " + string(t.format)
	} else {
		code += " | line"
	}
	t.action(code)
	t.last = 'x'
}

// secret writes the secret called name.
func (t *translator) secret(tok token) {
	if _, ok := t.secrets[tok.text]; !ok {
		t.secrets[tok.text] = t.position(tok.offset).Line
	}
	t.value("secret " + strconv.Quote(tok.text))
}

// fail lists what can't be translated, and leaves an action that fails.
func (t *translator) fail(tok token, fix string) {
	t.text(tok.indent)
	t.failf(tok.offset, fix, "%s could not be translated", shorten(tok.source))
	t.text(tok.newline)
}

func (t *translator) failf(offset int, fix, format string, args ...any) {
	t.action(t.failure(offset, fix, format, args...))
	t.last = 'x'
}

// failure is fail's code, for within another action.
func (t *translator) failure(offset int, fix, format string, args ...any) string {
	pos := t.position(offset)
	what := fmt.Sprintf(format, args...)
	t.problems.Addf(pos, fix, "%s", what)
	return "fail " + strconv.Quote(fmt.Sprintf("%s line %d: %s", path.Base(t.name), pos.Line, what))
}

const byHand = "write it by hand, where the template has fail"

// shorten makes one short line of a tag.
func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 80
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// expression compiles the code of a <%= … %> that is to be written.
func (t *translator) expression(tok token) (value, error) {
	t.at = tok.offset
	e, err := parseExpr(tok.text)
	if err != nil {
		return value{}, err
	}
	return t.written(e)
}

func (t *translator) written(e expr) (value, error) {
	t.writing = true
	defer func() { t.writing = false }()
	v, err := t.compile(e)
	if err == nil && v.code == "nil" {
		err = errRuby
	}
	return v, err
}

// concatParts makes one string of texts and tags, as a quoted string in the
// target has them.
func (t *translator) concatParts(parts []any) (value, error) {
	values := make([]any, 0, len(parts))
	for _, p := range parts {
		tok, ok := p.(token)
		if !ok {
			values = append(values, p)
			continue
		}
		v, err := t.expression(tok)
		if err != nil {
			return v, err
		}
		values = append(values, v)
	}
	return t.concat(values)
}

// control writes an action that writes nothing itself, in place of tok. loose
// is set where an empty line means nothing in the target: there the action
// keeps the line it had, and takes the end of the line before. Elsewhere the
// template writes exactly the white space that Ruby does.
func (t *translator) control(tok token, code string, comment, loose bool) {
	p := piece{text: code, action: true, comment: comment}
	switch {
	case !tok.alone:
		t.pieces = append(t.pieces, p)
	case loose:
		p.trimLeft = tok.newline != "" && t.trimmable()
		t.text(tok.indent)
		t.pieces = append(t.pieces, p)
		t.text(tok.newline)
	default:
		if tok.keepIndent {
			t.text(tok.indent)
		}
		p.trimRight = !tok.keepNewline && tok.newline != "" && t.atText()
		t.pieces = append(t.pieces, p)
		if tok.keepNewline || p.trimRight {
			t.text(tok.newline)
		}
	}
}

// atText tells whether what follows the cursor begins with no white space, so
// that an action before it can take the newline between, and nothing more.
func (t *translator) atText() bool {
	if t.i >= len(t.tokens) {
		return true
	}
	tok := t.tokens[t.i]
	if tok.kind == tokenText {
		return t.o < len(tok.text) && strings.IndexByte(" \t\r\n", tok.text[t.o]) < 0
	}
	return !tok.alone || !tok.keepIndent
}

// trimmable tells whether an action that takes the white space before it
// would take exactly the end of the line before.
func (t *translator) trimmable() bool {
	n := len(t.pieces)
	if n == 0 || t.pieces[n-1].action {
		return false
	}
	before, ok := strings.CutSuffix(t.pieces[n-1].text, "\n")
	if !ok {
		return false
	}
	before = strings.TrimSuffix(before, "\r")
	if before == "" {
		return n > 1
	}
	return !strings.ContainsRune(" \t\r\n", rune(before[len(before)-1]))
}

// quiet translates a tag that writes nothing.
func (t *translator) quiet(tok token, loose bool) {
	switch tok.kind {
	case tokenOpen:
		t.fail(tok, "close it with %>")
	case tokenComment:
		t.comment(tok, tok.text, loose)
	default:
		t.code(tok, loose)
	}
}

func (t *translator) comment(tok token, comment string, loose bool) {
	comment = strings.ReplaceAll(strings.TrimSpace(comment), "*/", "* /")
	t.control(tok, "/* "+comment+" */", true, loose)
}

// code translates a <% … %>.
func (t *translator) code(tok token, loose bool) {
	t.at = tok.offset
	s, err := parseStatement(tok.text)
	if err != nil {
		t.strange(tok, loose)
		return
	}
	switch s.what {
	case "":
		t.comment(tok, strings.TrimLeft(strings.TrimSpace(tok.text), "# \t"), loose)
	case "if", "unless":
		t.open(tok, block{}, "if "+t.condition(tok, s), loose)
	case "elsif", "else":
		t.otherwise(tok, s, loose)
	case "each", "each_with_index":
		t.each(tok, s, loose)
	case "end":
		t.close(tok, loose)
	case "set":
		t.set(tok, s, loose)
	}
}

// condition writes what an if asks.
func (t *translator) condition(tok token, s statement) string {
	v, err := value{}, errRuby
	if s.cond != nil {
		v, err = t.compileCondition(s.cond)
	}
	if err != nil {
		return t.failure(tok.offset, byHand, "%s could not be translated", shorten(tok.source))
	}
	if s.what == "unless" {
		return "not " + v.arg()
	}
	return v.code
}

func (t *translator) open(tok token, b block, code string, loose bool) {
	b.offset, b.state, b.last, b.locals = tok.offset, t.state, t.last, maps.Clone(t.locals)
	if !b.dropped {
		t.control(tok, code, false, loose)
	}
	t.blocks = append(t.blocks, b)
}

func (t *translator) otherwise(tok token, s statement, loose bool) {
	n := len(t.blocks) - 1
	if n < 0 || t.blocks[n].loop || t.blocks[n].dropped || t.blocks[n].hasElse {
		t.fail(tok, "it belongs to no if that could be translated")
		return
	}
	b := &t.blocks[n]
	b.broken = b.broken || t.state != b.state
	code := "else"
	if s.what == "elsif" {
		code = "else if " + t.condition(tok, s)
	} else {
		b.hasElse = true
	}
	t.control(tok, code, false, loose)
	t.state, t.last, t.locals = b.state, b.last, maps.Clone(b.locals)
}

func (t *translator) close(tok token, loose bool) {
	n := len(t.blocks) - 1
	if n < 0 {
		t.fail(tok, "nothing is open that it could close")
		return
	}
	b := t.blocks[n]
	t.blocks = t.blocks[:n]
	t.locals = b.locals
	if b.dropped {
		return
	}
	t.control(tok, "end", false, loose)
	if b.broken || t.state != b.state {
		t.failf(b.offset, "let each branch hold whole lines", "a block begins and ends at different places of the file's syntax, such as within a comment")
	}
}

func (t *translator) each(tok token, s statement, loose bool) {
	kind := KindList
	names := s.names
	switch {
	case s.what == "each_with_index":
		names = []string{s.names[1], s.names[0]}
	case len(names) == 2:
		kind = KindMap
	}
	over := ""
	v, err := t.compile(s.cond)
	if err != nil || v.kind != valueAny || len(names) > 2 || v.code == "nil" {
		over = t.failure(tok.offset, byHand, "%s could not be translated", shorten(tok.source))
	} else {
		t.use(v.variable, kind)
		over = v.code
	}
	if len(names) > 2 {
		names = names[:2]
	}
	t.open(tok, block{loop: true}, "range $"+strings.Join(names, ", $")+" := "+over, loose)
	for _, name := range s.names {
		t.locals[name] = true
	}
}

// set translates NAME = VALUE, where the name means the same to both.
func (t *translator) set(tok token, s statement, loose bool) {
	name := s.names[0]
	known := t.locals[name]
	t.writing = true
	v, err := t.compile(s.cond)
	t.writing = false
	if err != nil || reserved[name] || !known && len(t.blocks) > 0 || v.kind == valueList || v.code == "nil" {
		t.fail(tok, byHand)
		return
	}
	op := ":="
	if known {
		op = "="
	}
	t.control(tok, "$"+name+" "+op+" "+v.code, false, loose)
	t.locals[name] = true
}

// strange leaves a failure for code that can't be translated, and keeps count
// of the blocks that it opens and closes.
func (t *translator) strange(tok token, loose bool) {
	first, _, _ := strings.Cut(strings.TrimSpace(tok.text), " ")
	depth := blockDepth(tok.text)
	switch {
	case depth == 1 && (first == "if" || first == "unless"):
		t.open(tok, block{}, "if "+t.condition(tok, statement{what: "if"}), loose)
		return
	case depth == 0 && first == "elsif":
		t.otherwise(tok, statement{what: "elsif"}, loose)
		return
	}
	t.fail(tok, byHand)
	for ; depth > 0; depth-- {
		t.open(tok, block{dropped: true}, "", loose)
	}
	for ; depth < 0; depth++ {
		t.close(tok, loose)
	}
}
