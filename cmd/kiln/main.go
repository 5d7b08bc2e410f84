// Command kiln turns what an operator writes about hosts into what brings them
// up: user-data, seeds, Ignition configs and Packer templates.
//
// Each verb has a file of its own, with newXCommand, which says what it is to
// the command line, and runX, which does it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	_ "github.com/alisw/kiln/internal/hugeheap" // a faster start
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/internal/userns"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// Most calls end before there is anything to collect; the largest sites
		// still take a fraction of a laptop's memory.
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Near this, collecting more often beats asking for more.
		debug.SetMemoryLimit(384 << 20)
	}
	os.Exit(call(os.Args[1:], ui.Standard()))
}

// call is one call of kiln; the result is its exit status.
func call(args []string, u *ui.UI) int {
	inside, err := userns.Inside()
	if err != nil {
		u.Notef("kiln: %s", err)
		return exitFailed
	}
	root := newRootCommand(u)
	root.SetArgs(args)
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if inside {
		// A terminal's ^C comes here, too: the one outside says so, once.
		signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGHUP)
		signals = []os.Signal{syscall.SIGTERM}
	} else if !reloads(root, args) && !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		// The terminal is gone, or the connection to it.
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	// A second ^C ends the process at once, should the first not be enough.
	context.AfterFunc(ctx, stop)

	return execute(ctx, root, args, u)
}

// patience is how long a verb has to end once it is interrupted. What reads
// from a file system that doesn't answer never does.
const patience = 3 * time.Second

// endsByItself is an annotation of verbs that have to clean up when they are
// interrupted, however long that takes.
const endsByItself = "kiln_ends_by_itself"

// reloadsAtHUP is an annotation of verbs to which SIGHUP says to read their files
// again. All others end by it.
const reloadsAtHUP = "kiln_reloads_at_hup"

// reloads tells whether the verb that args call isn't ended by SIGHUP.
func reloads(root *cobra.Command, args []string) bool {
	cmd, _, err := root.Find(args)
	return err == nil && cmd.Annotations[reloadsAtHUP] != ""
}

// execute runs the verb that root's arguments call, until it returns or, once
// ctx has ended, patience does.
func execute(ctx context.Context, root *cobra.Command, args []string, u *ui.UI) int {
	done := make(chan int, 1)
	go func() {
		cmd, err := root.ExecuteContextC(ctx)
		done <- report(ctx, u, cmd, err)
	}()
	select {
	case status := <-done:
		return status
	case <-ctx.Done():
	}
	if cmd, _, err := root.Find(args); err == nil && cmd.Annotations[endsByItself] != "" {
		return <-done
	}
	for {
		select {
		case status := <-done:
			return status
		case <-time.After(patience):
		}
		if run.Running() == 0 {
			u.Notef("kiln: interrupted, while it waited for something that doesn't answer")
			return exitInterrupted
		}
		// External programs have their own time to end, and are killed then.
	}
}
