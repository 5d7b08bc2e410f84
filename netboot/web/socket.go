package web

import (
	"context"
	"net"
	"net/http"
)

// connKey is where a request's context has the connection that it came over.
type connKey struct{}

// connected prepares a connection for files, and lets its requests find it.
func connected(ctx context.Context, c net.Conn) context.Context {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return ctx // TLS: what goes through it is small
	}
	boundUnsent(tcp)
	return context.WithValue(ctx, connKey{}, tcp)
}

// largeFile is from where on whole packets matter more than a prompt first and last
// one, in bytes: kernels and initramfs, but not chunks.
const largeFile = 16 << 20

// inWholePackets sends what follows in whole packets only, until done is called: with
// sendfile(2), each 64 KiB would end in a part of one, which halves what a single
// connection gets.
func inWholePackets(r *http.Request) (done func()) {
	c, ok := r.Context().Value(connKey{}).(*net.TCPConn)
	if !ok {
		return func() {}
	}
	cork(c, true)
	return func() { cork(c, false) }
}
