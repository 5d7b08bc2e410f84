package dashboard

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
)

var update = flag.Bool("update", false, "write the golden files anew, and fail")

// get asks the handler, without a network between.
func get(t *testing.T, d *Dashboard, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

// TestGolden holds what pages are made of: fragments that can be read.
func TestGolden(t *testing.T) {
	f := newFake(each()...)
	line := strings.Repeat("console ", 3)
	f.put(record("build20.example.org", state.Failed, func(r *state.Record) {
		fail(state.Writing, "write: <b>disk</b> & \x1b[31mred\x1b[0m")(r)
		r.Console = []string{line, "<script>alert(1)</script>", "\x1b[1mbold\x1b[0m"}
		r.Findings = []string{"nomad-node: no node of that name"}
	}))
	f.put(record("build21.example.org", state.Armed, func(r *state.Record) {
		r.Problem = "the server's inventory has no sound entry of it any more: kiln disarm build21.example.org"
	}))
	d := dashboard(f)
	d.Given, d.Unknown = seed, unknown
	for name, path := range map[string]string{
		"overview.html": "/?fragment=1",
		"filtered.html": "/?fragment=1&stage=ready&q=BUILD0",
		"failed.html":   "/hosts/build20.example.org",
		"writing.html":  "/hosts/build02.example.org?fragment=1",
		"discover.html": "/discover?fragment=1",
		"nowhere.html":  "/nowhere",
	} {
		w := get(t, d, path)
		want := http.StatusOK
		if path == "/nowhere" {
			want = http.StatusNotFound
		}
		if w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
		compare(t, "testdata/"+name, tidy(w.Body.String()))
	}
}

var symbols = regexp.MustCompile(`(?m)^<symbol .*\n`)

// tidy leaves out what changes with the style sheet, and shapes.
func tidy(html string) string {
	html = strings.ReplaceAll(html, assets(), "ASSETS")
	return symbols.ReplaceAllString(html, "")
}

func compare(t *testing.T, path, got string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err == nil && string(want) == got {
		return
	}
	t.Errorf("%s (%v) differs; look at it after: go test ./netboot/dashboard -update\n%s", path, err, cmp.Diff(string(want), got))
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// No page shows hashes of tokens, runs somebody else's script, or may be framed.
func TestNothingLeaks(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'`
	f := newFake(each()...)
	f.put(record("evil"+evil, state.Failed, func(r *state.Record) {
		fail(state.Writing, evil)(r)
		r.FailedAt, r.Profile, r.Disk, r.DiskFound, r.Address, r.By, r.Image = evil, evil, evil, evil, evil, evil, evil
		r.Console, r.Findings = []string{evil}, []string{evil}
		r.History = append(r.History, state.Event{Stage: evil, Text: evil})
	}))
	d := dashboard(f)
	d.Given, d.Unknown = seed, unknown
	link := tileOf(&state.Record{Host: "evil" + evil}, noon, "").Link
	for _, path := range []string{"/", "/?stage=failed", "/?q=%3Cscript%3E&stage=%22%3E", "/discover", link, "/hosts/%3Cscript%3Ealert(1)", "/%3Cscript%3E", "/hosts/build01.example.org"} {
		w := get(t, d, path)
		body := w.Body.String()
		if path == link && w.Code != http.StatusOK {
			t.Errorf("%s: status %d", path, w.Code)
		}
		for _, no := range []string{secret, "<script>", "<img", "onerror=alert(2)>"} {
			// A quoted attribute may hold it, escaped.
			if strings.Contains(body, no) {
				t.Errorf("%s shows %q", path, no)
			}
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		} {
			if got := w.Header().Get(name); !strings.Contains(got, want) {
				t.Errorf("%s: %s: %q", path, name, got)
			}
		}
		if csp := w.Header().Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if regexp.MustCompile(`\son\w+="|\sstyle="|<style|javascript:`).MatchString(body) {
			t.Errorf("%s has what its policy forbids", path)
		}
	}
}

func TestRefusals(t *testing.T) {
	d := dashboard(newFake(each()...))
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions} {
		w := httptest.NewRecorder()
		d.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, "/hosts/build01.example.org", nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: status %d, allowed %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
	for path, want := range map[string]int{
		"/":                             200,
		"/hosts/build01.example.org":    200,
		"/hosts/":                       404,
		"/hosts/other":                  404,
		"/hosts/other?fragment=1":       404,
		"/hosts/../etc/passwd":          404,
		"/hosts/build01.example.org/":   404,
		"/hosts/build01.example.org/..": 404,
		"/discover":                     404, // nobody asked for it
		"/static/kiln.css":              200,
		"/static/kiln.js":               200,
		"/static/icon.svg":              200,
		"/static/":                      404,
		"/static/..%2fdashboard.go":     404,
		"/static/other.js":              404,
	} {
		// What a mux would redirect to is another path.
		if got := get(t, d, path).Code; got != want && got != http.StatusMovedPermanently && got != http.StatusTemporaryRedirect {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}
}

// An error of the store is for the log: it names the server's files.
func TestBrokenStore(t *testing.T) {
	f := newFake(each()...)
	f.broken = true
	for _, path := range []string{"/", "/?q=x", "/hosts/build01.example.org", "/?fragment=1"} {
		w := get(t, dashboard(f), path)
		if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "/var/lib") || !strings.Contains(w.Body.String(), "can&#39;t be read") {
			t.Errorf("%s: status %d: %s", path, w.Code, w.Body)
		}
	}
}

// However many look at a host's page, seeds are rendered two at a time; one that
// can't be is no error of the page.
func TestGiven(t *testing.T) {
	d := dashboard(newFake(each()...))
	var now, most atomic.Int64
	d.Given = func(context.Context, string) ([]protocol.SeedFile, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(5 * time.Millisecond)
		return nil, errors.New("teigi://alibuild/x in /srv/site: no such key")
	}
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			w := get(t, d, "/hosts/build01.example.org")
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "kiln check says why") || strings.Contains(w.Body.String(), "/srv") {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		})
	}
	all.Wait()
	if n := most.Load(); n != seedsAtOnce {
		t.Errorf("%d at once", n)
	}
	big := givenOf(protocol.SeedFile{Name: "user-data", Data: []byte(strings.Repeat("a line\n", seedBytes/4))})
	if n := len(big.Parts[0].Text); n > seedBytes || !strings.HasSuffix(big.Parts[0].Text, "\n") || big.Note == "" {
		t.Errorf("a long file: %d bytes, %q", n, big.Note)
	}
}

