//go:build !linux

package dhcp

import (
	"context"
	"errors"

	"golang.org/x/net/ipv4"
)

func listen(context.Context, string, int) (*ipv4.PacketConn, error) {
	return nil, errors.New("DHCP is served on Linux alone")
}
