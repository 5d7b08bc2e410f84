// Package status says to people where installations are: the same words, order
// and numbers for the table of kiln status and for the dashboard. It only looks
// at records, and decides nothing.
package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
)

// Stages are those on the way of an installation, in their order.
var Stages = []state.Stage{state.Armed, state.Booted, state.Writing, state.Written, state.FirstBoot, state.Ready}

// Group is what a host's stage means to whoever looks at many of them.
type Group int

// The groups, in the order of the attention that they want.
const (
	Failed     Group = iota // somebody has to look, and arm anew
	Installing              // it goes on by itself
	InLine                  // it goes on once others have finished
	Armed                   // it wants to be switched on
	Ready
	Disarmed // nothing happens until it is armed, or its stage isn't known
)

// Groups are all groups, in their order.
var Groups = []Group{Failed, Installing, InLine, Armed, Ready, Disarmed}

// String names a group.
func (g Group) String() string {
	return [...]string{"failed", "installing", "in line", "armed", "ready", "disarmed"}[g]
}

// GroupOf is the group that a record's host is in.
func GroupOf(r *state.Record) Group {
	switch r.Stage {
	case state.Failed:
		return Failed
	case state.Booted, state.Writing:
		if r.Place > 0 {
			return InLine
		}
		return Installing
	case state.Written, state.FirstBoot:
		return Installing
	case state.Armed:
		return Armed
	case state.Ready:
		return Ready
	}
	return Disarmed
}

// Word is what a host is said to be: its stage, with the one that it failed in.
func Word(r *state.Record) string {
	switch {
	case r.Stage == state.Failed && r.FailedAt != "":
		return "failed (" + Clean(string(r.FailedAt)) + ")"
	case GroupOf(r) == InLine:
		return "in line"
	}
	return Clean(string(r.Stage))
}

// Trouble is why a host has failed, or, while it is armed, wouldn't be installed.
func Trouble(r *state.Record) string {
	switch r.Stage {
	case state.Failed:
		return Clean(r.Error)
	case state.Armed:
		return Clean(r.Problem)
	}
	return ""
}

// Percent is how much of the disk is written, from 0 to 100, while that is what
// is being done or where it failed. It is 100 once all is written, never before.
func Percent(r *state.Record) (percent int, ok bool) {
	stage := r.Stage
	if stage == state.Failed {
		stage = r.FailedAt
	}
	if stage != state.Writing || r.Total <= 0 || GroupOf(r) == InLine {
		return 0, false
	}
	done := min(max(r.Done, 0), r.Total)
	// Not 100·done: that is no int64 for what some people call a disk.
	return int(float64(done) / float64(r.Total) * 100), true
}

// silence is how long an installer may say nothing before people should know.
// It reports every few seconds; after some minutes the server gives it up.
const silence = 30 * time.Second

// Silent tells for how long the installer hasn't been heard of, where that is
// longer than it should be.
func Silent(r *state.Record, now time.Time) (d time.Duration, ok bool) {
	if r.Stage != state.Booted && r.Stage != state.Writing {
		return 0, false
	}
	last := r.Since
	if r.Heard.After(last) {
		last = r.Heard
	}
	d = now.Sub(last)
	return d, d >= silence && !last.IsZero()
}

// Speed is how many bytes a second have been written since the stage began, and
// how long the rest takes at that speed. ok is false where it is too early to tell.
func Speed(r *state.Record, now time.Time) (perSecond int64, left time.Duration, ok bool) {
	d := now.Sub(r.Since)
	if r.Stage != state.Writing || r.Done <= 0 || r.Total < r.Done || d < 2*time.Second || r.Since.IsZero() {
		return 0, 0, false
	}
	v := float64(r.Done) / d.Seconds()
	rest := float64(r.Total-r.Done) / v
	if v < 1 || rest > (30*24*time.Hour).Seconds() {
		return 0, 0, false
	}
	return int64(v), time.Duration(rest * float64(time.Second)), true
}

