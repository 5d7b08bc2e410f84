package profiles

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/problem"
)

// TestNoPipes: what isn't a regular file is refused at each place where a file
// of a site is read, instead of waiting for somebody who writes.
func TestNoPipes(t *testing.T) {
	site := map[string]string{
		"site.yaml": "domain: example.org\n", "hosts.yaml": "- {name: one, profile: tiny}\n", "hosts/a.yaml": "- {name: two, profile: plain}\n",
		"images/own.yaml": "distribution: debian\nversion: 12\ncodename: bookworm\n", "keys/hashicorp.asc": "key",
	}
	for _, name := range []string{"site.yaml", "hosts.yaml", "hosts/a.yaml", "profiles/tiny/profile.yaml", "images/own.yaml", "keys/hashicorp.asc"} {
		dir := writeFiles(t, site)
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
		done := make(chan string, 1)
		go func() {
			problems, _, err := Check(context.Background(), dir)
			if err != nil {
				done <- err.Error()
				return
			}
			done <- problems.Error()
		}()
		select {
		case got := <-done:
			if !strings.Contains(got, filepath.Base(name)) || !strings.Contains(got, "is no regular file but a named pipe: put a file in its place") {
				t.Errorf("%s: %s", name, got)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s as a pipe: check waits for somebody who writes", name)
		}
	}
}

// counted tells how much was read.
type counted struct {
	io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

// endless repeats a text.
type endless string

func (e endless) Read(p []byte) (int, error) {
	return copy(p, strings.Repeat(string(e), len(p)/len(e))), nil
}

// TestLongEntry: a host of too much text is refused with its line, long before
// all of it has been read, whether it has lines or not.
func TestLongEntry(t *testing.T) {
	const first = "- {name: one, profile: tiny}\n- name: two\n"
	for rest, want := range map[string]string{
		"  a: b\n": "f:2:1: the host that begins here is longer than 1 MiB, comments behind it included: keep what is large in a file of its profile's, or on the host",
		"  xxxxxx": "f:2:1: the host that begins here is longer than 1 MiB, comments behind it included: keep what is large in a file of its profile's, or on the host",
	} {
		var problems problem.List
		entries := 0
		r := &counted{Reader: io.MultiReader(strings.NewReader(first), endless(rest))}
		if err := splitInventory(r, "f", &problems, func(entry) bool { entries++; return true }); err != nil {
			t.Fatal(err)
		}
		if got := problems.Error(); got != want || entries != 1 || r.n > 2*maxEntry {
			t.Errorf("%q: %s, after %d entries and %d bytes", rest, got, entries, r.n)
		}
	}
	var problems problem.List
	if err := splitInventory(endless("xxxxxxxx"), "f", &problems, func(entry) bool { return true }); err != nil || problems.Error() != "f:1:1: this line is longer than 1 MiB: is this an inventory?" {
		t.Errorf("one line without end: %v, %s", err, problems.Error())
	}
	// What is just short enough is read whole, in lines longer than any buffer.
	problems = nil
	long := []byte("- {name: one, profile: tiny, vars: {a: " + strings.Repeat("x", 200_000) + "}}\n- {name: two, profile: tiny}\n")
	var texts [][]byte
	if err := splitInventory(bytes.NewReader(long), "f", &problems, func(e entry) bool { texts = append(texts, e.text); return true }); err != nil || len(problems) > 0 {
		t.Fatalf("%v, %s", err, problems.Error())
	}
	if got := bytes.Join(texts, nil); !bytes.Equal(got, long) {
		t.Errorf("%d entries of %d bytes, not %d", len(texts), len(got), len(long))
	}
}

// TestNoSuchName: what can't be a host's name is told so.
func TestNoSuchName(t *testing.T) {
	s, _, err := Open(writeFiles(t, map[string]string{"hosts.yaml": "- {name: one, profile: tiny}\n"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "*", "a b"} {
		if _, _, err := s.Host(context.Background(), name); err == nil || !strings.Contains(err.Error(), "can't name a host: kiln hosts lists those") || strings.Contains(err.Error(), "did you mean") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
