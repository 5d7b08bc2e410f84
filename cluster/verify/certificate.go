package verify

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"time"
)

// dialTime is how long an agent may take to show its certificate: hosts that
// drop packets mustn't keep hundreds of others waiting.
const dialTime = 2 * time.Second

// served is a certificate that an agent shows, or why there is none to see.
type served struct {
	at   string
	cert *x509.Certificate
	err  error
}

// served asks an agent for its certificate. No request follows: the agent shows
// it before it asks for ours.
func (v *Verifier) served(ctx context.Context, address string) served {
	ctx, cancel := context.WithTimeout(ctx, min(dialTime, cmp.Or(v.Timeout, dialTime)))
	defer cancel()
	s := served{at: address}
	dial := v.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		s.err = err
		return s
	}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{
		// Whose it is, the agents themselves check. Here it's looked at, whatever is
		// wrong with it.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) (err error) {
			if len(raw) > 0 {
				s.cert, err = x509.ParseCertificate(raw[0])
			}
			return err
		},
	})
	if err := client.HandshakeContext(ctx); s.cert == nil {
		s.err = err
		if err == nil {
			s.err = errors.New("it shows none")
		}
	}
	return s
}

// checkServed judges the certificate that Nomad's agent shows.
func checkServed(r *results, s served, now time.Time, expires time.Duration) {
	if s.err != nil {
		r.add(Finding{Check: CheckCertificate, Status: Unknown, Object: s.at, Expected: "a certificate to look at", Found: s.err.Error(),
			Fix: "is the agent's port open to this machine? kiln verify --ssh reads the certificate on the host, and --skip certificate leaves it out"})
		return
	}
	checkCertificate(r, s.at, s.cert, now, expires)
}

func checkCertificate(r *results, object string, cert *x509.Certificate, now time.Time, expires time.Duration) {
	left := cert.NotAfter.Sub(now)
	found := "valid until " + cert.NotAfter.UTC().Format(time.DateTime)
	const fix = "have it renewed; kiln-grid.service, where a host has it, tells the agents of the new one"
	switch {
	case left <= 0:
		r.add(Finding{Check: CheckCertificate, Object: object, Expected: "a certificate that is valid", Found: "expired since " + cert.NotAfter.UTC().Format(time.DateTime), Fix: fix})
	case cert.NotBefore.After(now):
		r.add(Finding{Check: CheckCertificate, Object: object, Expected: "a certificate that is valid", Found: "not valid before " + cert.NotBefore.UTC().Format(time.DateTime),
			Fix: "look at the clocks of the host and of this machine"})
	case left < expires:
		r.add(Finding{Check: CheckCertificate, Object: object, Expected: fmt.Sprintf("valid for %s more", span(expires)), Found: found, Fix: fix})
	default:
		r.wants(CheckCertificate)
	}
}

// span is a time in days, where it is some.
func span(d time.Duration) string {
	if days := d / (24 * time.Hour); days > 0 && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d days", days)
	}
	return d.String()
}

// firstCertificate is the first one of a PEM file.
func firstCertificate(text []byte) (*x509.Certificate, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("there is no certificate in it")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
}
