package render

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/alisw/kiln/internal/quote"
)

// areGraphic tells whether each of eight bytes is one of ASCII's printable
// characters.
func areGraphic(eight uint64) bool {
	const each = 0x0101010101010101
	below := (eight - ' '*each) &^ eight      // the top bit of a byte: less than a space
	above := eight + each*(0x80-0x7f) | eight // more than a tilde
	return (below|above)&(0x80*each) == 0
}

// notInLine are the characters that end a line or can't be in one.
func notInLine(r rune) bool {
	return r == utf8.RuneError || unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
}

// notInWord are the characters that end a word, too.
func notInWord(r rune) bool { return notInLine(r) || unicode.IsSpace(r) }

// shellWord is s as one word of a POSIX shell, in quotes only where it needs
// them. It has been checked to be text.
func shellWord(s string) string {
	if isPlain(s, "/_.@+:=,-") {
		return s
	}
	return quote.Word(s)
}

// isPlain tells whether s has nothing but letters, digits and what also lists.
func isPlain(s, also string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') && strings.IndexByte(also, c) < 0 {
			return false
		}
	}
	return s != ""
}

// yamlText is YAML being written: the few forms that Kiln's texts have, in a
// way that YAML 1.1 and 1.2 parsers read alike.
type yamlText struct {
	b []byte
	// literals is false where no block scalar may be used.
	literals bool
	err      error // the first string that YAML can't carry
}

// line adds text that is YAML already.
func (y *yamlText) line(parts ...string) {
	for _, p := range parts {
		y.b = append(y.b, p...)
	}
	y.b = append(y.b, '\n')
}

// scalar is s as a YAML scalar: plain where that can't be taken for anything
// but a string, else in double quotes.
func (y *yamlText) scalar(s string) string {
	if strings.HasPrefix(s, "/") && isPlain(s, "/_.@+-") || strings.IndexByte(s, ' ') > 0 && isPlain(s, " /_.@+-") && isLetter(s[0]) && s[len(s)-1] != ' ' {
		return s
	}
	quoted, err := quote.JSON(s)
	if err != nil && y.err == nil {
		y.err = err
	}
	return quoted
}

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// entry adds key: value, with indent before the key.
func (y *yamlText) entry(indent, key, value string) { y.line(indent, key, ": ", y.scalar(value)) }

// list adds key: [values].
func (y *yamlText) list(indent, key string, values []string) {
	y.b = append(append(append(y.b, indent...), key...), ": ["...)
	for i, v := range values {
		if i > 0 {
			y.b = append(y.b, ", "...)
		}
		y.b = append(y.b, y.scalar(v)...)
	}
	y.b = append(y.b, "]\n"...)
}

// commands adds a list of shell commands, those of several lines as blocks.
func (y *yamlText) commands(key string, commands []string) {
	if len(commands) == 0 {
		return
	}
	y.line(key, ":")
	for _, c := range commands {
		if strings.IndexByte(c, '\n') >= 0 && isLiteral([]byte(c)) {
			y.line("- |")
			y.block("  ", []byte(c))
		} else {
			y.line("- ", y.scalar(c))
		}
	}
}

// block adds the lines of a block scalar.
func (y *yamlText) block(indent string, text []byte) {
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n') + 1
		if end > 1 {
			y.b = append(y.b, indent...)
		}
		y.b = append(y.b, text[:end]...)
		text = text[end:]
	}
}

// base64 adds content as one scalar.
func (y *yamlText) base64(content []byte) { y.b = base64.StdEncoding.AppendEncode(y.b, content) }

// isLiteral tells whether text comes out of a YAML block scalar (|, keeping its
// one newline at the end) as it went in, whichever parser reads it. Excluded is
// what YAML calls unprintable, what YAML 1.1 takes for a line break, and what
// would be taken for indentation.
func isLiteral(text []byte) bool {
	n := len(text)
	if n < 2 || text[n-1] != '\n' || text[n-2] == '\n' || text[0] == ' ' || text[0] == '\t' || text[0] == '\n' {
		return false
	}
	for i := 0; i < n; {
		if i+8 <= n && areGraphic(binary.LittleEndian.Uint64(text[i:])) {
			i += 8
			continue
		}
		c := text[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size == 1 || r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\uFEFF' || r == 0xfffe || r == 0xffff {
			return false
		}
		i += size
	}
	return true
}
