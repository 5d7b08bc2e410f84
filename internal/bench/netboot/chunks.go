//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alisw/kiln/images"
)

// fetch is what curl fetches in one go.
type fetch struct {
	what  string
	paths []string
	size  int64 // of all, in bytes
}

// fetches are a large file, where the server's own work between files doesn't matter,
// and chunks, as an installation has them.
func (l *lab) fetches() []fetch {
	const times = 4 // so that curl's start doesn't count, nor its end, when some are done
	large := fetch{"a file of 256 MiB", slices.Repeat([]string{l.chunk(largeFile)}, 2*times), 2 * times * largeSize}
	chunks := fetch{what: "an image's chunks"}
	for _, sum := range l.image.Disk.Blocks {
		chunks.paths = append(chunks.paths, l.chunk(images.ChunkFile(sum)))
	}
	chunks.paths = slices.Repeat(chunks.paths, times/2)
	return []fetch{large, chunks}
}

// fetchRounds is how often each is fetched from each.
const fetchRounds = 9

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// measureChunks has curl fetch the same files of nginx and of kiln serve, in turns:
// one at a time and eight at once. What most rounds get counts, the median: a second
// of two busy processors can be a third faster or slower by chance.
func measureChunks(ctx context.Context, t *table, l *lab) error {
	s, stop, err := l.serveBesideNginx(ctx)
	if err != nil {
		return err
	}
	defer stop()
	servers := []string{"http://" + serverAddress + ":" + nginxPort, l.url("")}
	fmt.Printf("Chunks: curl fetches from nginx and from kiln serve, median of %d rounds in turns\n", fetchRounds)
	for _, f := range l.fetches() {
		for _, parallel := range []int{1, 8} {
			var speeds [2][]float64
			var used [2]float64
			for range fetchRounds {
				for i, base := range servers {
					before, err := usageOf(s.cmd.Process.Pid)
					if err != nil {
						return err
					}
					speed, err := curl(ctx, base, f, parallel)
					if err != nil {
						return err
					}
					after, err := usageOf(s.cmd.Process.Pid)
					if err != nil {
						return err
					}
					speeds[i] = append(speeds[i], speed)
					used[i] = (after.processor - before.processor).Seconds()
				}
			}
			nginx, kiln := median(speeds[0]), median(speeds[1])
			what := fmt.Sprintf("curl: %s, %d at once", f.what, parallel)
			fmt.Printf("  %-36s nginx %s, kiln serve %s: %.2f of nginx's; kiln's processor time %.2f s\n", what, mib(nginx/(1<<20)), mib(kiln/(1<<20)), kiln/nginx, used[1])
			t.more(what, "nginx", mib(kiln/(1<<20)), mib(nginx/(1<<20)), kiln/nginx, 0.9)
		}
	}
	return nil
}

// curl fetches all of it, so many files at once, and gives the bytes per second.
func curl(ctx context.Context, base string, f fetch, parallel int) (float64, error) {
	args := []string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--no-progress-meter", "--write-out", "%{size_download}\n"}
	if parallel > 1 {
		args = append(args, "--parallel", "--parallel-max", strconv.Itoa(parallel), "--parallel-immediate")
	}
	for _, path := range f.paths {
		args = append(args, "--output", "/dev/null", base+path)
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, "curl", args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("curl %s: %s: %w: %s", base, f.what, err, said.String())
	}
	var sum int64
	for _, line := range strings.Fields(string(out)) {
		n, err := strconv.ParseInt(line, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("curl %s: %s: %w", base, f.what, err)
		}
		sum += n
	}
	if f.size != 0 && sum != f.size {
		return 0, fmt.Errorf("curl %s: %s: got %d bytes, not %d", base, f.what, sum, f.size)
	}
	return float64(sum) / took.Seconds(), nil
}
