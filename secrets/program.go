package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/run"
)

// shownLines is how many of the last lines of a program's standard error an
// error shows.
const shownLines = 3

const redacted = "[redacted]"

// output runs a program that writes a secret to its standard output. Where it
// fails, what it wrote to its standard error is shown without any value that it
// had written out by then: some programs repeat what they can't make sense of.
func (r *Resolver) output(ctx context.Context, c run.Command) ([]byte, error) {
	out, err := r.Run.Output(ctx, c)
	if err == nil {
		return out, nil
	}
	e, ok := errors.AsType[*run.Error](err)
	if !ok {
		return nil, err
	}
	shown := *e
	shown.Stderr = slices.Clone(e.Stderr[max(0, len(e.Stderr)-shownLines):])
	values := written(out)
	for i, line := range shown.Stderr {
		shown.Stderr[i] = without(line, values)
	}
	return nil, &shown
}

var jsonText = lazyregexp.New(`"(?:[^"\\]|\\.)*"`)

// written lists what may be a secret in a program's standard output, in each of
// the forms that it may be repeated in; longer ones first. Names of JSON's keys
// are among it: too much is left out of an error rather than too little.
func written(out []byte) []string {
	var values []string
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" {
			quoted := strconv.Quote(s)
			values = append(values, s, quoted[1:len(quoted)-1])
		}
	}
	for line := range strings.Lines(string(out)) {
		add(line)
	}
	for _, literal := range jsonText().FindAllString(string(out), -1) {
		add(literal[1 : len(literal)-1])
		var text string
		if json.Unmarshal([]byte(literal), &text) == nil {
			for line := range strings.Lines(text) {
				add(line)
			}
		}
	}
	slices.SortFunc(values, func(a, b string) int { return len(b) - len(a) })
	return values
}

// tooLong ends a line of standard error that was cut.
const tooLong = "…"

// shortest is the length in bytes from which the beginning of a value counts as
// one, at the end of a line that was cut.
const shortest = 4

// without is a line with the values left out.
func without(line string, values []string) string {
	for _, v := range values {
		line = strings.ReplaceAll(line, v, redacted)
	}
	cut, ok := strings.CutSuffix(line, tooLong)
	if !ok {
		return line
	}
	for _, v := range values {
		for n := len(v) - 1; n >= shortest; n-- {
			if rest, ok := strings.CutSuffix(cut, v[:n]); ok {
				return rest + redacted + tooLong
			}
		}
	}
	return line
}
