//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/netboot/state"
)

// netbootSite is the golden site without certificates: nobody carries one to a
// machine that nobody touches. Its blanks are goldenSite's.
var netbootSite = regexp.MustCompile(`(?m)^tls: .*\n`).ReplaceAllString(goldenSite, "")

// netbootHosts are the machines that are installed: one has a data disk, and one
// has two disks of which a rule names the right one.
const netbootHosts = `
- name: net01
  profile: plain
  interfaces: {lan: {mac: "52:54:00:66:00:31", addresses: [10.66.0.31/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
  disks: [{mount: /build, disk: {serial: DATA1}, filesystem: ext4}]
- name: net02
  profile: plain
  interfaces: {lan: {mac: "52:54:00:66:00:32", addresses: [10.66.0.32/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
  install: {serial: ROOT2}
`

// netbootSecrets are what no packet may have a part of: no part is one that other
// data could have by chance.
var netbootSecrets = lab.Secrets{
	Gossip: gossipKey, Management: management,
	Agent: "8f1b6f0a-93d2-4b7e-a1c5-5e0d7c49b362", Nomad: "d3a9c7e1-2f64-4c08-b5e7-91f0a86d2c4b",
}

// netbootTime is how long a machine may take from power-on to ready: software
// emulates it, and others beside it.
const netbootTime = 25 * time.Minute

// The lab's addresses, beside labCluster's.
const (
	netbootServer = "10.66.0.5"
	dhcpServer    = "10.66.0.6"
)

// netbootLab is a site, its image, its cluster's servers, and a kiln that serves.
type netbootLab struct {
	*golden
	cluster *cluster
	state   string
	image   string // ID
	serving *exec.Cmd
	said    *syncBuffer
	sniffer *sniffer
}

// newNetbootLab builds the netboot set of the site's profile plain, and starts the
// cluster's servers.
func newNetbootLab(t *testing.T) *netbootLab {
	t.Helper()
	program(t, "qemu-system-x86_64")
	g := newGolden(t)
	site := filepath.Join(filepath.Dir(g.site), "netboot")
	repo := hashicorpRepository(t)
	place(t, filepath.Join(site, "site.yaml"), fmt.Sprintf(netbootSite, repo, strings.TrimSpace(read(t, repo, "fingerprint"))))
	place(t, filepath.Join(site, "hosts.yaml"), netbootHosts)
	place(t, filepath.Join(site, "keys/hashicorp.asc"), read(t, repo, "key.asc"))
	place(t, filepath.Join(site, images.LockFile), read(t, g.cache, images.LockFile)) // a later test's site has none
	n := &netbootLab{golden: &golden{kiln: g.kiln, site: site, cache: g.cache}, state: filepath.Join(t.TempDir(), "state")}
	installer := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(g.kiln), "kiln-installer"), "./cmd/kiln-installer")
	installer.Dir = repository(t)
	installer.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := installer.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	began := time.Now()
	n.image, _, _ = strings.Cut(n.run(t, "build", "plain", "--format", "netboot"), " ")
	t.Logf("the netboot set: %s", time.Since(began).Round(time.Second))
	m, err := (&images.Store{Dir: filepath.Join(g.cache, "images")}).Find(n.image)
	if err != nil {
		t.Fatal(err)
	}
	place(t, filepath.Join(g.cache, keptNames), strings.Join(append(stepsOf(m), m.ID), "\n"))
	n.cluster = labCluster(t, lab.Config{
		Datacenter: "ci", Region: "alice", Secrets: netbootSecrets, NomadACL: true, Names: []string{"server1.example.org"},
		Records: map[string]netip.Addr{"www.example.com": netip.MustParseAddr("10.66.0.80")},
	})
	n.cluster.sh(t, "ip address add "+netbootServer+"/24 dev lab0")
	n.sniffer = newSniffer(t, n.cluster, netbootSecrets.Gossip, netbootSecrets.Agent, netbootSecrets.Nomad)
	return n
}

