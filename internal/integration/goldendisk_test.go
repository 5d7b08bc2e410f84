//go:build integration

package integration

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/internal/lab"
)

// goldenDisk is the size of the machines' disks, which the root grows to.
const goldenDisk = 8 << 30

// startDisk boots an image's disk in a machine on the cluster's network.
func startDisk(t *testing.T, g *golden, c *cluster, m *booting.Machine, profile, host, mac string) *booting.Running {
	t.Helper()
	tap := "tap-" + host
	if err := c.Tap(t.Context(), tap); err != nil {
		t.Fatal(err)
	}
	m.Disk, m.Snapshot, m.DiskSize, m.Units = g.disk(profile), true, goldenDisk, goldenUnits
	m.NICs, m.Namespace = []booting.NIC{{MAC: mac, Tap: tap}}, c.space.Network()
	m.Seed = g.seed(t, host)
	running, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Kill)
	return running
}

// TestGoldenDisk boots the disks of both images with each kind of firmware, in
// the cluster's network, and one without host data. Two run at a time: software's
// processors leave much of two cores idle. Each boot proves as much as it can.
func TestGoldenDisk(t *testing.T) {
	g := newGolden(t)
	program(t, "qemu-system-x86_64")
	alone(t)
	c := goldenCluster(t)
	var mu sync.Mutex
	identities := map[string]identity{}
	t.Run("firmware", func(t *testing.T) {
		// The longest first.
		for _, b := range []struct {
			name string
			boot func(*testing.T, *golden, *cluster) identity
		}{{"UEFI", uefiDisk}, {"Secure Boot", secureDisk}, {"BIOS", biosDisk}} {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				i := b.boot(t, g, c)
				mu.Lock()
				defer mu.Unlock()
				identities[b.name] = i
			})
		}
		t.Run("without a seed", func(t *testing.T) {
			t.Parallel()
			noSeedDisk(t, g)
		})
	})
	if len(identities) == 3 {
		differ(t, identities["UEFI"], identities["Secure Boot"])
		differ(t, identities["UEFI"], identities["BIOS"])
		differ(t, identities["Secure Boot"], identities["BIOS"])
	}
}

// uefiDisk boots an alissandra with a data disk, has jobs run on it, and boots
// it a second time.
func uefiDisk(t *testing.T, g *golden, c *cluster) identity {
	running := startDisk(t, g, c, &booting.Machine{
		DataDisks: []booting.DataDisk{{Size: 2 << 30, Serial: "OTHER"}, {Size: 5 << 30, Serial: "S3X1"}},
	}, "alissandra", "build01", "52:54:00:66:00:11")
	host := &guest{cluster: c, name: "build01", address: "10.66.0.11", time: machineTime, exec: running.Exec}
	report := host.firstReport(t, running)
	host.checkDisk(t, report, "uefi", false)
	host.nothingFailed(t, "dnsmasq", "ssh", "kiln-host")
	host.checkHost(t)
	host.is(t, "findmnt -rn -o SOURCE,FSTYPE /build; findmnt -n -o OPTIONS /build | grep -c noatime", "/dev/vdc ext4\n1")
	host.is(t, "blkid -p -o value -s TYPE /dev/vdb || :", "")
	host.is(t, "stat -c '%U:%G %a' /build /build/consul /build/nomad", "root:root 755\nconsul:consul 750\nroot:root 755")
	host.certify(t)
	node := host.joins(t)
	host.nothingFailed(t, goldenUnits...)
	host.checkNames(t)
	host.checkReaders(t)
	host.checkJobs(t, node, 50)
	before := host.identity(t, node)
	host.sh(t, "echo kept >/build/nomad/mine && sync")

	// At the second boot all is there at once.
	host.sh(t, "systemctl --no-block reboot")
	again := nextReport(t, running)
	if err := again.Err(); err != nil {
		t.Errorf("the second boot: %v", err)
	}
	host.is(t, "cat /build/nomad/mine; findmnt -n -o SOURCE /build", "kept\n/dev/vdc")
	if after := host.identity(t, host.joins(t)); after != before {
		t.Errorf("the second boot made another host of it: %+v, before %+v", after, before)
	}
	host.checkNames(t)
	host.nothingFailed(t, goldenUnits...)
	stopGuest(t, running)
	return before
}

// secureDisk boots another clone with Secure Boot.
func secureDisk(t *testing.T, g *golden, c *cluster) identity {
	running := startDisk(t, g, c, &booting.Machine{Firmware: booting.SecureBoot}, "alissandra", "build02", "52:54:00:66:00:12")
	host := &guest{cluster: c, name: "build02", address: "10.66.0.12", time: machineTime, exec: running.Exec}
	report := host.firstReport(t, running)
	host.checkDisk(t, report, "uefi", true)
	host.checkHost(t)
	host.certify(t)
	node := host.joins(t)
	host.nothingFailed(t, goldenUnits...)
	host.checkShare(t, node, 50)
	i := host.identity(t, node)
	stopGuest(t, running)
	return i
}

