package tftp

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// transfer is one request and what follows from it.
type transfer struct {
	server  *Server
	request *request
	raw     string         // the request's packet: the same again is no other one
	client  netip.AddrPort // its port is the client's name of the transfer
	from    netip.Addr     // our address, as the client knows it
	began   time.Time
	heard   atomic.Bool // the client has answered

	conn   *socket
	sender *sender
	ended  chan error // has one once it is over
}

// run ends the transfer, one way or another, and counts it.
func (t *transfer) run() {
	s := t.server
	defer s.release(t)
	err := t.serve()
	o := outcome(err)
	s.count.ended[o].Add(1)
	log := s.log().With("client", t.client, "file", t.request.Name, "outcome", o)
	var done int64
	if t.sender != nil {
		done = t.sender.bytes()
		s.count.bytes.Add(done)
		s.count.resent.Add(t.sender.resent)
		log = log.With("bytes", done, "block", t.sender.block, "window", t.sender.window, "resent", t.sender.resent)
	}
	log = log.With("took", time.Since(t.began).Round(time.Millisecond))
	switch {
	case !o.Failure():
		log.Info("tftp: transfer")
	case o == NotFound: // firmware tries names
		log.Info("tftp: no such file")
	default:
		log.Warn("tftp: transfer", "error", err)
	}
}

// errInterrupted ends a transfer that Shutdown doesn't wait for any longer.
var errInterrupted = errors.New("interrupted")

// failure is an error whose outcome is known.
type failure struct {
	outcome Outcome
	err     error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func outcome(err error) Outcome {
	if err == nil {
		return Finished
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.outcome
	}
	return Broken
}

// serve answers the request.
func (t *transfer) serve() error {
	conn, err := t.server.Ports.dial(t.from, t.client)
	if err != nil {
		return &failure{Broken, err}
	}
	defer t.server.disown(conn)
	if !t.server.own(conn) {
		return &failure{Interrupted, ErrServerClosed}
	}
	t.conn = conn
	data, err := t.open()
	if err != nil {
		return err
	}
	terms := negotiate(t.request, int64(len(data)), t.server.blockLimit(t.client.Addr()), or(t.server.MaxWindow, 64))
	t.sender = newSender(data, terms, or(t.server.GiveUp, 45*time.Second), or(t.server.MaxTime, 15*time.Minute))
	err = t.send()
	if err == nil || t.sender.done() {
		return nil
	}
	return t.classify(err, terms)
}

// maxNetASCII bounds what is converted: a copy of the file per transfer.
const maxNetASCII = 16 << 20

// open finds the file. Its errors are told to the client.
func (t *transfer) open() ([]byte, error) {
	refuse := func(o Outcome, code uint16, text string, err error) ([]byte, error) {
		// Lost, it isn't sent again: the client will ask again.
		_ = t.conn.write(errorPacket(code, text))
		return nil, &failure{o, err}
	}
	if t.request.Write {
		return refuse(Denied, codeAccess, "this server is read-only", errors.New("the client wants to write"))
	}
	if t.request.Mode != "octet" && t.request.Mode != "netascii" {
		return refuse(BadRequest, codeIllegal, "only octet and netascii are served", fmt.Errorf("there is no mode %q", t.request.Mode))
	}
	name, err := CleanName(t.request.Name)
	if err != nil {
		return refuse(NotFound, codeNotFound, "file not found", err)
	}
	files := t.server.currentFiles()
	if files == nil {
		files = Map(nil)
	}
	data, err := files.Open(name, t.client.Addr())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(NotFound, codeNotFound, "file not found", err)
	case errors.Is(err, fs.ErrPermission):
		return refuse(Denied, codeAccess, "access denied", err)
	case err != nil:
		return refuse(Broken, codeUndefined, "the server can't read it", err)
	case t.request.Mode == "octet":
		return data, nil
	case len(data) > maxNetASCII:
		return refuse(BadRequest, codeIllegal, "too large for netascii: use octet (binary) mode", errors.New("too large for netascii"))
	}
	return netASCII(data), nil
}

// write sends blocks. What this machine can't send just now is as good as lost on
// the way, and is sent again.
func (t *transfer) write(buf []byte, todo span) error {
	for n := todo.first; n < todo.end; n++ {
		if err := t.conn.write(t.sender.packet(buf, n)); errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	if n := todo.end - max(todo.first, 1); n > 0 {
		t.server.count.packets.Add(n)
	}
	return nil
}

// classify says what an error amid the transfer means.
func (t *transfer) classify(err error, terms terms) error {
	stopped, isClient := errors.AsType[*clientError](err)
	gone := errors.Is(err, syscall.ECONNREFUSED)
	switch {
	case errors.Is(err, errInterrupted):
		return &failure{Interrupted, fmt.Errorf("%w: at block %d of %d", ErrServerClosed, t.sender.acked+1, t.sender.last)}
	case (isClient || gone) && terms.Size && !t.sender.started():
		return &failure{Probed, err}
	case isClient && stopped.Code == codeUnknownID && !t.sender.started():
		// It has the answer to its first request, of which this was a copy.
		return &failure{Probed, err}
	case isClient:
		return &failure{Stopped, fmt.Errorf("at block %d of %d: %w", t.sender.acked+1, t.sender.last, err)}
	case gone && t.sender.next > t.sender.last:
		return nil // it has left with the last block, and its acknowledgement was lost
	case gone:
		return &failure{Gone, errors.New("the client's port is closed, at block " + strconv.FormatInt(t.sender.acked+1, 10))}
	case errors.Is(err, errSilent):
		return &failure{Silent, err}
	case errors.Is(err, errLong):
		return &failure{TooLong, err}
	}
	return &failure{Broken, err}
}
