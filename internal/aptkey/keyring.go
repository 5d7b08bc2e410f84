package aptkey

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Fingerprints lists those of all primary keys in a keyring as apt reads it: any
// number of public keys, binary or as one armored block.
func Fingerprints(data []byte) (list []string, err error) {
	defer func() {
		// go-crypto indexes into some malformed packets without looking.
		if r := recover(); r != nil {
			list, err = nil, fmt.Errorf("there is no OpenPGP public key in it: %v", r)
		}
	}()
	if bytes.Contains(data, []byte("-----BEGIN PGP PRIVATE KEY")) {
		return nil, errors.New("there is a private key in it: export the public one (gpg --export --armor)")
	}
	if bytes.Contains(data, []byte("-----BEGIN PGP")) {
		block, err := armor.Decode(bytes.NewReader(data))
		if err == nil {
			data, err = io.ReadAll(block.Body)
		}
		if err != nil {
			return nil, fmt.Errorf("there is no OpenPGP public key in it: %w", err)
		}
	}
	if err := versions(data); err != nil {
		return nil, err
	}
	packets := packet.NewOpaqueReader(bytes.NewReader(data))
	for {
		p, err := packets.Next()
		if err != nil {
			break // at the end, since versions has read it all
		}
		if p.Tag == tagSecretKey {
			return nil, errors.New("there is a private key in it: export the public one (gpg --export --armor)")
		}
		if p.Tag != tagPublicKey {
			continue
		}
		// A key of a kind that isn't known here may be one of apt's.
		if parsed, err := p.Parse(); err == nil {
			if key, ok := parsed.(*packet.PublicKey); ok {
				list = append(list, fmt.Sprintf("%X", key.Fingerprint))
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("there is no OpenPGP public key in it")
	}
	return list, nil
}
