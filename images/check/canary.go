package check

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// canaryWindow is how many bytes of each form the filter looks at: every form of
// a secret that is searched for has as many.
const canaryWindow = LeastCanary

// form is one way in which a secret can be written.
type form struct {
	canary int
	how    string // empty: as it is
	text   string
	folded bool // line ends may stand in it
}

func (c *Canary) text() string {
	v, _ := c.Value.Reveal()
	return strings.TrimRight(v, "\r\n")
}

// formsOf lists the ways in which secrets are searched for.
func formsOf(canaries []Canary) []form {
	var list []form
	for n := range canaries {
		text := canaries[n].text()
		if len(text) < LeastCanary {
			continue
		}
		seen := map[string]bool{}
		add := func(how, s string, folded bool) {
			if len(s) >= canaryWindow && !seen[s] {
				seen[s] = true
				list = append(list, form{n, how, s, folded})
			}
		}
		add("", text, false)
		if line := longestLine(text); line != text {
			add("one line of it", line, false)
		}
		for shift := range 3 {
			b := inBase64(text, shift)
			add("in base64", b, true)
			add("in base64", strings.NewReplacer("+", "-", "/", "_").Replace(b), true)
		}
		h := hex.EncodeToString([]byte(text))
		add("in hexadecimal digits", h, true)
		add("in hexadecimal digits", strings.ToUpper(h), true)
	}
	return list
}

// longestLine is what is left of a secret of several lines where somebody has
// indented them: a line that has no other use.
func longestLine(text string) string {
	if !strings.Contains(text, "\n") {
		return text
	}
	best := text
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if len(line) >= 2*LeastCanary && !strings.HasPrefix(line, "-----") && (best == text || len(line) > len(best)) {
			best = line
		}
	}
	return best
}

// inBase64 is text in base64 behind that many other bytes: those characters that
// depend on nothing else.
func inBase64(text string, shift int) string {
	all := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + text))
	return all[(shift*8+5)/6 : (shift+len(text))*8/6]
}

// windowsOf are the pieces of forms that the filter looks for. Those in which a
// line may end have two: it stands in one of them at most.
func windowsOf(forms []form) []window {
	var list []window
	for n, f := range forms {
		list = append(list, window{n, 0, f.text[:canaryWindow]})
		if f.folded && len(f.text) >= 2*canaryWindow {
			list = append(list, window{n, canaryWindow, f.text[canaryWindow : 2*canaryWindow]})
		}
	}
	return list
}

// match tells whether the form stands in b, with its offset-th byte at at, and
// where.
func (f *form) match(b []byte, at, offset int) (start, end int, ok bool) {
	if !f.folded {
		start, end = at-offset, at-offset+len(f.text)
		return start, end, start >= 0 && end <= len(b) && string(b[start:end]) == f.text
	}
	start, end = at, at
	for i := offset - 1; i >= 0; i-- {
		for start--; start >= 0 && (b[start] == '\n' || b[start] == '\r'); start-- {
		}
		if start < 0 || b[start] != f.text[i] {
			return 0, 0, false
		}
	}
	for i := offset; i < len(f.text); end++ {
		switch {
		case end >= len(b):
			return 0, 0, false
		case b[end] == f.text[i]:
			i++
		case b[end] != '\n' && b[end] != '\r':
			return 0, 0, false
		}
	}
	return start, end, true
}

// searchHash is a hash of all that is searched for. It takes some milliseconds,
// so that nobody finds a secret by trying what gives the keys of verdicts.
func searchHash(forms []form) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", searchVersion)
	for _, f := range forms {
		fmt.Fprintf(h, "%d %s\n", len(f.text), f.text)
	}
	key, err := pbkdf2.Key(sha256.New, hex.EncodeToString(h.Sum(nil)), []byte("kiln verdicts"), 10_000, sha256.Size)
	if err != nil {
		return "" // only where a machine's policy forbids such keys: nothing is remembered then
	}
	return hex.EncodeToString(key)
}