// dnsmasq is the network's own DHCP server, on a machine of its own. It knows
// nothing of booting. It is the network's router for IPv6, too: iPXE waits a
// quarter of a minute for one.
func (n *netbootLab) dnsmasq(t *testing.T) {
	t.Helper()
	network, err := n.cluster.Port(t.Context(), "dhcp", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	inside := func(argv ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=" + network, "--"}, argv...)...)
	}
	if out, err := inside("sh", "-ec", "ip address add "+dhcpServer+"/24 dev eth0; ip address add fd77::6/64 dev eth0 nodad; ip link set eth0 up").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	server := inside("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--bind-interfaces", "--interface=eth0",
		"--except-interface=lo", "--dhcp-range=10.66.0.200,10.66.0.220,1h", "--dhcp-authoritative", "--dhcp-option=3,10.66.0.1", "--enable-ra", "--dhcp-range=fd77::,ra-only", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file", "--log-facility=-")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
}

// environment is that of kiln: the secrets, and where Nomad and Consul are.
func (n *netbootLab) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_CA_BUNDLE=") })
	return append(env, "KILN_CACHE="+n.cache, "KILN_STATE="+n.state, "KILN_TEST_GOSSIP="+netbootSecrets.Gossip, "KILN_TEST_AGENT="+netbootSecrets.Agent, "KILN_TEST_NOMAD="+netbootSecrets.Nomad,
		"NOMAD_ADDR="+n.cluster.NomadURL(""), "NOMAD_TOKEN="+management, "CONSUL_HTTP_ADDR="+n.cluster.ConsulURL(""), "CONSUL_HTTP_TOKEN="+management)
}

// inLab runs kiln in the lab's network.
func (n *netbootLab) inLab(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.cluster.space.Network(), "--", n.kiln}, args...)...)
	cmd.Dir, cmd.Env = n.site, n.environment()
	return cmd
}

// serve starts kiln serve, and waits until it is healthy.
func (n *netbootLab) serve(t *testing.T, args ...string) {
	t.Helper()
	n.said = &syncBuffer{}
	n.serving = n.inLab(context.Background(), append([]string{"serve", "--interface", "lab0", "--address", netbootServer}, args...)...)
	n.serving.Stdout, n.serving.Stderr = n.said, n.said
	if err := n.serving.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	serving := n.serving
	go func() { ended <- serving.Wait() }()
	t.Cleanup(func() {
		_ = serving.Process.Signal(os.Interrupt)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("kiln serve: %v\n%s", err, n.said)
			}
		case <-time.After(patience):
			_ = serving.Process.Kill()
			t.Errorf("kiln serve doesn't end:\n%s", n.said)
		}
		if t.Failed() {
			t.Logf("kiln serve said:\n%s", n.said)
		}
	})
	eventually(t, "kiln serve is healthy", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("kiln serve: %v\n%s", err, n.said)
		default:
		}
		out, status := n.cluster.try(t, "curl -sf http://"+netbootServer+":8080/healthz")
		return status == 0 && strings.Contains(out, "ok")
	})
}

// arm arms hosts.
func (n *netbootLab) arm(t *testing.T, hosts ...string) {
	t.Helper()
	if out, err := n.inLab(t.Context(), append([]string{"arm", "--yes"}, hosts...)...).CombinedOutput(); err != nil {
		t.Fatalf("kiln arm: %v\n%s", err, out)
	}
}

// record is what the state has of a host.
func (n *netbootLab) record(t *testing.T, host string) *state.Record {
	t.Helper()
	s, err := state.Open(n.state)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(host + ".example.org")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// machine is one that boots from the network first.
func (n *netbootLab) machine(t *testing.T, host, mac string, firmware booting.Firmware, disk string, data ...booting.DataDisk) *booting.Machine {
	t.Helper()
	tap := "tap-" + host
	if _, status := n.cluster.try(t, "ip link show "+tap); status != 0 {
		if err := n.cluster.Tap(t.Context(), tap); err != nil {
			t.Fatal(err)
		}
	}
	return &booting.Machine{
		Disk: disk, Format: "qcow2", DataDisks: data, Netboot: true, NoSeed: true, Firmware: firmware,
		NICs: []booting.NIC{{MAC: mac, Tap: tap}}, Namespace: n.cluster.space.Network(),
	}
}

// blank is an empty disk.
func blank(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// until waits until a host is at a stage; one that fails before ends the test.
func (n *netbootLab) until(t *testing.T, host string, stage state.Stage, running *booting.Running) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), netbootTime)
	defer cancel()
	last, began := "", time.Now()
	err := lab.Wait(ctx, host+" is "+string(stage), func() (bool, error) {
		r := n.record(t, host)
		if now := string(r.Stage) + " " + r.Step; now != last {
			last = now
			t.Logf("%5.0f s: %s: %s %s", time.Since(began).Seconds(), host, r.State(), r.Step)
		}
		if r.Stage == state.Failed && stage != state.Failed {
			return false, fmt.Errorf("%s: %s\n%s", r.State(), r.Error, strings.Join(r.Console, "\n"))
		}
		select {
		case <-running.Done():
			return false, errors.New("the machine has ended")
		default:
		}
		return r.Stage == stage, nil
	})
	if err != nil {
		t.Fatalf("%v\nits console:\n%s", err, strings.Join(running.Tail(), "\n"))
	}
}

