package importing

import (
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

var plainWord = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.]*$`)

// bare translates a tag outside quotes: a number, a truth, a list, or the name
// of a block. In a line comment, a value is quoted, so that it stays in there.
func (t *translator) bare(tok token) {
	t.at = tok.offset
	comment := t.state == stateLineComment
	if !comment && (!isDelimiter(t.last) || !isDelimiter(t.next())) {
		t.fail(tok, "put the whole value in quotes")
		return
	}
	e, err := parseExpr(tok.text)
	if err == nil && !comment && t.bareList(e) {
		return
	}
	if err == nil {
		if c, ok := e.(choice); ok {
			t.choose(tok, c, t.bareCode)
			return
		}
		if code, ok := t.bareCode(e); ok {
			t.side(code)
			t.last = 'x'
			return
		}
	}
	if comment {
		t.keepInComment(tok)
		return
	}
	t.fail(tok, byHand)
}

// bareCode is the action for e outside quotes, or = and the plain text of it.
func (t *translator) bareCode(e expr) (code string, ok bool) {
	if c, ok := e.(call); ok && c.method == "to_s" && len(c.args) == 0 {
		e = c.x
	}
	if s, ok := literal(e); ok {
		return "=" + s, plainWord().MatchString(s)
	}
	switch e := e.(type) {
	case truth:
		return "=" + strconv.FormatBool(bool(e)), true
	case number:
		return "=" + string(e), true
	}
	if parts, ok := e.(text); ok {
		// A string that brings its own quotes along.
		if inner, ok := insideQuotes(parts); ok {
			v, err := t.written(inner)
			if err != nil || v.code == "" {
				return "", false
			}
			v, err = t.asText(v)
			return v.code + " | " + string(t.format), err == nil
		}
	}
	v, err := t.written(e)
	if err != nil || v.kind == valueString && !v.atom {
		return "", false
	}
	if t.state == stateLineComment {
		t.use(v.variable, KindText)
	} else {
		t.use(v.variable, KindBare)
	}
	return v.code + " | " + string(t.format), true
}

func isDelimiter(c byte) bool {
	return c == 0 || strings.IndexByte(" \t\r\n=[]{}(),:#", c) >= 0
}

// next is the byte that follows the cursor in the output: x for a value, 0 for
// the end.
func (t *translator) next() byte {
	skip := 0 // how many blocks end before what follows
	for i, o := t.i, t.o; i < len(t.tokens); i, o = i+1, 0 {
		tok := t.tokens[i]
		switch tok.kind {
		case tokenText:
			if o < len(tok.text) && skip == 0 {
				return tok.text[o]
			}
		case tokenOutput, tokenSecret, tokenOpen:
			if skip == 0 {
				return 'x'
			}
		case tokenCode:
			if tok.alone && skip == 0 {
				return '\n'
			}
			s, err := parseStatement(tok.text)
			switch {
			case err != nil && skip == 0:
				return 'x'
			case err != nil:
				skip += blockDepth(tok.text)
			case skip == 0 && (s.what == "else" || s.what == "elsif"):
				skip = 1
			case skip > 0 && (s.what == "if" || s.what == "unless" || strings.HasPrefix(s.what, "each")):
				skip++
			case skip > 0 && s.what == "end":
				skip--
			}
		}
	}
	return 0
}
