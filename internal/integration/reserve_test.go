//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/alisw/kiln/profiles/reserve"
)

// half checks that jobs get half of what whole has, and not a bit more. cores is
// how many whole processors are in half of the MHz.
func (h *reservingHost) half(whole, node nodeResources, cores int) {
	h.t.Helper()
	t := h.t
	total := whole.NodeResources.Cpu.CpuShares
	mhz := node.NodeResources.Cpu.CpuShares - node.ReservedResources.Cpu.CpuShares
	memory := node.NodeResources.Memory.MemoryMB - node.ReservedResources.Memory.MemoryMB
	if node.NodeResources.Cpu.CpuShares != total {
		t.Errorf("the script counts %d MHz, Nomad %d", node.NodeResources.Cpu.CpuShares, total)
	}
	if mhz != total/2 || memory != whole.NodeResources.Memory.MemoryMB/2 {
		t.Errorf("jobs get %d MHz of %d and %d MiB of %d, not half", mhz, total, memory, whole.NodeResources.Memory.MemoryMB)
	}
	if usable, err := strconv.Atoi(node.Attributes["cpu.usablecompute"]); err != nil || usable <= 0 {
		t.Errorf("Docker's quotas are parts of %q MHz", node.Attributes["cpu.usablecompute"])
	}
	h.places(ask{mhz: mhz}, "")
	h.places(ask{mhz: mhz + 1}, "cpu")
	h.places(ask{memory: memory}, "")
	h.places(ask{memory: memory + 1}, "memory")
	if cores > 0 {
		h.places(ask{cores: cores}, "")
	}
	want := "cores"
	if cores < len(node.NodeResources.Cpu.ReservableCpuCores) {
		want = "cpu"
	}
	h.places(ask{cores: cores + 1}, want)
	usable := list(node.NodeResources.Cpu.ReservableCpuCores)
	if got := h.runsOn(ask{mhz: mhz}); got != usable {
		t.Errorf("a job of %d MHz runs on processors %s, not on %s", mhz, got, usable)
	}
	if got := h.runsOn(ask{memory: memory}); got != usable {
		t.Errorf("a job of %d MiB runs on processors %s, not on %s", memory, got, usable)
	}
	if cores > 0 {
		if got := h.runsOn(ask{cores: cores}); strings.HasPrefix(got, "0") {
			t.Errorf("a job of %d processors runs on %s, of which 0 is reserved", cores, got)
		}
	}
}

// disk checks that jobs get so many MiB of disk, and not more.
func (h *reservingHost) disk(node nodeResources, want int64) {
	h.t.Helper()
	got := node.NodeResources.Disk.DiskMB - node.ReservedResources.Disk.DiskMB
	if got > want || got < want-slack {
		h.t.Errorf("jobs get %d MiB of disk, want %d", got, want)
	}
	h.places(ask{disk: want - slack}, "")
	h.places(ask{disk: want + 1}, "disk")
	h.runsOn(ask{disk: want - slack})
}

// list writes processors as the kernel does.
func list(ids []int) string {
	var pieces []string
	for i := 0; i < len(ids); i++ {
		first := ids[i]
		for i+1 < len(ids) && ids[i+1] == ids[i]+1 {
			i++
		}
		if ids[i] == first {
			pieces = append(pieces, strconv.Itoa(first))
		} else {
			pieces = append(pieces, fmt.Sprintf("%d-%d", first, ids[i]))
		}
	}
	return strings.Join(pieces, ",")
}

// halfOfHost is the whole life of a host: nothing reserved, half of it, half of
// it with half of the disk filled, everything.
func halfOfHost(t *testing.T, h *reservingHost, cores func(all int) int) {
	h.configure("  reserve: 0\n")
	whole := h.start()
	if r := whole.ReservedResources; r.Cpu.CpuShares+r.Memory.MemoryMB+r.Disk.DiskMB+int64(len(r.Cpu.ReservedCpuCores)) > 0 {
		t.Errorf("without a share, this is reserved: %+v", whole.ReservedResources)
	}
	count := len(whole.NodeResources.Cpu.ReservableCpuCores)
	// This also leaves cpusets of all processors behind, which the next start narrows.
	if got, want := h.runsOn(ask{}), list(whole.NodeResources.Cpu.ReservableCpuCores); got != want {
		t.Errorf("without a share, a job runs on processors %s, not on %s", got, want)
	}
	h.places(ask{cores: count}, "")
	h.places(ask{mhz: whole.NodeResources.Cpu.CpuShares, memory: whole.NodeResources.Memory.MemoryMB, disk: whole.NodeResources.Disk.DiskMB}, "")
	h.stop()

	h.configure("")
	node := h.start()
	h.half(whole, node, cores(count))
	size := h.diskMiB("size")
	h.disk(node, size/2)
	h.stop()

	h.sh(t, fmt.Sprintf("fallocate -l %dM /build/nomad/mine", size/2))
	node = h.start()
	h.disk(node, h.diskMiB("avail"))
	if node.ReservedResources.Disk.DiskMB > slack {
		t.Errorf("%d MiB of disk are reserved, while half of it is in use", node.ReservedResources.Disk.DiskMB)
	}
	h.stop()

	// The same start, with half of it given back: what was measured is measured again.
	h.sh(t, fmt.Sprintf("fallocate -l %dM /build/nomad/mine.new && mv /build/nomad/mine.new /build/nomad/mine", size/4))
	node = h.start()
	h.disk(node, size/2)
	h.stop()

	h.configure("  reserve: 1\n")
	h.start()
	h.places(ask{}, "cpu")
	h.places(ask{cores: 1}, "cpu")
	h.stop()
}

