package bake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/scratch"
)

// Input is one thing that goes into a step: content, an option, a tool's
// version, the key of a step before it. Long values are better given as a hash.
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// shown are inputs as manifests have them.
func shown(list []Input) []images.Input {
	inputs := make([]images.Input, len(list))
	for i, in := range list {
		inputs[i] = images.Input(in)
	}
	return inputs
}

// Step is a piece of work whose result depends on its inputs alone, so that
// once done it never has to be done again.
type Step struct {
	Name   string
	Inputs []Input
	// Run puts the result into dir, an empty directory. Nothing else that it
	// writes may outlive it.
	Run func(ctx context.Context, dir string) error
}

// Key is the SHA-256 of the step's name and of all its inputs, in their order.
func (s *Step) Key() string {
	h := sha256.New()
	// Strings of JSON can't run into each other.
	_ = json.NewEncoder(h).Encode(s.Name)
	_ = json.NewEncoder(h).Encode(s.Inputs)
	return hex.EncodeToString(h.Sum(nil))
}

// Result is a step's, in the cache.
type Result struct {
	Name   string
	Key    string
	Dir    string        // what Run made; not to be written to
	Cached bool          // it was there already
	Took   time.Duration // making it, whenever that was
}

// Cache keeps the results of steps, each under its key:
//
//	steps/NAME-KEY/out        what Run made
//	steps/NAME-KEY/step.json  what went into it, and how long it took
//	locks/NAME-KEY            held by whoever makes it
//	last/                     what went into each step of an image the last time
//	remembered/               what programs said of themselves
//	tmp/                      being made, or left by a builder that was killed
type Cache struct {
	Dir string
	// Events is told of each step; nil is nobody.
	Events func(Event)
	// About is what is built: steps are compared with what they were the last time.
	About string
}

// made is the content of step.json.
type made struct {
	Name    string  `json:"name"`
	Key     string  `json:"key"`
	Seconds float64 `json:"seconds"`
	Inputs  []Input `json:"inputs"`
	Bytes   int64   `json:"bytes,omitempty"` // that it takes on the disk
	// Boot is which of the machine's boots it was made in. After a power cut, a result
	// is there only in part, unless it was Flushed to the disk.
	Boot    string `json:"boot,omitempty"`
	Flushed bool   `json:"flushed,omitempty"`
}

// longStep is how long a step has to take for its result to be worth the wait until
// it's on the disk. Others are made again after a power cut, or any other boot.
const longStep = 10 * time.Second

// sound tells whether the result can be what was made.
func (m *made) sound() bool { return m.Flushed || m.Boot == bootID() }

const stepFile = "step.json"

// Do gives the step's result: the one in the cache, else a new one. Of several
// builders that want the same, one makes it and the others wait.
func (c *Cache) Do(ctx context.Context, s Step) (Result, error) {
	start := time.Now()
	key := s.Key()
	name := resultName(s.Name, key)
	at := filepath.Join(c.Dir, "steps", name)
	r := Result{Name: s.Name, Key: key, Dir: filepath.Join(at, "out")}
	for _, d := range []string{"steps", "locks"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o755); err != nil {
			return r, fmt.Errorf("the cache: %w", noSpace(c.Dir, err))
		}
	}
	unlock, err := c.lock(ctx, s.Name, filepath.Join(c.Dir, "locks", name))
	if err != nil {
		return r, err
	}
	defer unlock()
	because := c.because(&s)
	if m := readMade(at); m != nil && m.sound() {
		r.Cached, r.Took = true, time.Duration(m.Seconds*float64(time.Second))
		use(filepath.Join(at, stepFile))
		if because != nil {
			c.note(&s)
			because = slices.DeleteFunc(because, func(b string) bool { return b == firstTime })
		}
		c.tell(Event{Step: s.Name, State: StateCached, Seconds: time.Since(start).Seconds(), Because: because})
		return r, nil
	}
	// What is there is none: half of a result after a power cut.
	if err := os.RemoveAll(at); err != nil {
		return r, fmt.Errorf("%s: %w", s.Name, err)
	}
	if because == nil {
		because = []string{"its result isn't in the cache any more"}
	}
	c.tell(Event{Step: s.Name, State: StateStarted, Because: because})
	if err := c.make(ctx, &s, name); err != nil {
		c.tell(Event{Step: s.Name, State: StateFailed, Seconds: time.Since(start).Seconds(), Message: err.Error()})
		return r, fmt.Errorf("%s: %w", s.Name, err)
	}
	c.note(&s)
	r.Took = time.Since(start)
	c.tell(Event{Step: s.Name, State: StateDone, Seconds: r.Took.Seconds()})
	return r, nil
}

