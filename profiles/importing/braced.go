package importing

import (
	"encoding/json"
	"errors"
	"strings"

	hclstrconv "github.com/hashicorp/hcl/hcl/strconv"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/quote"
)

// The states of HCL; a heredoc's is << and its end.
const (
	stateLineComment  = "#"
	stateBlockComment = "/*"
)

// runBraced translates HCL and JSON: text with double-quoted strings, in which
// HCL has comments and heredocs too.
func (t *translator) runBraced() {
	line := "" // of a heredoc, up to the cursor
	for t.i < len(t.tokens) {
		tok := t.tokens[t.i]
		if tok.kind != tokenText {
			t.i++
			switch {
			case tok.kind != tokenOutput && tok.kind != tokenSecret:
				t.quiet(tok, t.state == "")
			case t.state == stateBlockComment:
				t.keepInComment(tok)
			case strings.HasPrefix(t.state, "<<"):
				t.fail(tok, "write the heredoc as a string in quotes")
				line += "<%"
			case tok.kind == tokenSecret && t.state == stateLineComment:
				t.keepInComment(tok)
			case tok.kind == tokenSecret:
				t.fail(tok, "put it in quotes")
			default:
				t.bare(tok)
			}
			continue
		}
		rest := tok.text[t.o:]
		if rest == "" {
			t.i, t.o = t.i+1, 0
			continue
		}
		switch {
		case t.state == stateLineComment:
			t.take(len(upTo(rest, "\n")), "")
			if strings.HasSuffix(rest[:len(upTo(rest, "\n"))], "\n") {
				t.state = ""
			}
		case t.state == stateBlockComment:
			n := len(upTo(rest, "*/"))
			t.take(n, "")
			if strings.HasSuffix(rest[:n], "*/") {
				t.state = ""
			}
		case t.state != "":
			n := len(upTo(rest, "\n"))
			t.take(n, "")
			line += rest[:n]
			if strings.HasSuffix(line, "\n") {
				if strings.TrimSpace(line) == t.state[2:] {
					t.state = ""
				}
				line = ""
			}
		default:
			t.normal(rest)
			line = ""
		}
	}
}

// upTo is s up to and with the first end, or all of it.
func upTo(s, end string) string {
	if i := strings.Index(s, end); i >= 0 {
		return s[:i+len(end)]
	}
	return s
}

// take copies the next n bytes of the text at the cursor.
func (t *translator) take(n int, state string) {
	t.text(t.tokens[t.i].text[t.o : t.o+n])
	t.o += n
	if state != "" {
		t.state = state
	}
}

var heredoc = lazyregexp.New(`^<<-?([\pL_][\pL\pN_.-]*)\r?\n`)

// normal copies the text rest up to where something else than plain syntax
// begins, and enters it.
func (t *translator) normal(rest string) {
	i := strings.IndexAny(rest, "\"#/<")
	if i < 0 {
		t.take(len(rest), "")
		return
	}
	t.take(i, "")
	rest = rest[i:]
	hcl := t.format == quote.FormatHCL
	switch {
	case rest[0] == '"':
		t.quoted()
	case hcl && rest[0] == '#', hcl && strings.HasPrefix(rest, "//"):
		t.take(1, stateLineComment)
	case hcl && strings.HasPrefix(rest, "/*"):
		t.take(2, stateBlockComment)
	case hcl && heredoc().MatchString(rest):
		m := heredoc().FindStringSubmatch(rest)
		t.take(len(m[0]), "<<"+m[1])
	default:
		t.take(1, "")
	}
}

// keepInComment leaves a tag in a comment as it is: no value may end it.
func (t *translator) keepInComment(tok token) {
	s := strings.ReplaceAll(strings.Join(strings.Fields(tok.source), " "), "*/", "* /")
	t.problems.Warnf(t.position(tok.offset), "", "%s stands in a comment, and stays there as it is", shorten(tok.source))
	t.text(s)
}

// quotedString is a string in double quotes, with the tags in it.
type quotedString struct {
	parts   []any // string or token
	source  string
	offset  int
	values  int    // tags that write something
	strange string // why it can't be translated
	inside  bool   // it holds ${…}
	endI    int    // the cursor behind it
	endO    int
}

// readQuoted reads the string at the cursor; ok is false where it isn't closed.
func (t *translator) readQuoted() (q quotedString, ok bool) {
	tok := t.tokens[t.i]
	q.offset = tok.offset + t.o
	q.endI, q.endO = t.i, t.o+1
	var source, part strings.Builder
	source.WriteByte('"')
	flush := func() {
		if part.Len() > 0 {
			q.parts = append(q.parts, part.String())
			part.Reset()
		}
	}
	braces := 0
	for ; q.endI < len(t.tokens); q.endI, q.endO = q.endI+1, 0 {
		tok := t.tokens[q.endI]
		if tok.kind != tokenText {
			if tok.alone && braces == 0 {
				return q, false
			}
			flush()
			q.addTag(tok, braces > 0)
			source.WriteString(tok.source)
			continue
		}
		for s := tok.text; q.endO < len(s); {
			n, end := stringStep(s[q.endO:], &braces, t.format == quote.FormatHCL)
			if n == 0 {
				return q, false
			}
			source.WriteString(s[q.endO : q.endO+n])
			if !end {
				part.WriteString(s[q.endO : q.endO+n])
			}
			q.endO += n
			q.inside = q.inside || braces > 0
			if end {
				flush()
				q.source = source.String()
				return q, true
			}
		}
	}
	return q, false
}

