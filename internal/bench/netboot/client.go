//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/alisw/kiln/internal/tftpget"
)

// virtual is one machine that boots: DHCP, TFTP, then as iPXE DHCP again, script,
// kernel and initramfs over HTTP. Its DHCP packets are relayed, by itself: its own
// address is the relay's, and that is where answers come to.
type virtual struct {
	mac    net.HardwareAddr
	own    netip.Addr
	server netip.AddrPort // of DHCP

	start time.Time
	// How long each took, from power-on.
	offer, loader, script, all time.Duration
	bytes                      int64
}

// waits are those of the PXE specification, between a client's discoveries.
var waits = []time.Duration{4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second}

// boot is the whole way.
func (v *virtual) boot(ctx context.Context) error {
	v.start = time.Now()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: v.own.AsSlice(), Port: 67})
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	offer, err := v.lease(c, "")
	if err != nil {
		return fmt.Errorf("DHCP as firmware: %w", err)
	}
	v.offer = time.Since(v.start)
	if err := v.load(ctx, offer); err != nil {
		return fmt.Errorf("TFTP: %w", err)
	}
	v.loader = time.Since(v.start)
	offer, err = v.lease(c, "iPXE")
	if err != nil {
		return fmt.Errorf("DHCP as iPXE: %w", err)
	}
	return v.followScript(ctx, offer.bootFile())
}

// lease asks for an address and a boot file. Where the server gives addresses,
// it takes the one offered.
func (v *virtual) lease(c *net.UDPConn, userClass string) (*dhcpPacket, error) {
	offer, err := v.exchange(c, v.packet(typeDiscover, userClass), typeOffer)
	if err != nil || !offer.yours.IsValid() || offer.yours.IsUnspecified() {
		return offer, err
	}
	p := v.packet(typeRequest, userClass)
	p.set(optRequested, offer.yours.AsSlice())
	p.set(optServerID, offer.options[optServerID])
	return v.exchange(c, p, typeAck)
}

func (v *virtual) packet(kind byte, userClass string) *dhcpPacket {
	p := &dhcpPacket{xid: binary.BigEndian.Uint32(v.mac[2:]), mac: v.mac, relay: v.own}
	p.set(optType, []byte{kind})
	p.set(optMaxSize, []byte{5, 192})
	p.set(55, []byte{1, 3, 6, 12, 43, 54, 60, optTFTPName, optBootFile, 128, 175})
	p.set(optClientID, append([]byte{1}, v.mac...))
	p.set(optUUID, append(make([]byte, 11), v.mac...))
	p.set(optArch, []byte{0, 7})
	p.set(optNDI, []byte{1, 3, 16})
	p.set(optVendor, []byte("PXEClient:Arch:00007:UNDI:003016"))
	if userClass != "" {
		p.set(optUserClass, []byte(userClass))
		p.set(175, []byte{19, 1, 1, 16, 1, 2}) // iPXE's features: HTTP, DNS
	}
	return p
}

// exchange sends a packet until it is answered.
func (v *virtual) exchange(c *net.UDPConn, p *dhcpPacket, want byte) (*dhcpPacket, error) {
	buf := make([]byte, 1500)
	for _, wait := range waits {
		if _, err := c.WriteToUDPAddrPort(p.marshal(), v.server); err != nil {
			return nil, err
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return nil, err
		}
		for {
			n, _, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			a, err := parseDHCP(bytes.Clone(buf[:n]))
			if err != nil {
				return nil, err
			}
			if a.reply && a.xid == p.xid && a.kind() == want && bytes.Equal(a.mac, v.mac) {
				return a, nil
			}
		}
	}
	return nil, errors.New("no answer")
}

