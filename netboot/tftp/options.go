package tftp

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// terms are what a transfer goes by.
type terms struct {
	Block    int           // bytes of data per packet
	Window   int           // packets that may be sent before one is acknowledged
	Timeout  time.Duration // the client's wish; 0: none
	Size     bool          // the client asked for the size
	Accepted []option      // what the client is told; empty: it asked for nothing that is known
}

const (
	defaultBlock = 512
	minBlock     = 8     // RFC 2348
	maxBlock     = 65464 // RFC 2348
	maxTimeout   = 255   // seconds, RFC 2349
)

// negotiate settles the options. What isn't known or makes no sense is left
// out, which tells the client that it doesn't hold (RFC 2347).
func negotiate(r *request, size int64, blockLimit, windowLimit int) terms {
	t := terms{Block: defaultBlock, Window: 1}
	accept := func(o option, value int64) {
		t.Accepted = append(t.Accepted, option{o.Name, strconv.FormatInt(value, 10)})
	}
	for _, o := range r.Options {
		n, err := strconv.ParseInt(strings.TrimSpace(o.Value), 10, 64)
		if err != nil || n < 0 {
			continue
		}
		switch o.Name {
		case "blksize":
			if n >= minBlock {
				t.Block = int(min(n, maxBlock, int64(blockLimit)))
				accept(o, int64(t.Block))
			}
		case "windowsize":
			if n >= 1 {
				t.Window = int(min(n, int64(windowLimit)))
				accept(o, int64(t.Window))
			}
		case "timeout":
			// The answer has to be the same value, or none.
			if n >= 1 && n <= maxTimeout {
				t.Timeout = time.Duration(n) * time.Second
				accept(o, n)
			}
		case "tsize":
			t.Size = true
			accept(o, size)
		}
	}
	return t
}

// blockLimit is the most data that a packet to the client can carry unfragmented.
func (s *Server) blockLimit(client netip.Addr) int {
	if s.MaxBlock > 0 {
		return max(minBlock, s.MaxBlock)
	}
	const mtu, ipv4, ipv6, udp = 1500, 20, 40, 8
	if client.Unmap().Is4() {
		return mtu - ipv4 - udp - headerSize
	}
	return mtu - ipv6 - udp - headerSize
}
