package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// monitor is a QEMU that answers each command it gets with the next of answers.
func monitor(t *testing.T, greeting string, answers ...string) (conn net.Conn, commands chan string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "m"))
	if err != nil {
		t.Fatal(err)
	}
	commands = make(chan string, 10)
	go func() {
		server, err := l.Accept()
		if err != nil {
			return
		}
		defer server.Close()
		_, _ = fmt.Fprintln(server, greeting)
		r := bufio.NewScanner(server)
		for _, a := range answers {
			if !r.Scan() {
				return
			}
			commands <- r.Text()
			_, _ = fmt.Fprintln(server, a)
		}
	}()
	if conn, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); l.Close() })
	return conn, commands
}

const greeting = `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}`

func TestQMP(t *testing.T) {
	conn, commands := monitor(t, greeting, `{"return": {}}`,
		`{"timestamp": {"seconds": 1}, "event": "RESUME"}`+"\n"+`{"return": {"status": "running"}}`,
		`{"error": {"class": "CommandNotFound", "desc": "no such command"}}`)
	q, err := newQMP(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	got, err := q.do(t.Context(), "query-status", nil)
	if err != nil || string(got) != `{"status": "running"}` {
		t.Errorf("got %s, %v", got, err)
	}
	_, err = q.do(t.Context(), "frobnicate", map[string]int{"x": 1})
	if err == nil || err.Error() != "QEMU's monitor: frobnicate: CommandNotFound: no such command" {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{`{"execute":"qmp_capabilities"}`, `{"execute":"query-status"}`, `{"execute":"frobnicate","arguments":{"x":1}}`} {
		if got := <-commands; got != want {
			t.Errorf("QEMU was told %s, want %s", got, want)
		}
	}
	// It has no more answers, so it hung up.
	if _, err := q.do(t.Context(), "quit", nil); err == nil {
		t.Error("no error of a QEMU that is gone")
	}
}

func TestQMPThatDoesNotGreet(t *testing.T) {
	conn, _ := monitor(t, `{"return": {}}`)
	if _, err := newQMP(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "greet") {
		t.Errorf("got %v", err)
	}
	conn, _ = monitor(t, "SSH-2.0-OpenSSH")
	if _, err := newQMP(t.Context(), conn); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestQMPThatDoesNotAnswer(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := newQMP(ctx, client); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func FuzzQMP(f *testing.F) {
	f.Add(greeting + "\n" + `{"return": {}}`)
	f.Add(`{"event": 1}{"QMP": null}`)
	f.Fuzz(func(t *testing.T, said string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		conn := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(said), io.Discard}
		if q, err := newQMP(ctx, conn); err == nil {
			<-q.closed
		}
	})
}
