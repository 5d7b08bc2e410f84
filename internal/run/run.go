// Package run is Kiln's one way to run external programs: each ends with its
// context, takes its whole process group with it, and says in its error what
// was run, how it ended and what it last wrote to stderr. On Linux a program
// dies with Kiln even where that is killed by SIGKILL.
//
// Arguments are shown in errors. What is secret goes to a program through
// Stdin, never through Args or Env.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// DefaultGrace is how long a program has to end by itself once its context
// does, where a Command sets nothing else.
const DefaultGrace = 5 * time.Second

// lastWords is how long the pipes of a program that ended may take to do so.
const lastWords = 100 * time.Millisecond

// Command is one run of an external program. Only Name has to be set.
type Command struct {
	// Name is the program: a path, or a name looked up in PATH.
	Name string
	Args []string
	// Dir is the folder that it runs in; empty is the current one.
	Dir string
	// Env has KEY=value entries that are added to Kiln's own environment, and
	// win over it.
	Env []string
	// Without names variables of Kiln's own environment that the program
	// doesn't get.
	Without []string
	// Stdin is what the program reads; nil is nothing at all. A reader that
	// blocks doesn't keep Output from returning when the program has ended.
	Stdin io.Reader
	// Stdout, where set, is given each line of standard output as it comes,
	// without its newline. Nothing of it is kept then. A line that is longer
	// than 64 KiB comes in pieces.
	Stdout func(line string)
	// Stderr, where set, is given each line of standard error as it comes,
	// besides the end of it being kept for the error. Stdout and Stderr are
	// called from different goroutines, never both at once.
	Stderr func(line string)
	// Grace is how long the program has between SIGTERM and SIGKILL once the
	// context ends; 0 is DefaultGrace, less than 0 none.
	Grace time.Duration
	// Install says how one comes by the program, for the error that it isn't
	// there: "the Debian package pass has it".
	Install string
}

// Runner runs a command and returns its standard output. A nil Runner runs the
// program; tests put a function of their own in its place.
type Runner func(ctx context.Context, c Command) (stdout []byte, err error)

// Output runs c and returns its standard output, which is nil where c.Stdout
// takes it. Whatever the error is, it's an *Error.
func (r Runner) Output(ctx context.Context, c Command) ([]byte, error) {
	if r == nil {
		return c.Output(ctx)
	}
	out, err := r(ctx, c)
	if err == nil {
		return out, nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return out, e
	}
	return out, &Error{Name: c.Name, Command: c.String(), Install: c.Install, Err: err}
}

// Run is Output for a program whose standard output nobody wants.
func (r Runner) Run(ctx context.Context, c Command) error {
	if c.Stdout == nil {
		c.Stdout = func(string) {}
	}
	_, err := r.Output(ctx, c)
	return err
}

// Output runs c and returns its standard output, which is nil where c.Stdout
// takes it. Whatever the error is, it's an *Error.
//
// Once ctx ends, the program's process group gets SIGTERM, and after c.Grace
// SIGKILL. What a program leaves behind in its group when it ends by itself is
// killed too: a command leaves nothing running.
func (c Command) Output(ctx context.Context) ([]byte, error) {
	e := &Error{Name: c.Name, Command: c.String(), Install: c.Install}
	if err := ctx.Err(); err != nil {
		e.Err = context.Cause(ctx)
		return nil, e
	}
	var out bytes.Buffer
	var tail tail
	var calls sync.Mutex // keeps the callbacks apart
	err := c.start(ctx, func(stdout, stderr io.Reader) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if c.Stdout != nil {
				eachLine(stdout, func(line string) {
					calls.Lock()
					defer calls.Unlock()
					c.Stdout(line)
				})
				return
			}
			_, _ = out.ReadFrom(stdout)
		})
		wg.Go(func() {
			eachLine(stderr, func(line string) {
				tail.add(line)
				if c.Stderr != nil {
					calls.Lock()
					defer calls.Unlock()
					c.Stderr(line)
				}
			})
		})
		wg.Wait()
	})
	if err == nil {
		return out.Bytes(), nil
	}
	e.Err, e.Stderr = err, tail.lines
	if ctx.Err() != nil {
		// That it was stopped is the cause; how it died of it isn't.
		e.Err = context.Cause(ctx)
	}
	return out.Bytes(), e
}

// running counts the programs that run.
var running atomic.Int32

// Running is how many programs run now, all of the process's together. Whoever
// ends the process leaves them behind.
func Running() int { return int(running.Load()) }

// Count has a program that somebody else starts counted, too, until done is
// called.
func Count() (done func()) {
	running.Add(1)
	return func() { running.Add(-1) }
}

// start runs the program while read takes what it writes, until both are done.
func (c Command) start(ctx context.Context, read func(stdout, stderr io.Reader)) error {
	running.Add(1)
	defer running.Add(-1)
	if c.Dir != "" {
		// Else the error would be that there is no such program.
		if _, err := os.Stat(c.Dir); err != nil {
			return &os.PathError{Op: "chdir", Path: c.Dir, Err: errors.Unwrap(err)}
		}
	}
	p := &process{cmd: exec.CommandContext(ctx, c.Name, c.Args...), grace: c.grace()}
	p.cmd.Dir, p.cmd.Env = c.Dir, c.environment()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The program would also die with this thread, which the runtime may end
	// once it's nobody's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	bind(p.cmd.SysProcAttr)
	p.cmd.Cancel = p.terminate
	feed, err := c.feed(p.cmd)
	if err != nil {
		return err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		return err
	}
	defer errR.Close()
	p.cmd.Stdout, p.cmd.Stderr = outW, errW
	err = p.cmd.Start()
	outW.Close()
	errW.Close()
	if err != nil {
		return err
	}
	p.fed, p.drained = make(chan error, 1), make(chan struct{})
	go func() { p.fed <- feed() }()
	go func() {
		defer close(p.drained)
		read(outR, errR)
	}()
	return p.wait(ctx, func() {
		outR.Close()
		errR.Close()
	})
}

