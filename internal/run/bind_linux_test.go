package run_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

const runsUntilKilled = "KILN_TEST_RUNS_UNTIL_KILLED"

// TestKilledWithItsParent is what a kill -9 of kiln comes to: what it runs dies.
func TestKilledWithItsParent(t *testing.T) {
	if os.Getenv(runsUntilKilled) != "" {
		c := sh(`echo $$; exec sleep 1000`)
		c.Stdout = func(line string) { fmt.Println(line) }
		_, _ = c.Output(t.Context())
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestKilledWithItsParent$")
	cmd.Env = append(os.Environ(), runsUntilKilled+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("it said %q: %v, %v", line, err, readErr)
	}
	gone(t, pid)
}

// TestLivesLongerThanThreads: the program isn't killed by the end of a thread
// while it's waited for.
func TestLivesLongerThanThreads(t *testing.T) {
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		c := sh(`echo up; sleep 0.5; echo end`)
		c.Stdout = func(line string) {
			if line == "up" {
				close(started)
			}
		}
		_, err := c.Output(t.Context())
		ended <- err
	}()
	<-started
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			close(done)
		}()
		<-done
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
