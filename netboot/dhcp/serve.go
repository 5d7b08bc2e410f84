package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	maxPacket   = 2048            // bytes; what is longer is cut, and then malformed
	queueLength = 256             // packets of registered hosts that wait for an answer
	maxBatch    = 64              // replies for which the leases are stored once
	faceAge     = 5 * time.Second // after which an interface's addresses are read again
	retryPause  = time.Second     // after an interface has failed
)

// face is an interface that a server listens on.
type face struct {
	net.Interface
	sockets []socket

	mu       sync.Mutex
	networks []netip.Prefix // its addresses, with their networks' lengths
	read     time.Time
}

type socket struct {
	*ipv4.PacketConn
	boot bool // of port 4011
}

// incoming is a packet of a registered host, and through what it came.
type incoming struct {
	packet []byte
	at     Where
	face   *face
	socket socket
}

// Run answers until ctx ends, which is no error.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(ctx); err != nil {
		return err
	}
	return s.Serve(ctx)
}

// Listen reads the leases and opens the sockets: Serve answers from then on.
func (s *Server) Listen(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	faces, err := s.findFaces()
	if err != nil {
		return err
	}
	if s.Mode == Full {
		if err := s.checkRanges(faces); err != nil {
			return err
		}
		if err := s.load(); err != nil {
			return err
		}
	}
	s.faces = faces
	for _, f := range faces {
		for _, port := range []int{portServer, portBoot} {
			c, err := listen(ctx, f.Name, port)
			if err != nil {
				s.close()
				return fmt.Errorf("listening for DHCP at port %d of %s: %w%s", port, f.Name, err, hint(err))
			}
			f.sockets = append(f.sockets, socket{c, port == portBoot})
		}
	}
	return nil
}

func hint(err error) string {
	switch {
	case errors.Is(err, os.ErrPermission):
		return ": ports below 1024 need root, or CAP_NET_BIND_SERVICE"
	case strings.Contains(err.Error(), "address already in use"):
		return ": another DHCP server runs on this machine: ss -lunp names it"
	default:
		return ""
	}
}

// check says what is wrong with the server's fields.
func (s *Server) check() error {
	if s.Address.IsValid() && !s.Address.Is4() {
		return fmt.Errorf("the server's address is %s: DHCP needs one of IPv4", s.Address)
	}
	if s.Mode == Proxy {
		return nil
	}
	if len(s.Ranges) == 0 {
		return errors.New("full DHCP needs a range of addresses to give: 10.0.0.100-10.0.0.200")
	}
	if s.StateDir == "" {
		return errors.New("full DHCP needs a directory to keep its leases in")
	}
	for i, r := range s.Ranges {
		if err := r.check(); err != nil {
			return err
		}
		for _, other := range s.Ranges[:i] {
			if other.contains(r.First) || r.contains(other.First) {
				return fmt.Errorf("ranges %s-%s and %s-%s overlap: no address may be in two", other.First, other.Last, r.First, r.Last)
			}
		}
	}
	return nil
}

// checkRanges refuses a range of which no address would ever be given: it is of no
// interface's network, and of none whose relay could bring requests.
func (s *Server) checkRanges(faces []*face) error {
	now := s.now()
	var networks []netip.Prefix
	var have []string
	for _, f := range faces {
		for _, n := range f.addresses(now) {
			networks = append(networks, n)
			have = append(have, fmt.Sprintf("%s has %s", f.Name, n.Masked()))
		}
	}
	for _, r := range s.Ranges {
		name := r.First.String() + "-" + r.Last.String()
		near := slices.ContainsFunc(networks, func(n netip.Prefix) bool {
			if r.Network.IsValid() {
				return r.Network.Contains(n.Addr())
			}
			return n.Contains(r.First) && n.Contains(r.Last)
		})
		switch {
		case near:
		case r.Network.IsValid():
			s.log().Info("dhcp: a range is for what relays bring alone: no interface is in its network", "range", name, "network", r.Network.String())
		default:
			return fmt.Errorf("range %s is in no interface's network (%s): name a range of one of these, or another interface; if a relay brings the requests, write the length of its network's prefix behind it, as in %[1]s/24",
				name, strings.Join(have, ", "))
		}
	}
	return nil
}

// findFaces finds the interfaces to listen on.
func (s *Server) findFaces() ([]*face, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("looking for interfaces: %w", err)
	}
	var faces []*face
	for _, name := range s.Interfaces {
		i := slices.IndexFunc(all, func(f net.Interface) bool { return f.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no interface %s: ip link lists those there are", name)
		}
		f := &face{Interface: all[i]}
		if len(f.addresses(time.Now())) == 0 {
			return nil, fmt.Errorf("interface %s has no IPv4 address: give it one before DHCP is answered there", name)
		}
		faces = append(faces, f)
	}
	if len(s.Interfaces) > 0 {
		return faces, nil
	}
	for _, i := range all {
		f := &face{Interface: i}
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 && i.Flags&net.FlagBroadcast != 0 && len(f.addresses(time.Now())) > 0 {
			faces = append(faces, f)
		}
	}
	if len(faces) == 0 {
		return nil, errors.New("no interface is up and has an IPv4 address: DHCP can't be answered on any")
	}
	return faces, nil
}

