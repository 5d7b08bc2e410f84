package state

import (
	"context"
	"time"
)

// watchEvery is how often a watcher looks: one stat of the folder.
const watchEvery = 250 * time.Millisecond

// Watch sends whenever records may have changed, by this process or another, until
// the context ends; then the channel is closed. Changes while the receiver is busy
// are one. The first comes at once.
func (s *Store) Watch(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		var seen version
		var changes uint64
		for first := true; ; first = false {
			v, err := s.files.statDir()
			s.mu.Lock()
			n := s.changes
			s.mu.Unlock()
			// A folder's clock ticks slowly: one more look after a change finds another
			// one in the same tick.
			again := time.Since(v.mod) < 2*watchEvery
			if err == nil && (first || v != seen || n != changes || again) {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
			seen, changes = v, n
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return changed
}
