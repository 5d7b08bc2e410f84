package dhcp

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// receiveBuffer is how much may wait to be read, in bytes: when the power of a whole
// room comes back, each of its machines asks at once, and one whose packet is lost
// asks again after 4 seconds, and then 8. The kernel counts more than twice a
// packet's length; this is enough for some 3000.
const receiveBuffer = 4 << 20

// listen opens a socket that hears one interface alone. It doesn't share the port:
// two servers that do would take packets from each other, each now and then.
func listen(ctx context.Context, name string, port int) (*ipv4.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) {
			inner = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name)
			// Beyond what the system allows everybody, where we may; else up to that.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
		if err != nil {
			return err
		}
		return inner
	}}
	c, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	p := ipv4.NewPacketConn(c)
	if err := p.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		c.Close()
		return nil, err
	}
	return p, nil
}
