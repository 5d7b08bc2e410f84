package apply

import (
	"archive/tar"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/internal/quote"
)

//go:embed apply.sh
var applyScript string

// step is one thing that a run does. A run that is interrupted ends between two
// of them.
type step struct {
	name string
	code string
}

// Progress is called when a step begins, and when it is done.
type Progress func(step string, done bool)

// PartialError is a run that didn't get to its end: what is done, and what isn't.
// The next run does the rest.
type PartialError struct {
	Host string
	Done []string
	Left []string // the first of them may have been begun
	// Alone is set where the connection ended with the host's old network: it does
	// what is left by itself, and nobody has seen it.
	Alone bool
	Err   error
}

func (e *PartialError) Error() string {
	if len(e.Done) == 0 && !e.Alone {
		return fmt.Sprintf("changing %s: %v", e.Host, e.Err)
	}
	left := "not done"
	if e.Alone {
		left = "not seen"
	}
	return fmt.Sprintf("changing %s: %v\n  done: %s\n  %s: %s\n  The next run does the rest.", e.Host, e.Err, cmp.Or(strings.Join(e.Done, ", "), "nothing before that"), left, strings.Join(e.Left, ", "))
}

func (e *PartialError) Unwrap() error { return e.Err }

// goesOnError is the error of a connection that ended with a host's old network.
// What ssh, or netplan, has said last isn't what is to be known of that.
type goesOnError struct{ error }

func (goesOnError) Error() string {
	return "the connection ended with the host's old network, and the host goes on by itself: run this once more, over its new address, to see that all is done"
}

func (e goesOnError) Unwrap() error { return e.error }

// steps are what a run does, in order.
func (c *Changes) steps(p *payload) []step {
	var steps []step
	if c.marked {
		steps = append(steps, step{"take the mark away until all is there", call("rm", "-f", "--", markPath)})
	}
	for i := range c.List {
		ch := &c.List[i]
		if ch.script == "" {
			continue
		}
		code := ch.script
		if ch.content != nil {
			name := "files/" + strconv.Itoa(i)
			p.add(name, ch.content)
			code = strings.ReplaceAll(code, quote.Word("@"), quote.Word(name))
		}
		steps = append(steps, step{ch.Kind + " " + ch.Name, code})
	}
	for _, a := range c.actions {
		steps = append(steps, step{a.String(), a.shell()})
	}
	return steps
}

// pending is what is written to PendingPath before the first step.
func (c *Changes) pending() []string {
	var lines []string
	for _, a := range c.actions {
		lines = append(lines, a.String())
	}
	for _, file := range c.newFiles() {
		lines = append(lines, "stale "+file)
	}
	if c.drained != "" {
		lines = append(lines, "drained "+c.drained)
	}
	return lines
}

