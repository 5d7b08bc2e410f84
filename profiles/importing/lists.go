package importing

import (
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

// joined is a list that a tag writes with something between its entries.
type joined struct {
	list      expr
	param     string // of the block that makes each entry; empty: the entry itself
	entry     expr
	separator string
}

// asJoined takes LIST.join(SEPARATOR) and LIST.map { |v| … }.join(SEPARATOR)
// apart.
func asJoined(e expr) (joined, bool) {
	c, ok := e.(call)
	if !ok || c.method != "join" || len(c.args) != 1 {
		return joined{}, false
	}
	separator, ok := literal(c.args[0])
	if !ok {
		return joined{}, false
	}
	j := joined{list: c.x, separator: separator}
	if m, ok := c.x.(call); ok && m.params != nil {
		j.list, j.param, j.entry = m.x, m.params[0], m.body
	}
	return j, true
}

var (
	quotedSeparator = lazyregexp.New(`^"(\s*,\s*)"$`)
	bareSeparator   = lazyregexp.New(`^\s*,\s*$`)
)

// quotedList translates "<%= LIST.join('", "') %>": a string for each entry.
func (t *translator) quotedList(e expr) bool {
	j, ok := asJoined(e)
	if !ok {
		return false
	}
	m := quotedSeparator().FindStringSubmatch(j.separator)
	if m == nil || j.entry != nil && !isText(j.entry) && j.entry != (expr)(variable{j.param, true}) {
		return false
	}
	j.separator = m[1]
	return t.list(j)
}

func isText(e expr) bool {
	_, ok := e.(text)
	return ok
}

// bareList translates <%= LIST.join(', ') %>, and the same with a block that
// puts quotes around each entry.
func (t *translator) bareList(e expr) bool {
	j, ok := asJoined(e)
	if !ok || !bareSeparator().MatchString(j.separator) {
		return false
	}
	if j.entry != nil {
		inner, ok := insideQuotes(j.entry)
		if !ok {
			return false
		}
		j.entry = inner
	}
	return t.list(j)
}

// insideQuotes is what an expression has between the quotes that it writes
// itself: "\"#{v}\"", '"' + v + '"', v.inspect, v.to_json.
func insideQuotes(e expr) (expr, bool) {
	if c, ok := e.(call); ok && len(c.args) == 0 && (c.method == "inspect" || c.method == "to_json") {
		return c.x, true
	}
	parts, ok := e.(text)
	if !ok {
		parts = flattenSum(e)
	}
	if len(parts) < 2 {
		return nil, false
	}
	first, ok1 := parts[0].(string)
	last, ok2 := parts[len(parts)-1].(string)
	if !ok1 || !ok2 || !strings.HasPrefix(first, `"`) || !strings.HasSuffix(last, `"`) {
		return nil, false
	}
	inner := text{}
	for i, p := range parts {
		s, ok := p.(string)
		if i == 0 {
			s = s[1:]
		}
		if i == len(parts)-1 {
			s = s[:len(s)-1]
		}
		if !ok {
			inner = append(inner, p)
		} else if s != "" {
			inner = append(inner, s)
		}
	}
	if len(inner) == 1 {
		if v, ok := inner[0].(variable); ok {
			return v, true
		}
	}
	return inner, true
}

// flattenSum is a + b + c as the parts of a string; empty where it is no sum
// with a string in it.
func flattenSum(e expr) text {
	b, ok := e.(binary)
	if !ok || b.op != "+" {
		return nil
	}
	var parts text
	for _, side := range []expr{b.a, b.b} {
		switch s := side.(type) {
		case text:
			parts = append(parts, s...)
		case binary:
			parts = append(parts, flattenSum(s)...)
		default:
			parts = append(parts, side)
		}
	}
	return parts
}

// list writes the entries as values of their own: the list as a whole where
// nothing else stands between its brackets, else one by one.
func (t *translator) list(j joined) bool {
	over, err := t.written(j.list)
	if err != nil || over.kind != valueAny {
		return false
	}
	same := j.entry == nil
	if v, ok := j.entry.(variable); ok && v.local && v.name == j.param {
		same = true
	}
	if same && t.swallowBrackets() {
		t.use(over.variable, KindList)
		t.value(over.code)
		return true
	}
	name := j.param
	if name == "" {
		name = t.fresh("entry")
	}
	locals := t.locals[name]
	t.locals[name] = true
	t.blocks = append(t.blocks, block{loop: true})
	entry := value{code: "$" + name, atom: true}
	if !same {
		if entry, err = t.written(j.entry); err == nil {
			entry, err = t.asText(entry)
		}
	}
	t.blocks = t.blocks[:len(t.blocks)-1]
	t.locals[name] = locals
	if err != nil {
		return false
	}
	t.use(over.variable, KindList)
	i := t.fresh("i")
	t.action("range $" + i + ", $" + name + " := " + over.code)
	t.action("if $" + i)
	t.text(j.separator)
	t.action("end")
	t.value(entry.code)
	t.action("end")
	return true
}

// fresh is a name that no local variable has.
func (t *translator) fresh(name string) string {
	for n := 2; ; n++ {
		if !t.locals[name] {
			return name
		}
		name = strings.TrimRight(name, "0123456789") + strconv.Itoa(n)
	}
}

// swallowBrackets removes the bracket just written, and passes over the one
// that follows, where nothing but white space is between them and the cursor.
func (t *translator) swallowBrackets() bool {
	n := len(t.pieces) - 1
	if n < 0 || t.pieces[n].action || t.i >= len(t.tokens) || t.tokens[t.i].kind != tokenText {
		return false
	}
	before, ok := strings.CutSuffix(strings.TrimRight(t.pieces[n].text, " \t\r\n"), "[")
	rest := t.tokens[t.i].text[t.o:]
	after, closed := strings.CutPrefix(strings.TrimLeft(rest, " \t\r\n"), "]")
	if !ok || !closed {
		return false
	}
	t.pieces[n].text = before
	if before == "" {
		t.pieces = t.pieces[:n]
	}
	t.o = len(t.tokens[t.i].text) - len(after)
	return true
}
