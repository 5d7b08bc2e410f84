package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/internal/ui"
)

// terminal puts a new one in the place of standard input, and gives the side of it
// that a person types at.
func terminal(t *testing.T) *os.File {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = program
	t.Cleanup(func() {
		os.Stdin = before
		program.Close()
	})
	return person
}

// onQuestion does something once a question was written.
type onQuestion struct {
	bytes.Buffer
	once sync.Once
	do   func()
}

func (w *onQuestion) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), "[y/N] ") {
		w.once.Do(w.do)
	}
	return n, err
}

// TestConsulLeftoversAsks: only a yes is one, and what is found after it isn't
// removed unasked.
func TestConsulLeftoversAsks(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		then         func(m *movedHost) // while the question stands
		removed      bool
		said         string
	}{
		{"yes", "y\n", nil, true, "Remove the 1 entry that is proven to be left over? [y/N] "},
		{"in full", " YES \n", nil, true, ""},
		{"no", "n\n", nil, false, "nothing was removed"},
		{"nothing", "\n", nil, false, "nothing was removed"},
		{"the end of input", "\x04", nil, false, "nothing was removed"},
		{"something else", "yy\n", nil, false, "nothing was removed"},
		{"it is in order meanwhile", "y\n", func(m *movedHost) { m.calm = true }, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			person := terminal(t)
			m := &movedHost{}
			status, _, said := m.asked(t, t.Context(), func() {
				if tt.then != nil {
					m.mu.Lock()
					tt.then(m)
					m.mu.Unlock()
				}
				if _, err := person.WriteString(tt.answer); err != nil {
					t.Error(err)
				}
			})
			if m.removed != tt.removed || !strings.Contains(said, tt.said) || status == exitUsage {
				t.Errorf("removed: %t; exit status %d; %s", m.removed, status, said)
			}
		})
	}
}

// TestConsulLeftoversFoundLater: what is found only after the question isn't removed,
// and not forgotten.
func TestConsulLeftoversFoundLater(t *testing.T) {
	person := terminal(t)
	m := &movedHost{}
	status, out, said := m.asked(t, t.Context(), func() {
		m.mu.Lock()
		m.more = true
		m.mu.Unlock()
		if _, err := person.WriteString("y\n"); err != nil {
			t.Error(err)
		}
	})
	if !m.removed || status != exitFailed || !strings.Contains(out, "_nomad-client-third  NOT removed: left for another call") {
		t.Errorf("removed: %t; exit status %d; %s%s", m.removed, status, out, said)
	}
}

// TestConsulLeftoversInterrupted: ^C at the question changes nothing, and ends at
// once.
func TestConsulLeftoversInterrupted(t *testing.T) {
	terminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	m := &movedHost{}
	status, _, said := m.asked(t, ctx, cancel)
	if status != exitInterrupted || m.removed || !strings.HasSuffix(said, "kiln: interrupted\n") {
		t.Errorf("removed: %t; exit status %d; %s", m.removed, status, said)
	}
}

// TestConsulLeftoversInterruptedWatch: ^C while it watches says what was done.
func TestConsulLeftoversInterruptedWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &movedHost{onRemoved: cancel}
	status, out, said := m.asked(t, ctx, func() {}, "--yes", "--wait", "1h")
	if status != exitInterrupted || !m.removed || !strings.Contains(out, "whether it stays away wasn't seen") {
		t.Errorf("removed: %t; exit status %d; %s%s", m.removed, status, out, said)
	}
}

// asked runs kiln consul leftovers --fix, and does something once it asks.
func (m *movedHost) asked(t *testing.T, ctx context.Context, do func(), args ...string) (status int, out, said string) { //nolint:revive // t comes first
	t.Helper()
	consul, nomad := httptest.NewServer(http.HandlerFunc(m.consul)), httptest.NewServer(http.HandlerFunc(m.nomad))
	t.Cleanup(consul.Close)
	t.Cleanup(nomad.Close)
	t.Setenv("CONSUL_HTTP_ADDR", consul.URL)
	t.Setenv("NOMAD_ADDR", nomad.URL)
	var stdout bytes.Buffer
	stderr := &onQuestion{do: do}
	u := &ui.UI{Out: &stdout, Err: stderr}
	root := newRootCommand(u)
	args = append([]string{"consul", "leftovers", "--fix"}, args...)
	if len(args) == 3 {
		args = append(args, "--wait", "0")
	}
	root.SetArgs(args)
	status = execute(ctx, root, args, u)
	return status, stdout.String(), stderr.String()
}
