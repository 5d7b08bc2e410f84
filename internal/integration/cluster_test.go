//go:build integration

package integration

import (
	"context"
	"crypto/tls"
	"math/big"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/lab"
)

func newAuthority(t *testing.T) *lab.Authority {
	t.Helper()
	a, err := lab.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issued is a host's certificate and key.
func issued(t *testing.T, a *lab.Authority, name string) *lab.Certificate {
	t.Helper()
	c, err := a.Issue(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cluster is a space with servers of Consul and Nomad that want TLS from all
// who come, a Consul DNS, and the site's resolver.
type cluster struct {
	*space
	*lab.Cluster
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return labCluster(t, lab.Config{
		Datacenter: "ci", Region: "alice", Secrets: clusterTokens, TLS: newAuthority(t),
		Names:   []string{"server1.example.org"},
		Records: map[string]netip.Addr{"server2.example.org": netip.MustParseAddr("10.66.0.3"), "example.com": netip.MustParseAddr("10.66.0.80")},
	})
}

// clusterTokens are the secrets that the tests' clusters have.
var clusterTokens = lab.Secrets{Gossip: gossipKey, Management: management, Agent: agentToken, Nomad: nomadToken}

// labCluster starts a cluster at 10.66.0.2, in a network with a gateway at .1, which
// is Vault's address too, and a resolver at .53.
func labCluster(t *testing.T, config lab.Config) *cluster {
	t.Helper()
	needRoot(t)
	program(t, "unshare")
	program(t, "dnsmasq")
	config.Consul, config.Nomad = hashicorp(t, "consul"), hashicorp(t, "nomad")
	config.Address = netip.MustParsePrefix("10.66.0.2/24")
	config.More = []netip.Addr{netip.MustParseAddr("10.66.0.1")}
	config.Vault = config.More[0]
	config.Resolvers = []netip.Addr{netip.MustParseAddr("10.66.0.53")}
	c, err := lab.NewCluster(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if t.Failed() {
			t.Log(complaints(c.Logs()))
		}
	})
	return &cluster{&space{c.Space}, c}
}

// complaints are the last lines of servers' logs that aren't mere news, and few:
// what the test itself said has to be found above them.
func complaints(logs string) string {
	var lines []string
	for line := range strings.Lines(logs) {
		if !strings.Contains(line, "[INFO]") && !strings.Contains(line, "[DEBUG]") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

func (c *cluster) get(url string, into any) error { return getJSON(c.Client, url, into) }

func getJSON(client *http.Client, url string, into any) error {
	return lab.Do(context.Background(), client, management, http.MethodGet, url, nil, into)
}

// serial is the serial number of the certificate that is served at an address.
func (s *space) serial(t *testing.T, own *tls.Certificate, address string) (*big.Int, error) {
	conn, err := s.Dial(t.Context(), "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // compared by the caller
	if own != nil {
		config.Certificates = []tls.Certificate{*own}
	}
	client := tls.Client(conn, config)
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0].SerialNumber, nil
}

// lookup finds a value in what JSON gave, by its keys.
func lookup(v any, keys ...string) any {
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}
