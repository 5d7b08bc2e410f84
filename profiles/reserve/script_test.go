package reserve

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

// script is what measures on a host.
const script = "../alissandra/image/usr/lib/kiln/reserve"

// fakeHost is a directory that the script takes for a host's root.
type fakeHost struct {
	t    *testing.T
	root string
	bin  string // stands before PATH: df and dmidecode are fakes
}

func newFakeHost(t *testing.T) *fakeHost {
	t.Helper()
	// Go keeps a test's result as long as what the test itself opens is the same.
	if _, err := os.ReadFile(script); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	h := &fakeHost{t, filepath.Join(dir, "root"), filepath.Join(dir, "bin")}
	for _, d := range []string{"etc/kiln", "etc/nomad.d", "build/nomad", "proc", "sys/devices/system/cpu"} {
		h.mkdir(d)
	}
	// What df says stands in a file, as no test can have a filesystem of each size.
	h.program("df", `[ "$1" = -kP ] && [ -d "$2" ] && while read -r line; do echo "$line"; done <"`+filepath.Join(dir, "df")+`"`)
	// This machine's own firmware has no say.
	h.program("dmidecode", "exit 1")
	return h
}

func (h *fakeHost) mkdir(path string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.root, path), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) write(path, content string) {
	h.t.Helper()
	h.mkdir(filepath.Dir(path))
	if err := os.WriteFile(filepath.Join(h.root, path), []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) remove(path string) {
	h.t.Helper()
	if err := os.RemoveAll(filepath.Join(h.root, path)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *fakeHost) program(name, body string) {
	h.t.Helper()
	if err := os.MkdirAll(h.bin, 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// machine lays out the files in which a kernel tells what m is.
func (h *fakeHost) machine(m Machine) {
	h.t.Helper()
	siblings := map[int][]int{}
	var ids []int
	for _, c := range m.CPUs {
		ids = append(ids, c.ID)
		siblings[c.Group] = append(siblings[c.Group], c.ID)
	}
	for _, c := range m.CPUs {
		dir := fmt.Sprintf("sys/devices/system/cpu/cpu%d/", c.ID)
		h.write(dir+"topology/thread_siblings_list", list(siblings[c.Group])+"\n")
		if c.MHz > 0 {
			h.write(dir+"cpufreq/base_frequency", fmt.Sprintf("%d\n", c.MHz*1000))
		}
	}
	h.write("sys/devices/system/cpu/online", list(ids)+"\n")
	h.write("sys/devices/system/node/online", "0-1\n")
	h.write("sys/devices/system/node/node0/cpulist", list(ids[:len(ids)/2])+"\n")
	h.write("sys/devices/system/node/node1/cpulist", list(ids[len(ids)/2:])+"\n")
	var cpuinfo strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&cpuinfo, "processor\t: %d\nmodel name\t: An 8.5 GHz: Processor\ncpu MHz\t\t: 0.000\n\n", id)
	}
	h.write("proc/cpuinfo", cpuinfo.String())
	h.write("proc/meminfo", fmt.Sprintf("MemTotal:       %d kB\nMemFree:          1024 kB\n", m.MemoryMiB*1024+1023))
	h.disk(m.DiskMiB*1024+7, m.DiskFreeMiB*1024+7)
}

func (h *fakeHost) disk(totalKiB, freeKiB int64) {
	h.t.Helper()
	h.write("../df", fmt.Sprintf("Filesystem     1024-blocks  Used Available Capacity Mounted on\n/dev/sda1 %d %d %d 1%% /build\n", totalKiB, totalKiB-freeKiB, freeKiB))
}

// settings writes what the profile's template makes of a reservation.
func (h *fakeHost) settings(r plan.Reservation, f Facts) {
	h.t.Helper()
	s := shares(r)
	h.write("etc/kiln/reserve", fmt.Sprintf("CPU=%d\nMEMORY=%d\nDISK=%d\nFACT_CORES=%d\nFACT_MHZ=%d\nFACT_MEMORY_MIB=%d\nDATA_DIR=/build/nomad\n",
		s.CPU, s.Memory, s.Disk, f.Cores, f.MHz, f.MemoryMiB))
}

// run gives what the script says, and whether it succeeded.
func (h *fakeHost) run() (said string, ok bool) {
	h.t.Helper()
	cmd := exec.Command("sh", script)
	cmd.Env = []string{"PATH=" + h.bin + ":" + os.Getenv("PATH"), "KILN_ROOT=" + h.root}
	out, err := cmd.CombinedOutput()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		h.t.Fatal(err)
	}
	return string(out), err == nil
}

// reserved reads what the script wrote.
func (h *fakeHost) reserved() Result {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root, "etc/nomad.d/30-reserved.hcl"))
	if err != nil {
		h.t.Fatal(err)
	}
	var r Result
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		if strings.TrimSpace(key) == "cores" {
			text, err := strconv.Unquote(value)
			if err != nil {
				h.t.Fatalf("cores = %s: %v", value, err)
			}
			r.Cores = strings.TrimSpace(text)
			r.CoreCount = len(parse(h.t, r.Cores))
			continue
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			h.t.Fatalf("%s: %v", line, err)
		}
		switch strings.TrimSpace(key) {
		case "cpu_total_compute":
			r.TotalMHz = n
		case "cpu":
			r.MHz = n
		case "memory":
			r.MemoryMiB = n
		case "disk":
			r.DiskMiB = n
		default:
			h.t.Fatalf("what is %q?", line)
		}
	}
	return r
}

