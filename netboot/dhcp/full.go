package dhcp

import (
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/alisw/kiln/netboot"
)

const (
	offerTime   = time.Minute      // an offered address is kept for its client
	declineTime = 10 * time.Minute // an address that somebody else has isn't given
)

// full gives addresses, and to those who boot what to boot.
func (x *exchange) full() (*Reply, Reason) {
	r := x.rangeFor()
	if r == nil {
		x.log(slog.LevelWarn, "not answered: no range is of its network", "network", x.at.Network.String())
		return nil, OtherNetwork
	}
	x.leases.mu.Lock()
	defer x.leases.mu.Unlock()
	switch x.req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		a, ok := x.pick(r, address(x.req.RequestedIPAddress()))
		if !ok {
			x.log(slog.LevelWarn, "not answered: the range is exhausted", "range", r.First.String()+"-"+r.Last.String())
			return nil, Exhausted
		}
		x.leases.offer(x.mac, a, x.now())
		return x.give(dhcpv4.MessageTypeOffer, r, a), 0
	case dhcpv4.MessageTypeRequest:
		return x.request(r)
	case dhcpv4.MessageTypeInform:
		reply := x.reply(dhcpv4.MessageTypeAck, x.client.gives)
		x.configure(reply, r, netip.Addr{})
		return x.bootIfAsked(reply), 0
	case dhcpv4.MessageTypeRelease:
		if x.forUs(true) {
			x.leases.release(x.mac, address(x.req.ClientIPAddr), x.now())
		}
		return nil, Released
	case dhcpv4.MessageTypeDecline:
		if a := address(x.req.RequestedIPAddress()); x.forUs(true) && x.leases.decline(x.mac, a, x.now()) {
			x.log(slog.LevelWarn, "the host says that somebody else has the address it was given: look for a machine with a fixed address", "address", a.String())
		}
		return nil, Declined
	default:
		return nil, OtherType
	}
}

// request acknowledges an address, or says that it isn't the client's (RFC 2131,
// 4.3.2): a new one, one that it has had before it restarted, or has.
func (x *exchange) request(r *Range) (*Reply, Reason) {
	if !x.forUs(true) {
		x.leases.withdraw(x.mac)
		return nil, OtherServer
	}
	want := address(x.req.RequestedIPAddress())
	if want.IsUnspecified() {
		want = address(x.req.ClientIPAddr)
	}
	if want.IsUnspecified() {
		return nil, Malformed
	}
	a, ok := x.pick(r, want)
	if !ok {
		return nil, Exhausted
	}
	if a != want {
		reply := x.reply(dhcpv4.MessageTypeNak, Nak)
		if reply.To.Port() == portClient {
			// An address that isn't its own may be somebody else's.
			reply.To = everybody
		}
		reply.Packet.SetBroadcast() // for the relay
		return reply, 0
	}
	x.leases.bind(x.mac, a, x.host.Name, x.now().Add(x.leaseTime()))
	return x.give(dhcpv4.MessageTypeAck, r, a), 0
}

// give is a reply that has an address.
func (x *exchange) give(t dhcpv4.MessageType, r *Range, a netip.Addr) *Reply {
	reply := x.reply(t, x.client.gives)
	reply.Packet.YourIPAddr = a.AsSlice()
	reply.Packet.Options[uint8(dhcpv4.OptionIPAddressLeaseTime)] = binary.BigEndian.AppendUint32(nil, uint32(x.leaseTime()/time.Second))
	x.configure(reply, r, a)
	return x.bootIfAsked(reply)
}

func (x *exchange) bootIfAsked(reply *Reply) *Reply {
	if x.client.gives == Lease {
		return reply
	}
	return x.boot(reply)
}

// configure adds what the inventory, or else the range, has for a host's network.
func (x *exchange) configure(reply *Reply, r *Range, a netip.Addr) {
	o, network := reply.Packet.Options, x.network(r)
	o[uint8(dhcpv4.OptionSubnetMask)] = net.CIDRMask(network.Bits(), 32)
	name, domain, _ := strings.Cut(x.host.Name, ".")
	o[uint8(dhcpv4.OptionHostName)] = []byte(name)
	if domain != "" {
		o[uint8(dhcpv4.OptionDomainName)] = []byte(domain)
	}
	var gateway []byte
	for _, g := range x.nic.Gateways {
		if g.Is4() && network.Contains(g) && gateway == nil {
			gateway = g.AsSlice()
		}
	}
	if gateway == nil && r.Gateway.Is4() {
		gateway = r.Gateway.AsSlice()
	}
	if gateway != nil {
		o[uint8(dhcpv4.OptionRouter)] = gateway
	}
	servers := x.nic.DNS
	if len(servers) == 0 {
		servers = r.DNS
	}
	var dns []byte
	for _, d := range servers {
		if d.Is4() && len(dns) < 4*8 {
			dns = append(dns, d.AsSlice()...)
		}
	}
	if dns != nil {
		o[uint8(dhcpv4.OptionDomainNameServer)] = dns
	}
}

