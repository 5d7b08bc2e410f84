package boot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// guest is the far end of a channel: it says what comes in says, and answers
// each request with its script in upper case.
func guest(t *testing.T, says ...string) *channel {
	t.Helper()
	here, there := net.Pipe()
	c := newChannel()
	go c.serve(here)
	t.Cleanup(func() { here.Close(); there.Close() })
	go func() {
		for _, line := range says {
			if _, err := fmt.Fprintln(there, line); err != nil {
				return
			}
		}
		requests := bufio.NewScanner(there)
		for requests.Scan() {
			var r request
			if json.Unmarshal(requests.Bytes(), &r) != nil || r.Script == "silence" {
				continue
			}
			_ = json.NewEncoder(there).Encode(message{ID: r.ID, Status: len(r.Script), Output: strings.ToUpper(r.Script)})
		}
	}()
	return c
}

// next is the guest's next report.
func next(t *testing.T, c *channel) *Report {
	t.Helper()
	select {
	case r := <-c.reports:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("no report")
	}
	return nil
}

func TestChannel(t *testing.T) {
	// A machine that was reset in the middle of a line.
	c := guest(t, `{"hello": true}`, `{"report": {"hostname": "a", "failed": ["x.service`, "\x00\xff", `[]`, `{"hello": true}`,
		`{"id": 77, "output": "to nobody"}`, `{"report": {"hostname": "b"}}`)
	if r := next(t, c); r.Hostname != "b" {
		t.Errorf("the report is %+v", r)
	}
	if !c.heard() {
		t.Error("the guest wasn't heard")
	}
	for _, script := range []string{"id", "uname -r\necho 'x'"} {
		out, status, err := c.call(t.Context(), script, nil)
		if err != nil || out != strings.ToUpper(script) || status != len(script) {
			t.Errorf("got %q, %d, %v", out, status, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.call(ctx, "silence", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	gone := make(chan struct{})
	close(gone)
	if _, _, err := c.call(t.Context(), "silence", gone); err == nil || !strings.Contains(err.Error(), "ended before") {
		t.Errorf("got %v", err)
	}
	if len(c.calls) != 0 {
		t.Errorf("%d calls are still waited for", len(c.calls))
	}
}

func TestChannelWithoutAnAgent(t *testing.T) {
	if _, _, err := newChannel().call(t.Context(), "id", nil); err == nil || !strings.Contains(err.Error(), "no agent yet") {
		t.Errorf("got %v", err)
	}
}

func FuzzChannel(f *testing.F) {
	f.Add(`{"hello": true}` + "\n" + `{"report": {}}` + "\n" + `{"id": 1, "status": "x"}`)
	f.Fuzz(func(t *testing.T, said string) {
		c := newChannel()
		c.serve(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(said), io.Discard})
		if len(c.calls) != 0 {
			t.Error("calls that nobody made")
		}
	})
}

func TestConsole(t *testing.T) {
	var raw strings.Builder
	var got []string
	c := &console{raw: &raw, line: func(line string) { got = append(got, line) }}
	text := "\x1b[2J\x1b[01;01HSeaBIOS\r\nBooting\x1b]0;title\x07...\r\n10%\r100%\r\n\r\n\x1bcend"
	for i := range len(text) {
		if n, err := c.Write([]byte{text[i]}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	c.flush()
	if want := []string{"SeaBIOS", "Booting...", "100%", "", "end"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if raw.String() != text {
		t.Errorf("the writer got %q", raw.String())
	}
	if want := []string{"SeaBIOS", "Booting...", "100%", "end"}; !slices.Equal(c.tail(), want) {
		t.Errorf("it ends in %q", c.tail())
	}
}

func TestConsoleKeepsTheLastLines(t *testing.T) {
	c := &console{}
	for i := range 100 {
		_, _ = fmt.Fprintf(c, "line %d\n", i)
	}
	_, _ = c.Write([]byte(strings.Repeat("x", 10*consoleWidth)))
	lines := c.tail()
	if len(lines) != consoleLines || len(lines[len(lines)-1]) != consoleWidth {
		t.Errorf("%d lines, the last one of %d bytes", len(lines), len(lines[len(lines)-1]))
	}
}
