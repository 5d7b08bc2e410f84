package web

import (
	"slices"
	"sync"
	"time"
)

const (
	defaultWriters = 16
	// askAgain is how often those in line ask, and forgotten after what silence
	// they have lost their place.
	askAgain  = 5 * time.Second
	forgotten = 30 * time.Second
)

// queue lets some installations write at once, and the others wait in the order
// that they came in.
type queue struct {
	max int

	mu      sync.Mutex
	writing map[string]bool // by the installations' IDs
	waiting []waiter
}

type waiter struct {
	id    string
	heard time.Time
}

// ask tells whether an installation may write now, or its place in line, from 1.
func (q *queue) ask(id string, now time.Time) (ok bool, place int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.writing[id] {
		return true, 0
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(w waiter) bool { return w.id != id && now.Sub(w.heard) > forgotten })
	i := slices.IndexFunc(q.waiting, func(w waiter) bool { return w.id == id })
	if i < 0 {
		i = len(q.waiting)
		q.waiting = append(q.waiting, waiter{id: id})
	}
	q.waiting[i].heard = now
	// Those before it have the first free places, whether they have asked or not.
	if i < q.max-len(q.writing) {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		q.take(id)
		return true, 0
	}
	return false, i + 1
}

// hold gives a place to one that writes already: it had it before a restart of the
// server, which can't be taken back.
func (q *queue) hold(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(w waiter) bool { return w.id == id })
	q.take(id)
}

func (q *queue) take(id string) {
	if q.writing == nil {
		q.writing = map[string]bool{}
	}
	q.writing[id] = true
}

// leave takes one out.
func (q *queue) leave(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.writing, id)
	q.waiting = slices.DeleteFunc(q.waiting, func(w waiter) bool { return w.id == id })
}

// retain takes all out whose installation isn't under way any more.
func (q *queue) retain(running map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.writing {
		if !running[id] {
			delete(q.writing, id)
		}
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(w waiter) bool { return !running[w.id] })
}

// lengths tells how many write, and how many wait.
func (q *queue) lengths() (writing, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.writing), len(q.waiting)
}
