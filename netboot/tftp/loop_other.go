//go:build !linux

package tftp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"time"
)

// socket is a transfer's own.
type socket struct{ conn *net.UDPConn }

// loops are of Linux alone: elsewhere, each transfer has its goroutine.
type loops struct{}

// open connects a socket from an address, which may be none, and a port, which may
// be 0, to the client.
func open(from netip.Addr, port uint16, client netip.AddrPort) (*socket, error) {
	var local *net.UDPAddr
	if from.IsValid() || port != 0 {
		local = &net.UDPAddr{IP: from.AsSlice(), Port: int(port)}
		if from.IsLinkLocalUnicast() {
			local.Zone = client.Addr().Zone()
		}
	}
	c, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(client))
	if err != nil {
		return nil, err
	}
	return &socket{c}, nil
}

func (s *socket) write(p []byte) error {
	_, err := s.conn.Write(p)
	return err
}

func (s *socket) close() { s.conn.Close() }

// kill has the transfer end soon.
func (s *socket) kill() { s.conn.Close() }

// send runs the transfer until all is acknowledged, or an error.
func (t *transfer) send() error {
	buf := make([]byte, max(t.sender.block+headerSize, 1024))
	todo := t.sender.start(time.Now())
	for {
		if err := t.write(buf, todo); err != nil || t.sender.done() {
			return err
		}
		if err := t.conn.conn.SetReadDeadline(t.sender.deadline()); err != nil {
			return errInterrupted
		}
		n, err := t.conn.conn.Read(buf)
		now := time.Now()
		switch {
		case err == nil:
			todo, err = t.sender.receive(now, buf[:n])
		case errors.Is(err, os.ErrDeadlineExceeded):
			todo, err = t.sender.expire(now)
		case errors.Is(err, net.ErrClosed):
			err = errInterrupted
		}
		if err != nil {
			return err
		}
		if !t.heard.Load() && t.sender.started() {
			t.heard.Store(true)
		}
	}
}
