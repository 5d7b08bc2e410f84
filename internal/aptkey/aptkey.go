// Package aptkey reads the OpenPGP public keys that apt repositories are
// trusted through.
package aptkey

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Key is one public key.
type Key struct {
	Fingerprint string    // 40 upper-case hexadecimal digits
	Expires     time.Time // zero: never
	Armored     []byte    // ASCII armor, as apt wants it in a file named .asc
}

// Parse reads a file that holds exactly one public key, armored or binary.
// Several would all be trusted, where one fingerprint was promised.
func Parse(data []byte) (k Key, err error) {
	defer func() {
		// go-crypto indexes into some malformed packets without looking.
		if r := recover(); r != nil {
			k, err = Key{}, fmt.Errorf("this is no OpenPGP public key: %v", r)
		}
	}()
	return parse(data)
}

func parse(data []byte) (Key, error) {
	if blocks := bytes.Count(data, []byte("-----BEGIN PGP")); blocks > 1 {
		return Key{}, fmt.Errorf("one public key was expected here, not %d blocks", blocks)
	} else if blocks == 1 {
		block, err := armor.Decode(bytes.NewReader(data))
		if err == nil {
			data, err = io.ReadAll(block.Body)
		}
		if err != nil {
			return Key{}, fmt.Errorf("this is no OpenPGP public key: %w", err)
		}
	}
	if err := versions(data); err != nil {
		return Key{}, err
	}
	ring, err := openpgp.ReadKeyRing(bytes.NewReader(data))
	switch {
	case err != nil:
		return Key{}, fmt.Errorf("this is no OpenPGP public key: %w", err)
	case len(ring) == 0:
		return Key{}, errors.New("this is no OpenPGP public key: there is nothing in it")
	case len(ring) != 1:
		return Key{}, fmt.Errorf("one public key was expected here, not %d", len(ring))
	case ring[0].PrivateKey != nil:
		return Key{}, errors.New("this is a private key: export the public one (gpg --export --armor)")
	}
	if ring[0].Revoked(time.Now()) {
		return Key{}, errors.New("this key has been revoked")
	}
	k := Key{Fingerprint: fmt.Sprintf("%X", ring[0].PrimaryKey.Fingerprint)}
	if id := ring[0].PrimaryIdentity(); id != nil && id.SelfSignature != nil && id.SelfSignature.KeyLifetimeSecs != nil && *id.SelfSignature.KeyLifetimeSecs != 0 {
		k.Expires = ring[0].PrimaryKey.CreationTime.Add(time.Duration(*id.SelfSignature.KeyLifetimeSecs) * time.Second)
	}
	k.Armored, err = armored(ring[0])
	return k, err
}

// Packets that a key is made of.
const (
	tagSignature, tagSecretKey, tagPublicKey, tagSecretSubkey      = 2, 5, 6, 7
	tagTrust, tagUserID, tagPublicSubkey, tagUserAttribute         = 12, 13, 14, 17
	embeddedSignature                                         byte = 32
)

// versions refuses what no key for Debian's apt has, before it is parsed:
// packets of other kinds, some of which hold packets in turn, and versions that
// apt doesn't know. go-crypto allocates as much memory as a signature of version
// 6 says that it needs, up to 4 GiB.
func versions(data []byte) error {
	packets := packet.NewOpaqueReader(bytes.NewReader(data))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("this is no OpenPGP public key: %w", err)
		}
		ok := false
		switch p.Tag {
		case tagSignature:
			ok = oldSignature(p.Contents, 0)
		case tagSecretKey, tagPublicKey, tagSecretSubkey, tagPublicSubkey:
			ok = len(p.Contents) > 0 && p.Contents[0] <= 4
		case tagTrust, tagUserID, tagUserAttribute:
			ok = true
		}
		if !ok {
			return errors.New("this is no OpenPGP public key of version 4, which apt asks for")
		}
	}
}

// oldSignature tells whether a signature, and those within it, are of versions
// up to 4.
func oldSignature(b []byte, depth int) bool {
	if len(b) == 0 || b[0] > 4 || depth > 3 {
		return false
	}
	if b[0] < 4 || len(b) < 4 {
		return true
	}
	b = b[4:]
	for range 2 { // the hashed subpackets, and the others
		if len(b) < 2 {
			return true
		}
		n := int(b[0])<<8 | int(b[1])
		area := b[2:min(2+n, len(b))]
		b = b[min(2+n, len(b)):]
		subpackets, err := packet.OpaqueSubpackets(area)
		if err != nil {
			return false
		}
		for _, s := range subpackets {
			if s.SubType&0x7f == embeddedSignature && !oldSignature(s.Contents, depth+1) {
				return false
			}
		}
	}
	return true
}

// armored writes the key anew, so that what stood around it in the file (other
// text, a second block) gets no further.
func armored(e *openpgp.Entity) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err != nil {
		return nil, fmt.Errorf("armoring a public key: %w", err)
	}
	if err := e.Serialize(w); err != nil {
		return nil, fmt.Errorf("armoring a public key: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("armoring a public key: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// Fingerprint normalizes a fingerprint as people copy it: with spaces, in
// either case. ok is false where it isn't 40 hexadecimal digits.
func Fingerprint(s string) (normal string, ok bool) {
	s = strings.ToUpper(strings.Join(strings.Fields(s), ""))
	if len(s) != 40 || strings.Trim(s, "0123456789ABCDEF") != "" {
		return "", false
	}
	return s, true
}
