// Package lab is a small data centre on one machine, for trials of hosts: a
// network with a bridge, name servers, a Grid CA, and real servers of Consul and
// Nomad. Containers and virtual machines are plugged into its bridge.
//
// All of it lives in namespaces of its own: whatever is written in them, outside
// of /tmp and /dev, is gone with them, and nothing of it outlives the process
// that made them, however that ends. It needs root.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Space holds namespaces of its own: mounts, network and processes.
type Space struct {
	pid int // of its first process, as seen from outside
	end func()

	mu      sync.Mutex
	daemons []*Daemon
}

// newRoot puts a layer over this machine's root, which takes what is written.
const newRoot = `set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount --rbind /dev dev
mount --rbind /sys sys
mount --bind /tmp tmp
mount --move /proc proc
mount -t tmpfs tmpfs run
pivot_root . mnt
umount --lazy /mnt
cd /
`

// environment is what programs in a space get. KILN_DISK_WAIT has a host's
// script not wait for disks that can't come.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root", "KILN_DISK_WAIT=0"}

// NewSpace makes the namespaces. They end with ctx, with Close, or with this
// process.
func NewSpace(ctx context.Context) (*Space, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("making namespaces needs root: run this as root")
	}
	// The first process reads until we are gone: then the kernel ends all others
	// of its namespace.
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"--propagation", "private", "sh", "-c", newRoot+"ip link set lo up && echo ready && exec cat")
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("making namespaces: %w: the Debian package util-linux has unshare", err)
	}
	end := sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait() // has nothing to report
	})
	s := &Space{end: end}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if _, err = out.Read(make([]byte, 6)); err == nil {
		s.pid, err = onlyChild(cmd.Process.Pid)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("making namespaces: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return s, nil
}

// SpaceOf is the space that a process is in, which is somebody else's: Close
// ends what was started in it by Start, no more.
func SpaceOf(pid int) *Space {
	return &Space{pid: pid, end: func() {}}
}

// onlyChild is the child that unshare has forked.
func onlyChild(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, fmt.Errorf("the namespaces' first process: %w", err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	child, err := strconv.Atoi(first)
	if err != nil {
		return 0, errors.New("the namespaces' first process isn't there")
	}
	return child, nil
}

// PID is the number, outside, of the space's first process.
func (s *Space) PID() int { return s.pid }

// Network is the file of the space's network namespace.
func (s *Space) Network() string { return fmt.Sprintf("/proc/%d/ns/net", s.pid) }

// Close ends all that runs in the space, and the space.
func (s *Space) Close() error {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.daemons {
		d.Kill()
	}
	return nil
}

// outside is where a path of the space is found from outside.
func (s *Space) outside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", s.pid, path)
}

// Command is a command to be run in the space, in all of its namespaces.
func (s *Space) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(s.pid), "--all", "--"}, argv...)...)
	cmd.Env = environment
	cmd.WaitDelay = time.Second
	return cmd
}

// Try runs a shell script in the space: what it printed, both ways, and its exit
// status. The error is that it couldn't be run.
func (s *Space) Try(ctx context.Context, script string) (output string, status int, err error) {
	cmd := s.Command(ctx, "sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		return out.String(), 0, err
	}
	return out.String(), cmd.ProcessState.ExitCode(), nil
}

// Run runs a shell script that has to succeed.
func (s *Space) Run(ctx context.Context, script string) (output string, err error) {
	output, status, err := s.Try(ctx, script)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	if err != nil {
		return output, fmt.Errorf("%s: %w\n%s", script, err, output)
	}
	return output, nil
}

// Dial connects from inside the space's network.
func (s *Space) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread, which is in another network, ends with the
		// goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(s.Network())
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// Daemon is a program that runs in a space until the space ends.
type Daemon struct {
	cmd  *exec.Cmd
	log  tail
	done chan struct{}
	err  error // once done
}

// Start starts a program in the space. It ends with the space, at the latest.
func (s *Space) Start(argv ...string) (*Daemon, error) {
	d := &Daemon{cmd: s.Command(context.Background(), argv...), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(argv[0]), err)
	}
	go func() {
		defer close(d.done)
		d.err = d.cmd.Wait()
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.daemons = append(s.daemons, d)
	return d, nil
}

// PID is the number, outside, of the process that the program is a child of.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop has the program end by itself, and waits until it has.
func (d *Daemon) Stop() error {
	program, err := onlyChild(d.PID())
	if err == nil {
		err = syscall.Kill(program, syscall.SIGTERM)
	}
	if err != nil {
		return fmt.Errorf("stopping %s: %w", d, err)
	}
	<-d.done
	return nil
}

func (d *Daemon) String() string { return strings.Join(d.cmd.Args[5:], " ") }

// Kill has nobody wait for the program any more; what is left of it ends with
// the space.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// Log is the last that the program said.
func (d *Daemon) Log() string { return d.log.String() }

// ended is an error once the program has ended by itself.
func (d *Daemon) ended() error {
	select {
	case <-d.done:
		return fmt.Errorf("%s has ended: %v; it said:\n%s", d, d.err, d.Log())
	default:
		return nil
	}
}

// tail keeps the last that is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// Wait tries until ok says true, or an error, or ctx ends: then the error names
// what was waited for.
func Wait(ctx context.Context, what string, ok func() (bool, error)) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		done, err := ok()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}
