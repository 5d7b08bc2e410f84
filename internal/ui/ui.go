// Package ui is how a command talks to whoever runs it: results go to one
// stream, all else (problems, progress, advice) to another.
package ui

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// UI is where a command writes. The zero value discards everything.
type UI struct {
	Out io.Writer // results, for people or the next program
	Err io.Writer // everything else

	OutIsTerminal bool
	ErrIsTerminal bool
}

// Standard is the process's own streams.
func Standard() *UI {
	return &UI{
		Out: os.Stdout, Err: os.Stderr,
		OutIsTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		ErrIsTerminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
}

// Printf writes to the results.
func (u *UI) Printf(format string, args ...any) {
	if u.Out != nil {
		_, _ = fmt.Fprintf(u.Out, format, args...)
	}
}

// Notef writes a line of what isn't a result.
func (u *UI) Notef(format string, args ...any) {
	if u.Err != nil {
		_, _ = fmt.Fprintf(u.Err, format+"\n", args...)
	}
}

// refresh is how often a progress line is drawn anew, at most.
const refresh = 100 * time.Millisecond

// Progress counts what has been done in a line that is drawn over itself. Only
// a terminal shows it: in a log it would be noise. Its methods can be called
// from several goroutines.
type Progress struct {
	ui    *UI
	what  string
	mu    sync.Mutex
	n     int
	drawn time.Time
}

// Progress begins a line such as "rendered 1200 hosts"; what has a %d for the
// count. End takes it away again.
func (u *UI) Progress(what string) *Progress { return &Progress{ui: u, what: what} }

// Add counts n more.
func (p *Progress) Add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if !p.ui.ErrIsTerminal || p.ui.Err == nil || time.Since(p.drawn) < refresh {
		return
	}
	p.drawn = time.Now()
	_, _ = fmt.Fprintf(p.ui.Err, "\r"+p.what+"\x1b[K", p.n)
}

// End removes the line and gives the count.
func (p *Progress) End() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.drawn.IsZero() {
		_, _ = io.WriteString(p.ui.Err, "\r\x1b[K")
	}
	return p.n
}
