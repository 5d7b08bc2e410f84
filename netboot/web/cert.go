package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
)

// Certificate gives the server's own certificate, which is made once, with its key,
// in a file of the directory that only its owner may read. Installers know it by
// its key, which the kernel's command line pins.
func Certificate(dir string) (tls.Certificate, error) {
	name := filepath.Join(dir, "server.pem")
	data, err := once(name, newCertificate)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the server's certificate: %w", err)
	}
	c, err := tls.X509KeyPair(data, data)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the server's certificate: %s: %w: remove it, and a new one is made", name, err)
	}
	return c, nil
}

// LoadCertificate gives a certificate that somebody else has made.
func LoadCertificate(cert, key string) (tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the server's certificate: %w", err)
	}
	return c, nil
}

// newCertificate makes a key, and a certificate that it signs itself.
func newCertificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	// Its name and time matter to nobody who pins the key; browsers ask once anyway.
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "kiln serve"},
		NotBefore:    time.Now().Add(-24 * time.Hour),
		NotAfter:     time.Now().AddDate(20, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"kiln"},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pem.Encode(&out, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return out.Bytes(), nil
}

// Pin is what a certificate is known by: see protocol.Pin.
func Pin(c tls.Certificate) (string, error) {
	if len(c.Certificate) == 0 {
		return "", fmt.Errorf("there is no certificate")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return "", fmt.Errorf("the server's certificate: %w", err)
	}
	return protocol.Pin(leaf), nil
}

// pin is the server's own.
func (s *Server) pin() string {
	pin, err := Pin(s.Certificate)
	if err != nil {
		s.Log.Error("installers won't believe this server", "error", err)
	}
	return pin
}
