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
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"sync"
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

// maxCertificates bounds those that are kept.
const maxCertificates = 8

// certificates are the one that is shown, and those before it: who has pinned the key
// of an earlier one still gets that.
type certificates struct {
	mu   sync.RWMutex
	list []pinned // the first is shown
}

type pinned struct {
	tls.Certificate
	pin string
}

// Renew shows another certificate from now on, and gives its pin. An installer that was
// given an earlier one's goes on with that.
func (s *Server) Renew(c tls.Certificate) (pin string, err error) {
	s.init()
	if pin, err = Pin(c); err != nil {
		return "", err
	}
	s.certificates.put(pinned{c, pin})
	return pin, nil
}

func (l *certificates) put(c pinned) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := []pinned{c}
	for _, old := range l.list {
		if old.pin != c.pin && len(list) < maxCertificates {
			list = append(list, old)
		}
	}
	l.list = list
}

// get is tls.Config's GetCertificate.
func (l *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for i := range l.list {
		if hello.ServerName == protocol.ServerName(l.list[i].pin) {
			return &l.list[i].Certificate, nil
		}
	}
	if len(l.list) == 0 {
		return nil, errors.New("the server has no certificate")
	}
	return &l.list[0].Certificate, nil
}

// pin is what installers are to know the server by.
func (s *Server) pin() string {
	s.certificates.mu.RLock()
	defer s.certificates.mu.RUnlock()
	if len(s.certificates.list) == 0 {
		return "" // init has said so
	}
	return s.certificates.list[0].pin
}
