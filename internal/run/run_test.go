package run_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/alisw/kiln/internal/run"
)

func sh(script string, args ...string) run.Command {
	return run.Command{Name: "sh", Args: append([]string{"-c", script, "sh"}, args...)}
}

func TestOutput(t *testing.T) {
	t.Setenv("KILN_TEST_KEPT", "kept")
	t.Setenv("KILN_TEST_DROPPED", "dropped")
	dir := t.TempDir()
	c := sh(`cat; echo "$KILN_TEST_KEPT/$KILN_TEST_DROPPED/$KILN_TEST_ADDED"; pwd; echo noise >&2`)
	c.Dir, c.Stdin = dir, strings.NewReader("input\n")
	c.Env, c.Without = []string{"KILN_TEST_ADDED=added"}, []string{"KILN_TEST_DROPPED"}
	out, err := run.Runner(nil).Output(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if want := "input\nkept//added\n" + dir + "\n"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestWithoutStdinAProgramReadsNothing(t *testing.T) {
	out, err := sh("cat; echo end").Output(t.Context())
	if err != nil || string(out) != "end\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestStdinThatIsNotAllRead(t *testing.T) {
	r, w := io.Pipe() // never written to, never closed
	defer w.Close()
	c := sh("echo done")
	c.Stdin = r
	out, err := c.Output(t.Context())
	r.Close()
	if err != nil || string(out) != "done\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestStdinThatCannotBeRead(t *testing.T) {
	c := sh("cat")
	cause := errors.New("disk on fire")
	c.Stdin = io.MultiReader(strings.NewReader("half"), iotest.ErrReader(cause))
	if _, err := c.Output(t.Context()); !errors.Is(err, cause) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func TestStdinFromAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := sh("cat")
	c.Stdin = f
	if out, err := c.Output(t.Context()); err != nil || string(out) != "text" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestError(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name    string
		command run.Command
		want    string
		status  int
	}{
		{"one line", sh("echo secret; echo ' no such key ' >&2; exit 3", "it's", "a b"),
			`sh -c 'echo secret; echo '\'' no such key '\'' >&2; exit 3' sh 'it'\''s' 'a b': exit status 3:  no such key`, 3},
		{"several lines", sh(`printf 'one\n\ntwo\033[31m\n10%%\r100%%\n' >&2; exit 1`),
			"sh -c 'printf '\\''one\\n\\ntwo\\033[31m\\n10%%\\r100%%\\n'\\'' >&2; exit 1' sh: exit status 1:\n    one\n    two\\x1b[31m\n    100%", 1},
		{"nothing said", sh("exit 7"), "sh -c 'exit 7' sh: exit status 7", 7},
		{"a signal", sh("kill -KILL $$"), "sh -c 'kill -KILL $$' sh: signal: killed", -1},
		{"no program", run.Command{Name: "kiln-no-such-program", Install: "the Debian package x has it"},
			"the program kiln-no-such-program isn't there: the Debian package x has it", -1},
		{"no program at a path", run.Command{Name: filepath.Join(dir, "x")}, "the program " + dir + "/x isn't there", -1},
		{"no folder", run.Command{Name: "sh", Dir: filepath.Join(dir, "x")}, "sh: chdir " + dir + "/x: no such file or directory", -1},
		{"a terminal's escape in an argument", run.Command{Name: "false", Args: []string{"\x1b[2J'"}}, `false $'\x1b[2J\'': exit status 1`, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.command.Output(t.Context())
			e, ok := errors.AsType[*run.Error](err)
			if !ok {
				t.Fatalf("got %T %v, want a *run.Error", err, err)
			}
			if e.Error() != tt.want {
				t.Errorf("got  %q\nwant %q", e.Error(), tt.want)
			}
			if e.ExitStatus() != tt.status {
				t.Errorf("exit status %d, want %d", e.ExitStatus(), tt.status)
			}
		})
	}
}

func TestErrorKeepsTheLastLines(t *testing.T) {
	_, err := sh(`for i in $(seq 1 1000); do echo "line $i" >&2; done; printf '%70000s\n' x >&2; exit 1`).Output(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	if strings.Contains(err.Error(), "line 900\n") || !strings.Contains(err.Error(), "line 1000\n") || len(err.Error()) > 8<<10 {
		t.Errorf("got %q", err)
	}
}

func TestLines(t *testing.T) {
	var lines []string
	c := sh(`echo one; echo two >&2; printf three`)
	c.Stdout = func(line string) { lines = append(lines, "out "+line) }
	c.Stderr = func(line string) { lines = append(lines, "err "+line) }
	out, err := c.Output(t.Context())
	if err != nil || out != nil {
		t.Fatalf("got %q, %v", out, err)
	}
	got := strings.Join(lines, ", ")
	for _, want := range []string{"out one", "err two", "out three"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q isn't among %q", want, got)
		}
	}
}

// gone waits until no process with that id runs, and fails the test where one
// still does. A zombie counts as gone: it's its parent that is slow.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d still runs", pid)
}

// TestCancelKillsTheGroup cancels once the grandchild says that it's there.
func TestCancelKillsTheGroup(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"it goes at SIGTERM", `sleep 1000 & echo $!; wait`},
		{"it ignores SIGTERM", `trap '' TERM; sh -c 'trap "" TERM; while :; do sleep 1; done' & echo $!; while :; do wait; done`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var child int
			c := sh(tt.script)
			c.Grace = 200 * time.Millisecond
			c.Stdout = func(line string) {
				child, _ = strconv.Atoi(line)
				cancel()
			}
			_, err := c.Output(ctx)
			if !errors.Is(err, context.Canceled) || !strings.HasSuffix(err.Error(), ": stopped") {
				t.Errorf("got %v", err)
			}
			if child == 0 {
				t.Fatal("the grandchild didn't say its id")
			}
			gone(t, child)
		})
	}
}

func TestCancelLeavesTimeToCleanUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var lines []string
	c := sh(`trap 'echo cleaned; exit' TERM; echo up; while :; do sleep 0.05; done`)
	c.Grace = 20 * time.Second
	c.Stdout = func(line string) {
		lines = append(lines, line)
		cancel()
	}
	if _, err := c.Output(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := strings.Join(lines, " "); got != "up cleaned" {
		t.Errorf("got %q", got)
	}
}

func TestTimeout(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := sh("sleep 1000").Output(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "took too long") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsLeftBehindIsKilled(t *testing.T) {
	out, err := sh(`sleep 1000 & echo $!`).Output(t.Context()) // holds the pipe
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

func TestContextThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("interrupted"))
	mark := filepath.Join(t.TempDir(), "mark")
	_, err := sh("touch " + mark).Output(ctx)
	if err == nil || !strings.HasSuffix(err.Error(), ": interrupted") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("it ran all the same")
	}
}

func TestRunnerFake(t *testing.T) {
	cause := errors.New("broken")
	fake := run.Runner(func(_ context.Context, c run.Command) ([]byte, error) { return nil, cause })
	err := fake.Run(t.Context(), run.Command{Name: "tool", Args: []string{"a b"}})
	if _, ok := errors.AsType[*run.Error](err); !ok || !errors.Is(err, cause) || err.Error() != "tool 'a b': broken" {
		t.Errorf("got %T %v", err, err)
	}
}
