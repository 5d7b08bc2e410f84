//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/alisw/kiln/netboot/dashboard"
	"github.com/alisw/kiln/netboot/state"
)

// memory is a store of records for the dashboard alone.
type memory struct {
	mu       sync.Mutex
	records  map[string]state.Record
	watchers map[chan struct{}]bool
}

func (m *memory) List() ([]state.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []state.Record
	for _, r := range m.records {
		all = append(all, r)
	}
	return all, nil
}

func (m *memory) Get(host string) (state.Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[host]
	return r, ok, nil
}

func (m *memory) Watch(ctx context.Context) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan struct{}, 1)
	m.watchers[c] = true
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, c)
	})
	return c
}

// change puts a record of that host, or changes the one there is.
func (m *memory) change(host string, f func(*state.Record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[host]
	if !ok {
		r = state.Record{Host: host, Image: strings.Repeat("3f2a91c0", 8), Profile: "alissandra", Disk: "the only one", Stage: state.Armed, Since: time.Now()}
	}
	r.Console = append([]string(nil), r.Console...)
	f(&r)
	m.records[host] = r
	for c := range m.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func stageIs(s state.Stage) func(*state.Record) {
	return func(r *state.Record) {
		r.Stage, r.Since, r.Heard = s, time.Now(), time.Now()
		r.History = append(r.History, state.Event{Time: time.Now(), Stage: s})
		if s == state.Writing {
			r.Step, r.Total = "write", 1000
		}
	}
}

// wall is a dashboard that is served, and a tab of a browser for it.
type wall struct {
	t     *testing.T
	store *memory
	dash  *dashboard.Dashboard
	addr  string
	tab   context.Context
	stop  func()
}

// newBrowser starts Chromium; tabs are made of its context.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: make setup installs it")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		// Container's shared memory is small; what it asks the network for isn't there.
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(2*time.Minute))
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	browser, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Run(browser); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	return browser
}

func newWall(t *testing.T, browser context.Context) *wall {
	t.Helper()
	w := &wall{t: t, store: &memory{records: map[string]state.Record{}, watchers: map[chan struct{}]bool{}}}
	w.dash = &dashboard.Dashboard{Records: w.store}
	w.serve("127.0.0.1:0")
	t.Cleanup(func() { w.stop() })
	w.tab = w.newTab(browser)
	return w
}

func (w *wall) newTab(browser context.Context) context.Context {
	tab, cancel := chromedp.NewContext(browser)
	w.t.Cleanup(cancel)
	// The first use makes the tab, which ends with that context: not w.run's.
	if err := chromedp.Run(tab); err != nil {
		w.t.Fatalf("opening a tab: %v", err)
	}
	// Any dialog would be a script that isn't the dashboard's.
	chromedp.ListenTarget(tab, func(e any) {
		if d, ok := e.(*page.EventJavascriptDialogOpening); ok {
			w.t.Errorf("a dialog opened: %s", d.Message)
		}
	})
	return tab
}

// serve starts the server; w.stop ends it as kiln serve ends its own.
func (w *wall) serve(addr string) {
	w.t.Helper()
	var l net.Listener
	w.eventually("the address is free", func() bool {
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	w.addr = l.Addr().String()
	d := &dashboard.Dashboard{Records: w.store, Given: w.dash.Given, Unknown: w.dash.Unknown, MaxStreams: w.dash.MaxStreams}
	server := &http.Server{Handler: d, ReadHeaderTimeout: 10 * time.Second}
	server.RegisterOnShutdown(d.Close)
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.t.Errorf("serving: %v", err)
		}
	}()
	w.stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			w.t.Errorf("a browser that looks keeps the server from ending: %v", err)
			_ = server.Close()
		}
	}
}

func (w *wall) eventually(what string, is func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for time.Since(start) < 40*time.Second {
		if is() {
			return time.Since(start)
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.t.Fatalf("not in 40 s: %s", what)
	return 0
}

func (w *wall) run(actions ...chromedp.Action) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.tab, time.Minute)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wall) open(path string) {
	w.t.Helper()
	w.run(chromedp.Navigate("http://"+w.addr+path), chromedp.WaitReady("#live", chromedp.ByQuery))
}

// eval is the value of an expression in the page, as text.
func (w *wall) eval(expression string) string {
	w.t.Helper()
	var v any
	w.run(chromedp.Evaluate(expression, &v))
	return fmt.Sprint(v)
}

// becomes waits until the expression has the value.
func (w *wall) becomes(expression, want string) time.Duration {
	w.t.Helper()
	var got any
	start := time.Now()
	for time.Since(start) < 40*time.Second {
		// While a page is loaded there may be nothing to evaluate it in.
		if err := chromedp.Run(w.tab, chromedp.Evaluate(expression, &got)); err == nil && fmt.Sprint(got) == want {
			return time.Since(start)
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.t.Fatalf("%s is %q after 40 s, want %q", expression, fmt.Sprint(got), want)
	return 0
}

func (w *wall) is(expression, want string) {
	w.t.Helper()
	if got := w.eval(expression); got != want {
		w.t.Errorf("%s is %q, want %q", expression, got, want)
	}
}
