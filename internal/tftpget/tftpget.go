// Package tftpget is a TFTP client for tests and measurements: it reads, with the
// options that firmware uses, and windows (RFC 7440), which few clients have.
package tftpget

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Get is how a file is fetched. The zero value asks for no option.
type Get struct {
	Block, Window int           // 0: not asked for
	Size          bool          // ask for it
	Mode          string        // "": octet
	Wait          time.Duration // before it says again what it said; 0: 1 s
	Tries         int           // how often, without any progress; 0: 8
	From          netip.Addr    // own address; the zero one is the system's choice

	// Repeated counts what had to be said again.
	Repeated int
}

// Refused is the server's error packet.
type Refused struct {
	Code uint16
	Text string
}

func (r *Refused) Error() string { return fmt.Sprintf("TFTP error %d: %s", r.Code, r.Text) }

// Bytes fetches a file into memory.
func (g *Get) Bytes(ctx context.Context, server netip.AddrPort, name string) ([]byte, error) {
	var all []byte
	err := g.Each(ctx, server, name, func(b []byte) error {
		all = append(all, b...)
		return nil
	})
	return all, err
}

// Each calls a function for each block, in order. The block is valid until it
// returns.
func (g *Get) Each(ctx context.Context, server netip.AddrPort, name string, sink func([]byte) error) error {
	var local *net.UDPAddr
	if g.From.IsValid() {
		local = &net.UDPAddr{IP: g.From.AsSlice()}
	}
	c, err := net.ListenUDP("udp", local)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	f := &fetch{get: g, conn: c, server: server, block: 512, window: 1, sink: sink, said: g.request(name)}
	if err := f.run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s of %s: %w", name, server, err)
	}
	return nil
}

func (g *Get) request(name string) []byte {
	mode := g.Mode
	if mode == "" {
		mode = "octet"
	}
	fields := []string{name, mode}
	if g.Size {
		fields = append(fields, "tsize", "0")
	}
	if g.Block > 0 {
		fields = append(fields, "blksize", strconv.Itoa(g.Block))
	}
	if g.Window > 0 {
		fields = append(fields, "windowsize", strconv.Itoa(g.Window))
	}
	return append([]byte{0, 1}, strings.Join(fields, "\x00")+"\x00"...)
}

type fetch struct {
	get    *Get
	conn   *net.UDPConn
	server netip.AddrPort
	bound  bool // the socket is connected to the transfer's port
	block  int
	window int
	sink   func([]byte) error

	last   uint16 // block that was received last, in order
	since  int    // blocks since the last acknowledgement
	missed bool   // one is missing, and that was said
	done   bool
	said   []byte // to be said again
	ack    [4]byte
}

func (f *fetch) run() error {
	wait, tries := f.get.Wait, f.get.Tries
	if wait == 0 {
		wait = time.Second
	}
	if tries == 0 {
		tries = 8
	}
	if err := f.say(f.said); err != nil {
		return err
	}
	buf := make([]byte, max(2048, f.get.Block+4))
	heard := time.Now()
	if err := f.conn.SetReadDeadline(heard.Add(wait)); err != nil {
		return err
	}
	for silent := 0; !f.done; {
		n, from, err := f.read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// A deadline per packet would cost as much as the packet: it is set when it passes.
			if left := time.Until(heard.Add(wait)); left <= 0 {
				if silent++; silent > tries {
					return fmt.Errorf("no answer after block %d", f.last)
				}
				f.get.Repeated++
				f.missed, f.since = false, 0
				heard = time.Now()
				if err := f.say(f.said); err != nil {
					return err
				}
			}
			err = f.conn.SetReadDeadline(heard.Add(wait))
			if err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			progress, err := f.take(buf[:n], from)
			if err != nil {
				return err
			}
			if progress {
				silent, heard = 0, time.Now()
			}
		}
	}
	return nil
}

// take takes a packet, and says whether it was of use.
func (f *fetch) take(p []byte, from netip.AddrPort) (bool, error) {
	if len(p) < 4 {
		return false, nil
	}
	switch binary.BigEndian.Uint16(p) {
	case 5:
		return false, &Refused{binary.BigEndian.Uint16(p[2:]), strings.TrimRight(string(p[4:]), "\x00")}
	case 6:
		if f.bound {
			return false, f.acknowledge() // it was lost
		}
		if err := errors.Join(f.bind(from), f.options(string(p[2:]))); err != nil {
			return false, err
		}
		return true, f.acknowledge()
	case 3:
		if err := f.bind(from); err != nil {
			return false, err
		}
		return f.data(binary.BigEndian.Uint16(p[2:]), p[4:])
	}
	return false, nil
}

// bind has the socket hear the transfer's port alone, which is cheaper, too.
func (f *fetch) bind(from netip.AddrPort) error {
	if f.bound {
		return nil
	}
	f.bound = true
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return err
	}
	to := unix.Sockaddr(&unix.SockaddrInet4{Port: int(from.Port()), Addr: from.Addr().Unmap().As4()})
	if local := f.conn.LocalAddr().(*net.UDPAddr); local.IP.To4() == nil {
		to = &unix.SockaddrInet6{Port: int(from.Port()), Addr: from.Addr().As16()}
	}
	failed := raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), to) })
	return errors.Join(failed, err)
}

// read reads the next packet.
func (f *fetch) read(buf []byte) (int, netip.AddrPort, error) {
	if !f.bound {
		return f.conn.ReadFromUDPAddrPort(buf)
	}
	n, err := f.conn.Read(buf)
	return n, netip.AddrPort{}, err
}

// say sends a packet, and remembers it.
func (f *fetch) say(p []byte) (err error) {
	f.said = p
	if f.bound {
		_, err = f.conn.Write(p)
	} else {
		_, err = f.conn.WriteToUDPAddrPort(p, f.server)
	}
	return err
}

func (f *fetch) options(s string) error {
	fields := strings.Split(strings.TrimRight(s, "\x00"), "\x00")
	for i := 0; i+1 < len(fields); i += 2 {
		n, err := strconv.Atoi(fields[i+1])
		if err != nil {
			return fmt.Errorf("option %s is %q", fields[i], fields[i+1])
		}
		switch fields[i] {
		case "blksize":
			f.block = n
		case "windowsize":
			f.window = n
		}
	}
	return nil
}

func (f *fetch) data(n uint16, b []byte) (bool, error) {
	switch {
	case n != f.last+1:
		// It came before, or one before it is missing. In windows, say once where to go
		// on; and the last of a window that comes again wants its answer again.
		before := int16(n-f.last) <= 0
		if f.window > 1 && (before && (n != f.last || f.since > 0) || !before && f.missed) {
			return false, nil
		}
		f.missed = true
		return false, f.acknowledge()
	case len(b) > f.block:
		return false, fmt.Errorf("block %d has %d bytes, not %d", n, len(b), f.block)
	}
	f.last, f.missed = n, false
	f.since++
	f.done = len(b) < f.block
	if err := f.sink(b); err != nil {
		return false, err
	}
	if f.done || f.since >= f.window {
		return true, f.acknowledge()
	}
	return true, nil
}

func (f *fetch) acknowledge() error {
	f.since = 0
	f.ack[1] = 4
	binary.BigEndian.PutUint16(f.ack[2:], f.last)
	return f.say(f.ack[:])
}
