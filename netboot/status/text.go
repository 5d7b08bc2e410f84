package status

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alisw/kiln/netboot/state"
)

// Duration says how long something took, in the two units that matter.
func Duration(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 10*60:
		return fmt.Sprintf("%d min %02d s", s/60, s%60)
	case s < 60*60:
		return fmt.Sprintf("%d min", s/60)
	case s < 24*60*60:
		return fmt.Sprintf("%d h %02d min", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%d d %d h", s/86400, s%86400/3600)
}

// Size says how many bytes there are, in units of 1024, with three digits.
func Size(n int64) string {
	v, units := float64(max(n, 0)), "KMGTPE"
	if v < 1024 {
		return fmt.Sprintf("%d B", int64(v))
	}
	for v >= 1023.5 && len(units) > 0 {
		if v /= 1024; v < 1023.5 {
			break
		}
		units = units[1:]
	}
	switch {
	case v < 9.95:
		return fmt.Sprintf("%.1f %ciB", v, units[0])
	default:
		return fmt.Sprintf("%.0f %ciB", v, units[0])
	}
}

// escapes are the sequences with which a program talks to its terminal: CSI with
// its parameters, OSC with its text, and those of two characters.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^-~])`)

// Clean is a text of another machine's as it may be shown in one line: without
// escape sequences, and with a mark for each other control character, or one
// that turns the text's direction, or byte that is no UTF-8.
func Clean(s string) string {
	if strings.IndexFunc(s, strange) < 0 && utf8.ValidString(s) {
		return s
	}
	s = escapes.ReplaceAllString(s, "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case strange(r):
			return utf8.RuneError
		}
		return r
	}, strings.TrimRight(s, "\r\n"))
}

func strange(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError
}

// Domain is what all the hosts have behind the first dot of their names, with
// that dot: where it isn't empty, their names can do without it.
func Domain(records []state.Record) string {
	domain := ""
	for i := range records {
		dot := strings.IndexByte(records[i].Host, '.')
		if dot <= 0 || i > 0 && records[i].Host[dot:] != domain {
			return ""
		}
		domain = records[i].Host[dot:]
	}
	return domain
}

// wrap breaks a text into lines of so many columns, at spaces where it can; more
// than limit of them end in an ellipsis.
func wrap(s string, columns, limit int) []string {
	var lines []string
	for s != "" && columns > 0 {
		if len(lines) == limit-1 || wide(s) <= columns {
			return append(lines, cut(s, columns))
		}
		used, end, space := 0, 0, 0
		for i, r := range s {
			if r == ' ' {
				space = i
			}
			if used += runeWidth(r); used > columns {
				break
			}
			end = i + len(string(r))
		}
		if space > 0 {
			end = space
		}
		if end == 0 { // not even one of its characters fits
			return append(lines, cut(s, columns))
		}
		lines = append(lines, strings.TrimRight(s[:end], " "))
		s = strings.TrimLeft(s[end:], " ")
	}
	return lines
}
