//go:build !linux

package web

import "net"

func boundUnsent(*net.TCPConn) {}

func cork(*net.TCPConn, bool) {}
