package netboot

import (
	"sync"
	"time"
)

const (
	mostTold = 1024           // kept at once: anybody can invent MACs
	toldFor  = 24 * time.Hour // until it is all told anew
)

// Told remembers of whom a log has told, so that who asks again and again has one
// line a day there, and all who invent themselves names have no more than it keeps.
// The zero value is ready; all may be called at the same time.
type Told[K comparable] struct {
	mu    sync.Mutex
	since time.Time
	told  map[K]struct{}
}

// First tells whether who is to be told of now, as nobody was told today. last is
// that nobody else will be, as there were too many.
func (t *Told[K]) First(who K, now time.Time) (first, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if age := now.Sub(t.since); t.told == nil || age < 0 || age >= toldFor {
		t.since, t.told = now, map[K]struct{}{}
	}
	if _, ok := t.told[who]; ok || len(t.told) >= mostTold {
		return false, false
	}
	t.told[who] = struct{}{}
	return true, len(t.told) == mostTold
}
