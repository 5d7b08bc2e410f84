package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/alisw/kiln/internal/run"
)

// The sockets below a guest's directory. Kiln listens, and QEMU connects: so
// neither has to wait for the other.
const (
	consoleSocket = "console"
	agentSocket   = "agent.sock"
	monitorSocket = "monitor"
)

// errStopped is the cause of a guest's end that Stop brought about.
var errStopped = errors.New("the guest was stopped")

// Running is a guest that was started. Its methods can be called from several
// goroutines.
type Running struct {
	dir       string // its own, removed with it
	ctx       context.Context
	cancel    context.CancelCauseFunc
	console   *console
	channel   *channel
	monitor   *qmp           // nil for a tree
	listeners []net.Listener // closed at the end
	reading   sync.WaitGroup // of the sockets
	done      chan struct{}  // closed once all of it has ended
	err       error          // set by then
}

// privateDir is a directory that only Kiln's user can look into: seeds hold
// secrets. It isn't in /tmp, which may be memory, and a guest's disk may grow.
func privateDir() (string, error) {
	parent := os.Getenv("TMPDIR")
	if parent == "" {
		parent = "/var/tmp"
	}
	dir, err := os.MkdirTemp(parent, "kiln-boot-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the guest: %w", err)
	}
	return dir, nil
}

func lookPath(program, install string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("the program %s isn't there: %s", program, install)
	}
	return path, nil
}

func newRunning(ctx context.Context, raw io.Writer, line func(string)) (*Running, error) {
	dir, err := privateDir()
	if err != nil {
		return nil, err
	}
	r := &Running{dir: dir, channel: newChannel(), console: &console{raw: raw, line: line, heard: make(chan struct{})}, done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	return r, nil
}

// abandon takes away what newRunning made, of a guest that was never started.
func (r *Running) abandon() {
	r.cancel(errStopped)
	for _, l := range r.listeners {
		l.Close()
	}
	r.reading.Wait()
	os.RemoveAll(r.dir)
}

// listen serves the connections to a socket below the guest's directory.
func (r *Running) listen(name string, serve func(net.Conn)) error {
	path := filepath.Join(r.dir, name)
	l, err := net.Listen("unix", path)
	if err != nil {
		if len(path) > 107 {
			return fmt.Errorf("%s is too long for a socket's path: set TMPDIR to a shorter one", path)
		}
		return fmt.Errorf("listening at %s: %w", path, err)
	}
	r.listeners = append(r.listeners, l)
	r.reading.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(r.ctx, func() {
				// What it has yet to say is read once the program has ended.
				_ = conn.SetReadDeadline(time.Now().Add(run.DefaultGrace + time.Second))
			})
			serve(conn)
			stop()
			conn.Close()
		}
	})
	return nil
}

// start runs the program that is the guest, and waits for its end in the
// background.
func (r *Running) start(c run.Command) {
	go func() {
		defer close(r.done)
		_, err := c.Output(r.ctx)
		for _, l := range r.listeners {
			l.Close()
		}
		r.reading.Wait()
		r.console.flush()
		if errors.Is(context.Cause(r.ctx), errStopped) {
			err = nil
		}
		r.cancel(errStopped)
		if rm := os.RemoveAll(r.dir); rm != nil {
			err = errors.Join(err, fmt.Errorf("cleaning up after the guest: %w", rm))
		}
		r.err = err
	}()
}

// startMachine runs QEMU and waits until it takes commands.
func (r *Running) startMachine(c run.Command) error {
	greeted := make(chan error, 1)
	ended := make(chan struct{})
	err := errors.Join(
		r.listen(consoleSocket, func(conn net.Conn) { _, _ = io.Copy(r.console, conn) }),
		r.listen(agentSocket, func(conn net.Conn) { r.channel.serve(conn) }),
		r.listen(monitorSocket, func(conn net.Conn) {
			q, err := newQMP(r.ctx, conn)
			if err == nil {
				r.monitor = q
			}
			select {
			case greeted <- err:
			default:
			}
			if err == nil {
				<-q.closed
			}
		}))
	if err != nil {
		r.abandon()
		return err
	}
	c.Stdout = func(string) {}
	r.start(c)
	go func() { <-r.done; close(ended) }()
	select {
	case err := <-greeted:
		if err == nil {
			// QEMU has all of its files open, and needs their names no more: now even
			// a kill -9 leaves nothing, no seed with secrets before all.
			if err = os.RemoveAll(r.dir); err == nil {
				return nil
			}
		}
		r.cancel(err)
		<-ended
		return errors.Join(r.err, err)
	case <-ended:
		if r.err == nil {
			return errors.New("QEMU ended at once")
		}
		return r.err
	}
}

