package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// What a machine that is installed over the network is like.
const (
	netbootDisk = 16 << 30 // bytes
	netbootTime = 40 * time.Minute
)

// netboot has a machine with an empty disk boot from the network, until it is ready.
func (t *trial) netboot(ctx context.Context, site string) error {
	mac, err := t.mac(ctx)
	if err != nil {
		return err
	}
	server := t.cluster.Config.Address
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	served := make(chan error, 1)
	environment := []string{"KILN_STATE=" + filepath.Join(t.dir, "state"),
		"NOMAD_ADDR=" + t.cluster.NomadURL(""), "NOMAD_TOKEN=" + t.cluster.Config.Secrets.Management,
		"CONSUL_HTTP_ADDR=" + t.cluster.ConsulURL(""), "CONSUL_HTTP_TOKEN=" + t.cluster.Config.Secrets.Management}
	kiln := func(args ...string) run.Command {
		return run.Command{
			Name: "nsenter", Args: append([]string{"--net=" + t.cluster.Network(), "--", t.kiln, "--site", site}, args...), Env: environment,
			Install: "the Debian package util-linux has it", Stdout: func(line string) { t.ui.Notef("    %s", line) }, Stderr: func(line string) { t.ui.Notef("    %s", line) },
		}
	}
	go func() {
		_, err := kiln("serve", "--interface", "lab0", "--address", server.Addr().String(), "--dhcp", leases(server), "--discover").Output(ctx)
		if err == nil {
			err = errors.New("it ended")
		}
		served <- err
		end(fmt.Errorf("kiln serve: %w", err))
	}()
	defer func() {
		end(errors.New("the trial is over"))
		<-served
	}()
	page := net.JoinHostPort(server.Addr().String(), "8080")
	if err := lab.Wait(ctx, "kiln serve answers", func() (bool, error) {
		c, err := t.cluster.Dial(ctx, "tcp", page)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		return true, c.Close()
	}); err != nil {
		return err
	}
	address, err := t.forward(ctx, page)
	if err != nil {
		return err
	}
	t.ui.Printf("\n  the dashboard, while this runs:  http://%s/\n\n", address)
	if _, err := kiln("arm", t.host, "--image", t.image, "--yes", "--without-nomad").Output(ctx); err != nil {
		return err
	}
	return t.powerOn(ctx, mac)
}

// mac is the one of the host's interfaces that boots.
func (t *trial) mac(ctx context.Context) (plan.MAC, error) {
	for _, n := range t.plan.Host.Network.Interfaces {
		if n.MAC != "" {
			return n.MAC, ctx.Err()
		}
	}
	return "", fmt.Errorf("%s: the host %s has no MAC: %s", t.plan.Host.Origin, t.host, asInit)
}

// leases are addresses in the lab's network for machines that boot.
func leases(network netip.Prefix) string {
	a := network.Masked().Addr().As4()
	return fmt.Sprintf("%d.%d.%d.200-%[1]d.%[2]d.%[3]d.220", a[0], a[1], a[2])
}

// forward has this machine's loopback lead to an address in the lab.
func (t *trial) forward(ctx context.Context, to string) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:8080")
	if err != nil {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := t.cluster.Dial(ctx, "tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
				defer stop()
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return l.Addr().String(), nil
}

// powerOn switches the machine on, and follows it until it is ready.
func (t *trial) powerOn(ctx context.Context, mac plan.MAC) error {
	disk := filepath.Join(t.dir, "disk.qcow2")
	if out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", disk, fmt.Sprint(int64(netbootDisk))).CombinedOutput(); err != nil {
		return fmt.Errorf("making the machine's disk: %w: %s", err, out)
	}
	began := time.Now()
	m := &boot.Machine{
		Disk: disk, Format: "qcow2", Netboot: true, NoSeed: true, NICs: []boot.NIC{{MAC: string(mac), Tap: tap}}, Namespace: t.cluster.Network(),
		Note: func(text string) { t.ui.Notef("note: %s", text) },
	}
	t.ui.Notef("trial: switching a machine on: UEFI, %d GiB of empty disk, its network first", netbootDisk>>30)
	machine, err := m.Start(ctx)
	if err != nil {
		return err
	}
	defer machine.Kill()
	store, err := state.Open(filepath.Join(t.dir, "state"))
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, netbootTime, fmt.Errorf("it isn't after %s", netbootTime))
	defer cancel()
	said := ""
	err = lab.Wait(limited, t.host+" is ready", func() (bool, error) {
		r, err := store.Get(t.host)
		if err != nil {
			return false, err
		}
		if now := r.State(); now != said {
			said = now
			t.ui.Printf("  %5.0f s  %s\n", time.Since(began).Seconds(), now)
		}
		if r.Stage == state.Failed {
			return false, errors.New(r.Error)
		}
		return r.Stage == state.Ready, nil
	})
	if err != nil {
		t.ui.Notef("trial: the machine's last words:\n%s", strings.Join(machine.Tail(), "\n"))
		return err
	}
	return t.joined(ctx, outcome{Ready: true, Seconds: time.Since(began).Seconds()})
}
