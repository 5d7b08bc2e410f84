package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"

	"github.com/alisw/kiln/plan"
)

// How long an address is waited for: a switch that runs the spanning tree protocol
// forwards nothing for half a minute after the link is up.
const (
	leaseWait = 90 * time.Second
	leaseTry  = 4 * time.Second
)

// Network brings the interface up, and sets the address that DHCP gives it.
func (*machine) Network(ctx context.Context, mac plan.MAC, say func(string)) error {
	dev, err := interfaceOf(mac)
	if err != nil {
		return err
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	link, err := netlink.LinkByIndex(dev.Index)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", dev.Name, err)
	}
	asking, cancel := context.WithTimeout(ctx, leaseWait)
	defer cancel()
	lease, err := ask(asking, dev)
	if err != nil {
		return fmt.Errorf("no DHCP server has given %s (%s) an address within %s: is it on the network that booted? %w", dev.Name, mac, leaseWait, err)
	}
	if err := configure(link, lease.ACK); err != nil {
		return fmt.Errorf("setting the address of %s: %w", dev.Name, err)
	}
	say(fmt.Sprintf("network: %s has %s", dev.Name, lease.ACK.YourIPAddr))
	go keep(ctx, dev, lease)
	return nil
}

// ask asks for a lease until there is one.
func ask(ctx context.Context, dev *net.Interface) (*nclient4.Lease, error) {
	var last error
	for ctx.Err() == nil {
		lease, err := askOnce(ctx, dev)
		if err == nil {
			return lease, nil
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil, last
}

func askOnce(ctx context.Context, dev *net.Interface) (*nclient4.Lease, error) {
	c, err := nclient4.New(dev.Name, nclient4.WithHWAddr(dev.HardwareAddr), nclient4.WithTimeout(leaseTry), nclient4.WithRetry(2))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Request(ctx, dhcpv4.WithOption(dhcpv4.OptClassIdentifier("kiln-installer")))
}

// keep renews a lease at half of its time: waiting in line may take longer than it.
func keep(ctx context.Context, dev *net.Interface, lease *nclient4.Lease) {
	const shortest, longest = 10 * time.Second, 24 * time.Hour
	for {
		half := min(max(lease.ACK.IPAddressLeaseTime(longest)/2, shortest), longest)
		select {
		case <-ctx.Done():
			return
		case <-time.After(half):
		}
		c, err := nclient4.New(dev.Name, nclient4.WithHWAddr(dev.HardwareAddr), nclient4.WithTimeout(leaseTry))
		if err != nil {
			continue
		}
		if renewed, err := c.Renew(ctx, lease); err == nil {
			lease = renewed
		}
		c.Close()
	}
}

// configure sets address and routes, as RFC 2131 and 3442 have them.
func configure(link netlink.Link, ack *dhcpv4.DHCPv4) error {
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr, Mask: mask}}); err != nil {
		return err
	}
	type hop struct {
		to  *net.IPNet
		via net.IP
	}
	var hops []hop
	for _, r := range ack.ClasslessStaticRoute() {
		hops = append(hops, hop{r.Dest, r.Router})
	}
	if hops == nil {
		for _, via := range ack.Router() {
			hops = append(hops, hop{&net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, via})
			break
		}
	}
	for _, h := range hops {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: h.to}
		if h.via != nil && !h.via.IsUnspecified() {
			// The router may be outside of the subnet.
			route.Gw, route.Flags = h.via, int(netlink.FLAG_ONLINK)
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("the route to %s: %w", h.to, err)
		}
	}
	return nil
}

// interfaces lists the machine's, for people.
func interfaces() string {
	all, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	var list []string
	for _, i := range all {
		if len(i.HardwareAddr) > 0 {
			list = append(list, i.Name+" "+i.HardwareAddr.String())
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}