// load fetches iPXE, as firmware does: the size first, which it then gives up.
func (v *virtual) load(ctx context.Context, offer *dhcpPacket) error {
	server, err := offer.bootServer()
	if err != nil {
		return err
	}
	get := &tftpget.Get{Block: 1468, Size: true, From: v.own, Wait: 4 * time.Second}
	return get.Each(ctx, netip.AddrPortFrom(server, 69), offer.bootFile(), func(b []byte) error {
		v.bytes += int64(len(b))
		return nil
	})
}

// followScript does what iPXE does with the host's script, as far as it fetches.
func (v *virtual) followScript(ctx context.Context, address string) error {
	if !strings.HasPrefix(address, "http://") {
		return fmt.Errorf("iPXE was given %q, which is no script's URL", address)
	}
	client := &http.Client{Transport: &http.Transport{
		ReadBufferSize: 64 << 10,
		DialContext:    (&net.Dialer{LocalAddr: &net.TCPAddr{IP: v.own.AsSlice()}}).DialContext,
	}}
	defer client.CloseIdleConnections()
	for range 3 { // a script may lead to another
		base, files, next, err := v.readScript(ctx, client, address)
		if err != nil {
			return err
		}
		if next != "" {
			address = base.ResolveReference(&url.URL{}).String()
			if u, err := base.Parse(v.expand(next)); err == nil {
				address = u.String()
			}
			continue
		}
		v.script = time.Since(v.start)
		if len(files) == 0 {
			return errors.New("the script has no kernel: the host isn't armed")
		}
		for _, f := range files {
			u, err := base.Parse(v.expand(f))
			if err != nil {
				return err
			}
			if err := v.get(ctx, client, u.String(), io.Discard); err != nil {
				return err
			}
		}
		v.all = time.Since(v.start)
		return nil
	}
	return errors.New("the scripts lead to more scripts")
}

// readScript finds what a script fetches, or the script that it goes on to.
func (v *virtual) readScript(ctx context.Context, client *http.Client, address string) (base *url.URL, files []string, next string, err error) {
	address = v.expand(address)
	if base, err = url.Parse(address); err != nil {
		return nil, nil, "", err
	}
	var text bytes.Buffer
	if err := v.get(ctx, client, address, &text); err != nil {
		return nil, nil, "", fmt.Errorf("the script: %w", err)
	}
	if !strings.HasPrefix(text.String(), "#!ipxe") {
		return nil, nil, "", fmt.Errorf("%s is no iPXE script", address)
	}
	for line := range strings.Lines(text.String()) {
		command, _, _ := strings.Cut(line, "||")
		f := strings.Fields(command)
		for len(f) > 1 && strings.HasPrefix(f[1], "-") { // options; --name has a value
			n := 1
			if f[1] == "--name" || f[1] == "-n" {
				n = 2
			}
			f = append(f[:1], f[min(1+n, len(f)):]...)
		}
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "kernel", "initrd", "imgfetch", "module":
			files = append(files, f[1])
		case "chain":
			next = f[1]
		}
	}
	if len(files) > 0 {
		next = ""
	}
	return base, files, next, nil
}

// expand fills in the settings that scripts' URLs have.
func (v *virtual) expand(s string) string {
	mac := v.mac.String()
	for _, name := range []string{"net0/mac", "netX/mac", "mac"} {
		s = strings.ReplaceAll(s, "${"+name+"}", mac)
		s = strings.ReplaceAll(s, "${"+name+":hexhyp}", strings.ReplaceAll(mac, ":", "-"))
		s = strings.ReplaceAll(s, "${"+name+":hexraw}", strings.ReplaceAll(mac, ":", ""))
	}
	return s
}

func (v *virtual) get(ctx context.Context, client *http.Client, address string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "iPXE/1.0.0+git-20190125.36a4c85-5.1")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, resp.Status)
	}
	// Not io.Discard's own buffers, of 8 KiB. It is an error where it is shorter than
	// was said.
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, resp.Body, make([]byte, 256<<10))
	v.bytes += n
	if err != nil {
		return fmt.Errorf("%s: %w", address, err)
	}
	return nil
}
