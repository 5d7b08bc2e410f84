package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/lossy"
	"github.com/alisw/kiln/internal/tftpget"
)

// serve runs a server until the test ends.
func serve(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	c, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(c) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx) // tests that care have done so themselves
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
		if n := s.Counters().Active; n != 0 {
			t.Errorf("%d transfers are still active", n)
		}
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// eventually waits for what the server does a moment after its client has all.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not so: %s", what)
}

func TestTransfers(t *testing.T) {
	t.Parallel()
	files := Map{"empty": nil, "small": []byte("#!ipxe\n"), "exact": content(512 * 3), "ipxe.efi": content(1<<20 + 77), "text": []byte("a\nb\r\n")}
	s := &Server{Files: files}
	addr := serve(t, s)
	var want int64
	for _, g := range []tftpget.Get{{}, {Size: true}, {Block: 8}, {Block: 1468, Size: true}, {Block: 65464}, {Window: 7}, {Block: 1468, Window: 16, Size: true}} {
		for name, data := range files {
			if g.Block == 8 && name == "ipxe.efi" {
				continue
			}
			got, err := g.Bytes(t.Context(), addr, "/"+name)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s with %+v: %d bytes of %d: %v", name, g, len(got), len(data), err)
			}
			want++
		}
	}
	got, err := (&tftpget.Get{Mode: "NetASCII"}).Bytes(t.Context(), addr, "text")
	if err != nil || string(got) != "a\r\nb\r\x00\r\n" {
		t.Errorf("netascii: %q, %v", got, err)
	}
	eventually(t, "all are counted as finished", func() bool { c := s.Counters(); return c.Ended[Finished] == want+1 && c.Begun == want+1 })
	if c := s.Counters(); c.Bytes < 5<<20 || c.Packets < 5000 {
		t.Errorf("%+v", c)
	}
}

