package images

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"aead.dev/minisign"

	"github.com/alisw/kiln/internal/regular"
)

// SigningKey is a secret key of minisign's.
type SigningKey struct {
	name string
	key  minisign.PrivateKey
}

// mostKey is more than any file with a key or a signature has, in bytes.
const mostKey = 16 << 10

// ReadSigningKey reads a secret key as minisign -G writes it. Only if it is
// encrypted, password is called. One that isn't must be its owner's alone.
func ReadSigningKey(name string, password func() (string, error)) (*SigningKey, error) {
	data, mode, err := readSmall(name)
	if err != nil {
		return nil, fmt.Errorf("the signing key: %w", err)
	}
	k := &SigningKey{name: name}
	switch {
	case !isSecretKey(data):
		return nil, fmt.Errorf("the signing key %s isn't one: minisign -G makes a pair, and what its -s names is the one to sign with", name)
	case !minisign.IsEncrypted(data):
		if mode.Perm()&0o077 != 0 {
			return nil, fmt.Errorf("the signing key %s isn't encrypted, and its mode %04o lets others read it: chmod 600 %[1]s, or give it a password with minisign -C -s %[1]s", name, mode.Perm())
		}
		if err := k.key.UnmarshalText(data); err != nil {
			return nil, fmt.Errorf("the signing key %s: %w", name, err)
		}
	default:
		text, err := password()
		if err != nil {
			return nil, fmt.Errorf("the password of the signing key %s: %w", name, err)
		}
		if k.key, err = minisign.DecryptKey(text, data); err != nil {
			return nil, fmt.Errorf("the signing key %s can't be decrypted: the password is wrong, or the file is damaged", name)
		}
	}
	// A key whose halves don't belong together gives away its secret half, and
	// signs nothing that could be verified.
	const trial = "trial"
	if pub, ok := k.key.Public().(minisign.PublicKey); !ok || !minisign.Verify(pub, []byte(trial), minisign.Sign(k.key, []byte(trial))) {
		return nil, fmt.Errorf("the signing key %s is damaged: what it signs can't be verified: take it from a backup", name)
	}
	return k, nil
}

// isSecretKey tells whether data has the shape of a secret key, encrypted or not.
func isSecretKey(data []byte) bool {
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines[len(lines)-1]))
	return err == nil && len(raw) == 158 && binary.LittleEndian.Uint16(raw) == minisign.EdDSA
}

// readSmall reads a file that can't be large.
func readSmall(name string) ([]byte, fs.FileMode, error) {
	f, err := regular.Open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	data, err := io.ReadAll(io.LimitReader(f, mostKey+1))
	if err == nil && len(data) > mostKey {
		err = fmt.Errorf("%s is too large to be a key or a signature", name)
	}
	return data, info.Mode(), err
}

// Public is the key's other half.
func (k *SigningKey) Public() PublicKey {
	pub, _ := k.key.Public().(minisign.PublicKey)
	return PublicKey{Name: k.name, key: pub}
}

// sign signs a manifest, in minisign's usual format.
func (k *SigningKey) sign(manifest []byte, id string, now time.Time) ([]byte, error) {
	r := minisign.NewReader(bytes.NewReader(manifest))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	pub := k.Public()
	return r.SignWithComments(k.key, fmt.Sprintf("timestamp:%d\tfile:%s\timage:%s\thashed", now.Unix(), ManifestName, id),
		"signature of a kiln image's manifest, by the key "+pub.ID()), nil
}

// PublicKey is a public key of minisign's.
type PublicKey struct {
	Name string // where it is from
	key  minisign.PublicKey
}

// ID is the key's number, as minisign shows it.
func (k *PublicKey) ID() string { return fmt.Sprintf("%016X", k.key.ID()) }

// Text is the key in a line, as minisign -P takes it.
func (k *PublicKey) Text() string { return k.key.String() }

// ParsePublicKey reads a public key: the line alone, or a whole file. The name is
// where it is from.
func ParsePublicKey(text, name string) (PublicKey, error) {
	k := PublicKey{Name: name}
	text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
	if isSecretKey([]byte(text)) {
		return k, fmt.Errorf("%s is a secret key, not a public one: keep it elsewhere, and for yourself", name)
	}
	if err := k.key.UnmarshalText([]byte(text)); err != nil {
		return k, fmt.Errorf("%s is no public key of minisign's, as minisign -G writes one", name)
	}
	return k, nil
}

// ReadPublicKey reads the public key in a file.
func ReadPublicKey(name string) (PublicKey, error) {
	data, _, err := readSmall(name)
	if err != nil {
		return PublicKey{}, fmt.Errorf("the public key: %w", err)
	}
	return ParsePublicKey(string(data), name)
}

// SiteKeys are the public keys that a site trusts images by: keys/*.pub. Each such
// file must be one, so that a damaged key doesn't go unnoticed.
func SiteKeys(site string) ([]PublicKey, error) {
	dir := filepath.Join(site, "keys")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the site's public keys: %w", err)
	}
	var keys []PublicKey
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".pub" {
			continue
		}
		k, err := ReadPublicKey(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("%w: keys/*.pub are the keys that images are trusted by: mend it, or give it another name", err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// ErrUnsigned is that an image has no signature.
var ErrUnsigned = errors.New("it isn't signed")

// CheckSignature tells which of the keys has signed the manifest.
func CheckSignature(manifest, signature []byte, keys []PublicKey) (*PublicKey, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return nil, errors.New("its signature is none that minisign could have written")
	}
	var ids []string
	var wrong error
	for i := range keys {
		k := &keys[i]
		if minisign.Verify(k.key, manifest, signature) {
			return k, nil
		}
		if k.key.ID() == s.KeyID {
			wrong = fmt.Errorf("its signature by the key %s (%s) is wrong: the manifest isn't what was signed", k.ID(), k.Name)
		}
		ids = append(ids, k.ID())
	}
	if wrong != nil {
		return nil, wrong
	}
	slices.Sort(ids)
	return nil, fmt.Errorf("it is signed by the key %016X, which isn't among the trusted ones (%s)", s.KeyID, strings.Join(slices.Compact(ids), ", "))
}

// Signature is the signature of an image's manifest; the error is an ErrUnsigned
// where it has none.
func (s *Store) Signature(id string) ([]byte, error) {
	data, _, err := readSmall(s.Path(id, SignatureName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrUnsigned
	}
	if err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	return data, nil
}

// Sign signs an image's manifest. Whether its files are what the manifest says is
// the caller's to ask first (CheckFiles).
func (s *Store) Sign(m *Manifest, key *SigningKey) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	data, err := s.manifest(m.ID)
	if err != nil {
		return fmt.Errorf("signing the image %s: %w", m.Short(), err)
	}
	// What another build has put since then hasn't been looked at.
	if now, err := ParseManifest(data, s.Path(m.ID, ManifestName)); err != nil || !slices.Equal(now.Artifacts, m.Artifacts) {
		return fmt.Errorf("signing the image %s: another build has changed it meanwhile: sign it again", m.Short())
	}
	signature, err := key.sign(data, m.ID, time.Now())
	if err != nil {
		return fmt.Errorf("signing the image %s: %w", m.Short(), err)
	}
	if err := writeIn(s.Path(m.ID, ""), SignatureName, signature); err != nil {
		return fmt.Errorf("signing the image %s: %w", m.Short(), err)
	}
	return nil
}