// stringStep reads one character of a string: n bytes, 0 where the string
// isn't closed; end is set at the closing quote.
func stringStep(s string, braces *int, interpolates bool) (n int, end bool) {
	switch c := s[0]; {
	case c == '\n' && *braces == 0:
		return 0, false
	case c == '"' && *braces == 0:
		return 1, true
	case interpolates && *braces == 0 && strings.HasPrefix(s, "${"):
		*braces++
		return 2, false
	case *braces > 0 && c == '{':
		*braces++
	case *braces > 0 && c == '}':
		*braces--
	case c == '\\' && len(s) > 1 && s[1] != '\n':
		return 2, false
	}
	return 1, false
}

func (q *quotedString) addTag(tok token, inBraces bool) {
	switch tok.kind {
	case tokenComment:
		return // writes nothing
	case tokenOutput:
		q.values++
	case tokenSecret:
		q.values++
	default:
		if strings.TrimSpace(tok.text) == "" && tok.kind == tokenCode {
			return
		}
		q.values++
		q.strange = "write the whole string in each branch"
	}
	if inBraces {
		q.strange = "take the tag out of ${…}"
	}
	q.parts = append(q.parts, tok)
}

// quoted translates the string at the cursor.
func (t *translator) quoted() {
	q, ok := t.readQuoted()
	if !ok {
		t.text(`"`)
		t.o++
		if q.values > 0 {
			t.failf(q.offset, "close the quotes on the same line", "a string with tags is not closed on its line")
		}
		return
	}
	if q.values == 0 {
		t.text(`"`)
		for _, p := range q.parts {
			t.text(p.(string))
		}
		t.text(`"`)
		t.i, t.o = q.endI, q.endO
		return
	}
	whole := token{kind: tokenOutput, source: q.source, offset: q.offset}
	t.i, t.o = q.endI, q.endO
	if q.strange != "" {
		t.fail(whole, q.strange)
		return
	}
	if len(q.parts) == 1 {
		t.wholeString(q.parts[0].(token), whole)
		return
	}
	for _, p := range q.parts {
		if tok, ok := p.(token); ok && tok.kind == tokenSecret {
			t.fail(whole, "a secret can only be a whole string: make the secret hold all of it")
			return
		}
	}
	v, err := t.stringValue(q)
	if err != nil {
		t.fail(whole, byHand)
		return
	}
	if q.inside {
		t.problems.Warnf(t.position(q.offset), "", "${…} in the string is literal text for the agents, which read HCL 1; HCL 2 would evaluate it")
	}
	t.value(v.code)
}

// stringValue makes a value of the string's parts.
func (t *translator) stringValue(q quotedString) (value, error) {
	mark := rune(0xE000)
	for strings.ContainsRune(q.source, mark) {
		mark++
	}
	var raw strings.Builder
	var tags []any
	for _, p := range q.parts {
		if s, ok := p.(string); ok {
			raw.WriteString(s)
		} else {
			raw.WriteRune(mark)
			tags = append(tags, p)
		}
	}
	s, err := unquote(t.format, raw.String())
	if err != nil {
		return value{}, err
	}
	var parts []any
	for i, piece := range strings.Split(s, string(mark)) {
		if i > 0 {
			parts = append(parts, tags[i-1])
		}
		if piece != "" {
			parts = append(parts, piece)
		}
	}
	return t.concatParts(parts)
}

// unquote is the value of what stands between double quotes.
func unquote(f quote.Format, raw string) (s string, err error) {
	if f == quote.FormatHCL {
		if s, err = hclstrconv.Unquote(`"` + raw + `"`); err != nil {
			return "", errors.New("the string has an escape that HCL doesn't have")
		}
		return s, nil
	}
	err = json.Unmarshal([]byte(`"`+raw+`"`), &s)
	return s, err
}

// wholeString translates a string that is one tag and nothing else.
func (t *translator) wholeString(tok, whole token) {
	if tok.kind == tokenSecret {
		t.secret(tok)
		return
	}
	t.at = tok.offset
	e, err := parseExpr(tok.text)
	if err != nil {
		t.fail(whole, byHand)
		return
	}
	if t.quotedList(e) {
		return
	}
	if c, ok := e.(choice); ok {
		t.choose(whole, c, func(side expr) (string, bool) {
			if s, ok := literal(side); ok && t.plain(s) {
				return `="` + s + `"`, plainWord().MatchString(s) || s == ""
			}
			v, err := t.written(side)
			if err != nil {
				return "", false
			}
			v, err = t.asText(v)
			return v.code + " | " + string(t.format), err == nil
		})
		return
	}
	v, err := t.written(e)
	if err != nil {
		t.fail(whole, byHand)
		return
	}
	before := t.before[v.variable]
	if v.kind != valueAny || v.variable == "" || before != nil && before.Kind&(KindBare|KindNumber) != 0 {
		// What may be a number is still a string here. A variable of .vars that
		// is only ever in quotes is said to be a string.
		if v, err = t.asText(v); err != nil {
			t.fail(whole, byHand)
			return
		}
	}
	t.use(v.variable, KindText)
	t.value(v.code)
}

// choose writes cond ? yes : no as an if.
func (t *translator) choose(tok token, c choice, side func(expr) (string, bool)) {
	cond, err := t.compileCondition(c.cond)
	yes, ok1 := side(c.yes)
	no, ok2 := side(c.no)
	if err != nil || !ok1 || !ok2 {
		t.fail(tok, byHand)
		return
	}
	t.action("if " + cond.code)
	t.side(yes)
	t.action("else")
	t.side(no)
	t.action("end")
	t.last = 'x'
}

// side writes one branch: an action, or plain text with = before it.
func (t *translator) side(code string) {
	if s, ok := strings.CutPrefix(code, "="); ok {
		t.text(s)
		return
	}
	t.action(code)
}