// TestLossyLink: real sockets, over a network that loses, doubles and disorders.
func TestLossyLink(t *testing.T) {
	t.Parallel()
	data := content(200_000)
	s := &Server{Files: Map{"f": data}}
	addr := serve(t, s)
	var wg sync.WaitGroup
	for i, window := range []int{0, 4, 16} {
		p, err := lossy.New(addr, lossy.Link{Delay: 2 * time.Millisecond, Loss: 0.02, Duplicate: 0.03, Reorder: 0.02, Seed: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		wg.Go(func() {
			got, err := (&tftpget.Get{Block: 1468, Window: window, Size: true}).Bytes(t.Context(), p.Addr(), "f")
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("window %d: %d bytes of %d: %v", window, len(got), len(data), err)
			}
		})
	}
	wg.Wait()
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := &Server{Files: FilesFunc(func(name string, _ netip.Addr) ([]byte, error) {
		switch name {
		case "secret":
			return nil, fs.ErrPermission
		case "broken":
			return nil, errors.New("the disk is on fire")
		}
		return Map{}.Open(name, netip.Addr{})
	})}
	addr := serve(t, s)
	for _, c := range []struct {
		packet string
		code   byte
		text   string
		o      Outcome
	}{
		{"\x00\x02f\x00octet\x00", codeAccess, "read-only", Denied},
		{"\x00\x01f\x00mail\x00", codeIllegal, "octet", BadRequest},
		{"\x00\x01none\x00octet\x00", codeNotFound, "not found", NotFound},
		{"\x00\x01../../etc/passwd\x00octet\x00", codeNotFound, "not found", NotFound},
		{"\x00\x01secret\x00octet\x00", codeAccess, "denied", Denied},
		{"\x00\x01broken\x00octet\x00", codeUndefined, "can't read", Broken},
	} {
		before := s.Counters().Ended[c.o]
		p, _ := ask(t, addr, c.packet)
		if len(p) < 5 || p[1] != opError || p[3] != c.code || !strings.Contains(string(p), c.text) || strings.Contains(string(p), "fire") {
			t.Errorf("%q: %q", c.packet, p)
		}
		eventually(t, c.o.String(), func() bool { return s.Counters().Ended[c.o] == before+1 })
	}
}

// ask sends a packet from a new port, and gives the first answer, and the socket
// connected to whoever gave it; nil for none.
func ask(t *testing.T, addr netip.AddrPort, packet string) ([]byte, *peer) {
	t.Helper()
	return askFrom(t, "127.0.0.1", addr, packet)
}

func askFrom(t *testing.T, from string, addr netip.AddrPort, packet string) ([]byte, *peer) {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return (&peer{c, addr}).ask(t, packet)
}

type peer struct {
	c  *net.UDPConn
	to netip.AddrPort
}

func (p *peer) ask(t *testing.T, packet string) ([]byte, *peer) {
	t.Helper()
	if _, err := p.c.WriteToUDPAddrPort([]byte(packet), p.to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	_ = p.c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, from, err := p.c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil, p
	}
	return buf[:n], &peer{p.c, from}
}

// TestSilence: who isn't allowed, and what isn't a request, gets nothing at all.
func TestSilence(t *testing.T) {
	t.Parallel()
	var allowed bool
	var mu sync.Mutex
	s := &Server{Files: Map{"f": []byte("x")}, Allow: func(a netip.Addr) bool {
		mu.Lock()
		defer mu.Unlock()
		return allowed && a == netip.MustParseAddr("127.0.0.1")
	}}
	addr := serve(t, s)
	if p, _ := ask(t, addr, "\x00\x01f\x00octet\x00"); p != nil {
		t.Errorf("who isn't allowed got %q", p)
	}
	mu.Lock()
	allowed = true
	mu.Unlock()
	for _, packet := range []string{"", "x", "\x00\x04\x00\x01", "\x00\x05\x00\x00x\x00", "\x00\x01f"} {
		if p, _ := ask(t, addr, packet); p != nil {
			t.Errorf("%q got %q", packet, p)
		}
	}
	if c := s.Counters(); c.Refused != 1 || c.Malformed != 5 || c.Begun != 0 {
		t.Errorf("%+v", c)
	}
}

// TestProbe is EDK2's way: ask for the size, abort, ask for the file.
func TestProbe(t *testing.T) {
	t.Parallel()
	s := &Server{Files: Map{"f": content(3000)}}
	addr := serve(t, s)
	p, to := ask(t, addr, "\x00\x01f\x00octet\x00tsize\x000\x00")
	if string(p) != "\x00\x06tsize\x003000\x00" {
		t.Errorf("%q", p)
	}
	to.ask(t, "\x00\x05\x00\x08User aborted the transfer\x00")
	// And a client that leaves without a word.
	_, to = ask(t, addr, "\x00\x01f\x00octet\x00tsize\x000\x00")
	to.c.Close()
	eventually(t, "two probes", func() bool { return s.Counters().Ended[Probed] == 2 })
	// In the middle it is another matter.
	_, to = ask(t, addr, "\x00\x01f\x00octet\x00tsize\x000\x00")
	to.ask(t, "\x00\x04\x00\x00")
	to.ask(t, "\x00\x05\x00\x00no space\x00")
	_, to = ask(t, addr, "\x00\x01f\x00octet\x00")
	to.ask(t, "\x00\x04\x00\x01")
	to.c.Close()
	eventually(t, "one stopped, one gone", func() bool {
		c := s.Counters()
		return c.Ended[Stopped] == 1 && c.Ended[Gone] == 1 && c.Active == 0
	})
}

// TestRepeatedRequest: a client that repeats its request has one transfer; one that
// starts anew from the same port has its way.
func TestRepeatedRequest(t *testing.T) {
	t.Parallel()
	s := &Server{Files: Map{"f": content(3000), "g": content(10)}}
	addr := serve(t, s)
	request := "\x00\x01f\x00octet\x00"
	p, to := ask(t, addr, request)
	first := &peer{to.c, addr}
	if again, _ := first.ask(t, request); again != nil {
		t.Errorf("a second transfer: %q", again)
	}
	if len(p) != 516 || s.Counters().Repeated != 1 || s.Counters().Begun != 1 {
		t.Errorf("%d bytes, %+v", len(p), s.Counters())
	}
	if p, second := first.ask(t, "\x00\x01g\x00octet\x00"); len(p) != 14 || second.to == to.to {
		t.Errorf("another file from the same port: %q", p)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	s := &Server{Files: Map{"f": content(3000)}, MaxTransfers: 3, MaxPerClient: 2}
	addr := serve(t, s)
	for i := range 4 {
		p, _ := ask(t, addr, "\x00\x01f\x00octet\x00")
		if (p != nil) != (i < 2) {
			t.Errorf("request %d got %d bytes", i, len(p))
		}
	}
	if p, _ := askFrom(t, "127.0.0.2", addr, "\x00\x01f\x00octet\x00"); p == nil {
		t.Error("another client waits for the first's transfers")
	}
	if p, _ := askFrom(t, "127.0.0.3", addr, "\x00\x01f\x00octet\x00"); p != nil {
		t.Error("there are four transfers, where three may be")
	}
	if c := s.Counters(); c.Busy != 3 || c.Active != 3 {
		t.Errorf("%+v", c)
	}
}

func TestPortRange(t *testing.T) {
	t.Parallel()
	s := &Server{Files: Map{"f": content(3000)}, Ports: PortRange{41000, 41003}}
	addr := serve(t, s)
	ports := map[uint16]bool{}
	for range 5 {
		if p, to := ask(t, addr, "\x00\x01f\x00octet\x00"); p != nil {
			ports[to.to.Port()] = true
		}
	}
	// Another program on this machine may have one of them.
	if len(ports) < 2 || len(ports) > 4 || s.Counters().Ended[Broken] < 1 {
		t.Errorf("ports %v, %+v", ports, s.Counters())
	}
	for p := range ports {
		if p < 41000 || p > 41003 {
			t.Errorf("port %d", p)
		}
	}
}

// TestOwnAddress: the answer comes from the address that was asked, on a socket that
// listens on all of them.
func TestOwnAddress(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		c, err := Listen(t.Context(), listen)
		if err != nil {
			if strings.HasPrefix(listen, "[") && errors.Is(err, syscall.EAFNOSUPPORT) {
				t.Skip("this machine has no IPv6")
			}
			t.Fatal(err)
		}
		s := &Server{Files: Map{"f": content(10)}}
		done := make(chan error, 1)
		go func() { done <- s.Serve(c) }()
		want := netip.AddrPortFrom(netip.MustParseAddr("127.8.7.6"), uint16(c.LocalAddr().(*net.UDPAddr).Port))
		p, to := ask(t, want, "\x00\x01f\x00octet\x00")
		if to.to.Addr() != want.Addr() || len(p) != 14 {
			t.Errorf("%s: %d bytes from %s", listen, len(p), to.to)
		}
		to.ask(t, "\x00\x04\x00\x01")
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Error(err)
		}
	}
}

