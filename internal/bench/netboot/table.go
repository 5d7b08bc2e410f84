//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// table is what was measured, as documentation has it.
type table struct{ rows []row }

// row is one line: a value, and the one beside it.
type row struct {
	what, value   string
	other, beside string // who else was measured, and what they had
	ratio         string
	wanted        string
	met           bool
}

func (t *table) add(r row) { t.rows = append(t.rows, r) }

// more adds a line whose ratio, Kiln's to the other's, should be as high as that.
func (t *table) more(what, other, value, beside string, ratio, wanted float64) {
	t.add(row{
		what: what, value: value, other: other, beside: beside, ratio: fmt.Sprintf("%.2f", ratio),
		wanted: fmt.Sprintf("%.2f or more", wanted), met: ratio >= wanted,
	})
}

// print prints it, in Markdown.
func (t *table) print(w io.Writer) error {
	lines := []string{"| | Kiln | beside it | ratio | wanted | |", "|---|---|---|---|---|---|"}
	for _, r := range t.rows {
		beside := r.beside
		if r.other != "" {
			beside += " (" + r.other + ")"
		}
		judged := ""
		if r.wanted != "" {
			judged = map[bool]string{true: "yes", false: "no"}[r.met]
		}
		lines = append(lines, "| "+strings.Join([]string{r.what, r.value, beside, r.ratio, r.wanted, judged}, " | ")+" |")
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// mib writes a speed in MiB a second.
func mib(perSecond float64) string { return fmt.Sprintf("%.0f MiB/s", perSecond) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
