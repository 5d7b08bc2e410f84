package bake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func stepOf(name, value string, run func(ctx context.Context, dir string) error) Step {
	return Step{Name: name, Inputs: []Input{{"value", value}}, Run: run}
}

func writes(text string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "text"), []byte(text), 0o644)
	}
}

// left lists what is in the cache besides finished steps and locks.
func left(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestKey(t *testing.T) {
	steps := map[string]Step{
		"one": {Name: "a", Inputs: []Input{{"x", "1"}, {"y", "2"}}}, "another name": {Name: "b", Inputs: []Input{{"x", "1"}, {"y", "2"}}},
		"another value": {Name: "a", Inputs: []Input{{"x", "1"}, {"y", "3"}}}, "one input": {Name: "a", Inputs: []Input{{"x", "1"}}},
		"moved border": {Name: "a", Inputs: []Input{{"x", "1\"},{\"y"}, {"", "2"}}}, "none": {Name: "a"},
	}
	seen := map[string]string{}
	for name, s := range steps {
		key := s.Key()
		if other, twice := seen[key]; twice {
			t.Errorf("%s and %s have one key", name, other)
		}
		seen[key] = name
		if again := steps[name]; again.Key() != key {
			t.Errorf("%s: the key isn't the same twice", name)
		}
	}
}

func TestAStepRunsOnce(t *testing.T) {
	var events []string
	c := &Cache{Dir: t.TempDir(), Events: func(e Event) { events = append(events, e.Step+" "+string(e.State)) }}
	runs := 0
	s := stepOf("one", "1", func(ctx context.Context, dir string) error {
		runs++
		return writes("text")(ctx, dir)
	})
	for range 2 {
		r, err := c.Do(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(r.Dir, "text")); err != nil || string(b) != "text" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if _, err := c.Do(t.Context(), stepOf("one", "2", s.Run)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(events, ", "); runs != 2 || got != "one started, one done, one cached, one started, one done" {
		t.Errorf("%d runs: %s", runs, got)
	}
	if l := left(t, c.Dir); l != nil {
		t.Errorf("left: %v", l)
	}
}

func TestAFailedStepLeavesNothing(t *testing.T) {
	c := &Cache{Dir: t.TempDir()}
	cause := errors.New("broken")
	for _, err := range []error{cause, fmt.Errorf("writing: %w", syscall.ENOSPC)} {
		_, got := c.Do(t.Context(), stepOf("one", "1", func(ctx context.Context, dir string) error {
			_ = writes("half")(ctx, dir)
			return err
		}))
		if !errors.Is(got, err) || !strings.HasPrefix(got.Error(), "one: ") {
			t.Errorf("got %v", got)
		}
		if errors.Is(err, syscall.ENOSPC) && !strings.Contains(got.Error(), "KILN_CACHE") {
			t.Errorf("it isn't said what to do: %v", got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Do(ctx, stepOf("one", "1", func(ctx context.Context, dir string) error {
		cancel()
		return writes("whole, and too late")(ctx, dir)
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if l := left(t, c.Dir); l != nil {
		t.Errorf("left: %v", l)
	}
	r, err := c.Do(t.Context(), stepOf("one", "1", writes("at last")))
	if err != nil || r.Cached {
		t.Errorf("after failures: %+v, %v", r, err)
	}
}

// What a builder that was killed has left is removed by the next one.
func TestWhatAKilledBuilderLeft(t *testing.T) {
	c := &Cache{Dir: t.TempDir()}
	s := stepOf("one", "1", writes("text"))
	dead := filepath.Join(c.Dir, "tmp", "one-"+s.Key()[:32]+".123", "out")
	if err := os.MkdirAll(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if l := left(t, c.Dir); l != nil {
		t.Errorf("left: %v", l)
	}
}

func TestTwoBuildersShareTheWork(t *testing.T) {
	dir := t.TempDir()
	var runs, waits atomic.Int32
	waiting := make(chan struct{})
	var once sync.Once
	s := stepOf("one", "1", func(ctx context.Context, d string) error {
		runs.Add(1)
		<-waiting // until the other one waits
		return writes("text")(ctx, d)
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			c := &Cache{Dir: dir, Events: func(e Event) {
				if e.State == StateWaiting {
					waits.Add(1)
					once.Do(func() { close(waiting) })
				}
			}}
			if _, err := c.Do(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() != 1 || waits.Load() != 1 {
		t.Errorf("%d runs, %d waits", runs.Load(), waits.Load())
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := (&Cache{Dir: dir}).Do(t.Context(), stepOf("one", "1", func(context.Context, string) error {
		c := &Cache{Dir: dir, Events: func(e Event) {
			if e.State == StateWaiting {
				cancel()
			}
		}}
		if _, err := c.Do(ctx, stepOf("one", "1", writes(""))); !errors.Is(err, context.Canceled) {
			t.Errorf("the second builder: %v", err)
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
}
