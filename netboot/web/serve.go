package web

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/alisw/kiln/netboot/state"
)

const (
	// stopTime is how long transfers may go on once the server is to stop.
	stopTime = 30 * time.Second
	// headerTime is how long a request's header may take, and idleTime how long a
	// connection may be kept without one.
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 16 << 10 // bytes
	sweepEvery = time.Second
)

// Serve serves both until the context ends; then transfers have half a minute to
// end. It also does what Run does.
func (s *Server) Serve(ctx context.Context, plain, secure net.Listener) error {
	if a, ok := plain.Addr().(*net.TCPAddr); ok {
		s.plainPort = a.Port
	}
	if a, ok := secure.Addr().(*net.TCPAddr); ok {
		s.tlsPort = a.Port
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	servers := []*http.Server{s.server(ctx, s.Plain()), s.server(ctx, s.TLS())}
	secure = tls.NewListener(secure, &tls.Config{
		GetCertificate: s.certificates.get, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
	})
	errs := make(chan error, 3)
	var wg sync.WaitGroup
	for i, l := range []net.Listener{plain, secure} {
		wg.Go(func() {
			if err := servers[i].Serve(l); !errors.Is(err, http.ErrServerClosed) {
				errs <- err
				cancel()
			}
		})
	}
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			errs <- err
		}
	})
	<-ctx.Done()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer done()
	for _, server := range servers {
		wg.Go(func() {
			if server.Shutdown(stop) != nil {
				server.Close() // they had their time
			}
		})
	}
	wg.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// server makes one of the two. Its requests' contexts end with ctx: pages that are
// live, and whoever waits for a secret, don't hold up its end; transfers go on.
func (s *Server) server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnContext: connected,
		Handler: h, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// Run fails the installations that are silent, and looks whether hosts are ready,
// until the context ends; then it stores what isn't yet.
func (s *Server) Run(ctx context.Context) error {
	s.init()
	var wg sync.WaitGroup
	wg.Go(func() { s.verifyAll(ctx) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return s.Store.Flush()
		case <-tick.C:
			s.sweep()
		}
	}
}

// sweep fails the silent ones, and lets those in line move up.
func (s *Server) sweep() {
	failed, err := s.Store.Sweep()
	if err != nil {
		s.Log.Error("the state can't be read or stored", "error", err)
	}
	for _, r := range failed {
		s.counts.overdue.Inc()
		s.Log.Warn("the installation has failed", "host", r.Host, "stage", r.FailedAt, "error", r.Error)
	}
	list, _, err := s.Store.List()
	if err != nil {
		return
	}
	running := map[string]bool{}
	for _, r := range list {
		if r.Running() {
			running[r.Install] = true
		}
	}
	s.line.retain(running)
}

// resume gives those that write their places back, after a restart.
func (s *Server) resume() {
	list, _, err := s.Store.List()
	if err != nil {
		s.Log.Error("the state can't be read", "error", err)
		return
	}
	for _, r := range list {
		if r.Stage == state.Writing {
			s.line.hold(r.Install)
		}
	}
}

// How hosts are looked at.
const (
	verifyAtOnce = 4
	verifyTime   = time.Minute
)

