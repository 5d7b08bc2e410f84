package dhcp

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/alisw/kiln/netboot"
)

// Where is how a packet came in.
type Where struct {
	Interface string
	Address   netip.Addr     // the server's own, that the client is to be told
	Network   netip.Prefix   // the interface's
	From      netip.AddrPort // who sent it
	Boot      bool           // it came to port 4011
}

// Reply is the answer to a packet, and where it is to be sent to.
type Reply struct {
	Packet *dhcpv4.DHCPv4
	To     netip.AddrPort
	Kind   Kind
	Host   *netboot.Host
}

// exchange is one packet, and what is known of it.
type exchange struct {
	*Server
	at     Where
	req    *dhcpv4.DHCPv4
	mac    [6]byte
	host   *netboot.Host
	nic    *netboot.NIC
	client client
}

// Answer gives the reply to a packet, or says why it has none. In full mode the
// leases may have changed: Commit has to store them before the reply is sent.
func (s *Server) Answer(packet []byte, at Where) (*Reply, Reason) {
	mac, host, why := s.registered(packet)
	if host == nil {
		return nil, why
	}
	p, err := dhcpv4.FromBytes(packet)
	if err != nil {
		return nil, Malformed
	}
	x := exchange{Server: s, at: at, req: p, mac: mac, host: host}
	for i := range host.NICs {
		if host.NICs[i].MAC == planMAC(mac) {
			x.nic = &host.NICs[i]
		}
	}
	x.client, why = classify(p)
	if why != 0 {
		x.log(slog.LevelWarn, "not answered: there is no iPXE for it", "architecture", x.client.arch.String())
		return nil, why
	}
	if x.client.ipxe && x.client.gives != Script && p.MessageType() == dhcpv4.MessageTypeDiscover && s.chains.loops(mac, p.TransactionID, s.now()) {
		x.log(slog.LevelWarn, "not answered: its iPXE can't do HTTP, and starts itself again and again", "file", x.file())
		return nil, ChainLoop
	}
	var r *Reply
	switch {
	case s.Mode == Full && !at.Boot:
		r, why = x.full()
	default:
		r, why = x.proxy()
	}
	if r != nil {
		x.log(slog.LevelInfo, "answered", "type", r.Packet.MessageType().String(), "gives", r.Kind.String(),
			"file", r.Packet.BootFileNameOption(), "address", r.Packet.YourIPAddr.String(), "to", r.To.String())
	}
	return r, why
}

// registered finds the host whose packet it is, and tells of those who aren't.
func (s *Server) registered(packet []byte) ([6]byte, *netboot.Host, Reason) {
	mac, ok := macOf(packet)
	if !ok {
		return mac, nil, Malformed
	}
	if hosts := s.hosts.Load(); hosts != nil && *hosts != nil {
		if host, ok := (*hosts).ByMAC(planMAC(mac)); ok {
			return mac, host, 0
		}
	}
	s.strange(packet, mac)
	return mac, nil, UnknownMAC
}

func (x *exchange) log(level slog.Level, text string, more ...any) {
	l := x.Server.log()
	if !l.Enabled(context.Background(), level) {
		return
	}
	args := append([]any{"host", x.host.Name, "mac", string(planMAC(x.mac)), "interface", x.at.Interface}, more...)
	if relay := address(x.req.GatewayIPAddr); !relay.IsUnspecified() {
		args = append(args, "relay", relay.String())
	}
	l.Log(context.Background(), level, "dhcp: "+text, args...)
}

// proxy says what to boot, and nothing else.
func (x *exchange) proxy() (*Reply, Reason) {
	if x.client.gives == Lease {
		return nil, NotBooting
	}
	switch x.req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if x.at.Boot {
			return nil, OtherType
		}
		return x.boot(x.reply(dhcpv4.MessageTypeOffer, x.client.gives)), 0
	case dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform:
		// At port 67, a request is for the server that gave the address. Only who
		// looks for boot servers may ask us there.
		if !x.at.Boot && !(x.bootItem() != nil && x.forUs(true)) {
			return nil, OtherServer
		}
		r := x.reply(dhcpv4.MessageTypeAck, x.client.gives)
		if x.at.Boot && x.at.From.IsValid() && !x.at.From.Addr().IsUnspecified() {
			r.To = x.at.From
		}
		return x.boot(r), 0
	case dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeDecline:
		return nil, OtherServer
	default:
		return nil, OtherType
	}
}

