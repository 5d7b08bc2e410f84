package status

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"

	"github.com/alisw/kiln/netboot/state"
)

// Options say what a table is shown on. The zero value is for a file or a pipe.
type Options struct {
	// Width and Height are the terminal's columns and lines; 0 is no limit. What
	// doesn't fit is left out, and said to be: a table that is drawn over itself
	// must not wrap.
	Width, Height int
	// Color lets stages have colours, in ANSI's sequences.
	Color bool
}

const (
	barWidth   = 20
	narrow     = 90 // columns that a table with bars takes
	errorLines = 3  // that an error may take below its host
	separator  = "  "
)

// column is one of the table's: the widest cell says how wide it is.
type column struct {
	head  string
	cells []string
}

// Table shows records, those that want attention first, and the counts at the
// end; now is what "for" is counted to. A file gets one line a host, with its
// whole name and error; on a terminal an error stands below its host, since it
// can't be read in what a column has left. The same records give the same text.
// records stay as they are.
func Table(records []state.Record, now time.Time, o Options) string {
	end := Summary(records)
	if len(records) == 0 {
		return cut(end, o.Width) + "\n"
	}
	end = "\n" + cut(end, o.Width) + "\n"
	records = append([]state.Record(nil), records...)
	Sort(records)
	columns := columnsOf(records, now, o)
	rows := []string{row(columns, -1, o, "")}
	for i := range records {
		rows = append(rows, row(columns, i, o, colorOf(&records[i]))+below(&records[i], now, o))
	}
	if o.Height == 0 {
		return strings.Join(rows, "") + end
	}
	// The end takes two lines, and a third where not all is shown.
	lines, shown := 0, 0
	for shown < len(rows) && (lines+strings.Count(rows[shown], "\n") <= o.Height-3 || shown < 2) {
		lines += strings.Count(rows[shown], "\n")
		shown++
	}
	if hidden := len(rows) - shown; hidden > 0 {
		end = cut(fmt.Sprintf("… and %d more", hidden), o.Width) + "\n" + end
	}
	return strings.Join(rows[:shown], "") + end
}

// below is a host's error on lines of its own.
func below(r *state.Record, now time.Time, o Options) string {
	if o.Width == 0 {
		return ""
	}
	var b strings.Builder
	for _, line := range wrap(lastError(r, now), o.Width-len(separator), errorLines) {
		if o.Color && Trouble(r) != "" {
			line = "\x1b[" + red + "m" + line + "\x1b[0m"
		}
		b.WriteString(separator + line + "\n")
	}
	return b.String()
}

func columnsOf(records []state.Record, now time.Time, o Options) []column {
	c := []column{{head: "HOST"}, {head: "STAGE"}, {head: "PROGRESS"}, {head: "FOR"}, {head: "IMAGE"}, {head: "LAST ERROR"}}
	domain := ""
	if o.Width > 0 {
		c = c[:len(c)-1]
		domain = Domain(records)
	}
	for i := range records {
		r := &records[i]
		since := ""
		if !r.Since.IsZero() {
			since = Duration(now.Sub(r.Since))
		}
		host := Clean(strings.TrimSuffix(r.Host, domain))
		cells := []string{host, Word(r), progress(r, now, o.Width == 0 || o.Width >= narrow), since, ShortImage(r.Image), lastError(r, now)}
		for j := range c {
			c[j].cells = append(c[j].cells, cells[j])
		}
	}
	return c
}

// progress is how far a host is within its stage: a bar with a percentage, its
// place in line, or what it does.
func progress(r *state.Record, now time.Time, bars bool) string {
	p, ok := Percent(r)
	if !ok {
		return Doing(r)
	}
	text := fmt.Sprintf("%3d %%", p)
	if bars {
		text = Bar(p, barWidth) + " " + text
	}
	if _, left, ok := Speed(r, now); ok && p < 100 {
		text += ", " + Duration(left) + " left"
	}
	return text
}

// lastError is why a host failed, or can't be installed; a host that doesn't speak has an error coming.
func lastError(r *state.Record, now time.Time) string {
	if t := Trouble(r); t != "" {
		return t
	}
	if d, ok := Silent(r, now); ok {
		return "silent for " + Duration(d)
	}
	if r.Stage == state.FirstBoot && len(r.Findings) > 0 {
		return Clean(r.Findings[0])
	}
	return ""
}

// Bar draws a percentage in so many columns. It is full at 100 only.
func Bar(percent, columns int) string {
	full := min(max(percent, 0), 100) * columns / 100
	return strings.Repeat("█", full) + strings.Repeat("░", columns-full)
}

// row is line i of the table, or its head for -1.
func row(columns []column, i int, o Options, color string) string {
	var line strings.Builder
	used := 0
	for j := range columns {
		text := columns[j].head
		if i >= 0 {
			text = columns[j].cells[i]
		}
		switch room := o.Width - used; {
		case o.Width == 0:
		case room <= 0:
			text = ""
		default:
			text = cut(text, room)
		}
		w := wide(text)
		if o.Color && text != "" {
			text = paint(j, text, i, color)
		}
		line.WriteString(text)
		if j < len(columns)-1 {
			pad := widthOf(columns[j]) - w
			if o.Width > 0 {
				pad = min(pad, max(o.Width-used-w, 0))
			}
			line.WriteString(strings.Repeat(" ", pad))
			used += w + pad
		}
	}
	return strings.TrimRight(line.String(), " ") + "\n"
}

// paint gives a cell its colour: the head is bold, and a stage has its own.
func paint(column int, text string, row int, color string) string {
	switch {
	case row < 0:
		color = "1"
	case column != 1:
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

const red = "1;31"

func colorOf(r *state.Record) string {
	return map[Group]string{Failed: red, Installing: "1;34", InLine: "35", Armed: "33", Ready: "32", Disarmed: "2"}[GroupOf(r)]
}

// widthOf is how many columns of the terminal it takes, with what separates it
// from the next.
func widthOf(c column) int {
	w := wide(c.head)
	for _, s := range c.cells {
		w = max(w, wide(s))
	}
	return w + len(separator)
}

// cut shortens s to so many columns, and says that it did; 0 is no limit.
func cut(s string, columns int) string {
	if columns <= 0 || wide(s) <= columns {
		return s
	}
	used := 0
	for i, r := range s {
		if used += runeWidth(r); used > columns-1 {
			return strings.TrimRight(s[:i], " ") + "…"
		}
	}
	return s
}

func wide(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// runeWidth is how many columns a terminal gives to r.
func runeWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case width.LookupRune(r).Kind() == width.EastAsianWide, width.LookupRune(r).Kind() == width.EastAsianFullwidth:
		return 2
	}
	return 1
}
