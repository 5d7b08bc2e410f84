//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/lossy"
	"github.com/alisw/kiln/internal/tftpget"
	"github.com/alisw/kiln/netboot/tftp"
)

// tftpServer serves a file of so many bytes, until the test ends.
func tftpServer(t *testing.T, size int) (s *tftp.Server, to netip.AddrPort, data []byte) {
	t.Helper()
	data = make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data) // never fails
	s = &tftp.Server{Files: tftp.Map{"boot/ipxe.efi": data}, MaxPerClient: 100}
	c, err := tftp.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(c) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, tftp.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s, c.LocalAddr().(*net.UDPAddr).AddrPort(), data
}

// tftpClients are real programs, that fetch boot/ipxe.efi.
var tftpClients = []struct {
	name string
	argv func(host, port, to string) []string
}{
	{"tftp-hpa octet", func(host, port, to string) []string {
		return []string{"tftp", "-m", "binary", host, port, "-c", "get", "/boot/ipxe.efi", to}
	}},
	{"tftp-hpa netascii", func(host, port, to string) []string {
		return []string{"tftp", "-m", "ascii", host, port, "-c", "get", `\boot\ipxe.efi`, to}
	}},
	{"atftp", func(host, port, to string) []string {
		return []string{"atftp", "--get", "-r", "boot/ipxe.efi", "-l", to, host, port}
	}},
	{"atftp blksize tsize timeout", func(host, port, to string) []string {
		return []string{
			"atftp", "--option", "blksize 1468", "--option", "tsize 0", "--option", "timeout 2",
			"--get", "-r", "boot/ipxe.efi", "-l", to, host, port,
		}
	}},
	{"atftp windowsize", func(host, port, to string) []string {
		return []string{"atftp", "--option", "blksize 1024", "--option", "windowsize 16", "--get", "-r", "boot/ipxe.efi", "-l", to, host, port}
	}},
	{"curl", func(host, port, to string) []string {
		return []string{"curl", "--silent", "--show-error", "--noproxy", "*", "--output", to, "tftp://" + host + ":" + port + "/boot/ipxe.efi"}
	}},
	{"curl blksize", func(host, port, to string) []string {
		return []string{"curl", "--silent", "--show-error", "--noproxy", "*", "--tftp-blksize", "1468", "--output", to, "tftp://" + host + ":" + port + "/boot/ipxe.efi"}
	}},
}

// fetchReal runs the client, and compares.
func fetchReal(ctx context.Context, dir string, argv func(host, port, to string) []string, at netip.AddrPort, data []byte) error {
	to := filepath.Join(dir, "file")
	args := argv(at.Addr().String(), strconv.Itoa(int(at.Port())), to)
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, out)
	}
	got, err := os.ReadFile(to)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%q: %d bytes, which aren't the %d that are served", args, len(got), len(data))
	}
	return err
}

// TestNetbootTFTPClients: a megabyte reaches each real client as it is.
func TestNetbootTFTPClients(t *testing.T) {
	s, at, data := tftpServer(t, 1<<20+321)
	for _, c := range tftpClients {
		program(t, c.argv("", "", "")[0])
		if err := fetchReal(t.Context(), t.TempDir(), c.argv, at, data); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := s.Counters().Ended[tftp.Finished]; n != int64(len(tftpClients)) {
		t.Errorf("%d finished, of %d: %+v", n, len(tftpClients), s.Counters())
	}
}

// TestNetbootTFTPLossy: 25 ms away, where some packets are lost. All clients fetch
// at once: they wait more than they work.
func TestNetbootTFTPLossy(t *testing.T) {
	s, at, data := tftpServer(t, 100_000)
	var wg sync.WaitGroup
	fetch := func(name string, loss float64, seed int, by func(netip.AddrPort) error) {
		p, err := lossy.New(at, lossy.Link{Delay: 12500 * time.Microsecond, Loss: loss, Seed: uint64(seed)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		wg.Go(func() {
			start := time.Now()
			if err := by(p.Addr()); err != nil {
				t.Errorf("%s at %.0f %% loss: %v", name, 100*loss, err)
			}
			t.Logf("%s at %.0f %% loss: %s, %d packets lost", name, 100*loss, time.Since(start).Round(time.Millisecond), p.Lost.Load())
		})
	}
	for _, loss := range []float64{0.01, 0.05} {
		for i, c := range tftpClients {
			program(t, c.argv("", "", "")[0])
			dir := t.TempDir()
			fetch(c.name, loss, i, func(at netip.AddrPort) error { return fetchReal(t.Context(), dir, c.argv, at, data) })
		}
		for i, window := range []int{0, 4, 32} {
			fetch(fmt.Sprint("window ", window), loss, 100+i, func(at netip.AddrPort) error {
				g := tftpget.Get{Block: 1468, Window: window, Size: true}
				got, err := g.Bytes(t.Context(), at, "boot/ipxe.efi")
				if err == nil && !bytes.Equal(got, data) {
					err = fmt.Errorf("%d bytes, which aren't the %d that are served", len(got), len(data))
				}
				return err
			})
		}
	}
	wg.Wait()
	t.Logf("%+v", s.Counters())
}

// TestNetbootTFTPRefusals: real clients are told, and write nothing.
func TestNetbootTFTPRefusals(t *testing.T) {
	s, at, _ := tftpServer(t, 1000)
	dir := t.TempDir()
	file := filepath.Join(dir, "mine")
	if err := os.WriteFile(file, []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	host, port := at.Addr().String(), strconv.Itoa(int(at.Port()))
	for _, args := range [][]string{
		{"curl", "--silent", "--show-error", "--noproxy", "*", "--upload-file", file, "tftp://" + host + ":" + port + "/boot/ipxe.efi"},
		{"curl", "--silent", "--show-error", "--noproxy", "*", "--output", filepath.Join(dir, "out"), "tftp://" + host + ":" + port + "/none"},
		{"curl", "--silent", "--show-error", "--noproxy", "*", "--path-as-is", "--output", filepath.Join(dir, "out"), "tftp://" + host + ":" + port + "/../../etc/passwd"},
	} {
		if out, err := exec.CommandContext(t.Context(), program(t, args[0]), args[1:]...).CombinedOutput(); err == nil {
			t.Errorf("%q: %s", args, out)
		}
	}
	if c := s.Counters(); c.Ended[tftp.Denied] != 1 || c.Ended[tftp.NotFound] != 2 || c.Ended[tftp.Finished] != 0 {
		t.Errorf("%+v", c)
	}
}