// Doing says what a host is at, beyond its stage: its place in line, the
// installer's step, what it waits for. It may be empty.
func Doing(r *state.Record) string {
	switch {
	case GroupOf(r) == InLine:
		return fmt.Sprintf("place %d", r.Place)
	case r.Stage == state.Armed && r.Problem != "":
		return "can't be installed"
	case r.Stage == state.Armed:
		return "waits to be switched on"
	case r.Stage == state.Written:
		return "restarts"
	case r.Stage == state.FirstBoot:
		if n := len(r.Findings); n > 0 {
			return count(n, "finding") + " of verify"
		}
		return "joins the cluster"
	case r.Stage == state.Booted || r.Stage == state.Writing:
		return steps[protocol.Step(r.Step)]
	}
	return ""
}

var steps = map[protocol.Step]string{
	protocol.StepHardware: "loads drivers",
	protocol.StepNetwork:  "gets an address",
	protocol.StepRedeem:   "redeems its token",
	protocol.StepDisk:     "chooses the disk",
	protocol.StepImage:    "checks the image",
	protocol.StepTurn:     "waits for its turn",
	protocol.StepWrite:    "writes the image",
	protocol.StepSeed:     "writes its own data",
	protocol.StepCommit:   "writes the partition tables",
	protocol.StepReboot:   "restarts",
}

// Sort brings records into the order of the attention that they want: failed
// ones first, the last to fail at the top; those in line by their place; armed ones
// that can't be installed before those that can; the others by name, so that they
// stay where they are while they go on.
func Sort(records []state.Record) {
	slices.SortStableFunc(records, func(a, b state.Record) int {
		ga, gb := GroupOf(&a), GroupOf(&b)
		if c := cmp.Compare(ga, gb); c != 0 {
			return c
		}
		switch ga {
		case Failed:
			if c := b.Since.Compare(a.Since); c != 0 {
				return c
			}
		case InLine:
			if c := cmp.Compare(a.Place, b.Place); c != 0 {
				return c
			}
		case Armed:
			if troubled := Trouble(&a) != ""; troubled != (Trouble(&b) != "") {
				if troubled {
					return -1
				}
				return 1
			}
		}
		return Natural(a.Host, b.Host)
	})
}

// Natural compares names as people number them: build9 is before build10.
func Natural(a, b string) int {
	for x, y := a, b; x != "" && y != ""; {
		nx, ny := digits(x), digits(y)
		if nx > 0 && ny > 0 {
			dx, dy := strings.TrimLeft(x[:nx], "0"), strings.TrimLeft(y[:ny], "0")
			if c := cmp.Or(cmp.Compare(len(dx), len(dy)), cmp.Compare(dx, dy)); c != 0 {
				return c
			}
			x, y = x[nx:], y[ny:]
			continue
		}
		if x[0] != y[0] {
			return cmp.Compare(x[0], y[0])
		}
		x, y = x[1:], y[1:]
	}
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// digits is the length of the number that s begins with.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

// Count is how many hosts are in each group.
func Count(records []state.Record) map[Group]int {
	n := map[Group]int{}
	for i := range records {
		n[GroupOf(&records[i])]++
	}
	return n
}

// Summary is one line of counts: 12 hosts: 1 failed, 3 installing, 8 ready.
func Summary(records []state.Record) string {
	n := Count(records)
	var parts []string
	for _, g := range Groups {
		if n[g] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[g], g))
		}
	}
	if len(parts) == 0 {
		return "no host has been armed yet"
	}
	return count(len(records), "host") + ": " + strings.Join(parts, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// imageDigits are the digits of an image's ID that people are shown.
const imageDigits = 12

// ShortImage is an image's ID as people are shown it.
func ShortImage(id string) string {
	id = Clean(id)
	if r := []rune(id); len(r) > imageDigits {
		return string(r[:imageDigits])
	}
	return id
}
