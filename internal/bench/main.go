// Command bench measures Kiln's speed on sites of many hosts, and prints it as
// a table, with the machine's name and with ratios where there is something to
// compare with. It fails for wrong results only, never by the clock.
//
// Each measurement is a process of its own, so that its memory is its own too.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/alisw/kiln/internal/bench/cpu"
)

func main() {
	small := flag.Int("small", 10_000, "hosts of the small site")
	large := flag.Int("large", 100_000, "hosts of the large site")
	step := flag.String("step", "", "measure one step in this process (used by the command itself)")
	site := flag.String("site", "", "site that the step measures")
	hosts := flag.Int("hosts", 0, "hosts of that site")
	profile := flag.String("cpuprofile", "", "file for the step's CPU profile")
	flag.Parse()
	var err error
	if *step != "" {
		err = measure(*step, *site, *hosts, *profile)
	} else {
		err = run(*small, *large)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// result is what a step took.
type result struct {
	Seconds float64 `json:"seconds"`
	RSS     int64   `json:"rss"` // most bytes in memory
	Bytes   int64   `json:"bytes"`
}

// run makes the sites, measures each step, and prints the table.
func run(small, large int) error {
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("%s, %d cores, %s, %s/%s\n\n", cpu.Model(), runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	results := map[string]map[int]result{}
	for _, n := range []int{small, large} {
		site := filepath.Join(dir, fmt.Sprint(n))
		if err := writeSite(site, n); err != nil {
			return fmt.Errorf("making a site of %d hosts: %w", n, err)
		}
		for _, s := range steps {
			r, err := inProcess(s.name, site, n)
			if err != nil {
				return err
			}
			if results[s.name] == nil {
				results[s.name] = map[int]result{}
			}
			results[s.name][n] = r
		}
	}
	printTable(results, small, large)
	return startUp(dir)
}

// inProcess measures a step in a process of its own.
func inProcess(step, site string, hosts int) (result, error) {
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(context.Background(), self, "-step", step, "-site", site, "-hosts", fmt.Sprint(hosts))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("%s of %d hosts: %w", step, hosts, err)
	}
	var r result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return result{}, fmt.Errorf("%s of %d hosts: %w", step, hosts, err)
	}
	r.RSS = maxRSS(cmd.ProcessState)
	return r, nil
}

// measure runs one step, and writes its result.
func measure(name, site string, hosts int, cpuProfile string) error {
	if cpuProfile != "" {
		f, err := os.Create(cpuProfile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	for _, s := range steps {
		if s.name != name {
			continue
		}
		start := time.Now()
		n, size, err := s.run(context.Background(), site)
		if err != nil {
			return err
		}
		if n != hosts {
			return fmt.Errorf("%d hosts were seen, of %d", n, hosts)
		}
		return json.NewEncoder(os.Stdout).Encode(result{Seconds: time.Since(start).Seconds(), Bytes: size})
	}
	return fmt.Errorf("there is no step %q", name)
}

func printTable(results map[string]map[int]result, small, large int) {
	row := func(cells ...string) {
		fmt.Printf("%-44s %10s %10s %12s %12s %10s %10s\n", cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6])
	}
	row("", fmt.Sprintf("%d", small), fmt.Sprintf("%d", large), "per host", "linearity", "to parsing", "memory")
	parse := results[parsing][large].Seconds
	for _, s := range steps {
		a, b := results[s.name][small], results[s.name][large]
		perHost := b.Seconds / float64(large)
		row(s.what, fmt.Sprintf("%.2f s", a.Seconds), fmt.Sprintf("%.2f s", b.Seconds), fmt.Sprintf("%.0f µs", perHost*1e6),
			fmt.Sprintf("%.2f", perHost/(a.Seconds/float64(small))), fmt.Sprintf("%.2f", b.Seconds/parse), fmt.Sprintf("%d MiB", b.RSS>>20))
	}
	fmt.Println("\nlinearity: time per host on the large site, divided by that on the small one; to parsing: divided by the time that yaml.v3 takes to read the same inventory,")
	fmt.Println("host by host, on one core; memory: most that the large site took. Wanted on two cores: 10 s for user-data and for check, under 512 MiB.")
}
