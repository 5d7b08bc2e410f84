//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// moves gives a member of the cluster another address by kiln apply, over the
// connection that ends by that: first with the run ended half-way, and another one
// that finishes it over the new address; then back, undisturbed.
func (o *operator) moves(t *testing.T) {
	const old, other = "10.66.0.22", "10.66.0.32"
	there := filepath.Join(t.TempDir(), "site")
	if err := os.CopyFS(there, os.DirFS(o.golden.site)); err != nil {
		t.Fatal(err)
	}
	hosts := strings.ReplaceAll(read(t, there, "hosts.yaml"), old+"/24", other+"/24")
	place(t, filepath.Join(there, "hosts.yaml"), hosts)

	o.until(t, "all of it has started", func() bool {
		out, _ := o.try(t, "systemctl is-system-running")
		return strings.TrimSpace(out) == "running"
	})
	// netplan has the kernel announce interfaces anew, by /sys, and gives up where it
	// can't: in a container, and on no machine.
	o.sh(t, "mount -o remount,rw /sys && mount -o remount,bind,rw /sys")
	o.isAsItIsToBe(t, o.golden.site)
	out, said, status := o.apply(t, there, "--network")
	for _, want := range []string{`-.*10\.66\.0\.22/24`, `\+.*10\.66\.0\.32/24`, "then +network", `then +restart consul\.service`, `then +restart nomad\.service`} {
		if !regexp.MustCompile("(?m)^ *" + want).MatchString(out) {
			t.Errorf("kiln apply doesn't say %q", want)
		}
	}
	if status != 0 || t.Failed() {
		t.Fatalf("kiln apply: exit status %d\n%s%s", status, out, said)
	}
	o.isAt(t, old, other)

	o.killedOnTheWay(t, there, old, other)
	o.reachAt(t, other)
	out, said, status = o.apply(t, there, "--network", "--yes")
	if status != 0 || !strings.Contains(out, "left by an earlier run: restart consul.service\n") || !strings.Contains(out, "left by an earlier run: restart nomad.service\n") || strings.Contains(said, ": network\n") {
		t.Errorf("the next run: exit status %d\n%s%s", status, out, said)
	}
	o.hasMoved(t, there, old, other)
	ssh := []string{"--ssh", "--ssh-config", o.ssh, "--ssh-user", "alice", "--with-secrets"}
	// Consul lets an agent be elsewhere half a minute after the one before has died.
	o.until(t, "the cluster has seen it", func() bool {
		_, _, status := o.kiln(t, there, append(ssh, o.name)...)
		return status == 0
	})
	o.finds(t, there, "", ssh...)
	o.finds(t, o.golden.site, "nomad-address\nconsul-address")

	began := time.Now()
	out, said, status = o.apply(t, o.golden.site, "--network", "--yes")
	if status != 1 || !strings.Contains(said, "the connection ended with the host's old network, and the host goes on by itself") || !strings.Contains(said, "not seen: network, restart kiln-host.service, restart consul.service, restart nomad.service") {
		t.Errorf("a connection that ended: exit status %d\n%s%s", status, out, said)
	}
	t.Logf("that its connection has ended, kiln apply knew after %s", time.Since(began).Round(time.Second))
	o.reachAt(t, old)
	o.sh(t, "flock -w 90 /run/kiln-apply/lock true")
	o.hasMoved(t, o.golden.site, other, old)
}

// apply runs kiln apply for the host.
func (o *operator) apply(t *testing.T, site string, args ...string) (out, said string, status int) {
	t.Helper()
	out, said, status = ended(t, o.command(t, append([]string{"apply", o.name, "--site", site, "--ssh-config", o.ssh, "--ssh-user", "alice"}, args...)...))
	for _, secret := range []string{gossipKey, agentToken, nomadToken, management} {
		if strings.Contains(out+said, secret) {
			t.Errorf("kiln apply shows a secret:\n%s%s", out, said)
		}
	}
	return out, said, status
}

// isAsItIsToBe wants an apply to find nothing to do.
func (o *operator) isAsItIsToBe(t *testing.T, site string) {
	t.Helper()
	if out, said, status := o.apply(t, site, "--network", "--yes"); status != 0 || !strings.HasPrefix(out, o.name+".example.org is as it is to be\n") || said != "" {
		t.Errorf("kiln apply: exit status %d\n%s%s", status, out, said)
	}
}

// isAt wants the host to have one address, and not another.
func (o *operator) isAt(t *testing.T, address, not string) {
	t.Helper()
	o.is(t, "ip -4 -oneline address show dev lan scope global | awk '{print $4}'", address+"/24")
	if conn, err := o.space.Dial(t.Context(), "tcp", not+":22"); err == nil {
		conn.Close()
		t.Errorf("%s answers", not)
	}
	conn, err := o.space.Dial(t.Context(), "tcp", address+":22")
	if err != nil {
		t.Errorf("%s doesn't answer: %v", address, err)
		return
	}
	conn.Close()
}

// killedOnTheWay begins to move the host, and ends that once the address is another
// one: here, and on the host, where it would go on by itself.
func (o *operator) killedOnTheWay(t *testing.T, site, from, to string) {
	t.Helper()
	const agents = "systemctl show --property MainPID --value consul nomad"
	before := o.sh(t, agents)
	// The step behind that of the network takes as long as it is held up.
	o.sh(t, `mkdir -p /run/systemd/system/kiln-host.service.d
printf '[Service]\nExecStartPre=/bin/sh -c "while [ -e /run/hold ]; do sleep 0.1; done"\n' >/run/systemd/system/kiln-host.service.d/hold.conf
touch /run/hold
systemctl daemon-reload`)
	cmd := o.command(t, "apply", o.name, "--site", site, "--ssh-config", o.ssh, "--ssh-user", "alice", "--network", "--yes")
	var said strings.Builder
	cmd.Stderr = &said
	// Whatever it has started goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("kiln apply said: %s", &said)
		}
	}()
	o.until(t, "the network's step is over", func() bool {
		out, _ := o.try(t, "cat /var/lib/kiln/apply.pending; systemctl show --property ActiveState --value kiln-host")
		return strings.Contains(out, "restart consul.service") && !strings.Contains(out, "network") && strings.Contains(out, "activating")
	})
	o.isAt(t, to, from)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("kiln apply ended well: %s", &said)
	}
	// Each run's folder is called by its process.
	o.sh(t, "for run in /run/kiln-apply/[0-9]*; do kill -9 ${run##*/}; done")
	o.sh(t, "rm -r /run/hold /run/systemd/system/kiln-host.service.d && systemctl daemon-reload && flock -w 60 /run/kiln-apply/lock true")
	if after := o.sh(t, agents); after != before {
		t.Errorf("the agents are %q, and were %q: nothing is left for the next run", after, before)
	}
}

// hasMoved wants a host to be at its new address, for itself and for the cluster,
// and not at the old one.
func (o *operator) hasMoved(t *testing.T, site, from, to string) {
	t.Helper()
	o.isAt(t, to, from)
	o.address = to
	o.joins(t)
	for _, file := range []string{"/etc/nomad.d/nomad.hcl", "/etc/consul.d/consul.hcl", "/etc/netplan/50-cloud-init.yaml"} {
		if text := o.sh(t, "cat "+file); !strings.Contains(text, to) || strings.Contains(text, from) {
			t.Errorf("%s doesn't say %s alone", file, to)
		}
	}
	o.nothingFailed(t, goldenUnits...)
	o.checkNames(t)
	o.isAsItIsToBe(t, site)
}
