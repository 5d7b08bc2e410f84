package installer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
)

// reporter tells the server how far the installation is: at each change, and
// every few seconds between.
type reporter struct {
	server Server
	every  time.Duration
	say    func(string) // the console

	mu     sync.Mutex
	state  protocol.Report
	lines  []string
	change chan struct{}
	once   sync.Once
	cancel context.CancelFunc
	quit   chan struct{} // closed: no further report
	ended  chan struct{}
}

// mostLines are kept while the server doesn't answer: the last ones.
const mostLines = 200

func newReporter(say func(string)) *reporter {
	return &reporter{say: say, change: make(chan struct{}, 1)}
}

// line says something, on the console and to the server.
func (r *reporter) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.mu.Lock()
	r.lines = append(r.lines, text)
	if over := len(r.lines) - mostLines; over > 0 {
		r.lines = append(r.lines[:0], r.lines[over:]...)
	}
	r.mu.Unlock()
	r.say(text)
	r.wake()
}

func (r *reporter) wake() {
	select {
	case r.change <- struct{}{}:
	default:
	}
}

// step begins a step.
func (r *reporter) step(s protocol.Step) {
	r.mu.Lock()
	r.state.Step = s
	r.mu.Unlock()
	r.wake()
}

// current is the step that is being done.
func (r *reporter) current() protocol.Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Step
}

func (r *reporter) disk(d *Disk) {
	r.mu.Lock()
	r.state.Disk = d.String()
	r.mu.Unlock()
}

// progress notes how much of the disk is done; it only grows.
func (r *reporter) progress(done, total int64) {
	r.mu.Lock()
	r.state.Done, r.state.Total = max(r.state.Done, done), total
	r.mu.Unlock()
}

// next is the report to send, with the lines that none has had.
func (r *reporter) next() protocol.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := r.state
	report.Lines = r.lines
	r.lines = nil
	return report
}

// errStopped is the server's wish that the installation ends.
type errStopped struct{ why string }

func (e errStopped) Error() string { return "the server has stopped it: " + e.why }

// begin starts the reports.
func (r *reporter) begin(ctx context.Context, stop func(error)) {
	ctx, r.cancel = context.WithCancel(ctx)
	r.quit, r.ended = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(r.ended)
		defer caught(stop)
		r.run(ctx, stop)
	}()
}

// end ends the reports, if there are any, and returns when there are none any more.
// One that is being sent may arrive: given up, it could reach the server after a
// later one.
func (r *reporter) end() {
	if r.cancel == nil {
		return
	}
	defer r.cancel()
	r.once.Do(func() { close(r.quit) })
	select {
	case <-r.ended:
	case <-time.After(2 * time.Second):
		r.cancel()
		<-r.ended
	}
}

// last ends the reports with one of what wasn't reported yet.
func (r *reporter) last(ctx context.Context) error {
	r.end()
	answer, err := r.server.Report(ctx, r.next())
	if err == nil && answer.Stop != "" {
		return errStopped{answer.Stop}
	}
	return err
}

// caught makes an error of a panic, which else would end the machine's first process.
func caught(stop func(error)) {
	if p := recover(); p != nil {
		stop(fmt.Errorf("a mistake in the installer itself: %v\n%s", p, debug.Stack()))
	}
}

// run sends reports until ctx ends. What ends the installation, that the server
// wants it or isn't there any more, goes to stop.
func (r *reporter) run(ctx context.Context, stop func(error)) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		answer, err := r.server.Report(ctx, r.next())
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			stop(fmt.Errorf("reporting to the server: %w", err))
			return
		case answer.Stop != "":
			stop(errStopped{answer.Stop})
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-r.quit:
			return
		case <-tick.C:
		case <-r.change:
		}
	}
}

// failed sends the last report.
func (r *reporter) failed(ctx context.Context, failure *Failure) {
	if r.server == nil || errors.As(failure, new(errStopped)) {
		return
	}
	report := r.next()
	report.Step, report.Error = failure.Step, failure.Err.Error()
	if _, err := r.server.Report(ctx, report); err != nil {
		r.say(fmt.Sprintf("the server doesn't know of this: %v", err))
	}
}
