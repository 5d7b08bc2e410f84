// Package dashboard shows installations to people: a page to hang on the wall,
// one for each host, and one of machines that nobody has registered.
//
// It only shows. Nothing can be changed through it, since arming wipes a disk: that
// takes an operator's token and kiln arm. What it shows is written by machines
// that may be anybody's (errors, console lines), so all of it is escaped, control
// characters are taken out, and no script runs but its own, which the browser
// checks (Content-Security-Policy).
//
// Pages are whole without JavaScript, and reload themselves then. With it they
// are told of each change (/events), fetch the part that changes as the server
// renders it (?fragment=1), and change what differs in it: there is one
// rendering of everything, in Go.
package dashboard

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// Records has the installations. Its methods are called at the same time.
type Records interface {
	// List has the records of all hosts, in any order, for the caller to keep.
	List() ([]state.Record, error)
	// Get finds the record of a host.
	Get(host string) (r state.Record, ok bool, err error)
	// Watch's channel says that a record has changed since it was last read from;
	// one message may stand for many changes. It is done with once ctx is.
	Watch(ctx context.Context) <-chan struct{}
}

// Machine is one that asked to boot, and isn't registered.
type Machine struct {
	MAC         plan.MAC
	Vendor      string // of the network card, or what the firmware says of itself
	Firmware    string // BIOS, UEFI x86-64, …
	First, Last time.Time
	Times       int    // that it asked
	Entry       string // for the inventory, ready to be copied
}

// Dashboard is the handler of all pages. Records must be set; everything else
// may be left out. Its fields mustn't change once it serves.
type Dashboard struct {
	Records Records
	// Given is the seed of a host as people may see it: secrets stand in it as
	// references, never resolved. Without it pages don't show seeds.
	Given func(ctx context.Context, host string) ([]protocol.SeedFile, error)
	// Unknown are machines that nobody has registered. Without it there is no
	// such page.
	Unknown func(ctx context.Context) ([]Machine, error)

	Log *slog.Logger // of what goes wrong; nil discards
	// Location is the time zone of the pages; nil is the server's own.
	Location *time.Location
	Now      func() time.Time // nil is time.Now
	// MaxStreams bounds the browsers that are told of changes at the same time; 64
	// if it is 0. Those beyond ask every few seconds.
	MaxStreams int
	// Heartbeat is how often a browser hears something, changes or not; 15 s if it
	// is 0.
	Heartbeat time.Duration

	once    sync.Once
	mux     *http.ServeMux
	done    chan struct{}
	ending  sync.Once
	streams atomic.Int64
	seeds   chan struct{} // has room for those that are rendered at the same time
	wall    wall
}

const (
	defaultStreams   = 64
	defaultHeartbeat = 15 * time.Second
)

func (d *Dashboard) init() {
	d.once.Do(func() {
		d.done = make(chan struct{})
		d.seeds = make(chan struct{}, seedsAtOnce)
		d.mux = http.NewServeMux()
		d.mux.HandleFunc("GET /{$}", d.overview)
		d.mux.HandleFunc("GET /hosts/{name}", d.host)
		d.mux.HandleFunc("GET /events", d.events)
		d.mux.HandleFunc("GET /static/{name}", d.static)
		if d.Unknown != nil {
			d.mux.HandleFunc("GET /discover", d.discover)
		}
		d.mux.HandleFunc("/", d.nothing)
	})
}

// Close ends the streams of changes, which otherwise last as long as a browser
// looks. A server waits for them when it shuts down: give it to
// http.Server.RegisterOnShutdown.
func (d *Dashboard) Close() {
	d.init()
	d.ending.Do(func() { close(d.done) })
}

// ServeHTTP serves the pages, and what belongs to them: / and below it /hosts/,
// /discover, /events, /static/. All else is a page that says so, with status 404.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.init()
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "the dashboard only shows: arm a host with kiln arm", http.StatusMethodNotAllowed)
		return
	}
	d.mux.ServeHTTP(w, r)
}

func (d *Dashboard) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

func (d *Dashboard) clock(t time.Time) time.Time {
	if d.Location != nil {
		return t.In(d.Location)
	}
	return t.Local()
}

func (d *Dashboard) log() *slog.Logger {
	if d.Log != nil {
		return d.Log
	}
	return slog.New(slog.DiscardHandler)
}