// verifyAll looks at all hosts that are written, again and again, some at once.
func (s *Server) verifyAll(ctx context.Context) {
	if s.Verify == nil {
		return
	}
	every := s.VerifyEvery
	if every <= 0 {
		every = 10 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		list, _, err := s.Store.List()
		if err != nil {
			s.Log.Error("the state can't be read", "error", err)
		}
		slots := make(chan struct{}, verifyAtOnce)
		var wg sync.WaitGroup
		for _, r := range list {
			if !s.mayBeReady(r) || ctx.Err() != nil {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				s.verify(ctx, r)
			})
		}
		wg.Wait()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// restartTime is how long a host that is written isn't looked at, unless it says
// itself that it has booted: just after its agents were cut off, the cluster still
// takes what was there before for alive.
const restartTime = 5 * time.Minute

// mayBeReady tells whether a host is worth a look.
func (s *Server) mayBeReady(r *state.Record) bool {
	return r.Stage == state.FirstBoot || r.Stage == state.Written && time.Since(r.Since) > s.restart()
}

func (s *Server) restart() time.Duration {
	if s.RestartTime > 0 {
		return s.RestartTime
	}
	return restartTime
}

// verify looks at one host, and stores what is found.
func (s *Server) verify(server context.Context, r *state.Record) {
	ctx, cancel := context.WithTimeout(server, verifyTime)
	defer cancel()
	s.counts.verified.Inc()
	ok, findings, err := s.Verify(ctx, r.Host)
	switch {
	case server.Err() != nil || ctx.Err() != nil && err == nil:
		return // it's the server's end that was found
	case err != nil:
		_, err = s.Store.Findings(r.Host, r.Install, []string{err.Error()})
	case !ok:
		_, err = s.Store.Findings(r.Host, r.Install, findings)
	default:
		if _, err = s.Store.Ready(r.Host, r.Install); err == nil {
			s.counts.ready.Inc()
			s.Log.Info("it is ready", "host", r.Host)
		}
	}
	if err != nil {
		// Mostly it was armed again meanwhile, or has failed.
		s.Log.Debug("what was found isn't stored", "host", r.Host, "error", err)
	}
}

// logged logs and counts a server's requests: by their routes, never their queries
// nor the IDs that authorize.
func (s *Server) logged(name string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		seen := &observed{ResponseWriter: w, status: http.StatusOK}
		limit(w, r, s.answerTime())
		h.ServeHTTP(seen, r)
		s.counts.requests(name, seen.status).Inc()
		level := slog.LevelDebug
		if seen.status >= http.StatusBadRequest && !seen.quiet {
			level = slog.LevelInfo
		}
		s.Log.Log(r.Context(), level, "request", "server", name, "route", r.Pattern, "method", r.Method,
			"status", seen.status, "address", source(r), "time", time.Since(start).Round(time.Millisecond))
	})
}

// answerTime is how long a request's body, and an answer, may take to be sent;
// transfers of files have other limits.
const answerTime = time.Minute

func (s *Server) answerTime() time.Duration {
	if s.patience > 0 {
		return s.patience
	}
	return answerTime
}

// limit sets when reading and writing a request have to be done. These are of the
// connection: without new ones, those of the request before would hold.
func limit(w http.ResponseWriter, r *http.Request, d time.Duration) {
	var read, write time.Time
	if d > 0 {
		write = time.Now().Add(d)
		if r.ContentLength != 0 { // else its end would end the request's context
			read = write
		}
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(read)   //nolint:errcheck // a recorder in a test has none
	control.SetWriteDeadline(write) //nolint:errcheck
}

// unlimited is for pages that are live: they set their own limits. Not so if there
// is a body: nobody reads it, and the server would wait for its end for ever.
func unlimited(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			limit(w, r, 0)
		}
		h.ServeHTTP(w, r)
	})
}

// observed keeps an answer's status, and gives way to sendfile(2).
type observed struct {
	http.ResponseWriter
	status int
	wrote  bool
	quiet  bool // its refusal isn't worth a line
}

// quiet keeps a request out of the log that anybody can send without an end, and
// that has been told of.
func quiet(w http.ResponseWriter) {
	if o, ok := w.(*observed); ok {
		o.quiet = true
	}
}

func (o *observed) WriteHeader(status int) {
	if !o.wrote && status >= http.StatusOK {
		o.status, o.wrote = status, true
	}
	o.ResponseWriter.WriteHeader(status)
}

func (o *observed) Write(data []byte) (int, error) {
	o.wrote = true
	return o.ResponseWriter.Write(data)
}

// ReadFrom implements io.ReaderFrom.
func (o *observed) ReadFrom(from io.Reader) (int64, error) {
	o.wrote = true
	return io.Copy(o.ResponseWriter, from)
}

// Flush implements http.Flusher, for the dashboard's live pages.
func (o *observed) Flush() {
	o.wrote = true
	http.NewResponseController(o.ResponseWriter).Flush() //nolint:errcheck // a recorder in a test can always
}

// Unwrap is for http.ResponseController.
func (o *observed) Unwrap() http.ResponseWriter { return o.ResponseWriter }
