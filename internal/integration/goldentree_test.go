//go:build integration

package integration

import (
	"context"
	"strconv"
	"strings"
	"testing"

	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/internal/lab"
)

// startTree boots an image's tree in a container on the cluster's network, with
// a host's seed, or with none where host is empty.
func startTree(t *testing.T, g *golden, c *cluster, profile, host string) *booting.Running {
	t.Helper()
	program(t, "systemd-nspawn")
	name := host
	if name == "" {
		name = "nobody"
	}
	network, err := c.Port(t.Context(), name, "lan")
	if err != nil {
		t.Fatal(err)
	}
	tree := &booting.Tree{Root: g.tree(t, profile), Namespace: network, Name: name, NoSeed: host == "", Units: goldenUnits}
	if host != "" {
		tree.Seed = g.seed(t, host)
	}
	running, err := tree.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Kill)
	return running
}

// TestGoldenTree boots the trees of both images in containers: all that needs
// neither firmware nor a kernel of its own.
func TestGoldenTree(t *testing.T) {
	g := newGolden(t)
	alone(t)
	c := goldenCluster(t)
	// All at once: a boot mostly waits.
	first := startTree(t, g, c, "alissandra", "tree01")
	second := startTree(t, g, c, "alissandra", "tree02")
	whole := startTree(t, g, c, "plain", "tree03")
	bare := startTree(t, g, c, "alissandra", "")

	hosts := []struct {
		name, address string
		running       *booting.Running
		share         int64 // of it that jobs get, in percent
	}{
		{"tree01", "10.66.0.21", first, 50},
		{"tree02", "10.66.0.22", second, 50},
		{"tree03", "10.66.0.23", whole, 100},
	}
	identities := make([]identity, len(hosts))
	var verified *operator
	alive := t.Run("with a seed", func(t *testing.T) {
		for i, h := range hosts {
			t.Run(h.name, func(t *testing.T) {
				t.Parallel()
				host := &guest{cluster: c, name: h.name, address: h.address, time: 2 * treeTime, exec: h.running.Exec}
				identities[i] = host.comesToLife(t, h.running, h.share)
				switch {
				case t.Failed():
				case h.name == "tree01":
					verified = host.isVerified(t, g)
				case h.name == "tree02":
					host.newOperator(t, g).moves(t)
				}
			})
		}
	})
	if alive {
		differ(t, identities[0], identities[1])
		differ(t, identities[0], identities[2])
	}
	t.Run("without a seed", func(t *testing.T) { bareTree(t, bare) })
	if verified != nil {
		t.Run("tree01 anew", verified.namesOldNode)
	}
}

// comesToLife takes a host from its first boot to a member of the cluster.
func (g *guest) comesToLife(t *testing.T, running *booting.Running, share int64) identity {
	t.Helper()
	report := g.firstReport(t, running)
	if strings.Join(report.Addresses["lan"], " ") != g.address+"/24" {
		t.Errorf("its addresses are %v", report.Addresses)
	}
	g.nothingFailed(t, "dnsmasq", "ssh", "kiln-host")
	g.checkHost(t)
	if g.name == "tree01" {
		g.is(t, "cat /sys/class/net/lan/mtu", "1400")
	}
	g.certify(t)
	node := g.joins(t)
	g.nothingFailed(t, goldenUnits...)
	g.checkNames(t)
	g.checkReaders(t)
	g.checkShare(t, node, share)
	return g.identity(t, node)
}

// firstReport is of a boot after which the agents still wait for their
// certificate, and nothing else is wrong.
func (g *guest) firstReport(t *testing.T, running *booting.Running) *booting.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), g.time)
	defer cancel()
	report, err := running.Report(ctx)
	if err != nil {
		if pid, none := running.Init(); none == nil {
			out, _, _ := lab.SpaceOf(pid).Try(t.Context(), lastWords)
			t.Log(out)
		}
		t.Fatal(err)
	}
	const unmet = "a condition isn't met"
	for _, p := range report.Problems() {
		if p != "consul.service: it wasn't started: "+unmet && p != "nomad.service: it wasn't started: "+unmet {
			t.Errorf("%s: %s", g.name, p)
		}
	}
	if t.Failed() {
		t.Log(report.Err())
	}
	if report.Hostname != g.name || !strings.Contains(report.CloudInit.Datasource, "NoCloud") || report.State != "running" {
		t.Errorf("%s: the report is %+v", g.name, report)
	}
	return report
}

