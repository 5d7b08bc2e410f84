//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	pin "github.com/pin/tftp/v3"

	"github.com/alisw/kiln/netboot/tftp"
)

// serve is a server, as long as standard input is open.
func serve(ctx context.Context, role, folder string) error {
	raiseFiles()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	switch role {
	case "tftp-kiln":
		return serveKiln(ctx, folder)
	case "tftp-pin":
		return servePin(ctx, folder)
	}
	return fmt.Errorf("there is no server %q", role)
}

func serveKiln(ctx context.Context, folder string) error {
	files, err := tftp.OpenFolder(folder)
	if err != nil {
		return err
	}
	defer files.Close()
	c, err := tftp.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &tftp.Server{Files: files, MaxPerClient: 1000}
	go func() {
		<-ctx.Done()
		_ = s.Shutdown(ctx)
	}()
	fmt.Println(c.LocalAddr())
	if err := s.Serve(c); !errors.Is(err, tftp.ErrServerClosed) {
		return err
	}
	return nil
}

// servePin is pin/tftp as it is fastest: a port per transfer, and a file that is
// in memory.
func servePin(ctx context.Context, folder string) error {
	data, err := os.ReadFile(filepath.Join(folder, bootFile))
	if err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return err
	}
	_ = c.SetReadBuffer(4 << 20)
	s := pin.NewServer(func(_ string, rf io.ReaderFrom) error {
		rf.(pin.OutgoingTransfer).SetSize(int64(len(data)))
		_, err := rf.ReadFrom(&memory{data})
		return err
	}, nil)
	s.SetTimeout(time.Second)
	s.SetRetries(30)
	go func() {
		<-ctx.Done()
		c.Close()
	}()
	fmt.Println(c.LocalAddr())
	if err := s.Serve(c); ctx.Err() == nil {
		return err
	}
	return nil
}

// memory reads from memory, and no more than that.
type memory struct{ rest []byte }

func (m *memory) Read(p []byte) (int, error) {
	if len(m.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}
