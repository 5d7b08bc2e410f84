//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
)

// What there has to be of DHCP for a client and a stand-in, written anew: it
// shares no mistakes with the server.

const (
	dhcpHeader = 236
	dhcpMagic  = "\x63\x82\x53\x63"

	optRequested = 50
	optType      = 53
	optServerID  = 54
	optMaxSize   = 57
	optVendor    = 60
	optClientID  = 61
	optTFTPName  = 66
	optBootFile  = 67
	optUserClass = 77
	optArch      = 93
	optNDI       = 94
	optUUID      = 97

	typeDiscover = 1
	typeOffer    = 2
	typeRequest  = 3
	typeAck      = 5
)

// dhcpPacket is one, of either side.
type dhcpPacket struct {
	reply         bool
	xid           uint32
	mac           net.HardwareAddr
	yours, server netip.Addr // yiaddr, siaddr
	relay         netip.Addr // giaddr
	file          string     // in the header
	options       map[byte][]byte
	order         []byte
}

func (p *dhcpPacket) set(code byte, value []byte) {
	if p.options == nil {
		p.options = map[byte][]byte{}
	}
	p.options[code] = value
	p.order = append(p.order, code)
}

func (p *dhcpPacket) marshal() []byte {
	b := make([]byte, dhcpHeader, 576)
	b[0], b[1], b[2] = 1, 1, 6
	if p.reply {
		b[0] = 2
	}
	binary.BigEndian.PutUint32(b[4:], p.xid)
	for at, a := range map[int]netip.Addr{16: p.yours, 20: p.server, 24: p.relay} {
		if a.IsValid() {
			copy(b[at:], a.AsSlice())
		}
	}
	copy(b[28:], p.mac)
	copy(b[108:235], p.file)
	b = append(b, dhcpMagic...)
	for _, code := range p.order {
		v := p.options[code]
		b = append(b, code, byte(len(v)))
		b = append(b, v...)
	}
	b = append(b, 255)
	return append(b, make([]byte, max(0, 300-len(b)))...) // BOOTP's least
}

func parseDHCP(b []byte) (*dhcpPacket, error) {
	if len(b) < dhcpHeader+4 || string(b[dhcpHeader:dhcpHeader+4]) != dhcpMagic {
		return nil, errors.New("this is no DHCP")
	}
	address := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at : at+4])) }
	p := &dhcpPacket{
		reply: b[0] == 2, xid: binary.BigEndian.Uint32(b[4:]), mac: net.HardwareAddr(b[28:34]),
		yours: address(16), server: address(20), relay: address(24), file: zeroEnded(b[108:236]),
	}
	for rest := b[dhcpHeader+4:]; len(rest) > 0 && rest[0] != 255; {
		if rest[0] == 0 {
			rest = rest[1:]
			continue
		}
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return nil, errors.New("an option is cut off")
		}
		p.set(rest[0], rest[2:2+rest[1]])
		rest = rest[2+rest[1]:]
	}
	return p, nil
}

func (p *dhcpPacket) kind() byte {
	if v := p.options[optType]; len(v) == 1 {
		return v[0]
	}
	return 0
}

// bootFile is the file's name, wherever it is.
func (p *dhcpPacket) bootFile() string {
	if v := p.options[optBootFile]; len(v) > 0 {
		return zeroEnded(v)
	}
	return p.file
}

// bootServer is who has the file.
func (p *dhcpPacket) bootServer() (netip.Addr, error) {
	if p.server.IsValid() && !p.server.IsUnspecified() {
		return p.server, nil
	}
	if v := p.options[optTFTPName]; len(v) > 0 {
		return netip.ParseAddr(zeroEnded(v))
	}
	if v := p.options[optServerID]; len(v) == 4 {
		return netip.AddrFrom4([4]byte(v)), nil
	}
	return netip.Addr{}, errors.New("the offer names no boot server")
}

func zeroEnded(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