// biosDisk boots a plain with a BIOS: jobs get the whole of it.
func biosDisk(t *testing.T, g *golden, c *cluster) identity {
	running := startDisk(t, g, c, &booting.Machine{
		Firmware: booting.BIOS, DataDisks: []booting.DataDisk{{Size: 5 << 30}, {Size: 3 << 30}},
	}, "plain", "build03", "52:54:00:66:00:13")
	host := &guest{cluster: c, name: "build03", address: "10.66.0.13", time: machineTime, exec: running.Exec}
	report := host.firstReport(t, running)
	host.checkDisk(t, report, "bios", false)
	host.checkHost(t)
	host.is(t, "findmnt -rn -o SOURCE,FSTYPE /build", "/dev/vdc xfs")
	host.certify(t)
	node := host.joins(t)
	host.nothingFailed(t, goldenUnits...)
	host.checkNames(t)
	host.checkReaders(t)
	host.checkJobs(t, node, 100)
	i := host.identity(t, node)
	stopGuest(t, running)
	return i
}

// nextReport is that of a machine's next boot.
func nextReport(t *testing.T, running *booting.Running) *booting.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	report, err := running.Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// stopGuest has a machine shut down.
func stopGuest(t *testing.T, running *booting.Running) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := running.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// checkDisk holds what firmware, boot loader and kernel made of the machine
// against what it should be.
func (g *guest) checkDisk(t *testing.T, report *booting.Report, firmware string, secure bool) {
	t.Helper()
	if report.Firmware != firmware || report.SecureBoot != secure {
		t.Errorf("%s: booted by %s, Secure Boot %t", g.name, report.Firmware, report.SecureBoot)
	}
	// All but the partitions before it, and what the file system itself needs.
	if report.RootSize < goldenDisk*9/10 {
		t.Errorf("%s: the root has %d MiB", g.name, report.RootSize>>20)
	}
	if strings.Join(report.Addresses["lan"], " ") != g.address+"/24" {
		t.Errorf("%s: its addresses are %v", g.name, report.Addresses)
	}
	// As the CI wants it.
	g.is(t, "stat -f -c %T /sys/fs/cgroup", "tmpfs")
}

// job is one that only this host can run.
func (g *guest) job(a ask) map[string]any {
	job := a.job()
	job["Job"].(map[string]any)["ID"] = g.jobID()
	job["Job"].(map[string]any)["Constraints"] = []map[string]any{{"LTarget": "${node.unique.name}", "RTarget": g.name + ".example.org", "Operand": "="}}
	return job
}

// jobID is its own for each host: two of them ask one Nomad at the same time.
func (g *guest) jobID() string { return "job-" + g.name }

// places asks where a job would go, and wants it to go nowhere for lack of
// dimension; or here, where dimension is empty.
func (g *guest) places(t *testing.T, a ask, dimension string) {
	t.Helper()
	var answer struct {
		FailedTGAllocs map[string]struct{ DimensionExhausted map[string]int }
	}
	if err := g.Do(t.Context(), http.MethodPost, g.NomadURL("/v1/job/"+g.jobID()+"/plan"), g.job(a), &answer); err != nil {
		t.Fatalf("%s: %s: %v", g.name, a, err)
	}
	failed, isFailed := answer.FailedTGAllocs["group"]
	switch {
	case dimension == "" && isFailed:
		t.Errorf("%s: %s: isn't placed: %v", g.name, a, failed.DimensionExhausted)
	case dimension != "" && failed.DimensionExhausted[dimension] != 1:
		t.Errorf("%s: %s: isn't refused for want of %s: %v", g.name, a, dimension, failed.DimensionExhausted)
	}
}

// runs really runs a job, and ends it.
func (g *guest) runs(t *testing.T, a ask) {
	t.Helper()
	type allocations []struct {
		ClientStatus string
		TaskStates   map[string]struct {
			Events []struct{ DisplayMessage string }
		}
	}
	if err := g.Do(t.Context(), http.MethodPost, g.NomadURL("/v1/jobs"), g.job(a), nil); err != nil {
		t.Fatalf("%s: %s: %v", g.name, a, err)
	}
	var list allocations
	g.until(t, a.String()+" runs", func() bool {
		list = nil
		if err := g.Get(t.Context(), g.NomadURL("/v1/job/"+g.jobID()+"/allocations"), &list); err != nil {
			t.Fatal(err)
		}
		if len(list) == 1 && list[0].ClientStatus == "failed" {
			t.Fatalf("%s: %s failed: %+v", g.name, a, list)
		}
		return len(list) == 1 && list[0].ClientStatus == "running"
	})
	g.is(t, "pgrep -cxf '/bin/sleep 4711'", "1")
	if err := g.Do(t.Context(), http.MethodDelete, g.NomadURL("/v1/job/"+g.jobID()+"?purge=true"), nil, nil); err != nil {
		t.Fatal(err)
	}
	g.until(t, "the job has stopped", func() bool {
		_, status := g.try(t, "pgrep -xf '/bin/sleep 4711'")
		return status != 0
	})
}

