package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/alisw/kiln/profiles/reserve"
)

// slack is how much of the disk, in MiB, may come and go between the moment that
// a reservation was worked out and the one that Nomad looked at it; and a
// hundredth of the disk.
const slack = 256

const fixReservation = "restart nomad on the host, so that it works out its reservation anew; /etc/nomad.d has what it is told, and journalctl -u nomad what it measured"

// checkReservation holds what the node keeps from jobs against the plan: a share
// of the host, or the numbers that its configuration has.
func checkReservation(r *results, e *expected, node *nomad.Node) {
	if !r.wants(CheckReservation) || e.nomad == nil {
		return
	}
	all, kept := node.NodeResources, node.ReservedResources
	if all == nil || kept == nil {
		r.add(Finding{Check: CheckReservation, Status: Unknown, Expected: "the node's resources", Found: "Nomad tells none",
			Fix: "its servers are too old to tell: look at the node with nomad node status -verbose " + shortID(node.ID)})
		return
	}
	said := e.nomad.reserved
	_, cores := said["cores"]
	if !cores || e.reserved.CPU > 0 {
		checkAmount(r, "cpu", "MHz", all.Cpu.CpuShares, int64(kept.Cpu.CpuShares), e.reserved.CPU, said)
	}
	checkAmount(r, "memory", "MiB", all.Memory.MemoryMB, int64(kept.Memory.MemoryMB), e.reserved.Memory, said)
	if e.reserved.Disk > 0 {
		checkDiskShare(r, node, e.reserved.Disk)
	} else {
		checkAmount(r, "disk", "MiB", all.Disk.DiskMB, int64(kept.Disk.DiskMB), 0, said)
	}
	// A share's processors depend on which of them are hyperthreads, which only
	// the host knows: its MHz say whether the share is right.
	if want, ok := numbers(said.text("cores")); cores && ok && e.reserved.CPU == 0 {
		checkCores(r, want, all.Cpu)
	}
	want, ok := numbers(said.text("reserved_ports"))
	have, known := numbers(kept.Networks.ReservedHostPorts)
	if ok && known {
		for port := range want {
			if !have[port] {
				r.add(Finding{Check: CheckReservation, Object: "ports", Expected: said.text("reserved_ports"), Found: cmp.Or(kept.Networks.ReservedHostPorts, "none"), Fix: fixReservation})
				break
			}
		}
	}
}

// checkAmount wants a share of all of it to be reserved, rounded up, or what the
// configuration says. Where there is both, the configuration has the share of
// what the inventory knows, which counts if it fits the host.
func checkAmount(r *results, what, unit string, all, kept int64, share float64, said settings) {
	number, ok := said.number(what)
	if share == 0 {
		if kept != number {
			r.add(Finding{Check: CheckReservation, Object: what, Expected: amount(number, unit), Found: amount(kept, unit), Fix: fixReservation})
		}
		return
	}
	millionths := reserve.Millionths(share)
	want := (all*millionths + 999_999) / 1_000_000
	// One MHz or MiB is what rounding twice makes.
	if ok && max(kept-number, number-kept) <= 1 && max(number-want, want-number)*16 <= max(want, 1) {
		return
	}
	if max(kept-want, want-kept) > 1 {
		r.add(Finding{Check: CheckReservation, Object: what, Expected: fmt.Sprintf("%s, %s of %s", amount(want, unit), percent(share), amount(all, unit)),
			Found: amount(kept, unit), Fix: fixReservation})
	}
}

// checkDiskShare wants jobs to get no more than their share of the whole disk,
// and no less than what of that is free. Nomad's capacity is what was free when
// its agent started.
func checkDiskShare(r *results, node *nomad.Node, share float64) {
	size, err := strconv.ParseInt(node.Attributes["unique.storage.bytestotal"], 10, 64)
	free, kept := node.NodeResources.Disk.DiskMB, int64(node.ReservedResources.Disk.DiskMB)
	if err != nil || size <= 0 {
		r.add(Finding{Check: CheckReservation, Status: Unknown, Object: "disk", Expected: percent(share) + " of the disk", Found: "Nomad doesn't tell its size",
			Fix: "look at the node's attribute unique.storage.bytestotal: nomad node status -verbose " + shortID(node.ID)})
		return
	}
	size >>= 20
	most := int64((1 - share) * float64(size))
	jobs, want := free-kept, min(most, free)
	if tolerance := slack + size/100; jobs > want+tolerance || jobs < want-tolerance {
		r.add(Finding{Check: CheckReservation, Object: "disk",
			Expected: fmt.Sprintf("jobs get %s of %s, of which %s were free", amount(want, "MiB"), amount(size, "MiB"), amount(free, "MiB")),
			Found:    "they get " + amount(jobs, "MiB"), Fix: fixReservation})
	}
}

func checkCores(r *results, want map[int]bool, cpu nomad.NodeCpuResources) {
	for _, n := range cpu.ReservableCpuCores {
		if want[int(n)] {
			var left []string
			for _, n := range slices.Sorted(slices.Values(cpu.ReservableCpuCores)) {
				left = append(left, strconv.Itoa(int(n)))
			}
			r.add(Finding{Check: CheckReservation, Object: "cores", Expected: fmt.Sprintf("%d processors kept from jobs", len(want)), Found: "jobs get the processors " + fmt.Sprint(left), Fix: fixReservation})
			return
		}
	}
}

func amount(n int64, unit string) string { return fmt.Sprintf("%d %s", n, unit) }

func percent(share float64) string { return strconv.FormatFloat(share*100, 'g', 4, 64) + "%" }
