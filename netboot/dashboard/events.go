package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// A change isn't passed on at once: others mostly follow it, and a rendering of
// just before it (see freshFor) must not be what the browser then gets.
const (
	settle = 300 * time.Millisecond
	// pace is the least time between two messages to a browser.
	pace = time.Second
	// patience is how long a browser may take to read a message, before it is
	// dropped.
	patience = 10 * time.Second
)

// events tells a browser of each change, as server-sent events: "change" says to
// fetch the fragment anew, "beat" that there was nothing. They say no more, so
// a slow browser misses nothing.
func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	limit := int64(d.MaxStreams)
	if limit <= 0 {
		limit = defaultStreams
	}
	defer d.streams.Add(-1)
	if d.streams.Add(1) > limit {
		w.Header().Set("Retry-After", "30")
		http.Error(w, fmt.Sprintf("%d browsers are told of changes already: ask for the page every few seconds", limit), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx before it must not wait for more
	if r.Method == http.MethodHead {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	d.stream(ctx, w)
}

func (d *Dashboard) stream(ctx context.Context, w http.ResponseWriter) {
	control := http.NewResponseController(w)
	// A server's own deadline is for answers that end. Where deadlines can't be
	// set there are none to move.
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }()
	send := func(event string) bool {
		_ = control.SetWriteDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(w, "event: %s\ndata:\n\n", event); err != nil {
			return false
		}
		return control.Flush() == nil
	}
	// sleep tells whether the stream goes on.
	sleep := func(t time.Duration) bool {
		timer := time.NewTimer(t)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-d.done:
			return false
		case <-timer.C:
			return true
		}
	}
	heartbeat := d.Heartbeat
	if heartbeat <= 0 {
		heartbeat = defaultHeartbeat
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	// Watched before the first message: what the browser fetches after it lacks
	// no change that it isn't told of.
	changes := d.Records.Watch(ctx)
	if !send("beat") {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.done:
			return
		case <-beat.C:
			if !send("beat") {
				return
			}
		case _, ok := <-changes:
			// A closed channel is the server that ends, or a store that does: the
			// browser comes again, and sees.
			if !ok || !sleep(settle) || !send("change") || !sleep(pace-settle) {
				return
			}
		}
	}
}