// network is the one that a range is of.
func (x *exchange) network(r *Range) netip.Prefix {
	if r.Network.IsValid() {
		return r.Network.Masked()
	}
	return x.at.Network.Masked()
}

// rangeFor is the range of the network that the client is in.
func (x *exchange) rangeFor() *Range {
	relay := address(x.req.GatewayIPAddr)
	for i := range x.Ranges {
		r := &x.Ranges[i]
		switch {
		case !relay.IsUnspecified():
			if r.Network.IsValid() && r.Network.Contains(relay) {
				return r
			}
		case r.Network.IsValid():
			if r.Network.Contains(x.at.Network.Addr()) {
				return r
			}
		case x.at.Network.Contains(r.First) && x.at.Network.Contains(r.Last):
			return r
		}
	}
	return nil
}

// pick is the address that a client gets: what the inventory says; what it had;
// what it wants; one by its MAC, so that it gets the same again even if leases are
// lost; or the one that has been nobody's for longest.
func (x *exchange) pick(r *Range, want netip.Addr) (netip.Addr, bool) {
	now, network := x.now(), x.network(r)
	for _, p := range x.nic.Addresses {
		if a := p.Addr(); a.Is4() && network.Contains(a) {
			if x.free(a, now) {
				return a, true
			}
			x.log(slog.LevelWarn, "its address is somebody else's: it gets another one", "address", a.String())
		}
	}
	if l := x.leases.byMAC[x.mac]; l != nil && r.contains(l.Address) && x.free(l.Address, now) {
		return l.Address, true
	}
	if r.contains(want) && x.free(want, now) {
		return want, true
	}
	size := uint32(r.size())
	start := hash(x.mac) % size
	var oldest *lease
	for i := range size {
		a := addressOf(number(r.First) + (start+i)%size)
		if !x.free(a, now) {
			continue
		}
		l := x.leases.byAddress[a]
		if l == nil {
			return a, true
		}
		if oldest == nil || l.Expires.Before(oldest.Expires) {
			oldest = l
		}
	}
	if oldest != nil {
		return oldest.Address, true
	}
	return netip.Addr{}, false
}

// free tells whether an address may be the client's: it is nobody else's now, in
// the inventory, by a lease, or by what a client has found.
func (x *exchange) free(a netip.Addr, now time.Time) bool {
	if a == x.at.Address || a == x.at.Network.Addr() || a == address(x.req.GatewayIPAddr) {
		return false
	}
	for i := range x.Ranges {
		if n := x.network(&x.Ranges[i]); a == x.Ranges[i].Gateway || n.Contains(a) && n.Bits() < 31 && (a == n.Addr() || number(a) == number(n.Addr())|^uint32(0)>>n.Bits()) {
			return false
		}
	}
	if l := x.leases.byAddress[a]; l != nil && l.MAC != planMAC(x.mac) && now.Before(l.Expires) {
		return false
	}
	if until, ok := x.leases.declined[a]; ok && now.Before(until) {
		return false
	}
	hosts := x.hosts.Load()
	byAddress, ok := (*hosts).(interface {
		ByAddress(netip.Addr) (*netboot.Host, bool)
	})
	if !ok {
		return true
	}
	owner, ok := byAddress.ByAddress(a)
	if !ok {
		return true
	}
	// Another interface of the same host has it: this one doesn't.
	return owner == x.host && hasAddress(x.nic, a)
}

func hasAddress(nic *netboot.NIC, a netip.Addr) bool {
	for _, p := range nic.Addresses {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

// hash is FNV-1a: the same for ever.
func hash(mac [6]byte) uint32 {
	h := uint32(2166136261)
	for _, b := range mac {
		h = (h ^ uint32(b)) * 16777619
	}
	return h
}
