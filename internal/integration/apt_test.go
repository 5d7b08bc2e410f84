//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/aptkey"
)

// signer is a throwaway OpenPGP key in a keyring of its own.
type signer struct {
	home        string
	public      []byte
	fingerprint string
}

func newSigner(t *testing.T, name string) signer { return newSignerUntil(t, name, "1d") }

// newSignerUntil makes a key that is good for that long.
func newSignerUntil(t *testing.T, name, expiry string) signer {
	t.Helper()
	program(t, "gpg")
	s := signer{home: t.TempDir()}
	if err := os.Chmod(s.home, 0o700); err != nil {
		t.Fatal(err)
	}
	s.gpg(t, "--quick-gen-key", "--passphrase", "", name, "rsa2048", "sign", expiry)
	s.public = s.gpg(t, "--export", "--armor", name)
	key, err := aptkey.Parse(s.public)
	if err != nil {
		t.Fatal(err)
	}
	s.fingerprint = key.Fingerprint
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", s.home, "--kill", "all").Run()
	})
	return s
}

func (s signer) gpg(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("gpg", append([]string{"--homedir", s.home, "--batch", "--quiet"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	return out
}

// aptRepository makes a repository with one package, consul, signed.
func aptRepository(t *testing.T, s signer, suite string) string {
	t.Helper()
	dir := t.TempDir()
	pool := filepath.Join(dir, "pool")
	control := filepath.Join(dir, "deb/DEBIAN/control")
	binary := "dists/" + suite + "/main/binary-amd64"
	for _, d := range []string{pool, filepath.Dir(control), filepath.Join(dir, binary)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, control, "Package: consul\nVersion: 1.22.2-1\nArchitecture: amd64\nMaintainer: Test <test@example.org>\nDescription: test\n")
	script := `set -e
cd "$1"
dpkg-deb --build --root-owner-group deb pool/consul_1.22.2-1_amd64.deb >/dev/null
apt-ftparchive packages pool > "$2/Packages"
apt-ftparchive -o APT::FTPArchive::Release::Suite="$3" -o APT::FTPArchive::Release::Codename="$3" \
	-o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64 release "dists/$3" > Release
mv Release "dists/$3/Release"`
	if out, err := exec.Command("sh", "-c", script, "sh", dir, binary, suite).CombinedOutput(); err != nil {
		t.Fatalf("making a repository: %v\n%s", err, out)
	}
	release := filepath.Join(dir, "dists", suite, "Release")
	s.gpg(t, "--clearsign", "--output", filepath.Join(filepath.Dir(release), "InRelease"), release)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// aptUpdate runs the real apt with nothing but the rendered files in /etc/apt,
// and asks it for its candidate of consul.
func aptUpdate(t *testing.T, etc string) (string, error) {
	t.Helper()
	state := t.TempDir()
	script := `set -e
mount --make-rprivate /
mount --bind "$1" /etc/apt
mkdir -p "$2/lists/partial" "$2/cache/archives/partial"
touch "$2/status"
opts="-o Dir::State=$2 -o Dir::State::status=$2/status -o Dir::Cache=$2/cache -o APT::Update::Error-Mode=any -o APT::Sandbox::User=root"
apt-get $opts update
apt-cache $opts policy consul`
	out, err := exec.Command("unshare", "-m", "sh", "-c", script, "sh", etc, state).CombinedOutput()
	return string(out), err
}

// TestAptTakesTheRenderedSource has the real apt read the source and the key
// that a plan's image half has, and trust nothing else.
func TestAptTakesTheRenderedSource(t *testing.T) {
	needRoot(t)
	program(t, "apt-ftparchive")
	key := newSigner(t, "Kiln test <test@example.org>")
	for _, release := range []struct{ image, codename string }{{"debian-12", "bookworm"}, {"ubuntu-24.04", "noble"}} {
		t.Run(release.image, func(t *testing.T) {
			repo := aptRepository(t, key, release.codename)
			s := site(t, map[string]string{
				"keys/hashicorp.asc": string(key.public),
				"hosts.yaml":         "- name: build01\n  profile: plain\n  image: " + release.image + "\n  advertise: 192.0.2.11\n",
				"site.yaml": fmt.Sprintf("domain: example.org\nservers: {join: [nomad1.example.org], nomad: 1.9.7, consul: 1.20.1}\n"+
					"dns: {consul: [192.0.2.62], upstream: [192.0.2.53]}\n"+
					"apt:\n  sources:\n    hashicorp: {uris: [\"file://%s\"], fingerprint: %s}\n", repo, key.fingerprint),
			})
			files, err := render.ImageFiles(&hostPlan(t, s, "build01").Image)
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			layOut(t, root, files)
			etc := filepath.Join(root, "etc/apt")

			out, err := aptUpdate(t, etc)
			if err != nil || !strings.Contains(out, "Candidate: 1.22.2-1") {
				t.Errorf("apt doesn't offer the package: %v\n%s", err, out)
			}

			// The same repository, signed by somebody else.
			other := newSigner(t, "Somebody else <other@example.org>")
			inRelease := filepath.Join(repo, "dists", release.codename, "InRelease")
			if err := os.Remove(inRelease); err != nil {
				t.Fatal(err)
			}
			other.gpg(t, "--clearsign", "--output", inRelease, filepath.Join(filepath.Dir(inRelease), "Release"))
			if out, err := aptUpdate(t, etc); err == nil || !strings.Contains(out, "NO_PUBKEY") {
				t.Errorf("apt takes a repository signed by another key: %v\n%s", err, out)
			}
		})
	}
}