// The script counts as the package does, to the last MHz and MiB.
func TestScriptAgrees(t *testing.T) {
	const fractions = 10
	for _, most := range []int{8, 64, 256} {
		t.Run(strconv.Itoa(most), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(most), 5))
			h := newFakeHost(t)
			for range max(1, machines*8/(most+8)) {
				h.remove("sys")
				m := randomMachine(r, most)
				if r.IntN(8) == 0 {
					for i := range m.CPUs {
						m.CPUs[i].MHz = 0
					}
				}
				h.machine(m)
				for range fractions {
					res := plan.Reservation{CPU: fraction(r), Memory: fraction(r), Disk: fraction(r)}
					f := randomFacts(r, m)
					h.settings(res, f)
					want := Measured(res, f, m)
					want.CPU, want.Memory, want.Disk = 0, 0, 0
					said, ok := h.run()
					if want.TotalMHz == 0 && Millionths(res.CPU) > 0 {
						if ok || !strings.Contains(said, "how fast the processors are") {
							t.Fatalf("%+v, %+v of %+v:\nthe script doesn't say that it knows no speed: %s", res, f, m, said)
						}
						continue
					}
					if !ok {
						t.Fatalf("%+v, %+v of %+v:\nthe script failed: %s", res, f, m, said)
					}
					if got := h.reserved(); got != want {
						t.Fatalf("%+v, %+v of %+v:\nthe script: %+v\nthe package: %+v\n%s", res, f, m, got, want, said)
					}
				}
			}
		})
	}
}

// fraction is any, but often one of the ends or the middle.
func fraction(r *rand.Rand) float64 {
	if i := r.IntN(8); i < 3 {
		return []float64{0, 0.5, 1}[i]
	}
	return r.Float64()
}

// randomFacts are none, or right, or nearly so, or of another machine.
func randomFacts(r *rand.Rand, m Machine) Facts {
	var mhz int64
	for _, c := range m.CPUs {
		mhz += c.MHz
	}
	about := func(n int64) int64 {
		switch r.IntN(4) {
		case 0:
			return 0
		case 1:
			return n
		case 2:
			return n - n/16 + r.Int64N(n/8+1)
		}
		return r.Int64N(2*n + 1)
	}
	return Facts{int(about(int64(len(m.CPUs)))), about(mhz), about(m.MemoryMiB)}
}

