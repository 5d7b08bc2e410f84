package importing

import (
	"fmt"
	"strings"
)

type rubyKind int

const (
	rubyEnd    rubyKind = iota
	rubyName            // if, scope, each, empty?
	rubyIvar            // @name, without the @
	rubyNumber          // 8500
	rubyString          // 'text', its value
	rubyDouble          // "text", as it was written, without the quotes
	rubySymbol          // :name, without the colon
	rubyPunct
)

type rubyToken struct {
	kind rubyKind
	text string
}

var rubyOperators = []string{"==", "!=", "<=", ">=", "&&", "||", "?", ":", "<", ">", "!", "+", "=", "[", "]", "(", ")", "{", "}", ".", ",", "|", "&"}

func lexRuby(code string) ([]rubyToken, error) {
	var tokens []rubyToken
	for rest := code; ; {
		trimmed := strings.TrimLeft(rest, " \t\r\n")
		newline := strings.Contains(rest[:len(rest)-len(trimmed)], "\n")
		rest = trimmed
		if strings.HasPrefix(rest, "#") {
			_, after, _ := strings.Cut(rest, "\n")
			rest = "\n" + after
			continue
		}
		if rest == "" {
			return tokens, nil
		}
		// A newline ends a statement, and one tag can hold only one.
		if newline && len(tokens) > 0 && !continues(tokens) {
			return nil, errRuby
		}
		t, n, err := lexOne(rest)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
		rest = rest[n:]
	}
}

// continues tells whether the last token asks for more, so that a newline
// behind it ends nothing.
func continues(tokens []rubyToken) bool {
	last := tokens[len(tokens)-1]
	return last.kind == rubyPunct && strings.Contains("== != <= >= && || + [ ( { , . ?", last.text)
}

func lexOne(s string) (rubyToken, int, error) {
	switch c := s[0]; {
	case c == '\'':
		return lexSingle(s)
	case c == '"':
		for i := 1; i < len(s); i++ {
			switch s[i] {
			case '\\':
				i++
			case '"':
				return rubyToken{rubyDouble, s[1:i]}, i + 1, nil
			}
		}
		return rubyToken{}, 0, errRuby
	case c == '@':
		if n := nameLength(s[1:]); n > 0 {
			return rubyToken{rubyIvar, s[1 : 1+n]}, 1 + n, nil
		}
		return rubyToken{}, 0, errRuby
	case c == ':' && len(s) > 1 && nameLength(s[1:]) > 0:
		n := nameLength(s[1:])
		return rubyToken{rubySymbol, s[1 : 1+n]}, 1 + n, nil
	case c >= '0' && c <= '9':
		return lexNumber(s)
	}
	if n := nameLength(s); n > 0 {
		if n < len(s) && (s[n] == '?' || s[n] == '!') && !strings.HasPrefix(s[n+1:], "=") {
			n++
		}
		return rubyToken{rubyName, s[:n]}, n, nil
	}
	for _, op := range rubyOperators {
		if strings.HasPrefix(s, op) {
			return rubyToken{rubyPunct, op}, len(op), nil
		}
	}
	return rubyToken{}, 0, errRuby
}

func lexSingle(s string) (rubyToken, int, error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '\'' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case s[i] == '\'':
			return rubyToken{rubyString, b.String()}, i + 1, nil
		default:
			b.WriteByte(s[i])
		}
	}
	return rubyToken{}, 0, fmt.Errorf("%w: a quote is not closed", errRuby)
}

// lexNumber takes what Ruby and templates read as the same number.
func lexNumber(s string) (rubyToken, int, error) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n > 1 && s[0] == '0' || n > 15 {
		return rubyToken{}, 0, errRuby
	}
	if n+1 < len(s) && s[n] == '.' && s[n+1] >= '0' && s[n+1] <= '9' || n < len(s) && (s[n] == '_' || nameLength(s[n:]) > 0) {
		return rubyToken{}, 0, errRuby
	}
	return rubyToken{rubyNumber, s[:n]}, n, nil
}

// nameLength is the length of the name that s starts with.
func nameLength(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return n
}