// lastWords are those of a guest that doesn't come up.
const lastWords = "systemctl --no-pager --failed; systemctl list-jobs; ip address; journalctl --no-pager --boot --lines=200 --output=short-monotonic"

// number is what a command prints.
func (g *guest) number(t *testing.T, command string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(g.sh(t, command)), 10, 64)
	if err != nil {
		t.Fatalf("%s: %s: %v", g.name, command, err)
	}
	return n
}

// diskOfJobs is how many MiB of disk jobs are to get: their share of the whole,
// in percent, as far as it is free.
func (g *guest) diskOfJobs(t *testing.T, share int64) int64 {
	t.Helper()
	of := func(column string) int64 {
		return g.number(t, "df -k --output="+column+" /build/nomad | tail -n 1") / 1024
	}
	return min(of("size")*share/100, of("avail"))
}

// checkShare holds what Nomad's server says of a node against its share.
func (g *guest) checkShare(t *testing.T, node *lab.Node, share int64) {
	t.Helper()
	all, kept := node.NodeResources, node.ReservedResources
	for _, r := range []struct {
		what      string
		all, kept int64
		want      int64
		less      int64 // that is right, too
	}{
		{"MHz", all.Cpu.CpuShares, kept.Cpu.CpuShares, all.Cpu.CpuShares * share / 100, 1},
		{"MiB of memory", all.Memory.MemoryMB, kept.Memory.MemoryMB, all.Memory.MemoryMB * share / 100, 1},
		// Nomad itself writes, before it looks at the disk and after.
		{"MiB of disk", all.Disk.DiskMB, kept.Disk.DiskMB, g.diskOfJobs(t, share) + slack, 3 * slack},
	} {
		if jobs := r.all - r.kept; r.all <= 0 || jobs > r.want || jobs < r.want-r.less {
			t.Errorf("%s: jobs get %d of %d %s, not %d", g.name, jobs, r.all, r.what, r.want)
		}
	}
}

// bareTree is an image that was booted without host data.
func bareTree(t *testing.T, running *booting.Running) {
	pid, err := running.Init()
	if err != nil {
		t.Fatal(err)
	}
	inside := &space{lab.SpaceOf(pid)}
	eventually(t, "the boot is over", func() bool {
		out, _ := inside.try(t, "systemctl is-system-running")
		return strings.TrimSpace(out) == "running" || strings.TrimSpace(out) == "degraded"
	})
	// Nobody gives it an address here. On a disk it has one by DHCP.
	if failed := strings.TrimSpace(inside.sh(t, "systemctl --failed --no-legend --plain | grep -v ^systemd-networkd-wait-online || :")); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
	for _, unit := range []string{"consul", "nomad", "dnsmasq"} {
		if out, status := inside.try(t, "systemctl is-active "+unit+"; pgrep -x "+unit); status == 0 || !strings.HasPrefix(out, "inactive") {
			t.Errorf("%s without host data: %s", unit, out)
		}
	}
	for unit, text := range map[string]string{
		"kiln-seed": "no host data on this host yet",
		"kiln-host": "no host data on this host yet",
		"consul":    "ConditionPathExists=/etc/kiln/host-ready",
		"nomad":     "ConditionPathExists=/etc/kiln/host-ready",
	} {
		if said := inside.sh(t, "journalctl --sync && journalctl --no-pager --output cat --unit "+unit); !strings.Contains(said, text) {
			t.Errorf("%s doesn't say %q, but: %s", unit, text, said)
		}
	}
	inside.sh(t, "test ! -e /etc/kiln/host-ready && test -z \"$(ls /build/nomad /build/consul | grep -v :)\"")
}
