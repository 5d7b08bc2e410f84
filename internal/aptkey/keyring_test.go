package aptkey

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

func TestFingerprints(t *testing.T) {
	one, two := entity(t, time.Now(), 0), entity(t, time.Now(), 0)
	want := []string{fmt.Sprintf("%X", one.PrimaryKey.Fingerprint), fmt.Sprintf("%X", two.PrimaryKey.Fingerprint)}
	both := binary(t, one, two)
	for name, data := range map[string][]byte{"binary": both, "armored": block(t, openpgp.PublicKeyType, both)} {
		if got, err := Fingerprints(data); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	var private bytes.Buffer
	if err := one.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"nothing": {nil, "no OpenPGP public key"}, "a page": {[]byte("<html>404</html>\n"), "no OpenPGP public key"}, "half": {both[:20], "no OpenPGP public key"},
		"private": {private.Bytes(), "private key"}, "armored private": {block(t, openpgp.PrivateKeyType, private.Bytes()), "private key"},
	} {
		if got, err := Fingerprints(tt.data); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}