func (h *reservingHost) diskMiB(column string) int64 {
	return h.number("df -k --output="+column+" /build/nomad | tail -n 1") / 1024
}

// number is what a command prints, 0 for nothing.
func (h *reservingHost) number(command string) int64 {
	h.t.Helper()
	out := strings.TrimSpace(h.sh(h.t, command))
	if out == "" {
		return 0
	}
	n, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// On this machine, as it is.
func TestNomadLeavesHalfOfTheHost(t *testing.T) {
	t.Parallel()
	halfOfHost(t, newReservingHost(t, ""), func(all int) int { return all / 2 })
}

// On a machine of which Nomad and the script see one processor: sysfs and
// /proc/cpuinfo tell of one, and the agent is bound to it.
func TestNomadLeavesHalfOfOneProcessor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fakeSysfs(t, dir, []reserve.CPU{{ID: 0}})
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(info), "\n\n")
	write(t, filepath.Join(dir, "cpuinfo"), first+"\n\n")
	h := newReservingHost(t, mountSysfs(dir)+"mount --bind "+dir+"/cpuinfo /proc/cpuinfo\n")
	h.wrap = []string{"taskset", "-c", "0"}
	halfOfHost(t, h, func(int) int { return 0 })
}

// On machines that there are none of here, Nomad and the script see the same,
// and the scheduler gives jobs half of it. Jobs can't run on processors that
// don't exist, so here it is only asked.
func TestNomadLeavesHalfOfAnyMachine(t *testing.T) {
	t.Parallel()
	threads := func(n, cores int, mhz int64) []reserve.CPU {
		cpus := make([]reserve.CPU, n)
		for i := range cpus {
			cpus[i] = reserve.CPU{ID: i, MHz: mhz, Group: i % cores}
		}
		return cpus
	}
	hybrid := threads(16, 16, 3000)
	for i := range hybrid {
		hybrid[i].Group = i / 2 * 2
	}
	for i := range 8 {
		hybrid = append(hybrid, reserve.CPU{ID: 16 + i, MHz: 2000, Group: 16 + i})
	}
	tests := []struct {
		name      string
		cpus      []reserve.CPU
		host      string
		reserved  string
		cores     int
		exhausted string // by one more
	}{
		{"3 processors", threads(3, 3, 2601), "", "0", 1, "cpu"},
		{"one core of two threads", threads(2, 1, 2600), "", "", 1, "cpu"},
		{"16 threads, with facts", threads(16, 8, 2600), "  facts: {cores: 16, mhz: 41600, memory: 1TiB}\n", "0-3,8-11", 8, "cores"},
		{"P and E cores", hybrid, "", "0-9,16", 13, "cores"},
		{"256 threads", threads(256, 128, 2250), "", "0-63,128-191", 128, "cores"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			fakeSysfs(t, dir, tt.cpus)
			// Without its cgroups, Nomad doesn't mind that the processors don't exist.
			h := newReservingHost(t, mountSysfs(dir)+"umount --lazy /sys/fs/cgroup\n")
			h.configure(tt.host)
			node := h.start()
			var total int64
			for _, c := range tt.cpus {
				total += c.MHz
			}
			if got := node.NodeResources.Cpu.CpuShares; got != total {
				t.Errorf("Nomad has %d MHz, want %d", got, total)
			}
			if got := list(node.ReservedResources.Cpu.ReservedCpuCores); got != tt.reserved {
				t.Errorf("processors %q are reserved, want %q", got, tt.reserved)
			}
			if got := len(node.NodeResources.Cpu.ReservableCpuCores) + len(node.ReservedResources.Cpu.ReservedCpuCores); got != len(tt.cpus) {
				t.Errorf("Nomad sees %d processors, want %d", got, len(tt.cpus))
			}
			h.places(ask{cores: tt.cores}, "")
			h.places(ask{cores: tt.cores + 1}, tt.exhausted)
			h.places(ask{mhz: total / 2}, "")
			h.places(ask{mhz: total/2 + 1}, "cpu")
		})
	}
}
