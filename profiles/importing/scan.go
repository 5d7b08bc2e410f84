package importing

import (
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

type tokenKind int

const (
	tokenText    tokenKind = iota // copied as it is
	tokenOutput                   // <%= … %>
	tokenCode                     // <% … %>
	tokenComment                  // <%# … %>
	tokenSecret                   // %TEIGI__key__%
	tokenOpen                     // a tag without its end
)

// token is a piece of an ERB template. Tags lose no white space here but what
// Puppet's trim mode takes.
type token struct {
	kind   tokenKind
	text   string // what it is: the text, the tag's code, the comment, the key
	source string // how it was written; only of tags
	offset int    // in the template
	// A tag that writes nothing and is alone on its line takes the whole line,
	// so that the translation can stay as readable. keepIndent and keepNewline
	// say which of its white space Ruby would write all the same.
	alone                   bool
	indent                  string
	newline                 string
	keepIndent, keepNewline bool
}

var teigi = lazyregexp.New(`%TEIGI__([A-Za-z0-9_.-]+?)__%`)

// scan takes an ERB template apart as Ruby's ERB does in Puppet's trim mode,
// "-": <%- takes the indentation before it, -%> the newline behind it, <%% is
// a literal <%, and %%> within a tag a literal %>.
func scan(src string) []token {
	var tokens []token
	text := func(s string, offset int) {
		if s != "" {
			tokens = append(tokens, token{kind: tokenText, text: s, offset: offset})
		}
	}
	pos, done := 0, 0 // src[done:pos] is text that is still to be added
	for pos < len(src) {
		i := strings.Index(src[pos:], "<%")
		if i < 0 {
			break
		}
		pos += i
		if strings.HasPrefix(src[pos:], "<%%") {
			text(src[done:pos+2], done)
			pos += 3
			done = pos
			continue
		}
		t, end := scanTag(src, pos)
		if t.alone {
			pos -= len(t.indent)
		} else if strings.HasPrefix(t.source, "<%-") {
			pos -= len(indentBefore(src, pos))
		}
		text(src[done:pos], done)
		tokens = append(tokens, t)
		pos, done = end, end
	}
	text(src[done:], done)
	return splitSecrets(tokens)
}

// scanTag reads the tag at src[pos:]; end is where the text goes on.
func scanTag(src string, pos int) (t token, end int) {
	start := pos
	pos += len("<%")
	t = token{kind: tokenCode, offset: start}
	switch {
	case strings.HasPrefix(src[pos:], "="):
		t.kind = tokenOutput
		pos++
	case strings.HasPrefix(src[pos:], "#"):
		t.kind = tokenComment
		pos++
	case strings.HasPrefix(src[pos:], "-"):
		pos++
	}
	code := pos
	for {
		i := strings.Index(src[pos:], "%>")
		if i < 0 {
			t.kind, t.text, t.source = tokenOpen, src[code:], src[start:]
			return t, len(src)
		}
		pos += i
		if src[pos-1] != '%' || pos == code {
			break
		}
		pos += 2
	}
	end = pos + 2
	trimsRight := pos > code && src[pos-1] == '-'
	if trimsRight {
		pos--
	}
	t.text = strings.ReplaceAll(src[code:pos], "%%>", "%>")
	t.source = src[start:end]
	trimsLeft := strings.HasPrefix(t.source, "<%-")
	newline := newlineAt(src, end)
	if t.kind != tokenOutput && (newline != "" || end == len(src)) {
		if indent := indentBefore(src, start); indent != "" || start == 0 || src[start-1] == '\n' {
			t.alone, t.indent, t.newline = true, indent, newline
			t.keepIndent, t.keepNewline = !trimsLeft && indent != "", !trimsRight && newline != ""
			return t, end + len(newline)
		}
	}
	if trimsRight {
		end += len(newline)
	}
	return t, end
}

func newlineAt(src string, i int) string {
	if strings.HasPrefix(src[i:], "\n") {
		return "\n"
	}
	if strings.HasPrefix(src[i:], "\r\n") {
		return "\r\n"
	}
	return ""
}

// indentBefore is the white space between the start of the line and src[i:],
// and nothing where more stands there.
func indentBefore(src string, i int) string {
	j := i
	for j > 0 && (src[j-1] == ' ' || src[j-1] == '\t') {
		j--
	}
	if j == 0 || src[j-1] == '\n' {
		return src[j:i]
	}
	return ""
}

// splitSecrets finds Teigi's placeholders in the text.
func splitSecrets(tokens []token) []token {
	var out []token
	for _, t := range tokens {
		if t.kind != tokenText {
			out = append(out, t)
			continue
		}
		done := 0
		for _, m := range teigi().FindAllStringSubmatchIndex(t.text, -1) {
			if m[0] > done {
				out = append(out, token{kind: tokenText, text: t.text[done:m[0]], offset: t.offset + done})
			}
			out = append(out, token{kind: tokenSecret, text: t.text[m[2]:m[3]], source: t.text[m[0]:m[1]], offset: t.offset + m[0]})
			done = m[1]
		}
		if done < len(t.text) {
			out = append(out, token{kind: tokenText, text: t.text[done:], offset: t.offset + done})
		}
	}
	return out
}
