//go:build integration

package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// syncBuffer is what a program says, for several readers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// sniffer looks at every packet of the lab's network, for secrets.
type sniffer struct {
	fd       int
	cluster  net.IP            // its servers' address: agents say their tokens to it, without TLS
	needles  map[string][]byte // what is looked for, by what it is
	done     chan struct{}
	mu       sync.Mutex
	found    map[string]int
	packets  int
	bytes    int64
	dropped  uint32
	failed   error
	stopOnce sync.Once
}

// needle is how much of a secret is looked for in one packet: of a longer one all
// its parts are, so that no border between packets hides it.
const needle = 12

// newSniffer listens on the lab's bridge from now on.
func newSniffer(t *testing.T, c *cluster, secrets ...string) *sniffer {
	t.Helper()
	s := &sniffer{cluster: c.Config.Address.Addr().AsSlice(), needles: map[string][]byte{}, done: make(chan struct{}), found: map[string]int{}}
	for i, secret := range secrets {
		s.add(fmt.Sprintf("secret %d", i), []byte(secret))
		s.add(fmt.Sprintf("secret %d in base64", i), []byte(base64.StdEncoding.EncodeToString([]byte(secret))))
		if raw, err := base64.StdEncoding.DecodeString(secret); err == nil {
			s.add(fmt.Sprintf("secret %d raw", i), raw)
			s.add(fmt.Sprintf("secret %d in hexadecimal digits", i), []byte(hex.EncodeToString(raw)))
		}
	}
	opened := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which is in another network, ends with the
		// goroutine.
		runtime.LockOSThread()
		opened <- s.open(c.space.Network(), "lab0")
		s.listen()
	}()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func (s *sniffer) add(what string, secret []byte) {
	for at := 0; at+needle <= len(secret); at += needle {
		s.needles[fmt.Sprintf("%s, from %d", what, at)] = secret[at : at+needle]
	}
}

func (s *sniffer) open(network, nic string) error {
	ns, err := os.Open(network)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
		return err
	}
	i, err := net.InterfaceByName(nic)
	if err != nil {
		return err
	}
	// What is bridged between two others is seen by those that want all.
	member := &unix.PacketMreq{Ifindex: int32(i.Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(s.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, member); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		return err
	}
	return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
}

func (s *sniffer) listen() {
	defer unix.Close(s.fd)
	buf := make([]byte, 128<<10)
	for {
		select {
		case <-s.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			s.mu.Lock()
			s.failed = err
			s.mu.Unlock()
			return
		default:
			s.look(buf[:n])
		}
	}
}

func (s *sniffer) look(packet []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(packet) >= 34 && (bytes.Equal(packet[26:30], s.cluster) || bytes.Equal(packet[30:34], s.cluster)) {
		return
	}
	s.packets++
	s.bytes += int64(len(packet))
	for what, secret := range s.needles {
		if bytes.Contains(packet, secret) {
			s.found[what]++
		}
	}
	if s.packets%1000 == 0 {
		if stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			s.dropped += stats.Drops
		}
	}
}

func (s *sniffer) stop() { s.stopOnce.Do(func() { close(s.done) }) }

// check wants nothing found, where much was looked at.
func (s *sniffer) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("looked at %d packets with %d MiB; %d were lost", s.packets, s.bytes>>20, s.dropped)
	if s.failed != nil || s.bytes < 100<<20 {
		t.Errorf("the wire wasn't looked at: %v", s.failed)
	}
	for what, n := range s.found {
		t.Errorf("%s is in %d packets", what, n)
	}
}
