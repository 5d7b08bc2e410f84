package run

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/alisw/kiln/internal/quote"
)

const (
	longestLine = 64 << 10 // bytes that a callback is given at once
	tailLines   = 8        // lines of stderr that an error shows
	tailWidth   = 400      // bytes of each
)

// eachLine calls f for each line of r, until r ends or can't be read.
func eachLine(r io.Reader, f func(line string)) {
	br := bufio.NewReaderSize(r, longestLine)
	for {
		// What stands before an error is handed out by the call before it.
		line, _, err := br.ReadLine()
		if err != nil {
			return
		}
		f(string(line))
	}
}

// tail keeps the last lines that were added.
type tail struct {
	lines []string
}

func (t *tail) add(line string) {
	line = strings.TrimRightFunc(line, unicode.IsSpace)
	if line == "" {
		return
	}
	// What a terminal was shown last is what stands behind the last carriage
	// return.
	line = line[strings.LastIndexByte(line, '\r')+1:]
	if len(line) > tailWidth {
		line = strings.ToValidUTF8(line[:tailWidth], "") + "…"
	}
	if len(t.lines) == tailLines {
		t.lines = append(t.lines[:0], t.lines[1:]...)
	}
	t.lines = append(t.lines, printable(line))
}

// printable escapes what would move a terminal's cursor or change its colours.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\t':
			b.WriteByte(' ')
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// word writes s as one word of a shell, for people to read and to paste.
func word(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
	}
	switch {
	case s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }):
		return s
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		// What only $'…' of some shells could say, and no terminal should get.
		return "$" + "'" + strings.ReplaceAll(strings.Trim(strconv.Quote(s), `"`), "'", `\'`) + "'"
	}
	return quote.Word(s)
}
