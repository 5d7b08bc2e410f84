package aptkey

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// entity makes a key that lives for so long; 0 is for ever.
func entity(t testing.TB, made time.Time, life time.Duration) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Test", "", "test@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: uint32(life / time.Second), Time: func() time.Time { return made },
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// binary serializes public keys one after the other.
func binary(t testing.TB, entities ...*openpgp.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entities {
		if err := e.Serialize(&b); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func block(t testing.TB, kind string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), '\n')
}

func TestParse(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	forever, old := entity(t, now, 0), entity(t, now.Add(-48*time.Hour), 24*time.Hour)
	armored := block(t, openpgp.PublicKeyType, binary(t, forever))
	var private bytes.Buffer
	if err := forever.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	revoked := entity(t, now, 0)
	if err := revoked.RevokeKey(packet.KeyCompromised, "lost", nil); err != nil {
		t.Fatal(err)
	}
	signature := block(t, openpgp.SignatureType, []byte{0xc2, 0})
	for what, c := range map[string]struct {
		data  []byte
		key   *openpgp.Entity
		wrong string
	}{
		"armored":             {armored, forever, ""},
		"binary":              {binary(t, forever), forever, ""},
		"with text around":    {append([]byte("HashiCorp's key:\n\n"), append(armored, "bye\n"...)...), forever, ""},
		"CRLF":                {bytes.ReplaceAll(armored, []byte("\n"), []byte("\r\n")), forever, ""},
		"expired":             {binary(t, old), old, ""},
		"two in one block":    {block(t, openpgp.PublicKeyType, binary(t, forever, old)), nil, "one public key was expected here, not 2"},
		"two, binary":         {binary(t, forever, old), nil, "one public key was expected here, not 2"},
		"two blocks":          {append(armored[:len(armored):len(armored)], block(t, openpgp.PublicKeyType, binary(t, old))...), nil, "one public key was expected here, not 2 blocks"},
		"private":             {block(t, openpgp.PrivateKeyType, private.Bytes()), nil, "this is a private key: export the public one"},
		"private, binary":     {private.Bytes(), nil, "this is a private key: export the public one"},
		"a signature":         {signature, nil, "this is no OpenPGP public key"},
		"revoked":             {binary(t, revoked), nil, "this key has been revoked"},
		"empty":               {nil, nil, "this is no OpenPGP public key"},
		"malformed":           {[]byte("\xc2\xc00\x040\x16\b\x00\x06\x01\x040000"), nil, "this is no OpenPGP public key"}, // go-crypto 1.3.0 panics
		"version 6, of 4 GiB": {[]byte("\xc2\xc00\x060\x16\b\xf5\x03\x01\x16\b\x00\x060"), nil, "this is no OpenPGP public key"},
		"a web page":          {[]byte("<!DOCTYPE html><html>404</html>"), nil, "this is no OpenPGP public key"},
		"cut off":             {armored[:len(armored)/2], nil, "this is no OpenPGP public key"},
		"cut off and binary":  {binary(t, forever)[:40], nil, "this is no OpenPGP public key"},
	} {
		t.Run(what, func(t *testing.T) {
			k, err := Parse(c.data)
			if c.wrong != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.wrong) {
					t.Fatalf("%v, not %s", err, c.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%X", c.key.PrimaryKey.Fingerprint); k.Fingerprint != want {
				t.Errorf("the fingerprint %s, not %s", k.Fingerprint, want)
			}
			if expires := c.key == old; k.Expires.IsZero() == expires || expires && !k.Expires.Equal(now.Add(-24*time.Hour)) {
				t.Errorf("it expires %v", k.Expires)
			}
			again, err := Parse(k.Armored)
			if err != nil || again.Fingerprint != k.Fingerprint || !bytes.Equal(again.Armored, k.Armored) {
				t.Errorf("written anew, it is another key: %v", err)
			}
			if !bytes.HasPrefix(k.Armored, []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")) || bytes.Contains(k.Armored, []byte("bye")) {
				t.Errorf("written anew:\n%s", k.Armored)
			}
		})
	}
}

func TestFingerprint(t *testing.T) {
	const want = "798AEC654E5C15428C8E42EEAA16FCBCA621E701"
	for _, s := range []string{want, strings.ToLower(want), "798A EC65 4E5C 1542 8C8E  42EE AA16 FCBC A621 E701", " " + want + "\n"} {
		if got, ok := Fingerprint(s); !ok || got != want {
			t.Errorf("%q: %s, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "A621E701", want + "0", "0x" + want[2:], strings.Repeat("g", 40), strings.Repeat("é", 20)} {
		if got, ok := Fingerprint(s); ok {
			t.Errorf("%q is taken for %s", s, got)
		}
	}
}

// FuzzAptKey: what is taken for a key is one public key, and can be read again.
func FuzzAptKey(f *testing.F) {
	e := entity(f, time.Unix(1_700_000_000, 0), time.Hour)
	f.Add(binary(f, e))
	f.Add(block(f, openpgp.PublicKeyType, binary(f, e)))
	f.Add(block(f, openpgp.PrivateKeyType, []byte{0xc5, 0}))
	f.Add([]byte("\xc2\xc00\x040\x16\b\x00\x06\x01\x040000"))
	f.Add([]byte("\xc2\x0d\x060\x16\b\xf5\x03\x01\x16\b\x00\x060"))
	f.Add([]byte("\xa7\xa7\xa7\xa7\xc2\r\x060\x16\b\xf5\x03\x01\x16\x84\x00\x060"))
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n=aaaa\n-----END PGP PUBLIC KEY BLOCK-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(k.Armored)
		if err != nil || again.Fingerprint != k.Fingerprint {
			t.Errorf("%s, then %s: %v", k.Fingerprint, again.Fingerprint, err)
		}
	})
}