// TestNetboot installs two machines at once, one with a BIOS and one with UEFI,
// beside the network's own DHCP server, from power-on to ready; then they are
// switched on again, and boot their disks.
func TestNetboot(t *testing.T) {
	n := newNetbootLab(t)
	n.dnsmasq(t)
	n.serve(t, "--proxy-dhcp")
	n.arm(t, "net01", "net02")
	kept := filepath.Join(t.TempDir(), "data.raw")
	dataDisk(t, kept)
	old := oldInstallation(t)
	t.Run("machines", func(t *testing.T) {
		t.Run("BIOS", func(t *testing.T) {
			t.Parallel()
			m := n.machine(t, "net01", "52:54:00:66:00:31", booting.BIOS, blank(t, 8<<30), booting.DataDisk{Path: kept, Serial: "DATA1"})
			n.installs(t, m, "net01", "10.66.0.31")
		})
		t.Run("UEFI", func(t *testing.T) {
			t.Parallel()
			m := n.machine(t, "net02", "52:54:00:66:00:32", booting.UEFI, old, booting.DataDisk{Size: 8 << 30, Serial: "OTHER"})
			m.DiskSerial = "ROOT2"
			n.installs(t, m, "net02", "10.66.0.32")
		})
	})
	n.sniffer.check(t)
	keptDisk(t, kept)
}

// installs switches a machine on, and has it installed; then switches it on again.
func (n *netbootLab) installs(t *testing.T, m *booting.Machine, host, address string) {
	began := time.Now()
	running, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer running.Kill()
	n.until(t, host, state.Ready, running)
	t.Logf("%s is ready after %s", host, time.Since(began).Round(time.Second))
	r := n.record(t, host)
	var stages []state.Stage
	for _, e := range r.History {
		if e.Stage != "" {
			stages = append(stages, e.Stage)
		}
	}
	if want := []state.Stage{state.Armed, state.Booted, state.Writing, state.Written, state.FirstBoot, state.Ready}; !slices.Equal(stages, want) {
		t.Errorf("%s went through %q", host, stages)
	}
	nodes, err := n.cluster.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node := nodes[host+".example.org"]
	if node == nil || node.HTTPAddr != address+":4646" {
		t.Fatalf("Nomad's server has %s as %+v", host, node)
	}
	running.Kill()

	// Power comes back: the firmware asks the network first, and boots the disk.
	local := n.metric(t, `kiln_netboot_scripts_total{answer="disk"}`)
	again, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	err = lab.Wait(ctx, host+" boots its disk", func() (bool, error) {
		return slices.ContainsFunc(again.Tail(), func(l string) bool { return strings.Contains(l, " "+host+" ttyS0") }), nil // getty's greeting
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(again.Tail(), "\n"))
	}
	if now := n.record(t, host); now.Stage != state.Ready || now.Install != r.Install || len(now.History) != len(r.History) {
		t.Errorf("switched on again, %s is %s: %+v", host, now.State(), now.History)
	}
	if n.metric(t, `kiln_netboot_scripts_total{answer="disk"}`) <= local {
		t.Errorf("%s didn't ask for its script when it was switched on again", host)
	}
}

// metric is a number of the server's.
func (n *netbootLab) metric(t *testing.T, name string) float64 {
	t.Helper()
	out := n.cluster.sh(t, "curl -sf http://"+netbootServer+":8080/metrics")
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			if err := json.Unmarshal([]byte(strings.TrimSpace(rest)), &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("there is no metric %s:\n%s", name, out)
	return 0
}

// dataDisk is a disk with a file system and a file that somebody has put there.
func dataDisk(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	place(t, filepath.Join(dir, "nomad/mine"), "kept\n")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", dir, path, "2G").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// keptDisk wants that file there still.
func keptDisk(t *testing.T, path string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-p", path).CombinedOutput(); err != nil {
		t.Logf("%v: %s", err, out) // it was mounted when the power was cut
	}
	out, err := exec.Command("debugfs", "-R", "cat /nomad/mine", path).Output()
	if err != nil || string(out) != "kept\n" {
		t.Errorf("the data disk has %q: %v", out, err)
	}
}

// oldInstallation is a disk that another system was installed on: it has both
// partition tables, and boots.
func oldInstallation(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "old.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", bootDisk(t), path, fmt.Sprint(int64(8<<30))).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}
