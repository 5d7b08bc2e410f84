package importing

import (
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/quote"
)

// runRaw translates a file without a quoting of its own: each tag by itself.
func (t *translator) runRaw() {
	for _, tok := range t.tokens {
		t.i++
		switch tok.kind {
		case tokenText:
			t.text(tok.text)
		case tokenSecret:
			t.secret(tok)
		case tokenOutput:
			v, err := t.expression(tok)
			switch {
			case err != nil:
				t.fail(tok, byHand)
			case v.kind == valueList:
				t.action(v.code + " | json")
			default:
				t.use(v.variable, KindText)
				t.value(v.code)
			}
		default:
			t.quiet(tok, false)
		}
	}
}

// runLines translates YAML and unit files, line by line.
func (t *translator) runLines() {
	block := -1        // indentation of the key whose block scalar the cursor is in
	continued := false // the line before ends in a backslash
	for t.i < len(t.tokens) {
		if tok := t.tokens[t.i]; tok.alone {
			t.i++
			t.quiet(tok, false)
			continue
		}
		parts := t.line()
		switch {
		case t.format == quote.FormatSystemd:
			t.unitLine(parts, continued)
			continued = strings.HasSuffix(strings.TrimRight(plainText(parts), "\r\n"), `\`)
		default:
			s := plainText(parts)
			indent := len(s) - len(strings.TrimLeft(s, " "))
			if block >= 0 && strings.TrimSpace(s) != "" && indent <= block {
				block = -1
			}
			if block >= 0 {
				t.lineAsIs(parts, "write the block scalar as a string in quotes")
				continue
			}
			if blockScalar().MatchString(s) {
				block = indent
			}
			t.yamlLine(parts)
		}
	}
}

var blockScalar = lazyregexp.New(`(?:[:-]|^)[ \t]+(?:[!&]\S+[ \t]+)*[|>][0-9+-]*[ \t]*(?:#.*)?\r?\n?$`)

// line takes the cursor's line: strings and tags, up to and with its newline.
func (t *translator) line() []any {
	var parts []any
	for ; t.i < len(t.tokens); t.i, t.o = t.i+1, 0 {
		tok := t.tokens[t.i]
		if tok.kind != tokenText {
			if tok.alone {
				return parts
			}
			parts = append(parts, tok)
			continue
		}
		s := upTo(tok.text[t.o:], "\n")
		if s != "" {
			parts = append(parts, s)
		}
		if t.o += len(s); strings.HasSuffix(s, "\n") {
			if t.o == len(tok.text) {
				t.i, t.o = t.i+1, 0
			}
			return parts
		}
	}
	return parts
}

// plainText is a line with x for each value in it.
func plainText(parts []any) string {
	var b strings.Builder
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case token:
			if writes(p) {
				b.WriteByte('x')
			}
		}
	}
	return b.String()
}

func writes(tok token) bool { return tok.kind == tokenOutput || tok.kind == tokenSecret }

// lineAsIs writes a line none of whose values can be translated.
func (t *translator) lineAsIs(parts []any, fix string) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			t.text(p)
		case token:
			if writes(p) {
				t.fail(p, fix)
			} else {
				t.quiet(p, false)
			}
		}
	}
}

// hasValues tells whether a part of the line is a value, and whether one is
// a tag that decides.
func hasValues(parts []any) (values, decides bool) {
	for _, p := range parts {
		if tok, ok := p.(token); ok {
			values = values || writes(tok)
			decides = decides || !writes(tok) && tok.kind != tokenComment
		}
	}
	return values, decides
}

const wholeValue = "make the tag the whole value, or put the whole value in double quotes"

var yamlStart = lazyregexp.New(`^[ \t]*(?:- +)*(?:(?:[A-Za-z0-9_./-]+|"[^"\\]*")[ \t]*:[ \t]+)?`)

// yamlLine translates a line whose value is one tag, or one string in quotes.
func (t *translator) yamlLine(parts []any) {
	values, decides := hasValues(parts)
	if !values {
		t.lineAsIs(parts, "")
		return
	}
	first, ok := parts[0].(string)
	if !ok || decides {
		t.lineAsIs(parts, wholeValue)
		return
	}
	start := yamlStart().FindString(first)
	if strings.HasPrefix(strings.TrimLeft(first, " \t"), "#") {
		t.text(first)
		t.commentRest(parts[1:])
		return
	}
	if start == "" {
		t.lineAsIs(parts, wholeValue)
		return
	}
	rest := dropComments(parts[1:])
	if first != start {
		rest = append([]any{first[len(start):]}, rest...)
	}
	inner, tail, ok := wholeWord(rest, `"`)
	if !ok {
		inner, tail, ok = wholeWord(rest, "")
	}
	if !ok || strings.TrimLeft(tail, " \t\r\n") != "" && !strings.HasPrefix(strings.TrimLeft(tail, " \t"), "#") {
		t.lineAsIs(parts, wholeValue)
		return
	}
	t.text(start)
	t.word(inner, rest, func(s string) (string, error) { return unquote(quote.FormatJSON, s) })
	t.text(tail)
}

// commentRest writes the rest of a comment: its tags as they are.
func (t *translator) commentRest(parts []any) {
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			t.text(p)
		case token:
			if writes(p) {
				t.keepInComment(p)
			} else {
				t.quiet(p, false)
			}
		}
	}
}

