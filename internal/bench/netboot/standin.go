//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/alisw/kiln/netboot/tftp"
)

// serveStandIn is the least that a fleet can boot from: to try this program where
// there is no kiln serve. It answers everybody.
func serveStandIn(ctx context.Context, folder string) error {
	files, err := tftp.OpenFolder(folder)
	if err != nil {
		return err
	}
	defer files.Close()
	c, err := tftp.Listen(ctx, serverAddress+":69")
	if err != nil {
		return err
	}
	boot := &tftp.Server{Files: files}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(folder)))
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/script", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "#!ipxe\nkernel kernel console=ttyS0\ninitrd --name initramfs initramfs\nboot\n")
	})
	web := &http.Server{Addr: serverAddress + ":8080", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 3)
	go func() { ended <- boot.Serve(c) }()
	go func() { ended <- offer(ctx) }()
	go func() { ended <- web.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(boot.Shutdown(ctx), web.Close())
	}
}

// offer gives relayed clients a boot file, and iPXE a script.
func offer(ctx context.Context) error {
	own := netip.MustParseAddr(serverAddress)
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: own.AsSlice(), Port: 67})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		p, err := parseDHCP(buf[:n])
		if err != nil || p.reply || p.kind() != typeDiscover {
			continue
		}
		a := &dhcpPacket{reply: true, xid: p.xid, mac: p.mac, relay: p.relay, server: own, file: bootFile}
		if string(p.options[optUserClass]) == "iPXE" {
			a.file = "http://" + serverAddress + ":8080/script?mac=" + p.mac.String()
		}
		a.set(optType, []byte{typeOffer})
		a.set(optServerID, own.AsSlice())
		a.set(optVendor, []byte("PXEClient"))
		if _, err := c.WriteToUDPAddrPort(a.marshal(), from); err != nil {
			return err
		}
	}
}
