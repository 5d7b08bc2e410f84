package boot

import (
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/alisw/kiln/internal/lazyregexp"
)

const (
	consoleLines = 25   // that are kept
	consoleWidth = 4096 // bytes, after which a line counts as one
)

// escapes are what moves a terminal's cursor, sets colours or titles.
var escapes = lazyregexp.New("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[()*+#][0-9A-Za-z]|[=>78cDEHMNOZ])")

// console takes what a guest writes to its console.
type console struct {
	raw  io.Writer    // may be nil
	line func(string) // may be nil

	mu    sync.Mutex
	rest  []byte
	last  []string
	heard chan struct{} // closed at the first byte; nil where nobody waits for it
	once  sync.Once     // closes it
}

// Write never fails: a guest isn't to stand still because nobody looks.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard != nil {
		c.once.Do(func() { close(c.heard) })
	}
	if c.raw != nil {
		_, _ = c.raw.Write(p)
	}
	for _, b := range p {
		if b != '\n' {
			c.rest = append(c.rest, b)
		}
		if b == '\n' || len(c.rest) >= consoleWidth {
			c.end()
		}
	}
	return len(p), nil
}

// end ends a line.
func (c *console) end() {
	line := escapes().ReplaceAllString(string(c.rest), "")
	c.rest = c.rest[:0]
	line = strings.TrimRight(line, "\r ")
	// What a carriage return went back over isn't to be seen any more.
	line = printable(line[strings.LastIndexByte(line, '\r')+1:])
	if c.line != nil {
		c.line(line)
	}
	if line == "" {
		return
	}
	if len(c.last) == consoleLines {
		c.last = slices.Delete(c.last, 0, 1)
	}
	c.last = append(c.last, line)
}

// flush ends a line that the guest didn't.
func (c *console) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.rest) > 0 {
		c.end()
	}
}

func (c *console) tail() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.last)
}
