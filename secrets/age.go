package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/alisw/kiln/plan"
)

// What both forms of an age file start with.
const (
	ageBinary  = "age-encryption.org/"
	ageArmored = armor.Header
)

// age decrypts age://PATH, an age file, armored or not; age://PATH#KEY is the
// value of one key of the YAML in it.
//
// None of the library's texts goes into an error: some quote what they read,
// which may be a secret that somebody forgot to encrypt, or an identity.
func (r *Resolver) age(_ context.Context, ref plan.Ref) (string, error) {
	path, key := splitKey(ref.Rest())
	data, err := r.read(path)
	if err != nil {
		return "", err
	}
	var src io.Reader = bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte(ageArmored)):
		src = armor.NewReader(src)
	case !bytes.HasPrefix(data, []byte(ageBinary)):
		return "", fmt.Errorf("%s is no age file: encrypt it (age -r RECIPIENT -o %s), or is it meant as file://?", path, path)
	}
	ids, err := r.identity.get(loadIdentities)
	if err != nil {
		return "", err
	}
	text, err := age.Decrypt(src, ids.list...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return "", fmt.Errorf("%s is encrypted for none of the identities of %s%s: encrypt it for one of them too, or name another file in AGE_IDENTITY_FILE",
			path, strings.Join(ids.from, ", "), ids.skippedText())
	} else if err != nil {
		return "", fmt.Errorf("%s is an age file whose beginning is damaged: restore it", path)
	}
	plain, err := io.ReadAll(io.LimitReader(text, largestFile))
	if err != nil {
		return "", fmt.Errorf("%s is an age file that is damaged or cut off: restore it", path)
	}
	return pick(string(plain), key)
}

// identities are the private keys that age files are decrypted with.
type identities struct {
	list    []age.Identity
	from    []string // where they are from, for errors
	skipped []string // what was found and can't be used, with the reason
}

func (ids *identities) skippedText() string {
	if len(ids.skipped) == 0 {
		return ""
	}
	return " (not used: " + strings.Join(ids.skipped, "; ") + ")"
}

// loadIdentities takes the first of these that there is: the file that
// AGE_IDENTITY_FILE names; the identity in KILN_AGE_IDENTITY itself; all files
// at the usual places together.
func loadIdentities() (*identities, error) {
	ids := &identities{}
	if path := os.Getenv("AGE_IDENTITY_FILE"); path != "" {
		data, err := readFile(path)
		if err != nil {
			return nil, fmt.Errorf("AGE_IDENTITY_FILE: %w", err)
		}
		if err := ids.add("AGE_IDENTITY_FILE "+path, data); err != nil {
			return nil, err
		}
		return ids, nil
	}
	if text := os.Getenv("KILN_AGE_IDENTITY"); text != "" {
		if err := ids.add("KILN_AGE_IDENTITY", []byte(text)); err != nil {
			return nil, err
		}
		return ids, nil
	}
	places := usualIdentities()
	for _, path := range places {
		data, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = ids.add(path, data)
		}
		if err != nil {
			ids.skipped = append(ids.skipped, err.Error())
		}
	}
	if len(ids.list) == 0 {
		return nil, fmt.Errorf("there is no age identity to decrypt with%s: set AGE_IDENTITY_FILE to one, or have one of %s",
			ids.skippedText(), strings.Join(places, ", "))
	}
	return ids, nil
}

// usualIdentities are the files that age, sops and OpenSSH keep keys in.
func usualIdentities() []string {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	config := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(config) {
		config = filepath.Join(home, ".config")
	}
	places := []string{filepath.Join(config, "age", "keys.txt"), filepath.Join(config, "sops", "age", "keys.txt")}
	if dir, err := os.UserConfigDir(); err == nil {
		// Where sops keeps them on macOS; elsewhere it's the same folder again.
		if path := filepath.Join(dir, "sops", "age", "keys.txt"); !slices.Contains(places, path) {
			places = append(places, path)
		}
	}
	return append(places, filepath.Join(home, ".ssh", "id_ed25519"))
}

// add takes the identities in data, which is from where the error says.
func (ids *identities) add(from string, data []byte) error {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		id, err := agessh.ParseIdentity(data)
		if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
			return fmt.Errorf("%s is protected by a passphrase, which kiln doesn't ask for: make an age identity of its own (age-keygen)", from)
		} else if err != nil {
			return fmt.Errorf("%s is no SSH key that age can use: it has to be of type ed25519 or rsa", from)
		}
		ids.list, ids.from = append(ids.list, id), append(ids.from, from)
		return nil
	}
	if bytes.HasPrefix(data, []byte(ageBinary)) || bytes.HasPrefix(data, []byte(ageArmored)) {
		return fmt.Errorf("%s is encrypted itself, and kiln doesn't ask for passphrases: name a decrypted one", from)
	}
	if bytes.Contains(data, []byte("AGE-PLUGIN-")) {
		return fmt.Errorf("%s needs an age plugin, which kiln doesn't run: encrypt for an identity without one too", from)
	}
	list, err := age.ParseIdentities(bytes.NewReader(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))))
	if err != nil {
		return fmt.Errorf("%s holds no age identity: a line with AGE-SECRET-KEY-1…, as age-keygen writes it", from)
	}
	ids.list, ids.from = append(ids.list, list...), append(ids.from, from)
	return nil
}
