package profiles

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// publicKey makes a key that expires then, and its fingerprint.
func publicKey(t *testing.T, expires time.Time) (data, fingerprint string) {
	t.Helper()
	made := time.Now().Add(-1000 * 24 * time.Hour)
	e, err := openpgp.NewEntity("Test", "", "test@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: uint32(expires.Sub(made) / time.Second), Time: func() time.Time { return made },
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.String(), fmt.Sprintf("%x", e.PrimaryKey.Fingerprint)
}

// TestAptKeys reads the keys of apt sources, whose fingerprints the profile has
// or the site.
func TestAptKeys(t *testing.T) {
	later, soon, past := time.Now().Add(400*24*time.Hour), time.Now().Add(10*24*time.Hour), time.Now().Add(-10*24*time.Hour)
	good, fingerprint := publicKey(t, later)
	other, otherFingerprint := publicKey(t, later)
	soonKey, soonFingerprint := publicKey(t, soon)
	pastKey, pastFingerprint := publicKey(t, past)
	missing := strings.Repeat("0", 40)
	dir := writeFiles(t, map[string]string{
		"site.yaml": `domain: example.org
apt:
  sources:
    overridden: {key: keys/site.asc, fingerprint: ` + otherFingerprint + `, uris: [https://mirror.example.org]}
    moved: {uris: [https://mirror.example.org]}
`,
		"hosts.yaml": "- {name: one, profile: keys}\n",
		"profiles/keys/profile.yaml": `image:
  apt_sources:
    good: {uris: [https://example.org], suites: [x/], fingerprint: ` + fingerprint + `}
    wrong: {uris: [https://example.org], suites: [x/], fingerprint: ` + fingerprint + `}
    soon: {uris: [https://example.org], suites: [x/], fingerprint: ` + soonFingerprint + `}
    past: {uris: [https://example.org], suites: [x/], fingerprint: ` + pastFingerprint + `}
    two: {uris: [https://example.org], suites: [x/], fingerprint: ` + fingerprint + `}
    missing: {uris: [https://example.org], suites: [x/], fingerprint: "` + missing + `", key_url: https://example.org/key}
    overridden: {uris: [https://example.org], suites: [x/], fingerprint: ` + fingerprint + `, key_url: https://example.org/key}
    moved: {uris: [https://example.org], suites: [x/], fingerprint: ` + fingerprint + `, key_url: https://example.org/key, key: keys/good.asc}
`,
		"keys/good.asc": good, "keys/wrong.asc": other, "keys/soon.asc": soonKey, "keys/past.asc": pastKey, "keys/two.asc": good + other, "keys/site.asc": other,
	})
	s, problems, err := Open(dir)
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	image, problems := s.Image("keys", "debian-12")
	want := strings.Join([]string{
		"keys/past.asc:1:1: warning: the key of the apt source past has expired, so that apt refuses it, on " + past.Format(time.DateOnly) + ": get the key anew: kiln keys fetch",
		"keys/soon.asc:1:1: warning: the key of the apt source soon expires on " + soon.Format(time.DateOnly) + ": get the key anew: kiln keys fetch",
		"keys/two.asc:1:1: the key of the apt source two, keys/two.asc: one public key was expected here, not 2",
		"keys/wrong.asc:1:1: the key of the apt source wrong, keys/wrong.asc, has the fingerprint " + strings.ToUpper(otherFingerprint) + ", not " + strings.ToUpper(fingerprint) +
			": if the new key is to be trusted, write its fingerprint into the site",
		"profiles/keys/profile.yaml:8:5: warning: the site doesn't hold the key " + missing + " of the apt source missing: run kiln keys fetch, or copy the key to keys/missing.asc",
		"",
	}, "\n")
	if got := lines(dir, problems); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for _, src := range image.AptSources {
		key := len(src.Key) > 0
		switch src.Name {
		case "good", "soon", "past":
			if !key {
				t.Errorf("%s has no key", src.Name)
			}
		case "missing", "wrong", "two":
			if key {
				t.Errorf("%s has a key", src.Name)
			}
		case "overridden":
			if src.Fingerprint != strings.ToUpper(otherFingerprint) || src.KeyURL != "" || !key || src.URIs[0] != "https://mirror.example.org" {
				t.Errorf("the site's key: %+v", src)
			}
		case "moved":
			if src.Fingerprint != strings.ToUpper(fingerprint) || src.KeyURL == "" || !key || src.URIs[0] != "https://mirror.example.org" || src.Origin.Profile != "" {
				t.Errorf("the site's mirror: %+v", src)
			}
		default:
			t.Errorf("a source %s", src.Name)
		}
	}
}
