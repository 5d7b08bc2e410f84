package secrets

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/alisw/kiln/plan"
)

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func encrypt(t *testing.T, text string, armored bool, to ...age.Recipient) string {
	t.Helper()
	var b bytes.Buffer
	var out io.Writer = &b
	closeArmor := func() error { return nil }
	if armored {
		a := armor.NewWriter(&b)
		out, closeArmor = a, a.Close
	}
	w, err := age.Encrypt(out, to...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := closeArmor(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// sshKey makes an SSH key; with a passphrase, it's protected by that.
func sshKey(t *testing.T, passphrase string) (private string, public age.Recipient) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "test")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	public, err = agessh.ParseRecipient(string(ssh.MarshalAuthorizedKey(sshPub)))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), public
}

func TestAge(t *testing.T) {
	noOperator(t)
	site := t.TempDir()
	id := newIdentity(t)
	to := id.Recipient()
	put := func(name, text string) { write(t, filepath.Join(site, name), text, 0o600) }
	binary := encrypt(t, canary+"\n", false, to)
	armored := encrypt(t, canary+"\n", true, to)
	put("binary.age", binary)
	put("armored.age", armored)
	put("windows.age", strings.ReplaceAll(armored, "\n", "\r\n"))
	put("keys.age", encrypt(t, "# all of them\nconsul: "+"'"+canary+"'\nnomad: two\n", true, to))
	put("foreign.age", encrypt(t, "canary", false, newIdentity(t).Recipient()))
	put("plain.age", "canary\n")
	put("cut.age", binary[:len(binary)-1])
	put("header.age", "age-encryption.org/v1\n-> canary canary canary\n")
	put("other.age", "age-encryption.org/v9\ncanary\n")
	put("armor.age", armor.Header+"\ncanary\n"+armor.Footer+"\n")
	put("identity", "# created: today\n"+id.String()+"\n")
	t.Setenv("AGE_IDENTITY_FILE", filepath.Join(site, "identity"))
	t.Setenv("KILN_AGE_IDENTITY", newIdentity(t).String()) // has to wait

	r := &Resolver{Dir: site}
	for _, tt := range []struct{ ref, want, wantErr string }{
		{"age://binary.age", canary, ""},
		{"age://armored.age", canary, ""},
		{"age://windows.age", canary, ""},
		{"age://" + site + "/armored.age", canary, ""},
		{"age://keys.age#consul", canary, ""},
		{"age://keys.age#nomad", "two", ""},
		{"age://keys.age#vault", "", "the text has no key vault at its top"},
		{"age://binary.age#x", "", "isn't YAML"},
		{"age://foreign.age", "", "is encrypted for none of the identities of AGE_IDENTITY_FILE " + site + "/identity"},
		{"age://plain.age", "", "is no age file: encrypt it"},
		{"age://cut.age", "", "damaged or cut off"},
		{"age://header.age", "", "whose beginning is damaged"},
		{"age://other.age", "", "whose beginning is damaged"},
		{"age://armor.age", "", "whose beginning is damaged"},
		{"age://none.age", "", "there is no file " + site + "/none.age"},
	} {
		resolve(t, r, plan.Ref(tt.ref), tt.want, tt.wantErr)
	}
}

func TestAgeIdentities(t *testing.T) {
	first, second := newIdentity(t), newIdentity(t)
	key, sshRecipient := sshKey(t, "")
	protected, _ := sshKey(t, "canary")
	damaged := strings.ToLower(first.String()) + "canary"
	for _, tt := range []struct {
		name    string
		to      age.Recipient
		files   map[string]string // below the home directory
		env     map[string]string // with HOME/ for the home directory
		wantErr string
	}{
		{"named file", first.Recipient(), map[string]string{"id": first.String()}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, ""},
		{"named file with Windows' line ends", first.Recipient(), map[string]string{"id": "# x\r\n" + first.String() + "\r\n"}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, ""},
		{"named SSH key", sshRecipient, map[string]string{"id": key}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, ""},
		{"in the environment", first.Recipient(), map[string]string{".config/age/keys.txt": second.String()}, map[string]string{"KILN_AGE_IDENTITY": first.String()}, ""},
		{"age's place", first.Recipient(), map[string]string{".config/age/keys.txt": first.String(), ".config/sops/age/keys.txt": second.String()}, nil, ""},
		{"sops' place", second.Recipient(), map[string]string{".config/age/keys.txt": first.String(), ".config/sops/age/keys.txt": second.String()}, nil, ""},
		{"XDG_CONFIG_HOME", first.Recipient(), map[string]string{"x/age/keys.txt": first.String()}, map[string]string{"XDG_CONFIG_HOME": "HOME/x"}, ""},
		{"OpenSSH's place", sshRecipient, map[string]string{".config/age/keys.txt": first.String(), ".ssh/id_ed25519": key}, nil, ""},
		{"a protected SSH key beside", first.Recipient(), map[string]string{".config/age/keys.txt": first.String(), ".ssh/id_ed25519": protected}, nil, ""},

		{"none", first.Recipient(), nil, nil, "there is no age identity to decrypt with: set AGE_IDENTITY_FILE"},
		{"only a protected SSH key", first.Recipient(), map[string]string{".ssh/id_ed25519": protected}, nil, "id_ed25519 is protected by a passphrase"},
		{"named protected SSH key", first.Recipient(), map[string]string{"id": protected}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, "is protected by a passphrase"},
		{"named file that isn't there", first.Recipient(), nil, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, "AGE_IDENTITY_FILE: there is no file"},
		{"damaged", first.Recipient(), map[string]string{"id": damaged}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, "holds no age identity"},
		{"something else", first.Recipient(), nil, map[string]string{"KILN_AGE_IDENTITY": "canary"}, "KILN_AGE_IDENTITY holds no age identity"},
		{"a broken SSH key", first.Recipient(), map[string]string{"id": "-----BEGIN OPENSSH PRIVATE KEY-----\ncanary\n"}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, "is no SSH key that age can use"},
		{"a plugin's", first.Recipient(), nil, map[string]string{"KILN_AGE_IDENTITY": "AGE-PLUGIN-YUBIKEY-1CANARY"}, "needs an age plugin"},
		{"encrypted", first.Recipient(), map[string]string{"id": encrypt(t, "canary", true, second.Recipient())}, map[string]string{"AGE_IDENTITY_FILE": "HOME/id"}, "is encrypted itself"},
		{"the wrong ones", first.Recipient(), map[string]string{".config/age/keys.txt": second.String(), ".ssh/id_ed25519": protected}, nil, "keys.txt (not used: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := noOperator(t)
			for name, text := range tt.files {
				write(t, filepath.Join(home, name), text, 0o600)
			}
			for name, value := range tt.env {
				t.Setenv(name, strings.Replace(value, "HOME/", home+"/", 1))
			}
			site := t.TempDir()
			write(t, filepath.Join(site, "x.age"), encrypt(t, "canary", true, tt.to), 0o600)
			resolve(t, &Resolver{Dir: site}, "age://x.age", "canary", tt.wantErr)
			if tt.wantErr != "" {
				_, err := (&Resolver{Dir: site}).Resolve(t.Context(), "age://x.age")
				if text := fmt.Sprint(err); strings.Contains(strings.ToUpper(text), "AGE-SECRET-KEY-1"+first.String()[16:20]) {
					t.Errorf("the error shows an identity: %s", text)
				}
			}
		})
	}
}
