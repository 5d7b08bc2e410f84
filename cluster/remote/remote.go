// Package remote runs commands on hosts, over the operator's own ssh program: with
// their keys, their agent, their ~/.ssh/config and its jump hosts.
//
// Nothing secret is in the arguments of a command, here or there: what is secret
// goes through its standard input.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/internal/run"
)

// Dialer says how hosts are reached. Its zero value is `ssh HOST`.
type Dialer struct {
	User   string   // who to log in as; empty is what ~/.ssh/config says
	Config string   // a file that takes the place of ~/.ssh/config
	Args   []string // further arguments of ssh's
	// Become is put before each command where one doesn't log in as root: sudo -n.
	Become []string
	Runner run.Runner // runs ssh; nil is the real one
}

// Host is a host to run commands on. All share one connection, which ends with
// Close.
type Host struct {
	Name    string
	dialer  *Dialer
	control string // the folder of the connection's socket

	closing sync.Once
}

// connectTime is how long, in seconds, ssh tries to reach a host.
const connectTime = "10"

// Dial prepares to reach the host. The connection is made by the first command.
func (d *Dialer) Dial(name string) (*Host, error) {
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, " \t\n\x00") {
		return nil, fmt.Errorf("%q can't name a host", name)
	}
	// A socket's path may have 108 bytes, and TMPDIR may be long.
	control, err := os.MkdirTemp("/tmp", "kiln-ssh-")
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", name, err)
	}
	return &Host{Name: name, dialer: d, control: control}, nil
}

// Run runs argv on the host, with stdin, and gives what it writes to standard
// output. Each argument arrives as it is: no shell splits or expands it.
func (h *Host) Run(ctx context.Context, stdin io.Reader, argv ...string) ([]byte, error) {
	return h.run(ctx, stdin, nil, argv)
}

// Stream is Run for a command whose standard output is wanted while it runs:
// each line is given to line as it comes, without its newline.
func (h *Host) Stream(ctx context.Context, stdin io.Reader, line func(string), argv ...string) error {
	_, err := h.run(ctx, stdin, line, argv)
	return err
}

func (h *Host) run(ctx context.Context, stdin io.Reader, stdout func(string), argv []string) ([]byte, error) {
	command, err := commandLine(append(h.dialer.Become[:len(h.dialer.Become):len(h.dialer.Become)], argv...))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	out, err := h.dialer.Runner.Output(ctx, run.Command{
		Name: "ssh", Args: append(h.options(), "--", h.Name, command), Stdin: stdin, Stdout: stdout,
		Install: "the Debian package openssh-client has it",
	})
	if err != nil {
		return out, fmt.Errorf("on %s: %w%s", h.Name, shorten(err, h.Name, command), remedy(err))
	}
	return out, nil
}

// longestCommand is how many bytes of a command an error repeats.
const longestCommand = 60

// shorten leaves out of err what people neither typed nor want to read: ssh's
// options, and most of a script.
func shorten(err error, host, command string) error {
	e, ok := errors.AsType[*run.Error](err)
	if !ok {
		return err
	}
	command, _, more := strings.Cut(command, "\n")
	if len(command) > longestCommand {
		command, more = strings.ToValidUTF8(command[:longestCommand], ""), true
	}
	if more {
		command += " …"
	}
	short := *e
	short.Command = "ssh " + host + " " + command
	return &short
}

// options are ssh's. A question, for a password or an unknown host's key, would
// wait for an answer among the output of many hosts: it's an error instead.
func (h *Host) options() []string {
	args := []string{
		"-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=" + connectTime, "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
		"-o", "ControlMaster=auto", "-o", "ControlPath=" + filepath.Join(h.control, "s"), "-o", "ControlPersist=30",
	}
	if h.dialer.Config != "" {
		args = append(args, "-F", h.dialer.Config)
	}
	if h.dialer.User != "" {
		args = append(args, "-l", h.dialer.User)
	}
	return append(args, h.dialer.Args...)
}

// Close ends the connection.
func (h *Host) Close() (err error) {
	h.closing.Do(func() {
		if _, statErr := os.Stat(filepath.Join(h.control, "s")); statErr == nil {
			// Where it has gone by itself meanwhile, nothing is left to end.
			_ = h.dialer.Runner.Run(context.Background(), run.Command{Name: "ssh", Args: append(h.options(), "-O", "exit", "--", h.Name)})
		}
		err = os.RemoveAll(h.control)
	})
	return err
}

// commandLine quotes argv for the shell that sshd hands it to, which splits it
// into the same words again.
func commandLine(argv []string) (string, error) {
	words := make([]string, len(argv))
	for i, a := range argv {
		if strings.ContainsRune(a, 0) {
			return "", errors.New("no argument of a command can have a NUL in it")
		}
		words[i] = word(a)
	}
	return strings.Join(words, " "), nil
}

// word is an argument as a shell reads it, also one of several lines.
func word(a string) string {
	if a != "" && !strings.ContainsFunc(a, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r))
	}) {
		return a
	}
	return quote.Word(a)
}

// sshFailed is the exit status of ssh's where it, and not the command, failed.
const sshFailed = 255

// Unreachable tells whether err is ssh's own: the command did not run, or nobody
// knows how it ended.
func Unreachable(err error) bool {
	e, ok := errors.AsType[*run.Error](err)
	return ok && e.ExitStatus() == sshFailed
}

func remedy(err error) string {
	if !Unreachable(err) {
		return ""
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "Host key verification failed"):
		return ": its key isn't the one in known_hosts: log in once by hand, or, after an installation, remove the old one with ssh-keygen -R"
	case strings.Contains(text, "Permission denied"):
		return ": it doesn't take your keys: ssh-add lists those of your agent, and --ssh-user names another user"
	case strings.Contains(text, "Could not resolve hostname"):
		return ": its name isn't known here: give its address in ~/.ssh/config, or look at DNS"
	}
	return ": log in once by hand to see what is in the way"
}