// TestShutdown: a transfer that runs is finished, with the files that it began with;
// one that doesn't end is ended.
func TestShutdown(t *testing.T) {
	t.Parallel()
	s := &Server{Files: Map{"f": content(1000)}}
	addr := serve(t, s)
	_, to := ask(t, addr, "\x00\x01f\x00octet\x00")
	s.SetFiles(Map{"f": []byte("new")})
	if p, _ := ask(t, addr, "\x00\x01f\x00octet\x00"); string(p) != "\x00\x03\x00\x01new" {
		t.Errorf("after a reload: %q", p)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(ctx) }()
	eventually(t, "it takes no more", func() bool { p, _ := ask(t, addr, "\x00\x01f\x00octet\x00"); return p == nil })
	p, to := to.ask(t, "\x00\x04\x00\x01")
	if len(p) != 1000-512+4 {
		t.Errorf("the transfer that ran: %d bytes", len(p))
	}
	to.ask(t, "\x00\x04\x00\x02")
	cancel(errors.New("enough"))
	if err := <-done; err == nil || !strings.Contains(err.Error(), "1 transfers were interrupted: enough") {
		t.Error(err)
	}
	if c := s.Counters(); c.Ended[Finished] != 1 || c.Ended[Interrupted] != 1 {
		t.Errorf("%+v", c)
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write := func(text string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, text := range []string{"one", "two", "three"} {
		write(text, time.Duration(i)*time.Hour)
		for range 2 {
			if b, err := f.Open("a", netip.Addr{}); err != nil || string(b) != text {
				t.Errorf("%q, %v", b, err)
			}
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "folder", "out"} {
		if b, err := f.Open(name, netip.Addr{}); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	for i := range 2 * maxKept {
		name := fmt.Sprint(i)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(name, netip.Addr{}); err != nil || len(f.kept) > maxKept {
			t.Fatal(len(f.kept), err)
		}
	}
}

func TestAutoexec(t *testing.T) {
	files := First(Map{"ipxe.efi": []byte("MZ")}, Autoexec("http://10.0.0.1:8080/ipxe?mac=${netX/mac}"))
	for name, want := range map[string]string{
		"ipxe.efi": "MZ",
		"autoexec.ipxe": "#!ipxe\nisset ${netX/ip} || dhcp || autoboot\n" +
			"chain --replace http://10.0.0.1:8080/ipxe?mac=${netX/mac} || autoboot\n",
		"none": "",
	} {
		b, err := files.Open(name, netip.Addr{})
		if string(b) != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}
