package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/ui"
)

// The exit statuses. exitStatusHelp says the same to people.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

const exitStatusHelp = `kiln ends with one of these exit statuses:

  0    all is well
  1    the site, or a host that was asked for, has problems, or something
       failed; what was written before is as it was
  2    kiln was called in a way that it doesn't understand; nothing was done
  130  interrupted by ^C or SIGTERM; nothing is left half-written

Warnings don't change the status, unless kiln check --strict asks for it. As
diff(1) does, kiln diff ends with 1 if the images differ, and with 2 if anything
is in the way of comparing them. kiln consul leftovers ends with 1 if anything is
left over, or may be, and with 2 if anything is in the way of finding that out.`

// failure is an error of a verb that was understood. Any other error of the
// command line's is about how kiln was called.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// usageError is a call that a verb itself doesn't understand.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// troubleError is anything that is in the way of a verb whose status 1 says
// something else.
type troubleError struct{ error }

func (e *troubleError) Unwrap() error { return e.error }

// errShown ends a verb that has said already what is wrong.
var errShown = errors.New("the problems have been shown")

// report tells people of the error of a call, if any, and gives the exit status.
func report(ctx context.Context, u *ui.UI, cmd *cobra.Command, err error) int {
	var problems problem.List
	var failed *failure
	var usage usageError
	var trouble *troubleError
	var done *exited
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &done):
		return done.status
	case ctx.Err() != nil:
		u.Notef("kiln: interrupted")
		return exitInterrupted
	case errors.Is(err, errShown):
		return exitFailed
	case errors.As(err, &trouble):
		u.Notef("kiln: %s", err)
		return exitUsage
	case errors.As(err, &usage) || !errors.As(err, &failed):
		u.Notef("kiln: %s", err)
		u.Notef("For what there is: %s --help", cmd.CommandPath())
		return exitUsage
	case errors.As(err, &problems):
		for _, p := range problems {
			if !p.Warning { // those are for kiln check
				u.Notef("%s", p.Error())
			}
		}
		return exitFailed
	}
	u.Notef("kiln: %s", err)
	return exitFailed
}