// addresses are the interface's, as they were a few seconds ago at most.
func (f *face) addresses(now time.Time) []netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	if age := now.Sub(f.read); age >= 0 && age < faceAge {
		return f.networks
	}
	addrs, err := f.Addrs()
	if err != nil {
		return f.networks // it may come back
	}
	f.networks, f.read = nil, now
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			ones, _ := n.Mask.Size()
			f.networks = append(f.networks, netip.PrefixFrom(address(n.IP), ones))
		}
	}
	return f.networks
}

// where says how a packet came in: to one of the interface's addresses, or to
// everybody, and then in the network that has a range.
func (s *Server) where(f *face, to net.IP, from netip.AddrPort, boot bool) (Where, bool) {
	networks := f.addresses(s.now())
	if len(networks) == 0 {
		return Where{}, false
	}
	own := networks[0]
	i := slices.IndexFunc(networks, func(n netip.Prefix) bool { return n.Addr() == address(to) })
	if i < 0 {
		i = slices.IndexFunc(networks, func(n netip.Prefix) bool {
			return slices.ContainsFunc(s.Ranges, func(r Range) bool { return n.Contains(r.First) })
		})
	}
	if i >= 0 {
		own = networks[i]
	}
	w := Where{Interface: f.Name, Address: own.Addr(), Network: own, From: from, Boot: boot}
	if s.Address.IsValid() {
		w.Address = s.Address
	}
	return w, true
}

// Serve answers until ctx ends, which is no error. What was read by then is
// answered.
func (s *Server) Serve(ctx context.Context) error {
	queue := make(chan incoming, queueLength)
	var readers sync.WaitGroup
	for _, f := range s.faces {
		s.log().Info("dhcp: listening", "mode", s.Mode.String(), "interface", f.Name)
		for _, c := range f.sockets {
			readers.Go(func() { s.read(ctx, f, c, queue) })
		}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, f := range s.faces {
			for _, c := range f.sockets {
				_ = c.SetReadDeadline(time.Unix(1, 0)) // a closed one needn't be woken
			}
		}
	})
	defer stop()
	go func() {
		readers.Wait()
		close(queue)
	}()
	for first := range queue {
		s.batch(first, queue)
	}
	return s.close()
}

func (s *Server) close() error {
	var errs []error
	for _, f := range s.faces {
		for _, c := range f.sockets {
			errs = append(errs, c.Close())
		}
		f.sockets = nil
	}
	return errors.Join(errs...)
}

// read hands on what registered hosts send to a socket.
func (s *Server) read(ctx context.Context, f *face, c socket, queue chan<- incoming) {
	b := make([]byte, maxPacket)
	failed := false
	for ctx.Err() == nil {
		n, cm, src, err := c.ReadFrom(b)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The interface is down, or gone: it may come back.
			if !failed {
				s.log().Warn("dhcp: reading fails, and is tried again every second", "interface", f.Name, "error", err)
			}
			failed = true
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
			continue
		}
		failed = false
		s.Counters.received.Add(1)
		if _, host, why := s.registered(b[:n]); host == nil {
			s.Counters.unanswered[why].Add(1)
			continue
		}
		var to net.IP
		if cm != nil {
			to = cm.Dst
		}
		var from netip.AddrPort
		if u, ok := src.(*net.UDPAddr); ok {
			from = netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
		}
		at, ok := s.where(f, to, from, c.boot)
		if !ok {
			s.Counters.unanswered[OtherNetwork].Add(1)
			continue
		}
		queue <- incoming{slices.Clone(b[:n]), at, f, c}
	}
}

// batch answers a packet and those that wait behind it. Their leases are stored
// together: a disk that takes 5 ms to flush would have 500 hosts wait for seconds.
func (s *Server) batch(first incoming, queue <-chan incoming) {
	type outgoing struct {
		*Reply
		incoming
	}
	var out []outgoing
	answer := func(in incoming) {
		r, why := s.Answer(in.packet, in.at)
		if r == nil {
			s.Counters.unanswered[why].Add(1)
			return
		}
		out = append(out, outgoing{r, in})
	}
	answer(first)
	for n := 1; n < maxBatch; n++ {
		select {
		case in, ok := <-queue:
			if !ok {
				n = maxBatch
				break
			}
			answer(in)
		default:
			n = maxBatch
		}
	}
	if err := s.Commit(); err != nil {
		s.log().Error("dhcp: not answered", "packets", len(out), "error", err)
		s.Counters.unanswered[NotStored].Add(uint64(len(out)))
		return
	}
	for _, o := range out {
		cm := &ipv4.ControlMessage{IfIndex: o.face.Index}
		if o.at.Network.Addr().IsValid() {
			cm.Src = o.at.Network.Addr().AsSlice()
		}
		if _, err := o.socket.WriteTo(o.Packet.ToBytes(), cm, net.UDPAddrFromAddrPort(o.To)); err != nil {
			s.log().Warn("dhcp: an answer couldn't be sent", "host", o.Host.Name, "to", o.To.String(), "error", err)
			s.Counters.unanswered[NotSent].Add(1)
			continue
		}
		s.Counters.answered[o.Kind].Add(1)
	}
}