// wakeTime is how long a machine's firmware may be silent with KVM: it takes a
// second or two to say its first word, ten on a busy machine.
const wakeTime = time.Minute

// wakes waits for the first that a machine says. One that doesn't say anything, or
// that KVM gives up, is taken down: the error says why.
func (r *Running) wakes(ctx context.Context, limit time.Duration) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		var why error
		select {
		case <-r.console.heard:
			return nil
		case <-r.done:
			return nil // its Report says how
		case <-ctx.Done():
			return nil // which ends it
		case <-timeout.C:
			why = fmt.Errorf("its firmware says nothing for %s", limit)
		case <-tick.C:
			why = r.givenUp(ctx)
		}
		if why != nil {
			r.Kill()
			return why
		}
	}
}

// givenUp is the error that KVM has stopped the machine with.
func (r *Running) givenUp(ctx context.Context) error {
	if r.monitor == nil {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	said, err := r.monitor.do(asking, "query-status", nil)
	if err == nil && strings.Contains(string(said), `"internal-error"`) {
		return errors.New("KVM has stopped it with an internal error")
	}
	return nil
}

// Done is closed once the guest has ended and nothing of it is left.
func (r *Running) Done() <-chan struct{} { return r.done }

// Wait is for the guest's end. The error says how its program failed, or that
// the context ended; nil is that the guest switched itself off, or Stop.
func (r *Running) Wait() error {
	<-r.done
	return r.err
}

// Stop has the guest shut down as one does with its power button, and once ctx
// ends takes it down. It returns when nothing of it is left; the error says
// that the guest didn't end by itself.
func (r *Running) Stop(ctx context.Context) error {
	var asked error
	if r.monitor != nil {
		_, asked = r.monitor.do(ctx, "system_powerdown", nil)
	} else {
		asked = r.askNspawn()
	}
	if asked == nil {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
	}
	select {
	case <-r.done: // perhaps while it was asked
		return r.err
	default:
	}
	if ctx.Err() != nil {
		asked = errors.New("the guest didn't shut down in time, and was killed")
	}
	r.Kill()
	return errors.Join(asked, r.err)
}

// Kill takes the guest down at once, as a failure of power does, and returns
// when nothing of it is left.
func (r *Running) Kill() {
	r.cancel(errStopped)
	<-r.done
}

// Report is the next that the guest makes: each of its boots makes one. Where
// ctx ends before, the error says how far the guest got.
func (r *Running) Report(ctx context.Context) (*Report, error) {
	select {
	case report := <-r.channel.reports:
		return report, nil
	case <-r.done:
		select {
		case report := <-r.channel.reports:
			return report, nil
		default:
		}
		err := r.err
		if err == nil {
			err = errors.New("the guest ended before it reported")
		}
		return nil, fmt.Errorf("%w%s", err, r.lastWords())
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	if !r.channel.heard() {
		return nil, fmt.Errorf("the guest said nothing (does its cloud-init run, and read the seed?): %w%s", cause, r.lastWords())
	}
	// It is there, so it can say what it waits for.
	asking, cancel := context.WithTimeout(r.ctx, 10*time.Second)
	defer cancel()
	jobs, _, err := r.channel.call(asking, "systemctl list-jobs --no-legend --plain", r.done)
	if err != nil {
		return nil, fmt.Errorf("the guest's boot doesn't end: %w%s", cause, r.lastWords())
	}
	return nil, fmt.Errorf("the guest's boot doesn't end: %w; it waits for\n%s", cause, indent(strings.Split(strings.TrimSpace(jobs), "\n")))
}

// Exec runs a shell script in the guest, as root, and returns what it wrote to
// either stream, and its exit status. The guest's agent has to be there: after
// the first report it is.
func (r *Running) Exec(ctx context.Context, script string) (output string, status int, err error) {
	return r.channel.call(ctx, script, r.done)
}

// Tail is the last that the guest wrote to its console.
func (r *Running) Tail() []string { return r.console.tail() }

func (r *Running) lastWords() string {
	lines := r.Tail()
	if len(lines) == 0 {
		return "; its console is empty"
	}
	return "; its console's last lines:\n" + indent(lines)
}

func indent(lines []string) string {
	var b strings.Builder
	for i, line := range lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("    " + printable(line))
	}
	return b.String()
}
