package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// startUp measures kiln itself on a site of ten hosts, its start included.
func startUp(dir string) error {
	site, kiln := filepath.Join(dir, "ten"), filepath.Join(dir, "kiln")
	if err := writeSite(site, 10); err != nil {
		return err
	}
	if out, err := exec.Command("go", "build", "-o", kiln, "./cmd/kiln").CombinedOutput(); err != nil {
		return fmt.Errorf("building kiln: %w: %s", err, out)
	}
	median := func(args ...string) (time.Duration, error) {
		var took []time.Duration
		for range 11 {
			var stderr bytes.Buffer
			cmd := exec.Command(kiln, args...)
			cmd.Stderr = &stderr
			start := time.Now()
			if err := cmd.Run(); err != nil {
				return 0, fmt.Errorf("kiln %v: %w: %s", args, err, stderr.Bytes())
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		return took[len(took)/2], nil
	}
	help, err := median("--help")
	if err != nil {
		return err
	}
	render, err := median("render", "metal000000", "--site", site, "--format", "cloud-init", "-o", filepath.Join(dir, "user-data"))
	if err != nil {
		return err
	}
	fmt.Printf("\nkiln render HOST, ten hosts: %d ms, of which %d ms are the process' start (median of 11). Wanted: 50 ms.\n", render.Milliseconds(), help.Milliseconds())
	return nil
}

// maxRSS is the most bytes of memory that the process had.
func maxRSS(s *os.ProcessState) int64 { return rss(s.SysUsage()) }
