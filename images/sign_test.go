package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testSigningKey copies a key of testdata, since git keeps no modes.
func testSigningKey(t *testing.T, name string, mode os.FileMode) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := errors.Join(os.WriteFile(file, data, mode), os.Chmod(file, mode)); err != nil {
		t.Fatal(err)
	}
	return file
}

func testPublicKey(t *testing.T, name string) PublicKey {
	t.Helper()
	k, err := ReadPublicKey(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func noPassword() (string, error) { return "", errors.New("nobody should be asked") }

// signed is a store with a signed image of several files.
func signed(t *testing.T) (*Store, *Manifest, []PublicKey) {
	t.Helper()
	s := &Store{Dir: t.TempDir()}
	put(t, s, "plain", "one", FormatRaw, time.Unix(1, 0))
	m := put(t, s, "plain", "one", FormatQCOW2, time.Unix(2, 0))
	key, err := ReadSigningKey(testSigningKey(t, "plain.key", 0o600), noPassword)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(m, key); err != nil {
		t.Fatal(err)
	}
	return s, m, []PublicKey{testPublicKey(t, "other.pub"), testPublicKey(t, "plain.pub")}
}

func TestReadSigningKey(t *testing.T) {
	password := func(text string) func() (string, error) { return func() (string, error) { return text, nil } }
	write := func(text string) string {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	text, err := os.ReadFile("testdata/plain.key")
	if err != nil {
		t.Fatal(err)
	}
	// The last but some of it are zeros; 120 is in the public half.
	damaged := []byte(strings.TrimSpace(string(text)))
	damaged[len(damaged)-50] ^= 1
	for name, c := range map[string]struct {
		file     string
		password func() (string, error)
		want     string // of the public key's ID, or of the error
	}{
		"plain":               {testSigningKey(t, "plain.key", 0o600), noPassword, "FB5F5ED9019829B3"},
		"read-only":           {testSigningKey(t, "plain.key", 0o400), noPassword, "FB5F5ED9019829B3"},
		"encrypted":           {testSigningKey(t, "encrypted.key", 0o644), password("hush"), "A099D83EA0E1BD7D"},
		"others can read it":  {testSigningKey(t, "plain.key", 0o640), noPassword, "its mode 0640 lets others read it: chmod 600 "},
		"another password":    {testSigningKey(t, "encrypted.key", 0o600), password("hash"), "the password is wrong"},
		"no password":         {testSigningKey(t, "encrypted.key", 0o600), noPassword, "nobody should be asked"},
		"a public key":        {testSigningKey(t, "plain.pub", 0o600), noPassword, "isn't one: minisign -G makes a pair"},
		"nothing":             {write(""), noPassword, "isn't one"},
		"damaged":             {write(string(damaged)), noPassword, "is damaged"},
		"a large file":        {write(strings.Repeat("x", mostKey+1)), noPassword, "too large"},
		"no file":             {filepath.Join(t.TempDir(), "none"), noPassword, "no such file"},
		"a folder":            {t.TempDir(), noPassword, "a directory"},
		"without its comment": {write(strings.Split(string(text), "\n")[1] + "\n"), noPassword, "FB5F5ED9019829B3"},
	} {
		k, err := ReadSigningKey(c.file, c.password)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			pub := k.Public()
			got = pub.ID()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		if strings.Contains(got, "hush") || strings.Contains(got, "hash") {
			t.Errorf("%s: the password is shown: %s", name, got)
		}
	}
}

func TestParsePublicKey(t *testing.T) {
	k := testPublicKey(t, "plain.pub")
	for _, text := range []string{k.Text(), k.Text() + "\n", "untrusted comment: x\r\n" + k.Text() + "\r\n"} {
		if again, err := ParsePublicKey(text, "x"); err != nil || again.ID() != k.ID() || again.Text() != k.Text() {
			t.Errorf("%q: %v", text, err)
		}
	}
	secret, err := os.ReadFile("testdata/plain.key")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"": "no public key", "ssh-ed25519 AAAA x": "no public key", string(secret): "is a secret key", k.Text()[1:]: "no public key"} {
		if _, err := ParsePublicKey(text, "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestSiteKeys(t *testing.T) {
	site := t.TempDir()
	if keys, err := SiteKeys(site); err != nil || keys != nil {
		t.Errorf("got %v, %v", keys, err)
	}
	dir := filepath.Join(site, "keys")
	text := func(name string) []byte { k := testPublicKey(t, name); return []byte(k.Text()) }
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "a.pub"), text("plain.pub"), 0o644),
		os.WriteFile(filepath.Join(dir, "b.pub"), text("other.pub"), 0o644), os.WriteFile(filepath.Join(dir, "debian.asc"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	keys, err := SiteKeys(site)
	if err != nil || len(keys) != 2 || keys[0].ID() != "FB5F5ED9019829B3" || keys[1].Name != filepath.Join(dir, "b.pub") {
		t.Errorf("got %v, %v", keys, err)
	}
	// One that can't be read isn't passed over.
	if err := os.WriteFile(filepath.Join(dir, "c.pub"), []byte("ssh-ed25519 AAAA x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if keys, err := SiteKeys(site); err == nil || keys != nil || !strings.Contains(err.Error(), "c.pub is no public key") {
		t.Errorf("got %v, %v", keys, err)
	}
}

func TestVerified(t *testing.T) {
	s, m, keys := signed(t)
	got, by, err := s.Verified(m.ID, keys)
	if err != nil || got.ID != m.ID || by.ID() != "FB5F5ED9019829B3" {
		t.Fatalf("got %v, %v, %v", got, by, err)
	}
	if _, _, err := s.Verified(m.ID, keys[:1]); err == nil || !strings.Contains(err.Error(), "signed by the key FB5F5ED9019829B3, which isn't among the trusted ones (E356ACCEBA1A9679)") {
		t.Errorf("by another key: %v", err)
	}
	other := put(t, s, "plain", "two", FormatRaw, time.Unix(3, 0))
	if _, _, err := s.Verified(other.ID, keys); !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned: %v", err)
	}
	// An image in another's place has a good signature, and isn't what was asked for.
	for _, name := range []string{ManifestName, SignatureName} {
		data, err := os.ReadFile(s.Path(m.ID, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Path(other.ID, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Verified(other.ID, keys); err == nil || !strings.Contains(err.Error(), "is that of another image") {
		t.Errorf("another's: %v", err)
	}
}

// TestAnyChangedByte changes each byte of the manifest, and of what of the signature
// is signed.
func TestAnyChangedByte(t *testing.T) {
	s, m, keys := signed(t)
	manifest, err1 := os.ReadFile(s.Path(m.ID, ManifestName))
	signature, err2 := os.ReadFile(s.Path(m.ID, SignatureName))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckSignature(manifest, signature, keys); err != nil {
		t.Fatal(err)
	}
	for i := range manifest {
		manifest[i] ^= 1
		if _, err := CheckSignature(manifest, signature, keys); err == nil {
			t.Errorf("byte %d of the manifest can be changed", i)
		}
		manifest[i] ^= 1
	}
	if _, err := CheckSignature(append(manifest, '\n'), signature, keys); err == nil {
		t.Error("the manifest can be longer")
	}
	start := strings.Index(string(signature), "\n") + 1 // the first comment is nobody's word
	lines := strings.SplitAfter(string(signature), "\n")
	for i := start; i < start+len(lines[1])-3+len(lines[2]); i++ {
		changed := []byte(string(signature))
		changed[i] ^= 4
		if _, err := CheckSignature(manifest, changed, keys); err == nil {
			t.Errorf("byte %d of the signature, %q, can be changed", i, signature[i])
		}
	}
	for n := range len(signature) - 1 {
		if _, err := CheckSignature(manifest, signature[:n], keys); err == nil {
			t.Errorf("the first %d bytes of the signature are enough", n)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"nothing":   {func(string) error { return nil }, "[]"},
		"a byte":    {func(dir string) error { return os.WriteFile(dir+"/image.raw", []byte("onf"), 0o644) }, "[{image.raw its SHA-256 is "},
		"longer":    {func(dir string) error { return os.WriteFile(dir+"/image.raw", []byte("onee"), 0o644) }, "[{image.raw it has 4 bytes, not 3}]"},
		"gone":      {func(dir string) error { return os.Remove(dir + "/image.qcow2") }, "[{image.qcow2 it isn't there}]"},
		"a link":    {func(dir string) error { return relink(dir, "image.raw") }, "[{image.raw it is no regular file} {moved the manifest doesn't know it}]"},
		"the sums":  {func(dir string) error { return os.WriteFile(dir+"/"+SumsName, nil, 0o644) }, "[{SHA256SUMS it doesn't say what the manifest says}]"},
		"one more":  {func(dir string) error { return os.WriteFile(dir+"/evil", nil, 0o644) }, "[{evil the manifest doesn't know it}]"},
		"left over": {func(dir string) error { return os.WriteFile(dir+"/.manifest.json", nil, 0o644) }, "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			s, m, _ := signed(t)
			if err := c.change(s.Path(m.ID, "")); err != nil {
				t.Fatal(err)
			}
			read := 0
			wrong, err := s.CheckFiles(context.Background(), m, nil, func(n int) { read += n })
			if got := fmt.Sprint(wrong); err != nil || !strings.HasPrefix(got, c.want) {
				t.Errorf("got %s, %v, want %s", got, err, c.want)
			}
			if wrong == nil && read != 6 {
				t.Errorf("it has read %d bytes", read)
			}
		})
	}
	s, m, _ := signed(t)
	if err := os.Remove(s.Path(m.ID, "image.qcow2")); err != nil {
		t.Fatal(err)
	}
	if wrong, err := s.CheckFiles(context.Background(), m, []Format{FormatRaw}, nil); err != nil || wrong != nil {
		t.Errorf("one format: %v, %v", wrong, err)
	}
	m.Artifacts[0].Name = "../../etc/passwd"
	if wrong, err := s.CheckFiles(context.Background(), m, []Format{m.Artifacts[0].Format}, nil); err != nil || len(wrong) != 1 || !strings.Contains(wrong[0].What, "leads out") {
		t.Errorf("a name that leads elsewhere: %v, %v", wrong, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.CheckFiles(ctx, m, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func relink(dir, name string) error {
	return errors.Join(os.Rename(filepath.Join(dir, name), filepath.Join(dir, "moved")), os.Symlink("moved", filepath.Join(dir, name)))
}

// TestPutDropsTheSignature: a new manifest of a signed image isn't signed.
func TestPutDropsTheSignature(t *testing.T) {
	s, m, keys := signed(t)
	again := put(t, s, "plain", "one", FormatTar, time.Unix(4, 0))
	if again.ID != m.ID || !again.SignatureDropped {
		t.Errorf("got %s, dropped: %v", again.ID, again.SignatureDropped)
	}
	if _, _, err := s.Verified(m.ID, keys); !errors.Is(err, ErrUnsigned) {
		t.Errorf("got %v", err)
	}
	if more := put(t, s, "plain", "one", FormatTar, time.Unix(5, 0)); more.SignatureDropped {
		t.Error("a signature is dropped that there was none of")
	}
	// What was read before isn't what would be signed now.
	key, err := ReadSigningKey(testSigningKey(t, "plain.key", 0o600), noPassword)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sign(m, key); err == nil || !strings.Contains(err.Error(), "another build has changed it meanwhile") {
		t.Errorf("got %v", err)
	}
}

func FuzzCheckSignature(f *testing.F) {
	k, err := ReadPublicKey("testdata/plain.pub")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("untrusted comment: x\nRUQ=\ntrusted comment: y\nAAAA\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, signature string) {
		if _, err := CheckSignature([]byte("nobody has signed this"), []byte(signature), []PublicKey{k}); err == nil {
			t.Errorf("%q is good", signature)
		}
		_, _ = ParsePublicKey(signature, "x")
	})
}
