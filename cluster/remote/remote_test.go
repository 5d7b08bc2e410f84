package remote_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/internal/run"
)

// fake is an ssh that remembers how it was called.
type fake struct {
	calls []run.Command
	input string
	out   string
	err   error
}

func (f *fake) run(_ context.Context, c run.Command) ([]byte, error) {
	f.calls = append(f.calls, c)
	if c.Stdin != nil {
		b, err := io.ReadAll(c.Stdin)
		if err != nil {
			return nil, err
		}
		f.input = string(b)
	}
	if c.Stdout != nil {
		for line := range strings.Lines(f.out) {
			c.Stdout(strings.TrimSuffix(line, "\n"))
		}
		return nil, f.err
	}
	return []byte(f.out), f.err
}

func dial(t *testing.T, d *remote.Dialer) *remote.Host {
	t.Helper()
	h, err := d.Dial("build01")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// exited is the error of a program that ended with that status.
func exited(t *testing.T, status, stderr string) error {
	t.Helper()
	err := exec.Command("sh", "-c", "exit "+status).Run()
	if err == nil {
		t.Fatal("it has to fail")
	}
	return &run.Error{Name: "ssh", Command: "ssh -o Long=option -- build01 " + strings.Repeat("x", 500), Stderr: []string{stderr}, Err: err}
}

func TestRun(t *testing.T) {
	f := &fake{out: "a\nb\n"}
	h := dial(t, &remote.Dialer{User: "admin", Config: "/etc/kiln/ssh", Args: []string{"-p", "2222"}, Become: []string{"sudo", "-n"}, Runner: f.run})
	out, err := h.Run(t.Context(), strings.NewReader("the secret"), "sh", "-c", "echo $HOME; exit", "it's")
	if err != nil || string(out) != "a\nb\n" || f.input != "the secret" {
		t.Fatalf("got %q, %v, after %q", out, err, f.input)
	}
	c := f.calls[0]
	if c.Name != "ssh" || !slices.Equal(c.Args[len(c.Args)-3:], []string{"--", "build01", `sudo -n sh -c 'echo $HOME; exit' 'it'\''s'`}) {
		t.Errorf("it called %s %q", c.Name, c.Args)
	}
	for _, want := range []string{"-l admin", "-F /etc/kiln/ssh", "-p 2222", "BatchMode=yes", "ConnectTimeout="} {
		if !strings.Contains(strings.Join(c.Args, " "), want) {
			t.Errorf("ssh isn't told %s: %q", want, c.Args)
		}
	}
	if strings.Contains(strings.Join(c.Args, " "), "the secret") {
		t.Error("the input is among the arguments")
	}

	var lines []string
	if err := h.Stream(t.Context(), nil, func(l string) { lines = append(lines, l) }, "true"); err != nil || !slices.Equal(lines, []string{"a", "b"}) {
		t.Errorf("got %q, %v", lines, err)
	}
	// Sudo isn't called twice as deep the second time.
	if got := f.calls[1].Args; got[len(got)-1] != "sudo -n true" {
		t.Errorf("the second call is %q", got)
	}
}

func TestNamesOfHosts(t *testing.T) {
	for _, name := range []string{"", "-oProxyCommand=x", "a b", "a\nb", "a\x00"} {
		if h, err := (&remote.Dialer{}).Dial(name); err == nil {
			h.Close()
			t.Errorf("%q is taken for a host", name)
		}
	}
}

func TestArgumentsThatNoShellCanCarry(t *testing.T) {
	f := &fake{}
	h := dial(t, &remote.Dialer{Runner: f.run})
	if _, err := h.Run(t.Context(), nil, "echo", "a\x00b"); err == nil || len(f.calls) > 0 {
		t.Errorf("got %v after %d calls", err, len(f.calls))
	}
}

// An error says who and what, without pages of script, and the way out.
func TestErrors(t *testing.T) {
	for stderr, want := range map[string]string{
		"Host key verification failed.":                              "ssh-keygen -R",
		"admin@build01: Permission denied (publickey).":              "--ssh-user",
		"ssh: Could not resolve hostname build01: Name or service …": "look at DNS",
		"ssh: connect to host build01 port 22: Connection refused":   "log in once by hand",
	} {
		f := &fake{err: exited(t, "255", stderr)}
		h := dial(t, &remote.Dialer{Runner: f.run})
		_, err := h.Run(t.Context(), nil, "sh", "-c", strings.Repeat("a long script\n", 100))
		if err == nil || !remote.Unreachable(err) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), stderr) || !strings.HasPrefix(err.Error(), "on build01: ") {
			t.Errorf("%s: got %v", stderr, err)
		}
		if n := len(err.Error()); n > 400 || strings.Contains(err.Error(), "Long=option") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	f := &fake{err: exited(t, "3", "no such unit")}
	h := dial(t, &remote.Dialer{Runner: f.run})
	_, err := h.Run(t.Context(), nil, "systemctl", "status", "x")
	if err == nil || remote.Unreachable(err) || err.Error() != "on build01: ssh build01 systemctl status x: exit status 3: no such unit" {
		t.Errorf("got %v", err)
	}
	if e, ok := errors.AsType[*run.Error](err); !ok || e.ExitStatus() != 3 {
		t.Errorf("its status is lost: %v", err)
	}
}

// Close leaves nothing behind, and ends only a connection that there is.
func TestClose(t *testing.T) {
	f := &fake{}
	h, err := (&remote.Dialer{Runner: f.run}).Dial("build01")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(t.Context(), nil, "true"); err != nil {
		t.Fatal(err)
	}
	socket := ""
	for _, a := range f.calls[0].Args {
		if s, ok := strings.CutPrefix(a, "ControlPath="); ok {
			socket = s
		}
	}
	if info, err := os.Stat(strings.TrimSuffix(socket, "/s")); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the folder of %s: %v, %v", socket, info, err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(strings.TrimSuffix(socket, "/s")); err == nil {
		t.Error("the folder is still there")
	}
	if len(f.calls) != 2 || !strings.Contains(strings.Join(f.calls[1].Args, " "), "-O exit -- build01") {
		t.Errorf("it called %v", f.calls)
	}
}
