package tftp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Port is where clients send their requests.
const Port = 69

// Listen opens the socket for Serve: an address like ":69", or "10.0.0.1:69".
func Listen(ctx context.Context, address string) (*net.UDPConn, error) {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("TFTP: %w: another TFTP server runs here; `ss -ulpn` names it", err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("TFTP: %w: ports below 1024 need root, or CAP_NET_BIND_SERVICE", err)
	case err != nil:
		return nil, fmt.Errorf("TFTP: %w", err)
	}
	return c.(*net.UDPConn), nil
}

// requestBuffer is what may wait to be read: a rack that gets power begins at once.
const requestBuffer = 4 << 20

// askForDestination has each request tell which address it was sent to: the
// answer has to come from it.
func askForDestination(c *net.UDPConn) error {
	_ = c.SetReadBuffer(requestBuffer) // as much of it as the system allows
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return fmt.Errorf("%v isn't a UDP socket", c.LocalAddr())
	}
	if local.IP.To4() != nil {
		return ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	}
	return ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst, true)
}

// destination reads the address from a packet's control message. The zero one
// leaves the choice to the system: the message has none, or it is everybody's.
func destination(control []byte) netip.Addr {
	var m4 ipv4.ControlMessage
	if m4.Parse(control) == nil && m4.Dst != nil {
		return ownAddress(m4.Dst)
	}
	var m6 ipv6.ControlMessage
	if m6.Parse(control) == nil && m6.Dst != nil {
		return ownAddress(m6.Dst)
	}
	return netip.Addr{}
}

func ownAddress(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if !ok || a.IsMulticast() || a.IsUnspecified() || a.Is4() && a.As4()[3] == 255 {
		return netip.Addr{}
	}
	return a
}

// PortRange are the ports that transfers come from, both ends included. The zero
// range leaves them to the system; a firewall may want to know them.
type PortRange struct{ First, Last uint16 }

// dial opens a transfer's own socket, from the address that the client has asked.
// It hears nobody else, and hears when the client's port is closed.
func (r PortRange) dial(from netip.Addr, client netip.AddrPort) (*socket, error) {
	if r.First == 0 {
		return open(from, 0, client)
	}
	count := int(r.Last) - int(r.First) + 1
	if count < 1 {
		return nil, fmt.Errorf("the range of ports %d-%d is empty", r.First, r.Last)
	}
	begin := rand.IntN(count)
	for i := range count {
		c, err := open(from, r.First+uint16((begin+i)%count), client)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return c, err
		}
	}
	return nil, fmt.Errorf("all ports of %d-%d are in use: give transfers more of them", r.First, r.Last)
}
