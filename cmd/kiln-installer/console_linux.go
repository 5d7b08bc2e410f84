package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/netboot/installer"
	"github.com/alisw/kiln/netboot/protocol"
)

// console is all of the machine's consoles: which one somebody looks at, nobody knows.
type console struct {
	mu    sync.Mutex
	files []*os.File
	start time.Time
}

// open opens the consoles that the kernel has.
func (c *console) open() {
	c.start = time.Now()
	list, _ := os.ReadFile("/proc/consoles")
	for _, name := range consoles(string(list)) {
		// A console that nobody reads from must not stop the installation.
		if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			c.files = append(c.files, f)
		}
	}
	if c.files == nil {
		c.files = []*os.File{os.Stdout}
	}
}

// consoles reads /proc/consoles. tty0 is whichever screen is shown.
func consoles(list string) []string {
	var names []string
	for _, line := range strings.Split(list, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.ContainsAny(f[0], "/.") {
			continue
		}
		names = append(names, f[0])
	}
	return names
}

// line shows a line.
func (c *console) line(text string) {
	c.print(fmt.Sprintf("[%6.1f] %s", time.Since(c.start).Seconds(), text))
}

func (c *console) print(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		_ = f.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = f.WriteString(strings.ReplaceAll(text, "\n", "\r\n") + "\r\n")
	}
}

// failure shows why there is no installation.
func (c *console) failure(err error) {
	const bar = "========================================================================"
	step, why := "start", err
	var f *installer.Failure
	if errors.As(err, &f) {
		step, why = string(f.Step), f.Err
	}
	c.print(strings.Join([]string{"", bar, "kiln: the installation has FAILED at the step: " + step, "", fmt.Sprint(why), "", hint(f), bar}, "\n"))
}

// hint is what to do.
func hint(f *installer.Failure) string {
	const next = "This machine stays as it is. Switch it off, mend the cause, and run: kiln arm HOST"
	if f == nil {
		return next
	}
	switch f.Step {
	case protocol.StepWrite, protocol.StepSeed, protocol.StepCommit:
		return "The disk has nothing that boots. " + next
	case protocol.StepReboot:
		return "The disk is complete, and boots."
	}
	return "Nothing was written. " + next
}
