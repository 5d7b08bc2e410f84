package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/alisw/kiln/internal/ui"
)

// askSecret gets something secret, what names it to people: from the variable,
// else from who sits at the terminal, unseen. Never from the arguments, which
// everybody on the machine can read.
func askSecret(ctx context.Context, variable, what string) (string, error) {
	if secret, ok := os.LookupEnv(variable); ok {
		return secret, nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("there is no terminal to ask for it: put it into the variable %s", variable)
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprintf(tty, "%s: ", visible(what))
	defer func() { _, _ = fmt.Fprintln(tty) }()
	secret, err := answer(ctx, func() (string, error) {
		typed, err := term.ReadPassword(fd)
		return string(typed), err
	})
	if err != nil && ctx.Err() != nil {
		// It still reads, and has switched the echo off.
		err = errors.Join(err, term.Restore(fd, before))
	}
	return secret, err
}

// answer waits for what somebody types, or for ctx to end.
func answer(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := read()
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			// The terminal may have ended the reading with the very ^C that Kiln is
			// about to hear of.
			select {
			case <-ctx.Done():
				return "", context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
		}
		return a.text, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// errNobodyToAsk is what confirm gives where nobody sits there.
var errNobodyToAsk = usagef("there is no terminal to ask on whether it shall be done: look at what it would do, then say --yes")

// confirm asks a question at the terminal that standard input is, and tells
// whether the answer is yes.
func confirm(ctx context.Context, u *ui.UI, question string) (bool, error) {
	in := os.Stdin
	if !term.IsTerminal(int(in.Fd())) {
		return false, errNobodyToAsk
	}
	if u.Err != nil {
		_, _ = fmt.Fprintf(u.Err, "%s [y/N] ", question)
	}
	line, err := answer(ctx, func() (string, error) { return bufio.NewReader(in).ReadString('\n') })
	if errors.Is(err, io.EOF) {
		err = nil // ^D is no yes
	}
	if err != nil {
		return false, fmt.Errorf("reading the answer: %w", err)
	}
	said := strings.ToLower(strings.TrimSpace(line))
	return said == "yes" || said == "y", nil
}
