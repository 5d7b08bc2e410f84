// Package problem is how Kiln says what is wrong with what an operator wrote:
// where, what, and how to mend it. Whoever finds problems collects all of them
// before giving up.
package problem

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Position is a place in a file. Line and Column count from 1; 0 is unknown.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String is file:line:column, as editors and compilers write it.
func (p Position) String() string {
	switch {
	case p.File == "":
		return ""
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Problem is one thing wrong at one place.
type Problem struct {
	Position
	What string `json:"what"`          // what is wrong, naming the object
	Fix  string `json:"fix,omitempty"` // how to mend it
	// Warning is set for what may be meant so: it is shown, and fails nothing.
	Warning bool `json:"warning,omitempty"`
}

// Error is the problem as one line.
func (p Problem) Error() string {
	var b strings.Builder
	if pos := p.Position.String(); pos != "" {
		b.WriteString(pos)
		b.WriteString(": ")
	}
	if p.Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(p.What)
	if p.Fix != "" {
		b.WriteString(": ")
		b.WriteString(p.Fix)
	}
	return b.String()
}

// List is every problem that was found.
type List []Problem

// Addf adds a problem at pos; fix may be empty.
func (l *List) Addf(pos Position, fix, format string, args ...any) {
	*l = append(*l, Problem{Position: pos, What: fmt.Sprintf(format, args...), Fix: fix})
}

// Warnf adds what is worth a look and fails nothing.
func (l *List) Warnf(pos Position, fix, format string, args ...any) {
	*l = append(*l, Problem{Position: pos, What: fmt.Sprintf(format, args...), Fix: fix, Warning: true})
}

// Sort orders the list by file, line and column, and drops what it says twice.
func (l *List) Sort() {
	slices.SortStableFunc(*l, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.What, b.What))
	})
	*l = slices.Compact(*l)
}

// Err is nil where nothing but warnings was found, else the list as one error.
func (l List) Err() error {
	for _, p := range l {
		if !p.Warning {
			return l
		}
	}
	return nil
}

// Error is a line for each problem.
func (l List) Error() string {
	lines := make([]string, len(l))
	for i, p := range l {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}