// Where the kernel's files differ, the script takes what Nomad takes.
func TestScriptMeasures(t *testing.T) {
	const cpu = "sys/devices/system/cpu/"
	four := Machine{CPUs: uniform(4, 1, 0), MemoryMiB: 1, DiskMiB: 1}
	each := func(h *fakeHost, file, content string) {
		for i := range 4 {
			h.write(fmt.Sprintf("%scpu%d/%s", cpu, i, file), content)
		}
	}
	tests := []struct {
		name  string
		set   func(*fakeHost)
		total int64
		cores string
	}{
		{"base frequency before the highest", func(h *fakeHost) {
			each(h, "cpufreq/base_frequency", "2100000\n")
			each(h, "cpufreq/cpuinfo_max_freq", "3900000\n")
		}, 4 * 2100, "0-1"},
		{"the highest where there is no base", func(h *fakeHost) { each(h, "cpufreq/cpuinfo_max_freq", "3900123\n") }, 4 * 3900, "0-1"},
		{"CPPC's nominal frequency with acpi-cpufreq", func(h *fakeHost) {
			each(h, "cpufreq/scaling_driver", "acpi-cpufreq\n")
			each(h, "acpi_cppc/nominal_freq", "2250\n")
			each(h, "cpufreq/base_frequency", "1111000\n")
			each(h, "cpufreq/cpuinfo_max_freq", "3700000\n")
		}, 4 * 2250, "0-1"},
		{"acpi-cpufreq without CPPC", func(h *fakeHost) {
			each(h, "cpufreq/scaling_driver", "acpi-cpufreq\n")
			each(h, "cpufreq/base_frequency", "1111000\n")
			each(h, "cpufreq/cpuinfo_max_freq", "3700000\n")
		}, 4 * 3700, "0-1"},
		{"the firmware's for those that the kernel doesn't tell", func(h *fakeHost) {
			h.program("dmidecode", "[ \"$1 $2\" = '-t 4' ] && printf 'Processor Information\\n\\tMax Speed: 4000 MHz\\n\\tCurrent Speed: 2400 MHz\\nProcessor Information\\n\\tCurrent Speed: 100 MHz\\n'")
			h.write(cpu+"cpu0/cpufreq/base_frequency", "3000000\n")
		}, 3000 + 3*2400, "0"},
		{"/proc/cpuinfo's first, without any", func(h *fakeHost) {
			h.write("proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2096.903\n\nprocessor\t: 1\ncpu MHz\t\t: 4000.0\n\nprocessor : 2\nprocessor : 3\n")
		}, 4 * 2096, "0-1"},
		{"POWER's spelling of it", func(h *fakeHost) {
			h.write("proc/cpuinfo", "processor\t: 0\nclock\t\t: 3425.000000MHz\nprocessor\t: 1\nprocessor\t: 2\nprocessor\t: 3\n")
		}, 4 * 3425, "0-1"},
		{"a kernel without NUMA", func(h *fakeHost) {
			h.remove("sys/devices/system/node")
			each(h, "cpufreq/base_frequency", "2100000\n")
			each(h, "cpufreq/cpuinfo_max_freq", "3900000\n")
		}, 4 * 3900, "0-1"},
		{"a node with nothing but memory", func(h *fakeHost) {
			each(h, "cpufreq/base_frequency", "2100000\n")
			h.write("sys/devices/system/node/node0/cpulist", "0-3\n")
			h.write("sys/devices/system/node/node1/cpulist", "\n")
		}, 4 * 2100, "0-1"},
		{"processors offline in between: Nomad sees only those below their number", func(h *fakeHost) {
			each(h, "cpufreq/base_frequency", "2000000\n")
			h.write(cpu+"online", "0,2\n")
			h.write("sys/devices/system/node/node0/cpulist", "0\n")
			h.write("sys/devices/system/node/node1/cpulist", "2\n")
		}, 2000, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHost(t)
			h.machine(four)
			tt.set(h)
			h.settings(plan.Reservation{CPU: 0.5}, Facts{})
			if said, ok := h.run(); !ok {
				t.Fatalf("the script failed: %s", said)
			}
			if got := h.reserved(); got.TotalMHz != tt.total || got.Cores != tt.cores {
				t.Errorf("got %d MHz and %q, want %d and %q", got.TotalMHz, got.Cores, tt.total, tt.cores)
			}
		})
	}
}

