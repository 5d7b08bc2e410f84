package importing

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// The part of Ruby that configuration templates are mostly written in, as a
// tree. What isn't in here can't be translated.
type (
	expr any

	// variable is @name, a local name, or what scope gives for a name.
	variable struct {
		name  string
		local bool
	}
	// index is x[key].
	index struct{ x, key expr }
	// call is x.method(args) { |params| body }.
	call struct {
		x      expr
		method string
		args   []expr
		params []string
		body   expr
	}
	// not is !x.
	not struct{ x expr }
	// binary is a op b.
	binary struct {
		op   string
		a, b expr
	}
	// choice is cond ? yes : no.
	choice struct{ cond, yes, no expr }
	// text is a string, of literal strings and other expressions.
	text []expr
	// number is an integer or a decimal, as it was written.
	number string
	// truth is true or false.
	truth bool
	// nothing is nil, and Puppet's :undef.
	nothing struct{}
)

// statement is what a <% … %> does.
type statement struct {
	what   string // if, unless, elsif, else, end, each, set, or nothing for what has no effect
	cond   expr   // of if, unless, elsif; what each goes over; what set assigns
	names  []string
	sorted bool // each goes over what sort gives
}

var errRuby = errors.New("this Ruby has no counterpart")

// maxDepth bounds how deeply an expression can nest.
const maxDepth = 64

type parser struct {
	tokens []rubyToken
	depth  int
}

// parseExpr reads the code of a <%= … %>.
func parseExpr(code string) (expr, error) {
	tokens, err := lexRuby(code)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	e, err := p.expr()
	if err == nil && !p.at(rubyEnd, "") {
		err = errRuby
	}
	return e, err
}

// parseStatement reads the code of a <% … %>.
func parseStatement(code string) (statement, error) {
	tokens, err := lexRuby(code)
	if err != nil {
		return statement{}, err
	}
	p := &parser{tokens: tokens}
	s, err := p.statement()
	if err == nil && !p.at(rubyEnd, "") {
		err = errRuby
	}
	return s, err
}

func (p *parser) statement() (statement, error) {
	for _, word := range []string{"if", "unless", "elsif"} {
		if p.take(rubyName, word) {
			cond, err := p.expr()
			p.take(rubyName, "then")
			return statement{what: word, cond: cond}, err
		}
	}
	switch {
	case p.at(rubyEnd, ""):
		return statement{}, nil
	case p.take(rubyName, "else"):
		return statement{what: "else"}, nil
	case p.take(rubyName, "end"), p.take(rubyPunct, "}"):
		return statement{what: "end"}, nil
	case p.take(rubyName, "for"):
		return p.forLoop()
	case len(p.tokens) > 2 && p.tokens[0].kind == rubyName && p.tokens[1] == rubyToken{rubyPunct, "="}:
		name := p.tokens[0].text
		p.tokens = p.tokens[2:]
		value, err := p.expr()
		return statement{what: "set", names: []string{name}, cond: value}, err
	}
	e, err := p.expr()
	if err != nil {
		return statement{}, err
	}
	return p.eachLoop(e)
}

// forLoop reads what stands behind for: NAMES in EXPR.
func (p *parser) forLoop() (statement, error) {
	s := statement{what: "each"}
	for {
		name, err := p.name()
		if err != nil {
			return s, err
		}
		s.names = append(s.names, name)
		if !p.take(rubyPunct, ",") {
			break
		}
	}
	if !p.take(rubyName, "in") {
		return s, errRuby
	}
	over, err := p.expr()
	p.take(rubyName, "do")
	s.cond = over
	return s, err
}

// eachLoop reads the block that opens behind e: do |NAMES| or { |NAMES|.
func (p *parser) eachLoop(e expr) (statement, error) {
	c, ok := e.(call)
	if !ok || len(c.args) > 0 || c.params != nil || !p.take(rubyName, "do") && !p.take(rubyPunct, "{") {
		return statement{}, errRuby
	}
	names, err := p.params()
	if err != nil {
		return statement{}, err
	}
	s := statement{what: "each", cond: c.x, names: names}
	switch {
	case c.method == "each" && len(names) <= 2, c.method == "each_pair" && len(names) == 2:
	case c.method == "each_with_index" && len(names) == 2:
		// Ruby hands over the element first, a template the index.
		s.what = "each_with_index"
	default:
		return s, errRuby
	}
	if sort, ok := s.cond.(call); ok && sort.method == "sort" && len(sort.args) == 0 && sort.params == nil && len(names) == 2 {
		s.cond, s.sorted = sort.x, true
	}
	return s, nil
}