// bootItem is what a client wants of a boot server.
func (x *exchange) bootItem() []byte {
	item, _ := subOption(x.req.Options.Get(dhcpv4.GenericOptionCode(optionPXE)), pxeItem)
	return item
}

// forUs tells whether a request names this server, or, if none is enough, nobody.
func (x *exchange) forUs(none bool) bool {
	id := x.req.ServerIdentifier()
	if id == nil {
		return none
	}
	return address(id) == x.at.Address
}

// reply begins a reply with what all have, addressed to its client.
func (x *exchange) reply(t dhcpv4.MessageType, kind Kind) *Reply {
	p := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: iana.HWTypeEthernet, TransactionID: x.req.TransactionID, Flags: x.req.Flags,
		GatewayIPAddr: x.req.GatewayIPAddr, ClientHWAddr: x.req.ClientHWAddr, Options: make(dhcpv4.Options, 16),
	}
	if t == dhcpv4.MessageTypeAck {
		p.ClientIPAddr = x.req.ClientIPAddr
	}
	p.Options[uint8(dhcpv4.OptionDHCPMessageType)] = []byte{byte(t)}
	p.Options[uint8(dhcpv4.OptionServerIdentifier)] = x.at.Address.AsSlice()
	// Who has one gets it back: a relay its option 82 (RFC 3046), a client its
	// identifiers (RFC 6842, RFC 4578).
	for _, code := range []uint8{uint8(dhcpv4.OptionRelayAgentInformation), uint8(dhcpv4.OptionClientIdentifier), optionUUID} {
		if v, ok := x.req.Options[code]; ok {
			p.Options[code] = v
		}
	}
	return &Reply{Packet: p, To: x.to(), Kind: kind, Host: x.host}
}

var everybody = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), portClient)

// to is where a reply goes (RFC 2131, 4.1). A client that has no address yet can't
// answer ARP: it's sent to everybody, whichever way it prefers.
func (x *exchange) to() netip.AddrPort {
	if relay := address(x.req.GatewayIPAddr); !relay.IsUnspecified() {
		return netip.AddrPortFrom(relay, portServer)
	}
	if a := address(x.req.ClientIPAddr); !a.IsUnspecified() && !a.IsMulticast() && a != everybody.Addr() {
		return netip.AddrPortFrom(a, portClient)
	}
	return everybody
}

// file is what the client is to boot.
func (x *exchange) file() string {
	switch x.client.gives {
	case BIOS:
		return or(x.BIOSFile, DefaultBIOSFile)
	case EFI:
		return or(x.EFIFile, DefaultEFIFile)
	case HTTP:
		return x.url(x.at, netboot.PathIPXE+or(x.EFIFile, DefaultEFIFile))
	case Script:
		return x.url(x.at, netboot.ScriptPath(planMAC(x.mac)))
	default:
		return ""
	}
}

// boot adds to a reply what to boot.
func (x *exchange) boot(r *Reply) *Reply {
	p, file, server := r.Packet, x.file(), x.at.Address
	p.ServerIPAddr = server.AsSlice()
	// Some read the header, some the options.
	const headerFile = 128
	if len(file) < headerFile {
		p.BootFileName = file
	}
	p.Options[uint8(dhcpv4.OptionBootfileName)] = []byte(file)
	if x.client.class != "" {
		p.Options[optionClass] = []byte(x.client.class)
	}
	if x.client.gives == HTTP {
		return r
	}
	p.Options[uint8(dhcpv4.OptionTFTPServerName)] = []byte(server.String())
	if x.client.class == "PXEClient" {
		vendor := []byte{pxeDiscovery, 1, pxeUseFile}
		if item := x.bootItem(); len(item) > 0 {
			vendor = append(append(vendor, pxeItem, byte(len(item))), item...)
		}
		p.Options[optionPXE] = append(vendor, 255)
	}
	if x.client.ipxe && x.Mode == Full {
		// Nobody else will say what to boot: it needn't wait for that.
		p.Options[optionIPXE] = []byte{ipxeNoProxy, 1, 1}
	}
	return r
}

// address is one of a packet's.
func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !a.IsValid() {
		return netip.IPv4Unspecified()
	}
	return a
}

// number and addressOf count addresses of IPv4.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addressOf(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
