package verify_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/internal/lab"
)

// agent listens as Nomad's agents do: with a certificate, and for those alone
// that have one of the same CA.
func agent(t *testing.T, highest uint16) (address string) {
	t.Helper()
	a, err := lab.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Issue("build01.example.org") // for a day
	if err != nil {
		t.Fatal(err)
	}
	own, err := c.TLS()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: highest})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// silent accepts, and says nothing.
func silent(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// TestServedCertificate looks at the certificate that an agent shows to whoever
// comes.
func TestServedCertificate(t *testing.T) {
	p := planOf(t, 1)
	to := func(address string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, asked string) (net.Conn, error) {
			if asked != "192.0.2.2:4646" {
				t.Errorf("%s was asked", asked)
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	for _, tt := range []struct {
		name    string
		dial    func(context.Context, string, string) (net.Conn, error)
		expires time.Duration
		want    string
	}{
		{"good", to(agent(t, tls.VersionTLS13)), time.Hour, ""},
		{"good, of old", to(agent(t, tls.VersionTLS12)), time.Hour, ""},
		{"expiring", to(agent(t, tls.VersionTLS13)), 0, "differs certificate 192.0.2.2:4646: valid for 14 days more | valid until "},
		{"nobody there", func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }, time.Hour,
			"unknown certificate 192.0.2.2:4646: a certificate to look at | connection refused"},
		{"silent", to(silent(t)), time.Hour, "unknown certificate 192.0.2.2:4646: a certificate to look at | context deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := verifier(t, goodState(1))
			v.Skip, v.Now, v.Dial, v.Expires = nil, nil, tt.dial, tt.expires
			if tt.name == "silent" {
				v.Timeout = 500 * time.Millisecond
			}
			r, err := v.Host(t.Context(), verify.Target{Plan: p, Versions: versions})
			if got := found(r); err != nil || !strings.HasPrefix(got, tt.want) || tt.want == "" && !r.OK || len(r.Findings) > 1 {
				t.Errorf("%v\nfound:\n%s\nnot:\n%s", err, got, tt.want)
			}
		})
	}
}