func TestStatic(t *testing.T) {
	d := dashboard(newFake())
	for name, kind := range map[string]string{"kiln.css": "text/css; charset=utf-8", "kiln.js": "text/javascript; charset=utf-8", "alarm.svg": "image/svg+xml"} {
		w := get(t, d, "/static/"+name+"?v="+assets())
		if w.Header().Get("Content-Type") != kind || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %v", name, w.Header())
		}
		if w := get(t, d, "/static/"+name+"?v=old"); w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s of another version is kept: %v", name, w.Header())
		}
	}
}

// Among many hosts, too, one that is armed in vain is seen to be.
func TestTroubleAmongMany(t *testing.T) {
	f := newFake()
	for i := range 3 * few {
		f.put(record(fmt.Sprintf("build%03d.example.org", i), state.Armed, func(r *state.Record) {
			if i == few {
				r.Problem = "it isn't in the inventory"
			}
		}))
	}
	body := get(t, dashboard(f), "/?fragment=1").Body.String()
	if n := strings.Count(body, "can&#39;t be installed"); n != 1 || !strings.Contains(body, "build024.example.org, armed: it isn&#39;t in the inventory") {
		t.Errorf("%d hosts can't be installed:\n%.2000s", n, body)
	}
}

// 500 hosts are one small answer, and a dozen screens cost one rendering.
func TestManyHosts(t *testing.T) {
	f := newFake()
	for i := range 500 {
		stage := state.Ready
		if i%10 == 0 {
			stage = state.Writing
		}
		f.put(record(fmt.Sprintf("build%03d.example.org", i), stage, nil))
	}
	d := dashboard(f)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/?fragment=1", nil)
	r.Header.Set("Accept-Encoding", "br, gzip")
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if n := w.Body.Len(); n > 40_000 {
		t.Errorf("%d bytes", n)
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(z)
	if err != nil || strings.Count(string(body), "data-word=") != 500 {
		t.Errorf("%d hosts, %v", strings.Count(string(body), "data-word="), err)
	}
	start := time.Now()
	for range 100 {
		get(t, d, "/?fragment=1")
	}
	if most := int(time.Since(start)/freshFor) + 2; f.lists > most {
		t.Errorf("the store was read %d times for 101 requests, want at most %d", f.lists, most)
	}
}

// What a change costs the server, however many look.
func BenchmarkWall(b *testing.B) {
	for _, busy := range []int{16, 500} {
		b.Run(fmt.Sprintf("%d of 500 busy", busy), func(b *testing.B) {
			f := newFake()
			for i := range 500 {
				stage := state.Writing
				if i >= busy {
					stage = state.Ready
				}
				f.put(record(fmt.Sprintf("build%03d.example.org", i), stage, nil))
			}
			d := dashboard(f)
			for b.Loop() {
				d.wall.at = time.Time{}
				if _, err := d.wallFor(true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// stream opens /events; its lines come through the channel, which is closed at
// the end.
func stream(ctx context.Context, t *testing.T, url string) <-chan string {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("status %d, %v", answer.StatusCode, answer.Header)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(answer.Body); s.Scan(); {
			if event, ok := strings.CutPrefix(s.Text(), "event: "); ok {
				lines <- event
			}
		}
	}()
	return lines
}

func expect(t *testing.T, lines <-chan string, want string) {
	t.Helper()
	select {
	case got := <-lines:
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no %q in 10 s", want)
	}
}

func TestEvents(t *testing.T) {
	f := newFake(each()...)
	d := dashboard(f)
	d.MaxStreams = 2
	srv := httptest.NewServer(d)
	defer srv.Close()
	defer d.Close()
	ctx, leave := context.WithCancel(t.Context())
	one, two := stream(ctx, t, srv.URL), stream(t.Context(), t, srv.URL)
	expect(t, one, "beat")
	expect(t, two, "beat")

	// A third is one too many.
	third, err := http.Get(srv.URL + "/events") //nolint:noctx
	if err != nil {
		t.Fatal(err)
	}
	_ = third.Body.Close()
	if third.StatusCode != http.StatusServiceUnavailable || third.Header.Get("Retry-After") == "" {
		t.Errorf("the third: status %d, %v", third.StatusCode, third.Header)
	}

	// Many changes at once are one message, and none is lost: what is fetched
	// after it has the last.
	for i := range 200 {
		f.put(record("build02.example.org", state.Writing, func(r *state.Record) { r.Done = int64(i) }))
	}
	f.put(record("build02.example.org", state.Ready, nil))
	expect(t, one, "change")
	if body := get(t, d, "/?fragment=1").Body.String(); !strings.Contains(body, `<li class="tile ready" data-key="build02.example.org"`) {
		t.Error("the page is of before the change")
	}
	expect(t, two, "change")
	select {
	case got := <-two:
		t.Errorf("one burst of changes made another message: %q", got)
	case <-time.After(settle):
	}

	// Who leaves makes room, and is watched no more.
	leave()
	for range 100 {
		if f.watching() == 1 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := f.watching(); n != 1 {
		t.Errorf("%d watch, want 1", n)
	}
	expect(t, stream(t.Context(), t, srv.URL), "beat")
	d.Close()
	for range two { // until it is closed
	}
}

func TestHeartbeat(t *testing.T) {
	d := dashboard(newFake())
	d.Heartbeat = 20 * time.Millisecond
	srv := httptest.NewServer(d)
	defer srv.Close()
	defer d.Close()
	lines := stream(t.Context(), t, srv.URL)
	for range 5 {
		expect(t, lines, "beat")
	}
}

// stuck is a connection that takes nothing after its first message.
type stuck struct {
	*httptest.ResponseRecorder
	n        int
	deadline time.Time
}

func (s *stuck) SetWriteDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *stuck) Write(b []byte) (int, error) {
	if s.n++; s.n > 1 {
		return 0, os.ErrDeadlineExceeded
	}
	return len(b), nil
}

func TestSlowBrowserIsDropped(t *testing.T) {
	d := dashboard(newFake())
	d.Heartbeat = time.Millisecond
	s := &stuck{ResponseRecorder: httptest.NewRecorder()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.ServeHTTP(s, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/events", nil))
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it is waited for")
	}
	if n := d.streams.Load(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
	if !s.deadline.IsZero() {
		t.Error("the connection's deadline stays behind")
	}
}
