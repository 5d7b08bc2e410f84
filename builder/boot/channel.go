package boot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"
)

// longestMessage bounds what is kept of a guest that never ends its line.
const longestMessage = 64 << 20

// message is a line that a guest says: one of its fields is set.
type message struct {
	Hello  bool    `json:"hello"`
	Report *Report `json:"report"`
	ID     int     `json:"id"`
	Status int     `json:"status"`
	Output string  `json:"output"`
}

// request has a guest run a shell script.
type request struct {
	ID      int    `json:"id"`
	Script  string `json:"script"`
	Timeout int    `json:"timeout,omitempty"` // seconds
}

// channel is the connection to the agent in a guest.
type channel struct {
	mu      sync.Mutex
	conn    io.Writer            // nil until there is one
	hello   bool                 // the agent has been heard
	calls   map[int]chan message // waiting for their answer
	last    int                  // the ID last used
	reports chan *Report
}

func newChannel() *channel {
	return &channel{calls: map[int]chan message{}, reports: make(chan *Report, 16)}
}

// serve reads what the guest says until the connection ends.
func (c *channel) serve(conn io.ReadWriter) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	r := bufio.NewReader(conn)
	for {
		line, err := readLine(r)
		if err != nil {
			return
		}
		var m message
		// A machine that restarts in the middle of a line leaves half of one.
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		c.take(m)
	}
}

// readLine is the next line, or an error where it's longer than any that the
// agent says.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, more, err := r.ReadLine()
		if err != nil {
			return nil, err
		}
		if line = append(line, piece...); !more {
			return line, nil
		}
		if len(line) > longestMessage {
			return nil, errors.New("the line is too long")
		}
	}
}

func (c *channel) take(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Hello:
		c.hello = true
		// What an earlier boot was asked is answered no more.
		for id, answer := range c.calls {
			close(answer)
			delete(c.calls, id)
		}
	case m.Report != nil:
		select {
		case c.reports <- m.Report:
		default: // nobody wants so many
		}
	case c.calls[m.ID] != nil:
		c.calls[m.ID] <- m
		delete(c.calls, m.ID)
	}
}

// heard tells whether the guest's agent is there.
func (c *channel) heard() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hello
}

// call runs a script in the guest.
func (c *channel) call(ctx context.Context, script string, gone <-chan struct{}) (output string, status int, err error) {
	c.mu.Lock()
	if !c.hello || c.conn == nil {
		c.mu.Unlock()
		return "", 0, errors.New("the guest has no agent yet: wait for its report first")
	}
	c.last++
	r := request{ID: c.last, Script: script}
	if end, ok := ctx.Deadline(); ok {
		r.Timeout = int(math.Ceil(max(time.Until(end), time.Second).Seconds()))
	}
	answer := make(chan message, 1)
	c.calls[r.ID] = answer
	conn := c.conn
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.calls, r.ID)
	}()
	line, err := json.Marshal(r)
	if err != nil {
		return "", 0, err
	}
	// One write is one line, whoever else calls.
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return "", 0, fmt.Errorf("asking the guest: %w", err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return "", 0, errors.New("the guest was started anew before it answered")
		}
		return m.Output, m.Status, nil
	case <-gone:
		return "", 0, errors.New("the guest ended before it answered")
	case <-ctx.Done():
		return "", 0, fmt.Errorf("the guest didn't answer: %w", context.Cause(ctx))
	}
}
