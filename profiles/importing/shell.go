package importing

import (
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

// shellState is where in a shell script the cursor is.
type shellState struct {
	// open are the constructs around the cursor: " ' ( for $(…) and ` { for
	// ${…}. Within the last two nothing is translated.
	open    []byte
	comment bool
	heredoc []string // ends of the here-documents that begin with the next line
	in      string   // end of the here-document that the cursor is in
	lost    bool     // a construct that isn't understood: nothing is translated any more
}

func (s *shellState) key() string {
	k := string(s.open) + " " + s.in
	if s.comment {
		k += "#"
	}
	return k
}

func (s *shellState) top() byte {
	if len(s.open) == 0 {
		return 0
	}
	return s.open[len(s.open)-1]
}

// runShell translates a shell script: outside quotes a value is one word,
// within quotes the quotes are closed around it.
func (t *translator) runShell() {
	var s shellState
	for _, tok := range t.tokens {
		t.i++
		t.state = s.key()
		switch tok.kind {
		case tokenText:
			t.text(tok.text[t.o:])
			t.o = 0
			s.read(tok.text)
		case tokenOutput, tokenSecret:
			t.shellValue(tok, &s)
		default:
			before := s.key()
			t.quiet(tok, false)
			if t.state != before {
				// A new branch begins where the first one began.
				s = shellState{lost: true}
			}
			if tok.alone {
				s.read("\n")
			}
		}
	}
	t.state = s.key()
}

func (t *translator) shellValue(tok token, s *shellState) {
	switch {
	case s.lost, s.in != "", s.top() == '`', s.top() == '{':
		t.fail(tok, "set a variable of the shell to it, on a line before")
		return
	case s.comment:
		t.keepInComment(tok)
		return
	}
	around := ""
	if q := s.top(); q == '"' || q == '\'' {
		around = string(q)
	}
	code := ""
	if tok.kind == tokenOutput {
		v, err := t.expression(tok)
		if err != nil || v.kind == valueList {
			t.fail(tok, byHand)
			return
		}
		if around != "" {
			v, err = t.asText(v)
		}
		if err != nil {
			t.fail(tok, byHand)
			return
		}
		t.use(v.variable, KindText)
		code = v.code
	}
	if around != "" && t.swallowQuotes(around) {
		around = ""
	}
	t.text(around)
	if tok.kind == tokenSecret {
		t.secret(tok)
	} else {
		t.value(code)
	}
	t.text(around)
	t.last = 'x'
}

// swallowQuotes removes the quote just written, and passes over the one that
// follows, where the value is all that they hold.
func (t *translator) swallowQuotes(quote string) bool {
	n := len(t.pieces) - 1
	if n < 0 || t.pieces[n].action || t.i >= len(t.tokens) || t.tokens[t.i].kind != tokenText || !strings.HasPrefix(t.tokens[t.i].text, quote) {
		return false
	}
	before, ok := strings.CutSuffix(t.pieces[n].text, quote)
	if !ok || before == "" || strings.IndexByte(" \t\n=", before[len(before)-1]) < 0 {
		return false
	}
	t.pieces[n].text, t.o = before, 1
	return true
}

var (
	shellHeredoc = lazyregexp.New(`^<<-?[ \t]*(?:'([^'\n]+)'|"([^"\n]+)"|\\?([A-Za-z0-9_.]+))`)
	shellCase    = lazyregexp.New(`\bcase\b`)
)

// read follows the text of a script. It knows what decides about quoting, and
// says that it is lost where it doesn't.
func (s *shellState) read(text string) {
	for i := 0; i < len(text); {
		rest := text[i:]
		if s.in != "" || s.comment {
			line := upTo(rest, "\n")
			i += len(line)
			if !strings.HasSuffix(line, "\n") {
				return
			}
			if s.comment {
				s.comment = false
				s.newline()
			} else if strings.TrimSpace(line) == s.in {
				s.in = ""
				s.newline()
			}
			continue
		}
		i += s.step(text, i)
	}
}

// newline enters the next here-document, if one is waiting.
func (s *shellState) newline() {
	if len(s.heredoc) > 0 {
		s.in, s.heredoc = s.heredoc[0], s.heredoc[1:]
	}
}

// step reads one character, or one operator, outside comments and
// here-documents.
func (s *shellState) step(text string, i int) int {
	rest, top := text[i:], s.top()
	c := rest[0]
	switch {
	case top == '\'':
		if c == '\'' {
			s.pop()
		}
		return 1
	case c == '\\':
		return min(2, len(rest))
	case c == '`':
		s.toggle('`')
	case c == '"':
		s.toggle('"')
	case strings.HasPrefix(rest, "${"):
		s.open = append(s.open, '{')
		return 2
	case strings.HasPrefix(rest, "$("):
		s.open = append(s.open, '(')
		s.lost = s.lost || shellCase().MatchString(rest)
		return 2
	case c == '}' && top == '{':
		s.pop()
	case top == '"', top == '{', top == '`':
	case strings.HasPrefix(rest, "$'"), strings.HasPrefix(rest, "<<<"):
		s.lost = true
	case c == '\'':
		s.open = append(s.open, '\'')
	case c == '(' && top == '(':
		s.open = append(s.open, '(')
	case c == ')' && top == '(':
		s.pop()
	case c == '#' && (i == 0 || strings.IndexByte(" \t\n;(&|", text[i-1]) >= 0):
		s.comment = true
	case strings.HasPrefix(rest, "<<"):
		m := shellHeredoc().FindStringSubmatch(rest)
		if m == nil {
			s.lost = true
			return 2
		}
		s.heredoc = append(s.heredoc, m[1]+m[2]+m[3])
		return len(m[0])
	case c == '\n':
		s.newline()
	}
	return 1
}

func (s *shellState) toggle(c byte) {
	if s.top() == c {
		s.pop()
		return
	}
	s.open = append(s.open, c)
}

func (s *shellState) pop() {
	if len(s.open) > 0 {
		s.open = s.open[:len(s.open)-1]
	}
}
