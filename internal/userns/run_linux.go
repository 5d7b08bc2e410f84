package userns

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/internal/run"
)

// variable tells the one inside which process is the one outside.
const variable = "KILN_OUTSIDE"

// waitsForIDs is run in the new namespace until it has its IDs: a program that is
// started before has no privileges there. It goes with the one outside, as does
// what it becomes.
const waitsForIDs = `read -r go <&3 && exec 3<&- && exec setpriv --pdeathsig=KILL -- "$0" "$@"`

// Run runs this program with these arguments once more, as root of a user
// namespace of its own, and gives its exit status. It has the same streams,
// environment and folder. SIGINT, SIGTERM and SIGHUP are SIGTERM to it.
func Run(ctx context.Context, args []string) (status int, err error) {
	return RunWith(ctx, args, Streams{os.Stdin, os.Stdout, os.Stderr}, nil)
}

// RunWith is Run with other streams, and with SIGTERM to what runs once stop is
// closed.
func RunWith(ctx context.Context, args []string, streams Streams, stop <-chan struct{}) (status int, err error) {
	m := look()
	if err := m.Problem(); err != nil {
		return 0, err
	}
	// What is started dies with this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait, goOn, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer goOn.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", waitsForIDs, m.Program}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = streams.In, streams.Out, streams.Err, []*os.File{wait}
	cmd.Env = append(os.Environ(), variable+"="+strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
	forward := make(chan os.Signal, 4)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(forward, signals...)
	defer signal.Stop(forward)
	defer run.Count()()
	err = cmd.Start()
	wait.Close()
	if err != nil {
		return 0, m.Explain(Make, err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case <-forward:
				_ = cmd.Process.Signal(syscall.SIGTERM)
			case <-stop:
				_ = cmd.Process.Signal(syscall.SIGTERM)
				stop = nil
			case <-ended:
				return
			}
		}
	}()
	err = m.giveIDs(ctx, cmd.Process.Pid)
	if err == nil {
		_, err = goOn.WriteString("go\n")
	}
	if err != nil {
		goOn.Close()
		_ = cmd.Wait()
		return 0, err
	}
	return statusOf(cmd.Wait())
}

// statusOf is the exit status of the one inside; that of a shell's where a signal
// has ended it.
func statusOf(err error) (int, error) {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return 0, err
	}
	if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		if w.Signal() == syscall.SIGTERM { // it was interrupted before it could say so, or twice
			return 130, nil
		}
		return 128 + int(w.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// giveIDs gives the namespace of a process its IDs.
func (m *Machine) giveIDs(ctx context.Context, pid int) error {
	for _, h := range []struct {
		Helper
		own  int
		text string
	}{{m.NewUIDMap, m.UID, m.SubUID}, {m.NewGIDMap, os.Getegid(), m.SubGID}} {
		args := append([]string{strconv.Itoa(pid)}, mapping(h.own, m.ranges(h.text))...)
		if err := run.Runner(nil).Run(ctx, run.Command{Name: h.Path, Args: args, Install: "the Debian package uidmap has it"}); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return m.Explain(Map, err)
		}
	}
	return nil
}

// Inside tells whether this process is one that Run has started; then the error
// is what keeps it from using its namespace.
func Inside() (bool, error) {
	outside := os.Getenv(variable)
	if outside == "" {
		return false, nil
	}
	os.Unsetenv(variable)
	if outside != strconv.Itoa(os.Getppid()) {
		return true, errors.New("the process that started this one is gone")
	}
	failed := make(chan error, 1)
	go func() {
		// The thread isn't given back: it has mounts of its own now.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("none", "/", "tmpfs", 0, "size=4k")
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		return true, look().Explain(Use, err)
	}
	return true, nil
}

// look finds out what this machine is like.
func look() *Machine {
	read := func(name string) string {
		text, _ := os.ReadFile(name)
		return string(text)
	}
	m := &Machine{
		UID: os.Geteuid(), User: strconv.Itoa(os.Geteuid()),
		Clone: read("/proc/sys/kernel/unprivileged_userns_clone"), Most: read("/proc/sys/user/max_user_namespaces"),
		AppArmor: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
		SubUID:   read("/etc/subuid"), SubGID: read("/etc/subgid"),
		NewUIDMap: helper("newuidmap", unix.CAP_SETUID), NewGIDMap: helper("newgidmap", unix.CAP_SETGID),
		NoNewPrivileges: strings.Contains(read("/proc/self/status"), "\nNoNewPrivs:\t1\n"),
		Container:       container(read),
		Program:         "/proc/self/exe",
	}
	if u, err := user.LookupId(strconv.Itoa(m.UID)); err == nil {
		m.User = u.Username
	}
	if exe, err := os.Executable(); err == nil {
		m.Program = exe
	}
	return m
}

// helper finds a program, and whether it has the capability.
func helper(name string, capability int) Helper {
	var h Helper
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/bin", "/bin", "/usr/local/bin") {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		h = Helper{Path: path, Able: ok && st.Uid == 0 && info.Mode()&os.ModeSetuid != 0 || hasCapability(path, capability)}
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) == nil {
			h.NoSet = fs.Flags&unix.ST_NOSUID != 0
		}
		return h
	}
	return h
}

// hasCapability tells whether a file's capabilities have that one among those that
// are permitted: a word of flags, then the first 32 of them.
func hasCapability(path string, capability int) bool {
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(path, "security.capability", value)
	return err == nil && n >= 8 && value[4+capability/8]&(1<<(capability%8)) != 0
}

// container is what this runs in.
func container(read func(string) string) string {
	if name := strings.TrimSpace(read("/run/systemd/container")); name != "" {
		return name
	}
	for file, name := range map[string]string{"/run/.containerenv": "podman", "/.dockerenv": "docker"} {
		if _, err := os.Stat(file); err == nil {
			return name
		}
	}
	return os.Getenv("container")
}
