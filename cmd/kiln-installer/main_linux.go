// Command kiln-installer is the first and only process of a machine that kiln serve
// has booted from the network: it writes the machine's golden image to its disk, and
// restarts it. All that it is told is on the kernel's command line.
//
// It never ends: the kernel panics without a first process. After a failure it
// stays, with the reason on all consoles, until somebody has read it and switches
// the machine off; the server sends the machine to its own disk from then on.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/netboot/installer"
)

// version is set by the linker.
var version = "unknown"

// memoryLimit is what the garbage collector keeps the installer below, in bytes,
// where it can: the machine may have 512 MiB.
const memoryLimit = 160 << 20

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "kiln-installer "+version+" is the first process of a machine that kiln serve boots, and erases its disk: it isn't for running by hand")
		os.Exit(2)
	}
	debug.SetMemoryLimit(memoryLimit)
	c := &console{}
	err := mounts()
	c.open()
	if err == nil {
		go reap()
		go memory.watch()
		ignoreSignals()
		err = install(c)
	}
	for {
		// The kernel or a late driver may have written over it.
		c.failure(err)
		time.Sleep(time.Minute)
	}
}

// install installs. That it goes on after a panic lets people read what it was.
func install(c *console) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a mistake in the installer itself: %v\n%s", p, debug.Stack())
		}
	}()
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	boot, err := installer.ParseCommandLine(string(line))
	if err != nil {
		return err
	}
	c.line("kiln-installer " + version + " installs " + boot.Host)
	i := &installer.Installer{Boot: boot, Machine: &machine{say: c.line}, Console: c.line}
	return i.Run(context.Background())
}

// mounts mounts what a Linux system has.
func mounts() error {
	// What the kernel says goes on as long as it matters; the rest would hide what
	// the installer says.
	defer func() { _ = os.WriteFile("/proc/sys/kernel/printk", []byte("3 4 1 3"), 0) }()
	for _, m := range []struct{ what, where, kind, options string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", "mode=0755"},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
		{"tmpfs", "/tmp", "tmpfs", "mode=0700"},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.where, m.kind, unix.MS_NOSUID, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.where, err)
		}
	}
	return nil
}

// reap waits for processes that have lost their parent: the kernel starts some.
func reap() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

// ignoreSignals keeps the installer alive, but for Ctrl+Alt+Del: the kernel turns
// that into a restart as long as nobody asks it for a signal.
func ignoreSignals() {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
}
