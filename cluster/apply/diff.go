package apply

import (
	"archive/tar"
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/alisw/kiln/plan"
)

// hidden stands for what may be a secret of a host's.
const hidden = "[" + hiddenWord + "]"

const hiddenWord = "hidden"

// fileDiff shows how a file changes, without a secret of either side. Those of
// the plan are known: their references stand in their places. What a host holds
// isn't: where either side isn't for everybody to read, of the lines that go
// only words are shown that are also in what comes, and addresses.
func fileDiff(f *plan.File, e *entry, after []byte) string {
	var before []byte
	private := f.Content.HoldsSecrets() || f.Mode&0o004 == 0
	if e != nil && e.kind == tar.TypeReg {
		before = e.content
		private = private || e.mode&0o004 == 0
	}
	if !private {
		return diffOf(f.Path, before, after)
	}
	shown := f.Content.Redacted()
	return diffOf(f.Path, redact(before, after, shown), []byte(shown))
}

// diffOf is both texts as diff -u has them, without its first line.
func diffOf(name string, before, after []byte) string {
	for _, text := range [][]byte{before, after} {
		if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
			return "(not a text)\n"
		}
	}
	_, text, _ := strings.Cut(string(diff.Diff("on the host: "+name, before, "in the plan: "+name, after)), "\n")
	return text
}

// redact is the text before without what may be a secret. After is the text that
// takes its place, and shown the same as people may see it.
func redact(before, after []byte, shown string) []byte {
	if len(before) == 0 {
		return nil
	}
	r := redactor{lines: map[string]string{}, words: map[string]bool{}}
	raw, public := strings.SplitAfter(string(after), "\n"), strings.SplitAfter(shown, "\n")
	// A secret of several lines leaves no way to tell which is which.
	lined := len(raw) == len(public)
	for i := range public {
		for _, w := range words(public[i]) {
			r.words[w] = true
		}
		if !lined {
			continue
		}
		r.lines[raw[i]] = public[i]
		if raw[i] != public[i] {
			prefix, _, _ := strings.Cut(public[i], "[secret ")
			r.prefixes = append(r.prefixes, squeeze(prefix))
		}
	}
	var b strings.Builder
	for line := range strings.Lines(string(before)) {
		b.WriteString(r.line(line))
	}
	return []byte(b.String())
}

// redactor knows what may be shown.
type redactor struct {
	lines    map[string]string // lines of what comes, and how they are shown
	words    map[string]bool   // that are in what is shown
	prefixes []string          // what stands before a secret, in one form
}

func (r *redactor) line(line string) string {
	if public, ok := r.lines[line]; ok {
		return public
	}
	text, newline := strings.CutSuffix(line, "\n")
	// A line that held the same setting held an older secret.
	for _, p := range r.prefixes {
		if p != "" && strings.HasPrefix(squeeze(text), p) {
			text = hideAfter(text, p)
			break
		}
	}
	var b strings.Builder
	rest := text
	for _, w := range words(text) {
		i := strings.Index(rest, w)
		b.WriteString(rest[:i])
		rest = rest[i+len(w):]
		if r.words[w] || w == hiddenWord || isHarmless(w) {
			b.WriteString(w)
		} else {
			b.WriteString(hidden)
		}
	}
	b.WriteString(rest)
	if newline {
		b.WriteByte('\n')
	}
	return b.String()
}

// hideAfter keeps of a text what makes up the prefix, in whatever spacing.
func hideAfter(text, prefix string) string {
	kept := ""
	for i := range text {
		if squeeze(text[:i]) == prefix {
			kept = text[:i]
		}
	}
	return kept + hidden
}

// squeeze is a text without white space and quotes.
func squeeze(text string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\"'", r) {
			return -1
		}
		return r
	}, text)
}

// words are what a text is made of, between white space and the punctuation of
// configuration files.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n\"'`=,;(){}[]<>|", r) })
}

// isHarmless tells whether a word can't be a secret: an address, or yes and no.
func isHarmless(word string) bool {
	if slices.Contains([]string{"true", "false", "yes", "no"}, word) {
		return true
	}
	if _, err := netip.ParseAddr(word); err == nil {
		return true
	}
	if _, err := netip.ParsePrefix(word); err == nil {
		return true
	}
	_, err := netip.ParseAddrPort(word)
	return err == nil
}