func (p *parser) params() ([]string, error) {
	if !p.take(rubyPunct, "|") {
		return nil, errRuby
	}
	var names []string
	for {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		names = append(names, name)
		if p.take(rubyPunct, "|") {
			return names, nil
		}
		if !p.take(rubyPunct, ",") {
			return nil, errRuby
		}
	}
}

func (p *parser) name() (string, error) {
	if len(p.tokens) == 0 || p.tokens[0].kind != rubyName || reserved[p.tokens[0].text] {
		return "", errRuby
	}
	name := p.tokens[0].text
	p.tokens = p.tokens[1:]
	return name, nil
}

var reserved = map[string]bool{
	"if": true, "unless": true, "elsif": true, "else": true, "end": true, "do": true, "then": true, "in": true, "for": true,
	"while": true, "until": true, "case": true, "when": true, "begin": true, "rescue": true, "ensure": true, "def": true,
	"return": true, "next": true, "break": true, "yield": true, "self": true, "super": true, "defined": true,
	"and": true, "or": true, "not": true, "class": true, "module": true, "loop": true, "true": true, "false": true, "nil": true,
}

func (p *parser) at(kind rubyKind, s string) bool {
	if len(p.tokens) == 0 {
		return kind == rubyEnd
	}
	return p.tokens[0].kind == kind && p.tokens[0].text == s
}

