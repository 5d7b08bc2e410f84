//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a process that serves, until it is stopped.
type server struct {
	cmd   *exec.Cmd
	stdin io.Closer
	// address is the line that it has printed first.
	address string
	log     string // what it says, if not to us
}

// startRole runs this program as a server, which prints where it can be reached,
// and ends with its standard input.
func startRole(ctx context.Context, role, folder string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-role", role, "-folder", folder)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	s := &server{cmd: cmd, stdin: in, address: strings.TrimSpace(line)}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("the server %q didn't start: %w", role, err)
	}
	return s, nil
}

// stop ends the server.
func (s *server) stop() {
	s.stdin.Close()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(5*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer timer.Stop()
	_ = s.cmd.Wait() // what it did wrong, its clients have seen
}

// usage is what a process has taken.
type usage struct {
	processor time.Duration
	peak      int64 // most bytes in memory
}

// usageOf reads it from /proc.
func usageOf(pid int) (usage, error) {
	var u usage
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return u, err
			}
			u.peak = kib << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The name, in brackets, may have anything in it; utime and stime are the 12th and
	// 13th words after it, in hundredths of a second.
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return u, errors.New("/proc has another format")
	}
	for _, w := range f[11:13] {
		n, err := strconv.ParseInt(w, 10, 64)
		if err != nil {
			return u, err
		}
		u.processor += time.Duration(n) * 10 * time.Millisecond
	}
	return u, nil
}
