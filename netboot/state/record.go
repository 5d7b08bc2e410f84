package state

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// stages are all of them.
var stages = []Stage{Armed, Booted, Writing, Written, FirstBoot, Ready, Failed, Disarmed}

// Stages gives all stages, in their order.
func Stages() []Stage { return slices.Clone(stages) }

// What a record keeps, at most.
const (
	maxHistory  = 100
	maxConsole  = 200
	maxFindings = 50
	maxText     = 400 // bytes of a line
)

// Running tells whether a host has the installer, or may have it.
func (r *Record) Running() bool { return r.Stage == Booted || r.Stage == Writing }

// NeedsImage tells whether its image is installed, or will be at its next boot.
func (r *Record) NeedsImage() bool { return r.Stage == Armed || r.Running() }

// Percent is how much of the disk is written.
func (r *Record) Percent() int {
	if r.Total <= 0 || r.Done <= 0 {
		return 0
	}
	return int(float64(min(r.Done, r.Total)) * 100 / float64(r.Total))
}

// State is the stage in words: writing 40%, failed (writing).
func (r *Record) State() string {
	switch {
	case r.Stage == Writing:
		return fmt.Sprintf("%s %d%%", r.Stage, r.Percent())
	case r.Stage == Failed && r.FailedAt != "":
		return fmt.Sprintf("%s (%s)", r.Stage, r.FailedAt)
	}
	return string(r.Stage)
}

// Public is the record without what authorizes anybody to anything, nor its hash.
func (r *Record) Public() *Record {
	c := *r
	c.TokenHash, c.SessionHash, c.Install = "", "", ""
	return &c
}

// clone gives a record whose slices may be appended to.
func (r *Record) clone() *Record {
	c := *r
	c.MACs, c.Data = slices.Clone(r.MACs), slices.Clone(r.Data)
	c.Findings, c.History, c.Console = slices.Clone(r.Findings), slices.Clone(r.History), slices.Clone(r.Console)
	return &c
}

// enter brings a record to a stage.
func (s *Store) enter(r *Record, stage Stage, text string) {
	r.Stage, r.Since, r.Problem = stage, s.now().UTC(), ""
	s.note(r, stage, text)
}

// fail ends an installation, in the stage that it is in.
func (s *Store) fail(r *Record, at Stage, text string) {
	r.FailedAt, r.Error, r.Place = at, clean(text), 0
	s.enter(r, Failed, text)
}

// note adds to the history.
func (s *Store) note(r *Record, stage Stage, text string) {
	r.History = last(append(r.History, Event{Time: s.now().UTC(), Stage: stage, Text: clean(text)}), maxHistory)
}

// say adds to the console's lines.
func (r *Record) say(lines []string) {
	for _, l := range last(lines, maxConsole) {
		r.Console = append(r.Console, clean(l))
	}
	r.Console = last(r.Console, maxConsole)
}

// last gives the last n of a list.
func last[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }

// clean makes one line of text that was sent by somebody else: it is shown on
// terminals, which obey some characters.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
		for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && len(s) > maxText-utf8.UTFMax {
			s = s[:len(s)-1]
		}
	}
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '\t' || c == '\n' || c == '\r':
			return ' '
		case !unicode.IsPrint(c): // bidirectional overrides, too
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, "\uFFFD"))
	return strings.TrimRight(s, " ")
}
