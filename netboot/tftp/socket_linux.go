package tftp

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// socket is a transfer's own. It isn't one of package net's: those wake a
// goroutine for each packet, which costs as much as half of the packet.
type socket struct {
	fd     int
	killed atomic.Bool // by Shutdown
}

// open connects a socket from an address, which may be none, and a port, which may
// be 0, to the client.
func open(from netip.Addr, port uint16, client netip.AddrPort) (*socket, error) {
	family := unix.AF_INET6
	if client.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if from.IsValid() || port != 0 {
		if !from.IsValid() {
			from = netip.IPv6Unspecified()
			if client.Addr().Is4() {
				from = netip.IPv4Unspecified()
			}
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, port), client.Addr().Zone())); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("bind", err)
		}
	}
	if err := unix.Connect(fd, sockaddr(client, client.Addr().Zone())); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return &socket{fd: fd}, nil
}

func sockaddr(a netip.AddrPort, zone string) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	s := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().IsLinkLocalUnicast() {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			s.ZoneId = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			s.ZoneId = uint32(i.Index)
		}
	}
	return s
}

func (s *socket) write(p []byte) error {
	_, err := unix.Write(s.fd, p)
	return err
}

func (s *socket) close() { unix.Close(s.fd) }

// kill has the transfer end soon.
func (s *socket) kill() { s.killed.Store(true) }
