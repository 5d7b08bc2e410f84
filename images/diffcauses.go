package images

import (
	"slices"
	"strings"
)

// Cause is an input of the build that differs between two images, and that no
// step of it has made: what somebody changed, or a mirror.
type Cause struct {
	Steps  []string `json:"steps"` // whose input it is, in the order of the build; none where only the whole image's is known
	Input  string   `json:"input"`
	Change string   `json:"change"`
	Before string   `json:"before,omitempty"`
	After  string   `json:"after,omitempty"`
}

// consequences are inputs that follow from others: numbers of the disk and the
// clock of the build come from the packages.
var consequences = []string{"ids", "clock"}

// Where there is no lock, a step with this name finds the packages, each of which
// is an input of a later one.
const (
	resolveStep   = "resolve"
	packagePrefix = "package "
)

// causes compares the inputs of the steps that both images went through. An input
// that is another step's result is followed to that step's own inputs: its key, or
// the hash of what it has made, under its name.
func causes(a, b *Manifest) (list []Cause, remade []string) {
	made := [2]map[string]string{stepsByKey(a), stepsByKey(b)}
	pairs := map[string][2]*Step{}
	for i := range a.Steps {
		s := &a.Steps[i]
		j := slices.IndexFunc(b.Steps, func(t Step) bool { return t.Name == s.Name })
		if j >= 0 && s.Key != "" && b.Steps[j].Key != "" && s.Key != b.Steps[j].Key && pairs[s.Name][0] == nil {
			pairs[s.Name] = [2]*Step{s, &b.Steps[j]}
			remade = append(remade, s.Name)
		}
	}
	for _, name := range remade {
		for _, c := range CompareInputs(pairs[name][0].Inputs, pairs[name][1].Inputs) {
			byKey := made[0][c.Before] != "" && made[0][c.Before] == made[1][c.After]
			if byName := pairs[c.Input][0] != nil && c.Input != name && c.Change == Changed; !byKey && !byName {
				list = addCause(list, c, name)
			}
		}
	}
	if len(list) == 0 {
		// A manifest may have no more than the image's own.
		for _, c := range CompareInputs(a.Inputs, b.Inputs) {
			if made[0][c.Before] == "" && made[1][c.After] == "" {
				list = append(list, c)
			}
		}
	}
	follows := func(c Cause) bool {
		return slices.Contains(consequences, c.Input) || pairs[resolveStep][0] != nil && strings.HasPrefix(c.Input, packagePrefix)
	}
	if slices.ContainsFunc(list, func(c Cause) bool { return !follows(c) }) {
		list = slices.DeleteFunc(list, follows)
	}
	return list, remade
}

func stepsByKey(m *Manifest) map[string]string {
	names := map[string]string{}
	for i := range m.Steps {
		if s := &m.Steps[i]; s.Key != "" {
			names[s.Key] = s.Name
		}
	}
	return names
}

// addCause adds a step to the cause if it is listed already: several steps can
// have the same input.
func addCause(list []Cause, c Cause, step string) []Cause {
	for i := range list {
		if l := &list[i]; l.Input == c.Input && l.Change == c.Change && l.Before == c.Before && l.After == c.After {
			l.Steps = append(l.Steps, step)
			return list
		}
	}
	c.Steps = []string{step}
	return append(list, c)
}

// CompareInputs finds the inputs that differ, in the order of a and then of b.
// Several can have one name: what both lists have of it cancels out.
func CompareInputs(a, b []Input) []Cause {
	onlyA, onlyB := without(a, b), without(b, a)
	var list []Cause
	for _, in := range onlyA {
		c := Cause{Input: in.Name, Change: Removed, Before: in.Value}
		if j := slices.IndexFunc(onlyB, func(o Input) bool { return o.Name == in.Name }); j >= 0 {
			c.Change, c.After = Changed, onlyB[j].Value
			onlyB = slices.Delete(onlyB, j, j+1)
		}
		list = append(list, c)
	}
	for _, in := range onlyB {
		list = append(list, Cause{Input: in.Name, Change: Added, After: in.Value})
	}
	return list
}

// without is what a has and b hasn't, each as often as it's there more often.
func without(a, b []Input) []Input {
	count := map[Input]int{}
	for _, in := range b {
		count[in]++
	}
	var list []Input
	for _, in := range a {
		if count[in] > 0 {
			count[in]--
			continue
		}
		list = append(list, in)
	}
	return list
}

// ChangedParts tells which parts of a text went and which came, both in their order,
// where the parts are what stands between separators.
func ChangedParts(before, after, separator string) (gone, come []string) {
	was, is := strings.Split(before, separator), strings.Split(after, separator)
	for _, p := range was {
		if !slices.Contains(is, p) {
			gone = append(gone, p)
		}
	}
	for _, p := range is {
		if !slices.Contains(was, p) {
			come = append(come, p)
		}
	}
	return gone, come
}