func (p *parser) take(kind rubyKind, s string) bool {
	if len(p.tokens) == 0 || !p.at(kind, s) {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

// levels are the binary operators, those that bind least first.
var levels = [][]string{{"and", "or"}, {"?"}, {"||"}, {"&&"}, {"==", "!="}, {"<", ">", "<=", ">="}, {"+"}}

func (p *parser) expr() (expr, error) { return p.level(0) }

func (p *parser) level(n int) (expr, error) {
	if n == len(levels) {
		return p.unary()
	}
	if p.depth++; p.depth > maxDepth*len(levels) {
		return nil, errRuby
	}
	defer func() { p.depth-- }()
	if n == 0 && p.take(rubyName, "not") {
		x, err := p.level(1)
		return not{x}, err
	}
	a, err := p.level(n + 1)
	if err != nil {
		return nil, err
	}
	if levels[n][0] == "?" {
		return p.choice(a)
	}
	for {
		op := ""
		for _, o := range levels[n] {
			if p.take(rubyPunct, o) || p.take(rubyName, o) {
				op = o
				break
			}
		}
		if op == "" {
			return a, nil
		}
		b, err := p.level(n + 1)
		if err != nil {
			return nil, err
		}
		switch op {
		case "and":
			op = "&&"
		case "or":
			op = "||"
		}
		a = binary{op, a, b}
	}
}

func (p *parser) choice(cond expr) (expr, error) {
	if !p.take(rubyPunct, "?") {
		return cond, nil
	}
	yes, err := p.level(2)
	if err != nil {
		return nil, err
	}
	if !p.take(rubyPunct, ":") {
		return nil, errRuby
	}
	no, err := p.level(1)
	return choice{cond, yes, no}, err
}

func (p *parser) unary() (expr, error) {
	if p.take(rubyPunct, "!") {
		if p.depth++; p.depth > maxDepth*len(levels) {
			return nil, errRuby
		}
		defer func() { p.depth-- }()
		x, err := p.unary()
		return not{x}, err
	}
	x, err := p.primary()
	for err == nil {
		switch {
		case p.take(rubyPunct, "["):
			var key expr
			if key, err = p.expr(); err == nil && !p.take(rubyPunct, "]") {
				err = errRuby
			}
			x = index{x, key}
		case p.take(rubyPunct, "."):
			x, err = p.call(x)
		default:
			return x, nil
		}
	}
	return nil, err
}

func (p *parser) call(x expr) (expr, error) {
	if len(p.tokens) == 0 || p.tokens[0].kind != rubyName {
		return nil, errRuby
	}
	c := call{x: x, method: p.tokens[0].text}
	p.tokens = p.tokens[1:]
	if p.take(rubyPunct, "(") {
		if c.method == "map" || c.method == "collect" {
			return p.mapEach(c)
		}
		args, err := p.args()
		if err != nil {
			return nil, err
		}
		c.args = args
	}
	if (c.method == "map" || c.method == "collect") && len(c.args) == 0 && p.take(rubyPunct, "{") {
		return p.mapBlock(c)
	}
	if s, ok := c.scopeLookup(); ok {
		return s, nil
	}
	return c, nil
}

// mapEach reads the rest of .map(&:method): a block that calls the method.
func (p *parser) mapEach(c call) (expr, error) {
	if !p.take(rubyPunct, "&") || len(p.tokens) < 2 || p.tokens[0].kind != rubySymbol || p.tokens[1] != (rubyToken{rubyPunct, ")"}) {
		return nil, errRuby
	}
	c.params = []string{"v"}
	c.body = call{x: variable{"v", true}, method: p.tokens[0].text}
	p.tokens = p.tokens[2:]
	return c, nil
}

func (p *parser) mapBlock(c call) (expr, error) {
	params, err := p.params()
	if err != nil {
		return nil, err
	}
	body, err := p.expr()
	if err == nil && (len(params) != 1 || !p.take(rubyPunct, "}")) {
		err = errRuby
	}
	c.params, c.body = params, body
	return c, err
}

func (p *parser) args() ([]expr, error) {
	var args []expr
	for !p.take(rubyPunct, ")") {
		if len(args) > 0 && !p.take(rubyPunct, ",") {
			return nil, errRuby
		}
		a, err := p.expr()
		if err != nil {
			return nil, err
		}
		args = append(args, a)
	}
	return args, nil
}

// scopeLookup is scope.lookupvar('name') as a variable.
func (c call) scopeLookup() (expr, bool) {
	v, ok := c.x.(variable)
	if !ok || !v.local || v.name != "scope" || c.method != "lookupvar" || len(c.args) != 1 {
		return nil, false
	}
	name, ok := literal(c.args[0])
	return variable{name: name}, ok
}

// literal is the value of a string without interpolation.
func literal(e expr) (string, bool) {
	t, ok := e.(text)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for _, part := range t {
		s, ok := part.(string)
		if !ok {
			return "", false
		}
		b.WriteString(s)
	}
	return b.String(), true
}

func (p *parser) primary() (expr, error) {
	if len(p.tokens) == 0 {
		return nil, errRuby
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	switch t.kind {
	case rubyIvar:
		return variable{name: t.text}, nil
	case rubyNumber:
		return number(t.text), nil
	case rubyString:
		return text{t.text}, nil
	case rubyDouble:
		return p.interpolated(t.text)
	case rubySymbol:
		if t.text == "undef" {
			return nothing{}, nil
		}
	case rubyPunct:
		if t.text == "(" {
			e, err := p.expr()
			if err == nil && !p.take(rubyPunct, ")") {
				err = errRuby
			}
			return e, err
		}
	case rubyName:
		return p.word(t.text)
	}
	return nil, errRuby
}

func (p *parser) word(name string) (expr, error) {
	switch {
	case name == "true" || name == "false":
		return truth(name == "true"), nil
	case name == "nil":
		return nothing{}, nil
	case reserved[name] || strings.ContainsAny(name, "?!"):
		return nil, errRuby
	}
	return variable{name, true}, nil
}

// interpolated takes a string in double quotes apart.
func (p *parser) interpolated(s string) (expr, error) {
	var t text
	var b strings.Builder
	for i := 0; i < len(s); {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			r, ok := rubyEscapes[s[i+1]]
			if !ok {
				return nil, errRuby
			}
			b.WriteByte(r)
			i += 2
		case strings.HasPrefix(s[i:], "#{"):
			end := strings.IndexByte(s[i:], '}')
			if end < 0 || strings.ContainsAny(s[i+2:i+end], "{\"") {
				return nil, errRuby
			}
			inner, err := parseExpr(s[i+2 : i+end])
			if err != nil {
				return nil, err
			}
			if b.Len() > 0 {
				t = append(t, b.String())
				b.Reset()
			}
			t = append(t, inner)
			i += end + 1
		case s[i] == '#' && i+1 < len(s) && (s[i+1] == '@' || s[i+1] == '$'):
			return nil, errRuby
		default:
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(s[i : i+n])
			i += n
		}
	}
	if b.Len() > 0 || len(t) == 0 {
		t = append(t, b.String())
	}
	return t, nil
}

var rubyEscapes = map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', '"': '"', '\\': '\\', '\'': '\'', '#': '#', '/': '/', '$': '$', '{': '{', '}': '}', ' ': ' '}