// Jobs' directories can be on a filesystem of their own.
func TestScriptMeasuresAlloc(t *testing.T) {
	h := newFakeHost(t)
	h.machine(Machine{CPUs: uniform(1, 1, 1000), MemoryMiB: 1000, DiskMiB: 1000, DiskFreeMiB: 1000})
	h.mkdir("build/nomad/alloc")
	h.program("df", `case $2 in */alloc) printf 'x\n/dev/sdb 2048000 0 2048000 0%% /\n' ;; *) exit 1 ;; esac`)
	h.settings(all(0.5), Facts{})
	if said, ok := h.run(); !ok {
		t.Fatalf("the script failed: %s", said)
	}
	if got := h.reserved(); got.DiskMiB != 1000 {
		t.Errorf("got %d MiB, want half of the filesystem of alloc, 1000", got.DiskMiB)
	}
}

// What can't be measured is an error that says so, and leaves what was there.
func TestScriptFails(t *testing.T) {
	tests := []struct {
		name string
		set  func(*fakeHost)
		want string
	}{
		{"no settings", func(h *fakeHost) { h.remove("etc/kiln/reserve") }, "etc/kiln/reserve, which says how much to reserve"},
		{"settings without a number", func(h *fakeHost) { h.write("etc/kiln/reserve", "CPU=500000\nMEMORY=half\n") }, "has no number as MEMORY"},
		{"a share of more than all", func(h *fakeHost) {
			h.write("etc/kiln/reserve", "CPU=1000001\nMEMORY=0\nDISK=0\nFACT_CORES=0\nFACT_MHZ=0\nFACT_MEMORY_MIB=0\nDATA_DIR=/\n")
		}, "CPU is more than 1000000"},
		{"settings without a data directory", func(h *fakeHost) {
			h.write("etc/kiln/reserve", "CPU=0\nMEMORY=0\nDISK=0\nFACT_CORES=0\nFACT_MHZ=0\nFACT_MEMORY_MIB=0\n")
		}, "no DATA_DIR"},
		{"settings that break off", func(h *fakeHost) { h.write("etc/kiln/reserve", "CPU='") }, "reserve"},
		{"no sysfs", func(h *fakeHost) { h.remove("sys") }, "can't read"},
		{"no list of processors", func(h *fakeHost) { h.write("sys/devices/system/cpu/online", "some\n") }, `can't read "some" as a list of processors`},
		{"a node without a list", func(h *fakeHost) { h.remove("sys/devices/system/node/node0/cpulist") }, "node0/cpulist"},
		{"no siblings", func(h *fakeHost) { h.remove("sys/devices/system/cpu/cpu1/topology") }, "cpu1/topology/thread_siblings_list"},
		{"no speed at all", func(h *fakeHost) {
			h.remove("sys/devices/system/cpu/cpu0/cpufreq")
			h.remove("sys/devices/system/cpu/cpu1/cpufreq")
		}, "facts: {mhz: …}"},
		{"no meminfo", func(h *fakeHost) { h.remove("proc/meminfo") }, "proc/meminfo"},
		{"no MemTotal", func(h *fakeHost) { h.write("proc/meminfo", "MemFree: 1 kB\n") }, "has no MemTotal"},
		{"no data directory", func(h *fakeHost) { h.remove("build") }, "is its disk mounted?"},
		{"df fails", func(h *fakeHost) { h.program("df", "echo 'Input/output error' >&2; exit 1") }, "df failed"},
		{"df says nothing", func(h *fakeHost) { h.program("df", "echo Filesystem") }, "df says"},
		{"df says a dash", func(h *fakeHost) { h.program("df", "printf 'x\\nnone - - - - /\\n'") }, "df says: none - -"},
		{"nowhere to write", func(h *fakeHost) { h.remove("etc/nomad.d") }, "can't write"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newFakeHost(t)
			h.machine(Machine{CPUs: uniform(2, 1, 2000), MemoryMiB: 1000, DiskMiB: 1000, DiskFreeMiB: 1000})
			h.settings(all(0.5), Facts{})
			h.write("etc/nomad.d/30-reserved.hcl", "# as it was\n")
			tt.set(h)
			said, ok := h.run()
			if ok || !strings.Contains(said, tt.want) {
				t.Fatalf("ok is %v, and it says %q; want a failure that says %q", ok, said, tt.want)
			}
			files, err := filepath.Glob(filepath.Join(h.root, "etc/nomad.d/*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if b, err := os.ReadFile(f); err != nil || string(b) != "# as it was\n" {
					t.Errorf("%s holds %q, %v", f, b, err)
				}
			}
		})
	}
}

