package leftovers

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// relation is how two addresses stand to each other.
type relation int

const (
	unknown relation = iota // it can't be told
	same
	differs
)

// endpoint is an address and a port.
type endpoint struct {
	ip   netip.Addr // invalid where host is no IP address, or stands for all
	host string     // as it was written, in lower case
	port int        // 0 is unknown
}

func newEndpoint(host string, port int) endpoint {
	e := endpoint{host: strings.ToLower(host), port: port}
	// 192.0.2.1 and ::ffff:192.0.2.1 are one address, as are all spellings of an
	// IPv6 address.
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && !ip.IsUnspecified() {
		e.ip = ip.Unmap()
	}
	return e
}

// parseEndpoint reads what Nomad says, HOST:PORT.
func parseEndpoint(text string) endpoint {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return newEndpoint(text, 0)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		n = 0
	}
	return newEndpoint(host, n)
}

// hosts compares without the ports. What isn't an IP address may stand for any:
// it is the same as itself, and not known to differ from anything.
func (e endpoint) hosts(o endpoint) relation {
	switch {
	case e.ip.IsValid() && o.ip.IsValid() && e.ip == o.ip:
		return same
	case e.ip.IsValid() && o.ip.IsValid():
		return differs
	case e.host != "" && e.host == o.host && !e.ip.IsValid() && !unspecified(e.host):
		return same
	}
	return unknown
}

func unspecified(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsUnspecified()
}

func (e endpoint) compare(o endpoint) relation {
	switch hosts := e.hosts(o); {
	case hosts != same:
		return hosts
	case e.port <= 0 || o.port <= 0:
		return unknown
	case e.port == o.port:
		return same
	case e.ip.IsValid():
		return differs
	}
	return unknown
}

func (e *Entry) endpoint() endpoint { return newEndpoint(e.Address, e.Port) }

// Endpoint is the entry's address with its port.
func (e *Entry) Endpoint() string {
	if e.Address == "" {
		return ":" + strconv.Itoa(e.Port)
	}
	return net.JoinHostPort(strings.Trim(e.Address, "[]"), strconv.Itoa(e.Port))
}

// compare says whether the entry is for what Nomad's node advertises.
func (e *Entry) compare(n Node) relation { return e.endpoint().compare(parseEndpoint(n.HTTPAddr)) }

// mayBe tells whether nothing speaks against the entry being for what the node
// advertises, where both have the same address.
func (e *Entry) mayBe(n Node) bool {
	a, b := e.endpoint(), parseEndpoint(n.HTTPAddr)
	return a.hosts(b) == same && a.compare(b) != differs
}
