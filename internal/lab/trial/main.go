// Command trial boots an image once, as a host of a site, in a lab with real
// servers of Consul and Nomad, and says what Nomad's server makes of it. It is
// the last part of make image, which calls it as
//
//	trial [--netboot] KILN SITE IMAGE HOST BIN
//
// With --netboot, as make demo-netboot calls it, a machine with an empty disk is
// installed over the network instead, from power-on to ready.
//
// KILN is the program, IMAGE what kiln boot takes, and BIN the folder with the
// programs consul and nomad. It needs root.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
)

func main() {
	u := ui.Standard()
	args := os.Args[1:]
	network := len(args) > 0 && args[0] == "--netboot"
	if network {
		args = args[1:]
	}
	if len(args) != 5 {
		u.Notef("usage: trial [--netboot] KILN SITE IMAGE HOST BIN")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t := &trial{ui: u, network: network, kiln: args[0], site: args[1], image: args[2], host: args[3], bin: args[4]}
	err := t.run(ctx)
	switch {
	case ctx.Err() != nil:
		u.Notef("trial: interrupted")
		os.Exit(130)
	case err != nil:
		u.Notef("trial: %v", err)
		os.Exit(1)
	}
}

// trial is one boot of one image.
type trial struct {
	ui                           *ui.UI
	network                      bool // boots from it
	kiln, site, image, host, bin string

	dir     string     // its own, removed with it
	plan    *plan.Plan // the host's
	address netip.Addr // the host's
	cluster *lab.Cluster
}

func (t *trial) run(ctx context.Context) (err error) {
	// Not in /tmp, which may be memory and is everybody's: keys are in it.
	if t.dir, err = os.MkdirTemp("/var/tmp", "kiln-trial-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(t.dir)) }()
	config, err := t.config(ctx)
	if err != nil {
		return err
	}
	if err := t.secure(&config); err != nil {
		return err
	}
	site, put, err := t.prepare(&config)
	if err != nil {
		return err
	}
	how := "with TLS, encrypted gossip and ACLs"
	if t.network {
		how = "with encrypted gossip and ACLs"
	}
	t.ui.Notef("trial: starting servers of Consul and Nomad, %s, in a network of their own", how)
	if t.cluster, err = lab.NewCluster(ctx, config); err != nil {
		return fmt.Errorf("starting the lab: %w", err)
	}
	defer func() { err = errors.Join(err, t.cluster.Close()) }()
	if err := t.cluster.Tap(ctx, tap); err != nil {
		return err
	}
	if t.network {
		err = t.netboot(ctx, site)
	} else {
		err = t.boot(ctx, site, put)
	}
	if err != nil {
		if ctx.Err() == nil {
			t.ui.Notef("trial: the servers' last words:\n%s", lastLines(t.cluster.Logs(), 60))
		}
		return err
	}
	return nil
}

// The times that the host has: to come up, as software that emulates a machine
// on a busy one does, and then to be ready for jobs.
const (
	bootTime = "25m"
	joinTime = 5 * time.Minute
)

// tap is what the host's interface is plugged into.
const tap = "kiln0"

// outcome is what kiln boot --json prints, as far as it matters here.
type outcome struct {
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`
	Seconds  float64  `json:"seconds"`
}

// boot runs the host until Nomad's server has it as it should.
func (t *trial) boot(ctx context.Context, site string, put []string) error {
	args := []string{
		"--net=" + t.cluster.Network(), "--", t.kiln, "--site", site, "boot", t.image, "--host", t.host,
		"--tap", tap, "--keep", "--json", "--timeout", bootTime, "--cpus", "2", "--memory", "2GiB",
	}
	for _, p := range put {
		args = append(args, "--put", p)
	}
	life, end := context.WithCancel(ctx)
	defer end()
	came := make(chan outcome, 1)
	var said bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		_, err := run.Command{
			Name: "nsenter", Args: args, Install: "the Debian package util-linux has it",
			Stdout: func(line string) {
				said.WriteString(line)
				var o outcome
				if json.Unmarshal(said.Bytes(), &o) == nil {
					came <- o
					said.Reset()
				}
			},
			Stderr: func(line string) { t.ui.Notef("    %s", line) },
			Grace:  -1, // nobody misses a host of the lab
		}.Output(life)
		ended <- err
	}()
	var o outcome
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("the host switched itself off")
		}
		return err
	case o = <-came:
	}
	defer func() {
		end()
		<-ended
	}()
	if !o.Ready {
		return fmt.Errorf("the host %s came up, but isn't as it should be: %q", t.host, o.Problems)
	}
	return t.joined(ctx, o)
}

// joined waits until Nomad's server lists the host, and says how.
func (t *trial) joined(ctx context.Context, o outcome) error {
	limited, cancel := context.WithTimeoutCause(ctx, joinTime, fmt.Errorf("it isn't after %s", joinTime))
	defer cancel()
	var node *lab.Node
	err := lab.Wait(limited, "Nomad's server lists "+t.host+" as ready", func() (bool, error) {
		nodes, err := t.cluster.Nodes(limited)
		if err != nil {
			return false, nil //nolint:nilerr // it may be busy
		}
		node = nodes[t.host]
		return node != nil && node.Status == "ready", nil
	})
	if err != nil {
		if node != nil {
			err = fmt.Errorf("%w: it says %q", err, node.Status)
		}
		return err
	}
	services, err := t.cluster.Services(limited, "nomad-client")
	if err != nil {
		return err
	}
	t.show(node, services, o.Seconds)
	return t.check(node)
}

// lastLines are the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