// What isn't reserved needn't be known.
func TestScriptReservesNothing(t *testing.T) {
	h := newFakeHost(t)
	h.remove("sys")
	h.remove("build")
	h.settings(all(0), Facts{})
	if said, ok := h.run(); !ok {
		t.Fatalf("the script failed: %s", said)
	}
	if got := h.reserved(); got != (Result{}) {
		t.Errorf("reserved %+v", got)
	}
}

// With cgroups of version 1, the cpusets that an earlier start made lose the
// processors that are to be reserved, but never under a job that has its own.
func TestScriptFreesCgroups(t *testing.T) {
	const top = "sys/fs/cgroup/cpuset/nomad/"
	host := func(t *testing.T) *fakeHost {
		h := newFakeHost(t)
		h.machine(Machine{CPUs: uniform(4, 1, 2000), MemoryMiB: 1000, DiskMiB: 1000, DiskFreeMiB: 1000})
		h.settings(all(0.5), Facts{})
		h.write(top+"share/cpuset.cpus", "0-1,3\n")
		h.write(top+"reserve/cpuset.cpus", "1-2\n")
		h.write(top+"reserve/a.task/cpuset.cpus", "2\n")
		h.write(top+"reserve/a.task/cgroup.procs", "4711\n")
		h.write(top+"reserve/b.task/cpuset.cpus", "1\n")
		h.write(top+"reserve/b.task/cgroup.procs", "")
		return h
	}
	t.Run("freed", func(t *testing.T) {
		h := host(t)
		if said, ok := h.run(); !ok {
			t.Fatalf("the script failed: %s", said)
		}
		for file, want := range map[string]string{"share": "3\n", "reserve": "2\n", "reserve/a.task": "2\n", "reserve/b.task": "\n"} {
			b, err := os.ReadFile(filepath.Join(h.root, top, file, "cpuset.cpus"))
			if err != nil || string(b) != want {
				t.Errorf("%s holds %q, %v; want %q", file, b, err, want)
			}
		}
	})
	t.Run("in use", func(t *testing.T) {
		h := host(t)
		h.write(top+"reserve/b.task/cgroup.procs", "4712\n")
		if said, ok := h.run(); ok || !strings.Contains(said, "a running job has processor 1 to itself") {
			t.Errorf("ok is %v, and it says %q", ok, said)
		}
	})
	t.Run("shared by nothing else", func(t *testing.T) {
		h := host(t)
		h.write(top+"share/cpuset.cpus", "0\n")
		if said, ok := h.run(); !ok {
			t.Fatalf("the script failed: %s", said)
		}
		if b, _ := os.ReadFile(filepath.Join(h.root, top, "share/cpuset.cpus")); string(b) != "2,3\n" {
			t.Errorf("share holds %q, want all that isn't reserved", b)
		}
	})
}