// process is a program that runs.
type process struct {
	cmd     *exec.Cmd
	grace   time.Duration
	kill    *time.Timer   // set once the context has ended
	fed     chan error    // has the error of reading its input
	drained chan struct{} // closed when all that it wrote is read
}

// signal sends one to the whole group.
func (p *process) signal(s syscall.Signal) error {
	return syscall.Kill(-p.cmd.Process.Pid, s)
}

// terminate asks the group to end, and makes it later.
func (p *process) terminate() error {
	p.kill = time.AfterFunc(p.grace, func() { _ = p.signal(syscall.SIGKILL) })
	if err := p.signal(syscall.SIGTERM); err != nil {
		return os.ErrProcessDone
	}
	return nil
}

// wait is for the end of the program and of all that it wrote. hangUp closes
// the pipes.
func (p *process) wait(ctx context.Context, hangUp func()) error {
	err := p.cmd.Wait()
	select {
	case readErr := <-p.fed:
		// What ended well on half of its input didn't end well.
		if err == nil {
			err = readErr
		}
	case <-time.After(lastWords):
	}
	// Wait has seen the end of terminate, so p.kill is settled.
	if p.kill == nil {
		_ = p.signal(syscall.SIGKILL)
	}
	// Whoever holds the pipes now has left the group, as daemons do, or is in its
	// grace. The first is waited for as long as the context lasts.
	select {
	case <-p.drained:
	case <-ctx.Done():
		select {
		case <-p.drained:
		case <-time.After(p.grace + lastWords):
			hangUp()
			<-p.drained
		}
		err = errors.Join(err, ctx.Err())
	}
	if p.kill != nil {
		// Later, the number may be another group's.
		p.kill.Stop()
		_ = p.signal(syscall.SIGKILL)
	}
	return err
}

// feed prepares cmd's standard input. The function that it returns writes all
// of it, and returns the error of reading c.Stdin; what the program doesn't
// want to read is no error.
func (c Command) feed(cmd *exec.Cmd) (func() error, error) {
	if file, ok := c.Stdin.(*os.File); ok || c.Stdin == nil {
		if ok {
			cmd.Stdin = file
		}
		return func() error { return nil }, nil
	}
	w, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return func() error {
		defer w.Close()
		r := &reader{Reader: c.Stdin}
		_, _ = io.Copy(w, r)
		if r.err != nil {
			return fmt.Errorf("its input can't be read: %w", r.err)
		}
		return nil
	}, nil
}

// reader keeps the error of reading apart from those of writing.
type reader struct {
	io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (c Command) grace() time.Duration {
	switch {
	case c.Grace == 0:
		return DefaultGrace
	case c.Grace < 0:
		return 0
	}
	return c.Grace
}

// environment is nil, which is Kiln's own, where nothing differs from that.
func (c Command) environment() []string {
	if len(c.Env) == 0 && len(c.Without) == 0 {
		return nil
	}
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(c.Without, name)
	})
	return append(env, c.Env...)
}

// String is the command as one would type it into a shell.
func (c Command) String() string {
	words := make([]string, 0, 1+len(c.Args))
	for _, w := range append([]string{c.Name}, c.Args...) {
		words = append(words, word(w))
	}
	return strings.Join(words, " ")
}

// Error says how an external program failed.
type Error struct {
	Name    string   // the program
	Command string   // as one would type it
	Stderr  []string // the last lines that it wrote there, control characters escaped
	Install string   // how one comes by the program
	Err     error    // an *exec.ExitError, an *exec.Error, or the context's cause
}

// Error is one line where the program wrote at most one, else the command and
// its last lines below it.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Missing():
		fmt.Fprintf(&b, "the program %s isn't there", word(e.Name))
		if e.Install != "" {
			b.WriteString(": " + e.Install)
		}
		return b.String()
	case errors.Is(e.Err, context.Canceled):
		fmt.Fprintf(&b, "%s: stopped", e.Command)
	case errors.Is(e.Err, context.DeadlineExceeded):
		fmt.Fprintf(&b, "%s: took too long, and was stopped", e.Command)
	default:
		fmt.Fprintf(&b, "%s: %v", e.Command, e.Err)
	}
	switch len(e.Stderr) {
	case 0:
	case 1:
		b.WriteString(": " + e.Stderr[0])
	default:
		b.WriteString(":")
		for _, line := range e.Stderr {
			b.WriteString("\n    " + line)
		}
	}
	return b.String()
}

// Missing tells whether there is no such program.
func (e *Error) Missing() bool {
	if path, ok := errors.AsType[*os.PathError](e.Err); ok && path.Op == "chdir" {
		return false // there is no such folder to run it in
	}
	return errors.Is(e.Err, exec.ErrNotFound) || errors.Is(e.Err, os.ErrNotExist)
}

func (e *Error) Unwrap() error { return e.Err }

// ExitStatus is what the program exited with; -1 where it didn't get that far.
func (e *Error) ExitStatus() int {
	if exit, ok := errors.AsType[*exec.ExitError](e.Err); ok {
		return exit.ExitCode()
	}
	return -1
}
