package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// step is one thing to measure: it gives the number of hosts that it saw, and
// the bytes that it made of them.
type step struct {
	name, what string
	run        func(ctx context.Context, site string) (hosts int, size int64, err error)
}

const parsing = "parse"

var steps = []step{
	{parsing, "yaml.v3 reads the inventory, host by host", parse},
	{"resolve", "resolve", func(ctx context.Context, site string) (int, int64, error) { return resolve(ctx, site, nil) }},
	{"render", "resolve and render golden user-data", func(ctx context.Context, site string) (int, int64, error) {
		return resolve(ctx, site, func(p *plan.Plan) ([]byte, error) {
			return render.CloudInit(p, render.Options{Target: render.Golden})
		})
	}},
	{"check", "check", check},
}

// collect sets the garbage collector as cmd/kiln does.
func collect() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(384 << 20)
}

// resolve resolves every host, and renders it.
func resolve(ctx context.Context, site string, renderHost func(*plan.Plan) ([]byte, error)) (hosts int, size int64, err error) {
	collect()
	s, problems, err := profiles.Open(site)
	if err := errors.Join(err, problems.Err()); err != nil {
		return 0, 0, err
	}
	var failed error
	rest, err := s.Plans(ctx, func(name string, p *plan.Plan, problems problem.List) bool {
		if p == nil {
			failed = fmt.Errorf("%s: %w", name, problems)
			return false
		}
		hosts++
		if renderHost != nil {
			var out []byte
			out, failed = renderHost(p)
			size += int64(len(out))
		}
		return failed == nil
	})
	return hosts, size, errors.Join(err, failed, rest.Err())
}

// check is what kiln check does.
func check(ctx context.Context, site string) (int, int64, error) {
	collect()
	problems, hosts, err := profiles.Check(ctx, site)
	return hosts, 0, errors.Join(err, problems.Err())
}

// parse reads the inventory as a program would that does nothing else with it.
func parse(_ context.Context, site string) (hosts int, size int64, err error) {
	collect()
	files, err := filepath.Glob(filepath.Join(site, "hosts", "*.yaml"))
	if err != nil {
		return 0, 0, err
	}
	for _, name := range files {
		n, err := parseFile(name)
		if err != nil {
			return 0, 0, err
		}
		hosts += n
	}
	return hosts, 0, nil
}

func parseFile(name string) (hosts int, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var entry bytes.Buffer
	flush := func() error {
		var list []map[string]any
		if err := yaml.Unmarshal(entry.Bytes(), &list); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		hosts += len(list)
		entry.Reset()
		return nil
	}
	in := bufio.NewScanner(f)
	for in.Scan() {
		if bytes.HasPrefix(in.Bytes(), []byte("- ")) {
			if err := flush(); err != nil {
				return 0, err
			}
		}
		entry.Write(in.Bytes())
		entry.WriteByte('\n')
	}
	return hosts, errors.Join(in.Err(), flush())
}