func dropComments(parts []any) []any {
	var out []any
	for _, p := range parts {
		if tok, ok := p.(token); !ok || tok.kind != tokenComment {
			out = append(out, p)
		}
	}
	return out
}

// wholeWord takes what stands between two quotes, or a tag alone where quotes
// is empty, and what follows it.
func wholeWord(parts []any, quotes string) (inner []any, tail string, ok bool) {
	if quotes == "" {
		if len(parts) == 0 || len(parts) > 2 {
			return nil, "", false
		}
		if _, ok := parts[0].(token); !ok {
			return nil, "", false
		}
		if len(parts) == 2 {
			tail, ok = parts[1].(string)
			return parts[:1], tail, ok && strings.IndexAny(tail, " \t\r\n") == 0
		}
		return parts[:1], "", true
	}
	if len(parts) == 0 {
		return nil, "", false
	}
	open, ok := parts[0].(string)
	if !ok || !strings.HasPrefix(open, quotes) {
		return nil, "", false
	}
	for i, p := range parts {
		s, ok := p.(string)
		if !ok {
			inner = append(inner, p)
			continue
		}
		if i == 0 {
			s = s[len(quotes):]
		}
		text, rest, closed := strings.Cut(s, quotes)
		if text != "" {
			inner = append(inner, text)
		}
		if closed {
			return inner, rest, i == len(parts)-1 && !strings.HasSuffix(text, `\`)
		}
	}
	return nil, "", false
}

// word writes one value of strings and tags; unquoted gives the meaning of its
// strings.
func (t *translator) word(inner, source []any, unquoted func(string) (string, error)) {
	whole := t.wholeToken(inner, source)
	if tok, ok := inner[0].(token); ok && len(inner) == 1 {
		if tok.kind == tokenSecret {
			t.secret(tok)
			return
		}
		v, err := t.expression(tok)
		if err != nil || v.kind == valueList && t.format == quote.FormatSystemd {
			t.fail(whole, byHand)
			return
		}
		t.use(v.variable, KindBare)
		t.value(v.code)
		return
	}
	var parts []any
	for _, p := range inner {
		if s, ok := p.(string); ok {
			value, err := unquoted(s)
			if err != nil {
				t.fail(whole, byHand)
				return
			}
			p = value
		} else if p.(token).kind == tokenSecret {
			t.fail(whole, "a secret can only be a whole value: make the secret hold all of it")
			return
		}
		parts = append(parts, p)
	}
	v, err := t.concatParts(parts)
	if err != nil {
		t.fail(whole, byHand)
		return
	}
	t.value(v.code)
}

// wholeToken stands for several parts in a message.
func (t *translator) wholeToken(inner, source []any) token {
	var b strings.Builder
	whole := token{kind: tokenOutput, offset: -1}
	for _, p := range source {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case token:
			b.WriteString(p.source)
			if whole.offset < 0 {
				whole.offset = p.offset
			}
		}
	}
	for _, p := range inner {
		if tok, ok := p.(token); ok && whole.offset < 0 {
			whole.offset = tok.offset
		}
	}
	whole.source = b.String()
	return whole
}

// unitLine translates a line of a unit file: values are words of their own, or
// part of a word without quotes, specifiers and variables.
func (t *translator) unitLine(parts []any, continued bool) {
	values, decides := hasValues(parts)
	first, _ := parts[0].(string)
	switch {
	case !values:
		t.lineAsIs(parts, "")
		return
	case strings.HasPrefix(strings.TrimLeft(first, " \t"), "#") || strings.HasPrefix(strings.TrimLeft(first, " \t"), ";"):
		t.commentRest(parts)
		return
	case decides:
		t.lineAsIs(parts, "write the whole line in each branch")
		return
	}
	if !continued {
		key := unitSetting().FindString(first)
		if key == "" {
			t.lineAsIs(parts, "write a setting's name without tags")
			return
		}
		t.text(key)
		parts[0] = first[len(key):]
	}
	t.unitWords(dropComments(parts))
}

var unitSetting = lazyregexp.New(`^[ \t]*[A-Za-z][A-Za-z0-9-]*[ \t]*=`)

func (t *translator) unitWords(parts []any) {
	var word []any
	flush := func() {
		hasTag, _ := hasValues(word)
		if inner, tail, ok := wholeWord(word, `"`); hasTag && ok && tail == "" && len(inner) > 0 {
			word = inner
		}
		plain := true
		for _, p := range word {
			s, ok := p.(string)
			plain = plain && (!ok || !strings.ContainsAny(s, `"'\%$`))
		}
		switch {
		case !hasTag:
			t.lineAsIs(word, "")
		case !plain:
			t.fail(t.wholeToken(word, word), "write the word without quotes, specifiers and variables, or by hand")
		default:
			t.word(word, word, func(s string) (string, error) { return s, nil })
		}
		word = nil
	}
	quoted := false // within quotes, white space ends no word
	for _, p := range parts {
		s, ok := p.(string)
		if !ok {
			word = append(word, p)
			continue
		}
		start := 0
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '"' || s[i] == '\'':
				quoted = !quoted
			case !quoted && strings.IndexByte(" \t\r\n", s[i]) >= 0:
				if i > start {
					word = append(word, s[start:i])
				}
				flush()
				t.text(s[i : i+1])
				start = i + 1
			}
		}
		if start < len(s) {
			word = append(word, s[start:])
		}
	}
	flush()
}
