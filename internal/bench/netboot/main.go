//go:build linux

// Command netboot measures how fast hosts boot from the network and are installed,
// beside other programs that do the same on the same machine in the same run, and
// prints a table with the ratios, and with what is wanted. It fails for wrong results
// only, never by the clock.
//
// kiln serve, nginx and their clients are as they are for real: programs that make
// build has built, a site and an image in a folder, and a cable between the servers'
// network and the clients'. Only the machines are virtual, and what is in the image.
//
// It runs in a network of its own, where it has all ports and any address; that
// needs root. Servers are processes of their own, so that their memory and
// processor time are their own too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/alisw/kiln/internal/bench/cpu"
)

// options are what the command line says.
type options struct {
	role    string
	folder  string
	only    string
	clients int
	lab     lab
}

func main() {
	var o options
	flag.StringVar(&o.role, "role", "", "be one of the servers (used by the command itself)")
	flag.StringVar(&o.folder, "folder", "", "what that server serves")
	flag.StringVar(&o.only, "only", "", "measure one part only: tftp, window, fleet, chunks, dhcp, writing")
	flag.IntVar(&o.clients, "clients", 500, "clients at once")
	o.lab.flags()
	inside := flag.Bool("inside", false, "don't make a network: this one has all that is needed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case o.role != "":
		err = serve(ctx, o.role, o.folder)
	case !*inside:
		err = inOwnNetwork(ctx)
	default:
		o.lab.hosts = o.clients
		err = errors.Join(measure(ctx, &o), o.lab.remove())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// inOwnNetwork runs this command again, in a network that has nothing but a
// loopback interface. All addresses of 10.2/16 are its own: AnyIP.
func inOwnNetwork(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("making a network of its own needs root: run this as root")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	script := "ip link set lo up && ip route add local 10.2.0.0/16 dev lo && exec \"$0\" -inside \"$@\""
	args := append([]string{"--net", "--kill-child", "--fork", "sh", "-c", script, self}, os.Args[1:]...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd.Run()
}

// measure does one part after the other.
func measure(ctx context.Context, o *options) error {
	raiseFiles()
	fmt.Printf("%s, %d cores, %s, %s/%s\n", cpu.Model(), runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	t := &table{}
	parts := []struct {
		name string
		run  func() error
	}{
		{"tftp", func() error { return measureTFTP(ctx, t, o.clients) }},
		{"window", func() error { return measureWindow(ctx, t) }},
		{"fleet", func() error { return measureFleet(ctx, t, &o.lab) }},
		{"chunks", func() error { return measureChunks(ctx, t, &o.lab) }},
		{"dhcp", func() error { return measureAnswers(t) }},
		{"writing", func() error { return measureWriting(ctx, t, &o.lab) }},
	}
	done := false
	for _, p := range parts {
		if o.only != "" && o.only != p.name {
			continue
		}
		done = true
		fmt.Println()
		if err := p.run(); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if !done {
		return fmt.Errorf("there is no part %q", o.only)
	}
	fmt.Println()
	return t.print(os.Stdout)
}

// raiseFiles allows as many open files as the system has for us: each client has
// a socket.
func raiseFiles() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	}
}
