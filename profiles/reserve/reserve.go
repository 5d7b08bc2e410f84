// Package reserve is the arithmetic of what a host keeps from Nomad: a share of
// its processors, its memory and its disk.
//
// It is the same arithmetic twice: here, for what the inventory knows when a
// host is rendered, and in the script /usr/lib/kiln/reserve of the profile
// alissandra, which measures the host before each start of Nomad. Both count in
// whole numbers, so that they agree to the last one; a test runs the script
// against this package.
//
// What is reserved is rounded up to whole MHz and MiB: never less than the
// share. Processors are rounded down to whole groups of hyperthread siblings:
// the MHz, which are exact, hold back the rest. So a host with one processor
// reserves no processor, and half of its MHz: a job that asks for a processor
// of its own wants more than the half that is left, and isn't placed.
package reserve

import (
	"math"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// whole is a share of everything, in millionths: what shares are counted in.
const whole = 1_000_000

// maxCores bounds what a fact can make FromFacts count: Nomad numbers
// processors in 16 bits.
const maxCores = 1 << 16

// assumedMHz stands for the speed of each processor where none is known: a
// share of the processors can be told without it.
const assumedMHz = 1000

// Facts is what the inventory knows of a host's hardware. 0 is unknown.
type Facts struct {
	Cores     int   // processors, as the kernel counts them
	MHz       int64 // of all processors together, as Nomad counts them
	MemoryMiB int64
}

// CPU is one processor, as the kernel counts them: a hyperthread is one.
type CPU struct {
	ID    int
	MHz   int64 // 0 where unknown
	Group int   // the lowest ID among its hyperthread siblings
}

// Machine is what was measured on a host, as Nomad measures it.
type Machine struct {
	CPUs        []CPU // in the order of their IDs
	MemoryMiB   int64
	DiskMiB     int64 // size of the filesystem that holds Nomad's data directory
	DiskFreeMiB int64 // what unprivileged users can still write there
}

// Result is what Nomad is told.
type Result struct {
	// Shares of each dimension, in millionths.
	CPU, Memory, Disk int64

	// TotalMHz is what Nomad is told that the host has, MHz how many of these
	// are reserved. Both are 0 where no MHz are reserved, or none are known.
	TotalMHz, MHz int64
	// Cores names the processors that are reserved, in the kernel's list
	// format: 0-3,8-11. It is empty for none.
	Cores     string
	CoreCount int
	MemoryMiB int64 // 0 where none is reserved, or it isn't known
	DiskMiB   int64
}

// FromFacts is the reservation as far as the inventory's facts tell it. They
// say nothing of the disk, whose free space is only known when Nomad starts, and
// nothing of hyperthreads: each processor counts as a group of its own.
func FromFacts(r plan.Reservation, f Facts) Result {
	cpus := make([]CPU, min(max(0, f.Cores), maxCores))
	for i := range cpus {
		cpus[i] = CPU{ID: i, MHz: max(0, f.MHz) / int64(len(cpus)), Group: i}
	}
	res := shares(r)
	res.cores(cpus)
	res.mhz(max(0, f.MHz))
	res.MemoryMiB = share(max(0, f.MemoryMiB), res.Memory)
	return res
}

// Measured is the reservation on a host: which processors and how much of the
// disk from what was measured; MHz and memory from the inventory's facts where
// it has them and they fit the host, else from what was measured too.
func Measured(r plan.Reservation, f Facts, m Machine) Result {
	res := shares(r)
	res.cores(m.CPUs)
	var mhz int64
	for _, c := range m.CPUs {
		mhz += c.MHz
	}
	res.mhz(settle(f.MHz, mhz))
	res.MemoryMiB = share(settle(f.MemoryMiB, m.MemoryMiB), res.Memory)
	// Nomad's capacity is what is free when its agent starts.
	if res.Disk > 0 {
		res.DiskMiB = max(0, m.DiskFreeMiB-(m.DiskMiB-share(m.DiskMiB, res.Disk)))
	}
	return res
}

// Data is the result as templates see it: .host.reserved.
func (r Result) Data() map[string]any {
	return map[string]any{
		"cpu_millionths":    r.CPU,
		"memory_millionths": r.Memory,
		"disk_millionths":   r.Disk,
		"total_mhz":         r.TotalMHz,
		"mhz":               r.MHz,
		"cores":             r.Cores,
		"core_count":        r.CoreCount,
		"memory_mib":        r.MemoryMiB,
	}
}

// Millionths is a fraction as shares are counted: the nearest millionth, from
// none to the whole. What isn't a number reserves everything.
func Millionths(fraction float64) int64 {
	if math.IsNaN(fraction) {
		return whole
	}
	return int64(math.Round(min(max(fraction, 0), 1) * whole))
}

func shares(r plan.Reservation) Result {
	return Result{CPU: Millionths(r.CPU), Memory: Millionths(r.Memory), Disk: Millionths(r.Disk)}
}

// share is so many millionths of total, rounded up. Taking the whole millions
// apart keeps any total from overflowing.
func share(total, millionths int64) int64 {
	return total/whole*millionths + (total%whole*millionths+whole-1)/whole
}

// settle chooses between a fact and what was measured (0 where there is none).
// The fact counts, as long as it is within a sixteenth of the measured: memory
// is sold in round numbers, and the kernel keeps some of it. A fact that is
// further off is of another machine.
func settle(fact, measured int64) int64 {
	switch {
	case fact <= 0:
		return measured
	case measured <= 0:
		return fact
	case max(fact-measured, measured-fact)*16 > measured:
		return measured
	}
	return fact
}

func (r *Result) mhz(total int64) {
	if r.CPU > 0 {
		r.TotalMHz, r.MHz = total, share(total, r.CPU)
	}
}

// cores reserves groups of siblings, from the lowest processor up (where the
// kernel's own work tends to be), each that still fits into the share of the
// MHz. At least one group stays with Nomad: it can't run with an empty cpuset,
// and where everything is reserved, the MHz see to it.
func (r *Result) cores(cpus []CPU) {
	if r.CPU == 0 || len(cpus) == 0 {
		return
	}
	var total int64
	for _, c := range cpus {
		total += c.MHz
	}
	known := total > 0
	var order []int // groups, in the order of their lowest processor
	weight := map[int]int64{}
	for _, c := range cpus {
		mhz := c.MHz
		if !known {
			mhz = assumedMHz
			total += mhz
		}
		if _, seen := weight[c.Group]; !seen {
			order = append(order, c.Group)
		}
		weight[c.Group] += mhz
	}
	budget := share(total, r.CPU)
	reserved := map[int]bool{}
	for _, g := range order {
		if weight[g] <= budget && len(reserved) < len(order)-1 {
			budget -= weight[g]
			reserved[g] = true
		}
	}
	var ids []int
	for _, c := range cpus {
		if reserved[c.Group] {
			ids = append(ids, c.ID)
		}
	}
	r.Cores, r.CoreCount = list(ids), len(ids)
}

// list writes ascending numbers in the kernel's list format: 0-3,8.
func list(ids []int) string {
	var b strings.Builder
	for i := 0; i < len(ids); {
		last := i
		for last+1 < len(ids) && ids[last+1] == ids[last]+1 {
			last++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(ids[i]))
		if last > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(ids[last]))
		}
		i = last + 1
	}
	return b.String()
}
