// Package lazyregexp compiles regular expressions when they are first used.
// Compiled as the program starts, kiln's own would cost each verb a tenth of the
// time that it may take.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that compiles the expression at its first call, and
// returns that again at all others. It panics where regexp.MustCompile does.
func New(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
