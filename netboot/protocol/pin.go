package protocol

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
)

// Pin is the SHA-256 of a certificate's public key (SubjectPublicKeyInfo, as RFC
// 7469 has it), in hexadecimal digits.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// PinnedTLS is a client's configuration that believes the one key, whatever name
// its certificate has and whatever the clock says: a new machine's clock may be
// years off.
func PinnedTLS(pin string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The key is the identity: VerifyConnection takes the place of names and chains.
		InsecureSkipVerify: true, //nolint:gosec
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			if got := Pin(s.PeerCertificates[0]); got != pin {
				return fmt.Errorf("the server's key is %s, not the pinned %s: somebody else answers at its address", got, pin)
			}
			return nil
		},
	}
}

// ServerName is the name by which a client asks for the certificate of the key that
// it has pinned: the server may have another by now.
func ServerName(pin string) string { return pin[:min(len(pin), 32)] + ".pin.kiln" }
