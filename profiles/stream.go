package profiles

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

// resolved is one host of the inventory, with what is wrong with it.
type resolved struct {
	name     string
	file     *HostFile  // nil where the entry couldn't be read
	plan     *plan.Plan // nil where a problem keeps the host from having one
	problems problem.List
}

// batch is how many hosts a worker takes at a time: enough that handing them
// over costs nothing, few enough that little memory waits.
const batch = 64

// eachHost resolves the hosts of the inventory, several at a time, and hands
// them over in their order until yield gives false. The list returned is what
// belongs to no host.
func (s *Site) eachHost(parent context.Context, yield func(*resolved) bool) (problem.List, error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	type job struct {
		entries []entry
		out     chan []*resolved
	}
	workers := runtime.GOMAXPROCS(0)
	jobs := make(chan job)
	// What is handed over is asked for in order: each job's result has its own place.
	results := make(chan chan []*resolved, 2*workers)

	var readProblems problem.List
	var readErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(jobs)
		defer close(results)
		var entries []entry
		send := func() bool {
			j := job{entries, make(chan []*resolved, 1)}
			entries = nil
			select {
			case results <- j.out:
			case <-ctx.Done():
				return false
			}
			select {
			case jobs <- j:
				return true
			case <-ctx.Done():
				close(j.out)
				return false
			}
		}
		readErr = s.eachEntry(ctx, &readProblems, func(e entry) bool {
			entries = append(entries, e)
			return len(entries) < batch || send()
		})
		if len(entries) > 0 && ctx.Err() == nil {
			send()
		}
	})
	for range workers {
		wg.Go(func() {
			for j := range jobs {
				done := make([]*resolved, len(j.entries))
				for i, e := range j.entries {
					done[i] = s.resolveEntry(e)
				}
				j.out <- done
			}
		})
	}
	stopped := false
	for out := range results {
		if stopped {
			continue
		}
		for _, r := range <-out {
			if ctx.Err() != nil || !yield(r) {
				stopped = true
				cancel()
				break
			}
		}
	}
	wg.Wait()
	if parent.Err() != nil {
		return readProblems, parent.Err()
	}
	if stopped && errors.Is(readErr, context.Canceled) {
		readErr = nil
	}
	return readProblems, readErr
}

// eachUnresolved reads the hosts of the inventory and no more, in the manner of
// eachHost.
func (s *Site) eachUnresolved(ctx context.Context, yield func(*resolved) bool) (problem.List, error) {
	var problems problem.List
	err := s.eachEntry(ctx, &problems, func(e entry) bool {
		r := &resolved{}
		if r.file = e.decode(&r.problems); r.file != nil {
			r.name = s.fullName(r.file.Name.V)
		}
		return yield(r)
	})
	return problems, err
}

func (s *Site) resolveEntry(e entry) *resolved {
	r := &resolved{}
	r.file = e.decode(&r.problems)
	if r.file == nil {
		return r
	}
	unread := r.problems.Err() != nil
	p, more := s.resolve(r.file)
	r.problems = append(r.problems, more...)
	r.name = s.fullName(r.file.Name.V)
	if !unread && more.Err() == nil {
		r.plan = p
	}
	return r
}