// checkJobs has jobs run that ask for just that share of the host, in percent,
// by what the host itself says that it has; those that ask for a bit more don't.
func (g *guest) checkJobs(t *testing.T, node *lab.Node, share int64) {
	t.Helper()
	g.checkShare(t, node, share)
	mhz := node.NodeResources.Cpu.CpuShares * share / 100
	memory := g.number(t, "awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo") * share / 100
	disk := g.diskOfJobs(t, share)
	cores := int(g.number(t, "nproc") * share / 100)
	// What of the disk Nomad counts as free it has measured some time ago, and
	// memory is rounded in either direction.
	const little = 2
	g.places(t, ask{mhz: mhz + little}, "cpu")
	g.places(t, ask{memory: memory + little}, "memory")
	g.places(t, ask{disk: disk + 2*slack}, "disk")
	want := "cores"
	if cores < len(node.NodeResources.Cpu.ReservableCpuCores) {
		want = "cpu"
	}
	g.places(t, ask{cores: cores + 1}, want)
	g.runs(t, ask{mhz: mhz - little, memory: memory - little, disk: disk - 2*slack})
	g.runs(t, ask{cores: cores, memory: memory - little})
}

// noSeedDisk boots an image without any host data. It can't report: what it did is
// read from its console and from its disk.
func noSeedDisk(t *testing.T, g *golden) {
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := booting.Overlay(t.Context(), nil, g.disk("alissandra"), "raw", disk, goldenDisk); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	up := make(chan struct{})
	var once sync.Once
	m := &booting.Machine{Disk: disk, Format: "qcow2", NoSeed: true, Firmware: booting.BIOS, Line: func(line string) {
		// The end of cloud-init is the end of the boot.
		if strings.Contains(line, "Cloud-init v.") && strings.Contains(line, " finished at ") {
			once.Do(func() { close(up) })
		}
	}}
	running, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Kill()
	select {
	case <-up:
	case <-ctx.Done():
		t.Fatalf("it doesn't come up: %q", running.Tail())
	}
	stopGuest(t, running)

	root := diskRoot(t, disk)
	journal, err := exec.Command("journalctl", "--directory="+root+"/var/log/journal", "--no-pager", "--output=json").Output()
	if err != nil {
		t.Fatalf("the disk's journal: %v", err)
	}
	said := journalOf(t, journal)
	for unit, text := range map[string]string{
		"kiln-seed.service": "no host data on this host yet",
		"kiln-host.service": "no host data on this host yet",
		"consul.service":    "ConditionPathExists=/etc/kiln/host-ready",
		"nomad.service":     "ConditionPathExists=/etc/kiln/host-ready",
	} {
		if !strings.Contains(said[unit], text) {
			t.Errorf("%s doesn't say %q, but: %s", unit, text, said[unit])
		}
	}
	for unit, text := range said {
		if strings.Contains(text, "Failed with result") {
			t.Errorf("%s failed: %s", unit, text)
		}
	}
	for _, dir := range []string{"build/consul", "build/nomad"} {
		if entries, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(entries) > 0 {
			t.Errorf("an agent has written into /%s: %v, %v", dir, entries, err)
		}
	}
}

// journalOf is what each unit said, and what systemd said of it, until the
// machine was switched off.
func journalOf(t *testing.T, journal []byte) map[string]string {
	t.Helper()
	said := map[string]string{}
	for line := range strings.Lines(string(journal)) {
		var e struct {
			From    string `json:"_SYSTEMD_UNIT"` // who said it
			Unit    string `json:"UNIT"`          // whom systemd speaks of
			Message any    `json:"MESSAGE"`       // numbers, where it's no text
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		unit := e.Unit
		if unit == "" {
			unit = e.From
		}
		// What is still running when the machine is switched off doesn't count.
		if text, ok := e.Message.(string); ok && unit == "systemd-logind.service" && strings.HasPrefix(text, "Power key pressed") {
			break
		}
		said[unit] += fmt.Sprintln(e.Message)
	}
	return said
}

// diskRoot copies what the tests look at out of a disk's root file system.
func diskRoot(t *testing.T, disk string) string {
	t.Helper()
	dir := t.TempDir()
	raw, root := filepath.Join(dir, "raw"), filepath.Join(dir, "root")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", disk, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"var/log/journal", "build"} {
		parent := filepath.Join(root, filepath.Dir(name))
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		// debugfs never fails: whoever reads what it made finds out.
		cmd := exec.Command("debugfs", "-R", fmt.Sprintf("rdump /%s %s", name, parent), fmt.Sprintf("%s?offset=%d", raw, rootOffset(t, raw)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return root
}

// rootOffset is where a disk's last partition begins, which is the root.
func rootOffset(t *testing.T, raw string) uint64 {
	t.Helper()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := make([]byte, 128*128)
	if _, err := f.ReadAt(table, 2*512); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for ; len(table) > 0; table = table[128:] {
		last = max(last, binary.LittleEndian.Uint64(table[32:]))
	}
	return last * 512
}
