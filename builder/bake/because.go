package bake

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/images"
)

// mostReasons is how many are given for one step.
const mostReasons = 12

// lastInputs is the file with what went into a step the last time that this image
// was built.
func (c *Cache) lastInputs(step string) string {
	return filepath.Join(c.Dir, "last", hash([]byte(c.About))[:32], step+".json")
}

const firstTime = "this image is built for the first time here"

// because says what in a step isn't as it was the last time that this image was
// built here; nothing where all is.
func (c *Cache) because(s *Step) []string {
	data, err := os.ReadFile(c.lastInputs(s.Name))
	var was []Input
	if err != nil || json.Unmarshal(data, &was) != nil {
		return []string{firstTime}
	}
	return differing(was, s.Inputs)
}

// note remembers a step that was made, for the next time's because.
func (c *Cache) note(s *Step) { keepJSON(c.lastInputs(s.Name), s.Inputs) }

// differing says how a step's inputs differ.
func differing(was, now []Input) []string {
	var reasons []string
	for _, c := range images.CompareInputs(shown(was), shown(now)) {
		reasons = append(reasons, reason(&c))
	}
	if len(reasons) == 0 && !slices.Equal(was, now) {
		reasons = append(reasons, "the order of its inputs changed")
	}
	if more := len(reasons) - mostReasons; more > 0 {
		reasons = append(reasons[:mostReasons], fmt.Sprintf("and %d more", more))
	}
	return reasons
}

// reason says how one input differs.
func reason(c *images.Cause) string {
	switch c.Change {
	case images.Added:
		return c.Input + " is new" + shownValue(c.After)
	case images.Removed:
		return c.Input + " is gone" + shownValue(c.Before)
	}
	if words := changedWords(c.Before, c.After); words != "" {
		return c.Input + ": " + words
	}
	return c.Input + " changed"
}

// changedWords says which words of a list came and went; empty where the values
// tell nobody anything.
func changedWords(before, after string) string {
	if images.IsHash(before) && images.IsHash(after) {
		return ""
	}
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	gone, come := images.ChangedParts(oneLine(before), oneLine(after), " ")
	var parts []string
	for _, w := range come {
		parts = append(parts, "+"+shortWord(w))
	}
	for _, w := range gone {
		parts = append(parts, "-"+shortWord(w))
	}
	if len(parts) > mostReasons {
		parts = append(parts[:mostReasons], "…")
	}
	return strings.Join(parts, " ")
}

func shownValue(value string) string {
	if value == "" || images.IsHash(value) || len(value) > 100 || strings.Contains(value, "\n") {
		return ""
	}
	var words []string
	for _, w := range strings.Fields(value) {
		words = append(words, shortWord(w))
	}
	return ": " + strings.Join(words, " ")
}

// shortWord is a word, or the beginning of it where it is a hash.
func shortWord(w string) string {
	if images.IsHash(w) {
		return w[:12]
	}
	return w
}
