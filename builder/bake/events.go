package bake

import (
	"fmt"
	"time"
)

// State is what an event says of a step.
type State string

// The states of a step.
const (
	StateStarted  State = "started"
	StateWaiting  State = "waiting" // another builder is at the same step
	StateProgress State = "progress"
	StateCached   State = "cached" // its result was there already
	StateDone     State = "done"
	StateFailed   State = "failed"
)

// unitBytes is the Unit of what counts bytes.
const unitBytes = "bytes"

// Event is one piece of news of a build.
type Event struct {
	Profile    string `json:"profile,omitempty"`
	Definition string `json:"definition,omitempty"`
	Step       string `json:"step"`
	// Number is the step's place among the Of steps of the build.
	Number int   `json:"number,omitempty"`
	Of     int   `json:"of,omitempty"`
	State  State `json:"state"`
	// Done and Total count what a step works on; Total is 0 where it isn't known.
	Done    int64   `json:"done,omitempty"`
	Total   int64   `json:"total,omitempty"`
	Unit    string  `json:"unit,omitempty"` // bytes; none is that it's a mere count
	Seconds float64 `json:"seconds,omitempty"`
	Message string  `json:"message,omitempty"`
	// Because says why a step is made, or why it's another one than the last time:
	// which of its inputs have changed.
	Because []string `json:"because,omitempty"`
}

// Measure is how far a step is, for people: its share, the time left if it goes
// on as it did in the time since it began, and what it's at.
func (e *Event) Measure(since time.Duration) string {
	if e.Total <= 0 || e.Done < 0 {
		return e.Message
	}
	s := fmt.Sprintf("%d %%", 100*min(e.Done, e.Total)/e.Total)
	if e.Unit == unitBytes {
		s += fmt.Sprintf(" of %d MB", e.Total/1_000_000)
	}
	if e.Done > 0 && since > 2*time.Second {
		left := time.Duration(float64(since) / float64(e.Done) * float64(max(0, e.Total-e.Done)))
		s += ", " + left.Round(time.Second).String() + " left"
	}
	if e.Message != "" {
		s += ", " + e.Message
	}
	return s
}
