package web

import (
	"net"
	"net/http/httptest"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection's unsent bytes are bounded; what waits for whole packets is let go
// at the end of the file, and not when the kernel gives up.
func TestConnected(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	client := must(net.Dial("tcp", l.Addr().String()))
	defer client.Close()
	c := must(l.Accept()).(*net.TCPConn)
	defer c.Close()
	option := func(o int) (value int) {
		must(0, must(c.SyscallConn()).Control(func(fd uintptr) { value = must(unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, o)) }))
		return value
	}
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(connected(t.Context(), c))
	if got := option(unix.TCP_NOTSENT_LOWAT); got != unsent {
		t.Errorf("%d unsent bytes may wait", got)
	}
	done := inWholePackets(r)
	if option(unix.TCP_CORK) != 1 {
		t.Error("parts of packets are sent")
	}
	done()
	if option(unix.TCP_CORK) != 0 {
		t.Error("what is left waits for more")
	}
}

// What isn't a connection of TCP, as with TLS or a recorder, is left as it is.
func TestConnectedOtherwise(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	inWholePackets(httptest.NewRequest("GET", "/", nil).WithContext(connected(t.Context(), a)))()
}