// readMade reads what is said of a result; nil where there is none.
func readMade(at string) *made {
	data, err := os.ReadFile(filepath.Join(at, stepFile))
	if err != nil {
		return nil
	}
	var m made
	if _, err := os.Stat(filepath.Join(at, "out")); err != nil || json.Unmarshal(data, &m) != nil {
		return nil
	}
	return &m
}

// bootID names this boot of the machine; where nothing does, all are one.
var bootID = sync.OnceValue(func() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
})

// resultName is what a step's result is called in the cache.
func resultName(step, key string) string { return step + "-" + key[:32] }

// make runs the step into a temporary directory, which gets its name at the end.
// The lock is held.
func (c *Cache) make(ctx context.Context, s *Step, name string) (err error) {
	start := time.Now()
	dir, err := c.Scratch(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Remove()) }()
	out := filepath.Join(dir.Path, "out")
	if err := errors.Join(os.Mkdir(out, 0o755), os.Chmod(out, 0o755)); err != nil {
		return noSpace(c.Dir, err)
	}
	if err := s.Run(ctx, out); err != nil {
		return noSpace(c.Dir, err)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	m := made{s.Name, s.Key(), time.Since(start).Seconds(), s.Inputs, diskUsage(out), bootID(), time.Since(start) > longStep}
	if m.Flushed {
		if err := flush(out); err != nil {
			return noSpace(c.Dir, fmt.Errorf("writing the result to the disk: %w", err))
		}
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir.Path, stepFile), append(data, '\n'), 0o644); err != nil {
		return noSpace(c.Dir, err)
	}
	return os.Rename(dir.Path, filepath.Join(c.Dir, "steps", name))
}

// Scratch makes a temporary directory in the cache, for what has to be written
// while a step is made. Those of builders that were killed go at the same time.
func (c *Cache) Scratch(name string) (*scratch.Dir, error) {
	d, err := scratch.New(filepath.Join(c.Dir, "tmp"), name+".")
	if err != nil {
		return nil, noSpace(c.Dir, fmt.Errorf("the cache: %w", err))
	}
	return d, nil
}

// Sweep removes what builders that were killed have left.
func (c *Cache) Sweep() error {
	if err := scratch.Sweep(filepath.Join(c.Dir, "tmp"), ""); err != nil {
		return fmt.Errorf("the cache: %w", err)
	}
	return nil
}

// lock waits until nobody else holds the file's lock. A process that dies gives
// it back.
func (c *Cache) lock(ctx context.Context, step, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, noSpace(c.Dir, err)
	}
	for waiting := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		if !waiting {
			waiting = true
			c.tell(Event{Step: step, State: StateWaiting})
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Cache) tell(e Event) {
	if c.Events != nil {
		c.Events(e)
	}
}

// noSpace says what to do about a full disk.
func noSpace(dir string, err error) error {
	var already *fullError
	if err == nil || errors.As(err, &already) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || saysFull(err.Error()) {
		return &fullError{dir, err}
	}
	return err
}

// saysFull finds a full disk in what programs say.
func saysFull(text string) bool {
	for _, s := range []string{"No space left on device", "enough free space", "Disk quota exceeded"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// fullError is that a file system is full.
type fullError struct {
	dir string
	err error
}

func (e *fullError) Error() string {
	return fmt.Sprintf("no space is left for %s: make room there (kiln images prune removes old images), or have the cache elsewhere with KILN_CACHE: %v", e.dir, e.err)
}

func (e *fullError) Unwrap() error        { return e.err }
func (e *fullError) Is(target error) bool { return target == ErrMachine }
