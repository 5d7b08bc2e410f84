package importing

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// WithDelimiters is r's template with other delimiters around its actions.
// It fails where the text itself holds them.
func (r Result) WithDelimiters(d Delimiters) (string, error) {
	if d.Left == "" || d.Right == "" {
		return "", errors.New("a template's delimiters can't be empty")
	}
	var b strings.Builder
	next := 0 // where the text since the last action begins
	for _, p := range r.pieces {
		if !p.action {
			b.WriteString(p.text)
			continue
		}
		at := b.Len()
		b.WriteString(d.Left)
		// The first one in the text up to here must be this action's own.
		if strings.Index(b.String()[next:], d.Left) != at-next {
			return "", errHolds(r, d)
		}
		switch {
		case p.trimLeft:
			b.WriteString("- ")
		case !p.comment:
			b.WriteByte(' ')
		}
		b.WriteString(p.text)
		switch {
		case p.trimRight:
			b.WriteString(" -")
		case !p.comment:
			b.WriteByte(' ')
		}
		b.WriteString(d.Right)
		next = b.Len()
	}
	if strings.Contains(b.String()[next:], d.Left) {
		return "", errHolds(r, d)
	}
	for _, p := range r.pieces {
		// Within an action they would be harmless, but who reads the template
		// would have to know.
		if strings.Contains(p.text, d.Left) || strings.Contains(p.text, d.Right) {
			return "", errHolds(r, d)
		}
	}
	return b.String(), nil
}

func errHolds(r Result, d Delimiters) error {
	return fmt.Errorf("%s holds %s or %s itself: it needs other delimiters", r.Source, d.Left, d.Right)
}

// CommonDelimiters are ones that none of the results holds in its text: {{ and
// }} where possible. A profile has one pair for all its templates.
func CommonDelimiters(results ...Result) Delimiters {
	fits := func(d Delimiters) bool {
		return !slices.ContainsFunc(results, func(r Result) bool {
			_, err := r.WithDelimiters(d)
			return err != nil
		})
	}
	for _, d := range []Delimiters{DefaultDelimiters, {"[[", "]]"}} {
		if fits(d) {
			return d
		}
	}
	// No text holds all of these: each is longer than the last.
	for n := 1; ; n++ {
		d := Delimiters{"[" + strings.Repeat("%", n), strings.Repeat("%", n) + "]"}
		if fits(d) {
			return d
		}
	}
}
