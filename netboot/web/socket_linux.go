package web

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent is how much of a file waits in the kernel for a connection's window, in
// bytes. Without a bound it is megabytes for each of hundreds of clients: more than
// the processor's cache holds, so that each byte is fetched from memory once more.
// What is on its way isn't bounded: long lines stay full.
const unsent = 256 << 10

func boundUnsent(c *net.TCPConn) { setTCP(c, unix.TCP_NOTSENT_LOWAT, unsent) }

func cork(c *net.TCPConn, on bool) {
	value := 0
	if on {
		value = 1
	}
	setTCP(c, unix.TCP_CORK, value)
}

// setTCP sets what makes a connection faster only: where it can't be set, files are
// sent all the same.
func setTCP(c *net.TCPConn, option, value int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) //nolint:errcheck
	})
}