// newFiles are those that a run writes beside others, and that an earlier one may
// have left there.
func (c *Changes) newFiles() []string {
	files := slices.Clone(c.stale)
	for i := range c.List {
		if ch := &c.List[i]; ch.content != nil {
			files = append(files, beside(ch.Name))
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// beside is apply.sh's function of that name.
func beside(path string) string {
	i := strings.LastIndexByte(path, '/')
	return path[:i+1] + "." + path[i+1:] + ".kiln-new"
}

// run makes the changes on the host, and calls progress. In the end nothing is
// left to do but making the node eligible again, where it was drained.
func (c *Changes) run(ctx context.Context, conn Conn, progress Progress) error {
	p := newPayload()
	steps := c.steps(p)
	p.lines("pending", c.pending())
	expected := []string{PendingPath + "\t" + c.record}
	for i := range c.List {
		if ch := &c.List[i]; ch.expects != "" {
			expected = append(expected, ch.Name+"\t"+ch.expects)
		}
	}
	p.lines("expected", expected)
	p.lines("addresses", c.addresses)
	var b strings.Builder
	b.WriteString(applyScript)
	b.WriteString(call("lock", whoami()) + "\nexpected\npend\n")
	for i, s := range steps {
		fmt.Fprintf(&b, "step %d\n%s\ndone_with %d\n", i, s.code, i)
	}
	if len(c.stale) > 0 {
		b.WriteString(call(append([]string{"rm", "-f", "--"}, c.stale...)...) + "\n")
	}
	b.WriteString("finish\necho finished\n")
	in, err := p.finish(b.String())
	if err != nil {
		return err
	}
	done, begun, finished := 0, -1, false
	err = conn.Stream(ctx, in, func(line string) {
		key, number, _ := strings.Cut(line, " ")
		i, err := strconv.Atoi(number)
		switch {
		case line == "finished":
			finished = true
		case err != nil || i < 0 || i >= len(steps):
		case key == "begin":
			begun = i
			progress(steps[i].name, false)
		case key == "done":
			done = i + 1
			progress(steps[i].name, true)
		}
	}, argv()...)
	if err == nil && !finished {
		err = fmt.Errorf("it ended before its end, and doesn't say why")
	}
	if err == nil {
		return nil
	}
	return c.partial(steps, begun, done, err)
}

// partial is how far a run has come: begun is the last step that began, and done
// how many are done.
func (c *Changes) partial(steps []step, begun, done int, err error) *PartialError {
	partial := &PartialError{Host: c.Host, Err: explain(err)}
	for i, s := range steps {
		if i < done {
			partial.Done = append(partial.Done, s.name)
		} else {
			partial.Left = append(partial.Left, s.name)
		}
		partial.Alone = partial.Alone || i <= begun && s.name == network && remote.Unreachable(err)
	}
	if partial.Alone {
		partial.Err = &goesOnError{err}
	}
	return partial
}

// remember writes down what is to be done, and changes nothing else.
func (c *Changes) remember(ctx context.Context, conn Conn) error {
	if err := c.note(ctx, conn, "expected\npend"); err != nil {
		return err
	}
	c.record = stateOf(&entry{kind: tar.TypeReg, content: []byte(strings.Join(c.pending(), "\n") + "\n")})
	return nil
}

// settle takes a line out of the record.
func (c *Changes) settle(ctx context.Context, conn Conn, line string) error {
	return c.note(ctx, conn, call("settle", line)+"\nfinish")
}

func (c *Changes) note(ctx context.Context, conn Conn, script string) error {
	p := newPayload()
	p.lines("pending", c.pending())
	p.lines("expected", []string{PendingPath + "\t" + c.record})
	in, err := p.finish(applyScript + call("lock", whoami()) + "\n" + script + "\n")
	if err != nil {
		return err
	}
	if _, err := conn.Run(ctx, in, argv()...); err != nil {
		return fmt.Errorf("writing to %s on %s: %w", PendingPath, c.Host, explain(err))
	}
	return nil
}

// whoami is who changes a host, for others who want to at the same time.
func whoami() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += " at " + host
	}
	return name
}

// Run makes the changes. With a drainer, Nomad's node is drained first where the
// changes restart Nomad, and is eligible again in the end. The error of a run
// that got half-way is a *PartialError.
func (c *Changes) Run(ctx context.Context, conn Conn, d *Drainer, progress Progress) error {
	if c.Nothing() {
		return nil
	}
	if d == nil && c.drained != "" {
		return fmt.Errorf("an earlier run has drained the Nomad node of %s, and Nomad can't be asked to make it eligible again", c.Host)
	}
	if d != nil && d.Drain && c.drained == "" && c.Restarts() {
		if err := c.drain(ctx, conn, d, progress); err != nil {
			return err
		}
	}
	if err := c.run(ctx, conn, progress); err != nil {
		partial, ok := errors.AsType[*PartialError](err)
		if c.drained != "" && (!remote.Unreachable(err) || ok && partial.Alone) {
			return fmt.Errorf("%w\n  Its Nomad node stays drained until then", err)
		}
		return err
	}
	if c.drained == "" {
		return nil
	}
	const again = "make its Nomad node eligible again"
	progress(again, false)
	if err := d.eligible(ctx, c.drained); err != nil {
		return &PartialError{Host: c.Host, Done: []string{"all changes on it"}, Left: []string{again}, Err: err}
	}
	progress(again, true)
	return c.settle(ctx, conn, "drained "+c.drained)
}

// drain drains the node, and has the host remember it before that.
func (c *Changes) drain(ctx context.Context, conn Conn, d *Drainer, progress Progress) error {
	id, err := d.node(ctx, c.Host)
	if err != nil || id == "" {
		return err
	}
	c.drained = id
	if err := c.remember(ctx, conn); err != nil {
		return err
	}
	const drain = "drain its Nomad node"
	progress(drain, false)
	if err := d.drain(ctx, id); err != nil {
		return &PartialError{Host: c.Host, Err: fmt.Errorf("%w: nothing was changed on it; the next run goes on, and makes the node eligible again", err)}
	}
	progress(drain, true)
	return nil
}
