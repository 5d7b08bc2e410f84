// Package tftp serves boot files to firmware that knows no better: read-only
// TFTP (RFC 1350) with options (2347), block size (2348), timeout and size (2349)
// and windows (7440).
//
// A client asks at port 69, and the server answers from a port of the transfer's
// own; from then on the two ports are the transfer's name. Each packet of data is
// acknowledged before the next is sent, so the speed is a block per round trip:
// that is why clients ask for larger blocks, and some for several of them at once.
//
// What firmware does that the documents don't say: it begins with a request for the
// file's size alone, and aborts it (EDK2); it sends its request again when the
// answer takes long; it ends file names with a byte of 0xff; it takes back slashes
// for slashes; and it goes away in the middle without a word.
//
// Files are few and small, a megabyte of iPXE, and are served from memory.
package tftp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers requests. Its fields are set before it serves, and left alone
// then; but for the files, which SetFiles changes.
type Server struct {
	// Files has what is served.
	Files Files
	// Allow says whether a client is answered at all; nil: each is. It must be quick.
	Allow func(client netip.Addr) bool
	// Log gets a line per transfer; nil: nobody does.
	Log *slog.Logger

	// Ports are where transfers come from.
	Ports PortRange
	// MaxTransfers bounds those at once, and MaxPerClient those of one address; a
	// request beyond them isn't answered, and the client tries again. 0: 1024 and 8.
	MaxTransfers, MaxPerClient int
	// MaxBlock is the largest block in bytes, whatever a client wants; 0: what
	// Ethernet carries in one packet. MaxWindow is how many are sent at once; 0: 64.
	MaxBlock, MaxWindow int
	// GiveUp is how long a silent client is waited for; 0: 45 s. MaxTime is how long a
	// transfer may take in all; 0: 15 minutes.
	GiveUp, MaxTime time.Duration

	files atomic.Pointer[Files] // that SetFiles has set
	count counters
	loops loops

	mu        sync.Mutex
	listening map[*net.UDPConn]bool
	active    map[netip.AddrPort]*transfer // by client
	clients   map[netip.Addr]int           // transfers of each
	running   int                          // transfers, also those that active has forgotten
	sockets   map[*socket]bool             // of transfers
	idle      chan struct{}                // closed once nothing runs after Shutdown
	down      bool                         // Shutdown was called
	killed    bool                         // and didn't wait any longer
}

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("the TFTP server is shut down")

// SetFiles changes what is served from now on. Transfers that run go on with what
// they have.
func (s *Server) SetFiles(f Files) { s.files.Store(&f) }

func (s *Server) currentFiles() Files {
	if f := s.files.Load(); f != nil {
		return *f
	}
	return s.Files
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.New(slog.DiscardHandler)
}

// or is value, or what it is by default.
func or[T ~int | ~int64](value, byDefault T) T {
	if value > 0 {
		return value
	}
	return byDefault
}

// Serve answers the requests that come to the socket, until Shutdown: then it
// returns ErrServerClosed. It closes the socket.
func (s *Server) Serve(c *net.UDPConn) error {
	defer c.Close()
	if err := askForDestination(c); err != nil {
		return fmt.Errorf("TFTP at %s: %w", c.LocalAddr(), err)
	}
	if !s.listen(c) {
		return ErrServerClosed
	}
	buf, control := make([]byte, 2048), make([]byte, 256)
	// The socket of a server is asked for nothing but packets: an error that isn't its
	// end is of one of them.
	for failures := 0; ; {
		n, nc, _, from, err := c.ReadMsgUDPAddrPort(buf, control)
		if err == nil {
			failures = 0
			s.take(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), destination(control[:nc]))
			continue
		}
		if s.stopped() {
			return ErrServerClosed
		}
		if failures++; errors.Is(err, net.ErrClosed) || failures > 100 {
			return fmt.Errorf("TFTP at %s: %w", c.LocalAddr(), err)
		}
		s.log().Warn("tftp: reading a request", "error", err)
		time.Sleep(time.Duration(failures) * time.Millisecond)
	}
}

// listen remembers the socket, unless it is too late.
func (s *Server) listen(c *net.UDPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return false
	}
	if s.listening == nil {
		s.listening = map[*net.UDPConn]bool{}
	}
	s.listening[c] = true
	return true
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// Shutdown takes no more requests, and waits until the transfers have ended, or
// until ctx has: then it ends them, and returns its cause.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.down {
		s.down, s.idle = true, make(chan struct{})
		if s.running == 0 {
			close(s.idle)
		}
	}
	for c := range s.listening {
		c.Close()
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.killed = true
	n := s.running
	for c := range s.sockets {
		c.kill()
	}
	s.mu.Unlock()
	<-idle
	if n == 0 {
		return nil
	}
	return fmt.Errorf("TFTP: %d transfers were interrupted: %w", n, context.Cause(ctx))
}

// take begins what a packet to the server's port asks for.
func (s *Server) take(p []byte, client netip.AddrPort, to netip.Addr) {
	// Nothing can be sent to port 0, and an answer to our own port might be answered.
	if client.Port() == 0 || s.Allow != nil && !s.Allow(client.Addr()) {
		s.count.refused.Add(1)
		return
	}
	r, err := parseRequest(p)
	if err != nil {
		s.count.malformed.Add(1)
		s.log().Debug("tftp: not a request", "client", client, "error", err)
		return
	}
	t := &transfer{server: s, request: r, raw: string(p), client: client, from: to, began: time.Now()}
	if s.admit(t) {
		go t.run()
	}
}

// repeatTime is how long a client that hears nothing is believed to be repeating
// its request, not to have started anew from the same port.
const repeatTime = time.Second

// admit counts a transfer in, if there is room for it.
func (s *Server) admit(t *transfer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return false
	}
	if old := s.active[t.client]; old != nil && old.raw == t.raw && (!old.heard.Load() || t.began.Sub(old.began) < repeatTime) {
		s.count.repeated.Add(1) // the first is being answered, again and again
		return false
	}
	if s.running >= or(s.MaxTransfers, 1024) || s.clients[t.client.Addr()] >= or(s.MaxPerClient, 8) {
		s.count.busy.Add(1)
		return false
	}
	if s.active == nil {
		s.active, s.clients, s.sockets = map[netip.AddrPort]*transfer{}, map[netip.Addr]int{}, map[*socket]bool{}
	}
	s.active[t.client] = t
	s.clients[t.client.Addr()]++
	s.running++
	s.count.begun.Add(1)
	s.count.active.Add(1)
	return true
}

// release counts a transfer out.
func (s *Server) release(t *transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[t.client] == t {
		delete(s.active, t.client)
	}
	if s.clients[t.client.Addr()]--; s.clients[t.client.Addr()] <= 0 {
		delete(s.clients, t.client.Addr())
	}
	s.count.active.Add(-1)
	if s.running--; s.running == 0 && s.down {
		close(s.idle)
	}
}

// own remembers a transfer's socket, so that Shutdown can close it. False: it did
// already.
func (s *Server) own(c *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets[c] = true
	return !s.killed
}

func (s *Server) disown(c *socket) {
	s.mu.Lock()
	delete(s.sockets, c)
	s.mu.Unlock()
	c.close()
}
