package reserve

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

func all(f float64) plan.Reservation { return plan.Reservation{CPU: f, Memory: f, Disk: f} }

// uniform is n processors of the same speed; siblings i and i+n/2, i+2n/3… are
// one group, as Linux numbers hyperthreads on most machines.
func uniform(n, threads int, mhz int64) []CPU {
	cpus := make([]CPU, n)
	for i := range cpus {
		cpus[i] = CPU{ID: i, MHz: mhz, Group: i % (n / threads)}
	}
	return cpus
}

func TestMeasured(t *testing.T) {
	hybrid := make([]CPU, 0, 24) // eight P cores of two threads, eight E cores
	for i := range 16 {
		hybrid = append(hybrid, CPU{ID: i, MHz: 3000, Group: i / 2 * 2})
	}
	for i := 16; i < 24; i++ {
		hybrid = append(hybrid, CPU{ID: i, MHz: 2000, Group: i})
	}
	machine := func(cpus []CPU) Machine {
		return Machine{CPUs: cpus, MemoryMiB: 1000, DiskMiB: 1000, DiskFreeMiB: 1000}
	}
	tests := []struct {
		name     string
		fraction float64
		facts    Facts
		machine  Machine
		want     Result // without the shares
	}{
		{"two processors", 0.5, Facts{}, machine(uniform(2, 1, 2596)),
			Result{TotalMHz: 5192, MHz: 2596, Cores: "0", CoreCount: 1, MemoryMiB: 500, DiskMiB: 500}},
		{"one processor keeps its number and half its MHz", 0.5, Facts{}, machine(uniform(1, 1, 2597)),
			Result{TotalMHz: 2597, MHz: 1299, MemoryMiB: 500, DiskMiB: 500}},
		{"one core of two threads isn't torn apart", 0.5, Facts{}, machine(uniform(2, 2, 2596)),
			Result{TotalMHz: 5192, MHz: 2596, MemoryMiB: 500, DiskMiB: 500}},
		{"three processors: one, and the MHz for the other half of one", 0.5, Facts{}, machine(uniform(3, 1, 2000)),
			Result{TotalMHz: 6000, MHz: 3000, Cores: "0", CoreCount: 1, MemoryMiB: 500, DiskMiB: 500}},
		{"siblings go together", 0.5, Facts{}, machine(uniform(16, 2, 2600)),
			Result{TotalMHz: 41600, MHz: 20800, Cores: "0-3,8-11", CoreCount: 8, MemoryMiB: 500, DiskMiB: 500}},
		{"256 processors", 0.5, Facts{}, machine(uniform(256, 2, 2250)),
			Result{TotalMHz: 576000, MHz: 288000, Cores: "0-63,128-191", CoreCount: 128, MemoryMiB: 500, DiskMiB: 500}},
		{"P and E cores, by their MHz", 0.5, Facts{}, machine(hybrid),
			Result{TotalMHz: 64000, MHz: 32000, Cores: "0-9,16", CoreCount: 11, MemoryMiB: 500, DiskMiB: 500}},
		{"nothing", 0, Facts{}, machine(uniform(4, 1, 1000)), Result{}},
		{"everything: one group stays, without MHz", 1, Facts{}, machine(uniform(4, 1, 1000)),
			Result{TotalMHz: 4000, MHz: 4000, Cores: "0-2", CoreCount: 3, MemoryMiB: 1000, DiskMiB: 1000}},
		{"a third, written in six digits, is one of three", 0.333333, Facts{}, machine(uniform(3, 1, 2600)),
			Result{TotalMHz: 7800, MHz: 2600, Cores: "0", CoreCount: 1, MemoryMiB: 334, DiskMiB: 334}},
		{"half of the disk is in use: the other is the jobs'", 0.5, Facts{}, Machine{DiskMiB: 1000, DiskFreeMiB: 500}, Result{}},
		{"more is in use than is reserved", 0.5, Facts{}, Machine{DiskMiB: 1000, DiskFreeMiB: 100}, Result{}},
		{"part of what is reserved is in use", 0.5, Facts{}, Machine{DiskMiB: 1000, DiskFreeMiB: 750}, Result{DiskMiB: 250}},
		{"facts that fit count", 0.5, Facts{Cores: 2, MHz: 5200, MemoryMiB: 1024}, machine(uniform(2, 1, 2596)),
			Result{TotalMHz: 5200, MHz: 2600, Cores: "0", CoreCount: 1, MemoryMiB: 512, DiskMiB: 500}},
		{"facts of another machine don't", 0.5, Facts{Cores: 16, MHz: 41600, MemoryMiB: 65536}, machine(uniform(2, 1, 2596)),
			Result{TotalMHz: 5192, MHz: 2596, Cores: "0", CoreCount: 1, MemoryMiB: 500, DiskMiB: 500}},
		{"a fact tells a speed that can't be measured", 0.5, Facts{MHz: 12000}, machine(uniform(4, 1, 0)),
			Result{TotalMHz: 12000, MHz: 6000, Cores: "0-1", CoreCount: 2, MemoryMiB: 500, DiskMiB: 500}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Measured(all(tt.fraction), tt.facts, tt.machine)
			got.CPU, got.Memory, got.Disk = 0, 0, 0
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestFromFacts(t *testing.T) {
	half := Result{CPU: 500_000, Memory: 500_000, Disk: 500_000}
	tests := []struct {
		name  string
		facts Facts
		want  func(*Result)
	}{
		{"nothing is known", Facts{}, func(*Result) {}},
		{"negative is nothing", Facts{-1, -1, -1}, func(*Result) {}},
		{"everything is known", Facts{16, 41600, 65536}, func(r *Result) {
			r.TotalMHz, r.MHz, r.Cores, r.CoreCount, r.MemoryMiB = 41600, 20800, "0-7", 8, 32768
		}},
		{"only the processors", Facts{Cores: 5}, func(r *Result) { r.Cores, r.CoreCount = "0-1", 2 }},
		{"only MHz", Facts{MHz: 2597}, func(r *Result) { r.TotalMHz, r.MHz = 2597, 1299 }},
		{"only memory", Facts{MemoryMiB: 3}, func(r *Result) { r.MemoryMiB = 2 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := half
			tt.want(&want)
			if got := FromFacts(all(0.5), tt.facts); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// What the facts tell is what is measured on the very machine that they tell of.
func TestFactsAgreeWithMeasured(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5_000 {
		n, mhz, mem := 1+r.IntN(256), 500+r.Int64N(5000), r.Int64N(1<<22)
		f := Facts{n, int64(n) * mhz, mem}
		res := all(r.Float64())
		known := FromFacts(res, f)
		measured := Measured(res, Facts{}, Machine{CPUs: uniform(n, 1, mhz), MemoryMiB: mem})
		if known != measured {
			t.Fatalf("%+v, %+v:\nfrom facts %+v\nmeasured   %+v", res, f, known, measured)
		}
	}
}

func TestMillionths(t *testing.T) {
	for f, want := range map[float64]int64{0: 0, 0.5: 500_000, 0.1: 100_000, 1: 1_000_000, 1.5: 1_000_000, -1: 0, 0.3333333: 333_333} {
		if got := Millionths(f); got != want {
			t.Errorf("Millionths(%v) = %d, want %d", f, got, want)
		}
	}
	if got := Millionths(math.NaN()); got != whole {
		t.Errorf("Millionths(NaN) = %d, want everything", got)
	}
}

func TestShareNeverOverflows(t *testing.T) {
	const most = math.MaxInt64 / 2
	if got := share(most, 500_000); got < most/2 || got > most/2+1 {
		t.Errorf("half of %d is %d", int64(most), got)
	}
}

// randomMachine is any machine: one to 256 processors in groups of one to four
// siblings, numbered side by side or apart, of one speed or two.
func randomMachine(r *rand.Rand, most int) Machine {
	threads := 1 + r.IntN(4)
	cores := 1 + r.IntN(max(1, most/threads))
	n := cores * threads
	speeds := [2]int64{1 + r.Int64N(5000), 1 + r.Int64N(5000)}
	if r.IntN(2) == 0 {
		speeds[1] = speeds[0]
	}
	split, apart := r.IntN(cores+1), r.IntN(2) == 0
	m := Machine{MemoryMiB: 1 + r.Int64N(1<<22), DiskMiB: 1 + r.Int64N(1<<27)}
	m.DiskFreeMiB = r.Int64N(m.DiskMiB + 1)
	for i := range n {
		core, group := i/threads, i/threads*threads
		if apart {
			core, group = i%cores, i%cores
		}
		mhz := speeds[0]
		if core >= split {
			mhz = speeds[1]
		}
		m.CPUs = append(m.CPUs, CPU{ID: i, MHz: mhz, Group: group})
	}
	return m
}

// parse reads the kernel's list format.
func parse(t *testing.T, list string) map[int]bool {
	t.Helper()
	ids := map[int]bool{}
	for piece := range strings.SplitSeq(list, ",") {
		if piece == "" {
			continue
		}
		a, b, isRange := strings.Cut(piece, "-")
		if !isRange {
			b = a
		}
		first, err1 := strconv.Atoi(a)
		last, err2 := strconv.Atoi(b)
		if err1 != nil || err2 != nil || first > last {
			t.Fatalf("%q is no list of processors", list)
		}
		for i := first; i <= last; i++ {
			ids[i] = true
		}
	}
	return ids
}

func TestProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5_000 {
		m := randomMachine(r, 256)
		f := r.Float64()
		got := Measured(all(f), Facts{}, m)
		reserved := parse(t, got.Cores)

		var total, left, smallest int64
		groups := map[int]int64{}
		state := map[int]bool{}
		for _, c := range m.CPUs {
			total += c.MHz
			groups[c.Group] += c.MHz
			if was, seen := state[c.Group]; seen && was != reserved[c.ID] {
				t.Fatalf("%v of %+v: the siblings of group %d are torn apart by %q", f, m, c.Group, got.Cores)
			}
			state[c.Group] = reserved[c.ID]
			if !reserved[c.ID] {
				left += c.MHz
			}
		}
		for g, mhz := range groups {
			if !state[g] && (smallest == 0 || mhz < smallest) {
				smallest = mhz
			}
		}
		placeable := got.TotalMHz - got.MHz
		exact := float64(total) * (1 - f)
		switch {
		case len(reserved) != got.CoreCount:
			t.Fatalf("%v of %+v: %q aren't %d", f, m, got.Cores, got.CoreCount)
		case math.Abs(float64(placeable)-exact) > 1+float64(total)/whole:
			t.Fatalf("%v of %+v: %d MHz can be placed, not %f", f, m, placeable, exact)
		case left < placeable:
			t.Fatalf("%v of %+v: %d MHz can be placed on processors of %d", f, m, placeable, left)
		case left-placeable >= smallest && len(groups)-countTrue(state) > 1:
			t.Fatalf("%v of %+v: another group of %d could have been reserved", f, m, smallest)
		case math.Abs(float64(got.MemoryMiB)-float64(m.MemoryMiB)*f) > 1+float64(m.MemoryMiB)/whole:
			t.Fatalf("%v of %+v: %d MiB of memory", f, m, got.MemoryMiB)
		case got.DiskMiB < 0 || got.DiskMiB > m.DiskFreeMiB:
			t.Fatalf("%v of %+v: %d MiB of disk", f, m, got.DiskMiB)
		case m.DiskFreeMiB-got.DiskMiB > m.DiskMiB-share(m.DiskMiB, got.Disk):
			t.Fatalf("%v of %+v: jobs could use %d MiB of disk", f, m, m.DiskFreeMiB-got.DiskMiB)
		}
	}
}

func countTrue(m map[int]bool) int {
	n := 0
	for _, v := range m {
		if v {
			n++
		}
	}
	return n
}
