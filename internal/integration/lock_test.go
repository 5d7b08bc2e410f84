//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// thingRepository has one package, thing, of a version and a content; whatever was
// there before is gone, as on a mirror.
const thingRepository = `set -eu
cd "$1"
rm -rf pool deb dists
mkdir -p pool deb/DEBIAN deb/usr/share/thing dists/bookworm/main/binary-amd64
printf 'Package: thing\nVersion: %s\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: test\n' "$2" >deb/DEBIAN/control
echo "$3" >deb/usr/share/thing/content
dpkg-deb --build --root-owner-group deb pool >/dev/null
apt-ftparchive packages pool >dists/bookworm/main/binary-amd64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Suite=bookworm -o APT::FTPArchive::Release::Codename=bookworm \
	-o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures="amd64 all" release dists/bookworm >Release
mv Release dists/bookworm/Release
`

// lockedSite is a site with a lock, and a repository of its own.
type lockedSite struct {
	*bakery
	repo string
	key  signer
}

func (l *lockedSite) publish(t *testing.T, version, content string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", thingRepository, "sh", l.repo, version, content).CombinedOutput(); err != nil {
		t.Fatalf("making a repository: %v\n%s", err, out)
	}
	release := filepath.Join(l.repo, "dists/bookworm/Release")
	l.key.gpg(t, "--clearsign", "--output", filepath.Join(filepath.Dir(release), "InRelease"), release)
}

// run wants kiln to succeed, or where want isn't empty to fail saying that.
func (l *lockedSite) run(t *testing.T, want string, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if (want == "") != (err == nil) || !strings.Contains(string(out), want) {
		t.Fatalf("%s: %v; wanted %q\n%s", cmd.Args, err, want, out)
	}
	l.clean(t)
	return string(out)
}

func (l *lockedSite) lock(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.site, "kiln.lock"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// thing is the package's version in the newest image, and whether it's held.
func (l *lockedSite) thing(t *testing.T) string {
	t.Helper()
	store := &images.Store{Dir: filepath.Join(l.cache, "images")}
	m, err := store.Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Packages {
		if p.Name == "thing" {
			if len(p.SHA256) != 64 || p.Source != "things" {
				t.Errorf("the manifest doesn't say what the lock says of it: %v", p)
			}
			return p.Version
		}
	}
	return "none"
}

// TestLock follows a site through what becomes of a mirror: a build takes what was
// locked, or fails with the way out.
func TestLock(t *testing.T) {
	program(t, "apt-ftparchive")
	l := &lockedSite{repo: t.TempDir(), key: newSigner(t, "Kiln test <test@example.org>")}
	const profile = "image:\n  apt_sources:\n    things: {uris: [\"file://%s\"], suites: [bookworm], components: [main], fingerprint: %s}\n  packages: [thing]\n"
	l.bakery = newBakery(t, fmt.Sprintf(profile, l.repo, l.key.fingerprint))
	place(t, filepath.Join(l.site, "keys/things.asc"), string(l.key.public))
	place(t, filepath.Join(l.site, "hosts.yaml"), "- {name: build01, profile: tiny, image: small, interfaces: {eno1: {mac: \"52:54:00:00:00:01\", addresses: [192.0.2.11/24]}}}\n")
	build := []string{"build", "tiny", "--image", "small"}
	l.publish(t, "1.0", "one")

	l.run(t, "", l.command("lock"))
	first := l.lock(t)
	if !strings.Contains(first, `{name: thing, version: "1.0", arch: all, source: things,`) {
		t.Fatalf("thing isn't in the lock:\n%s", first)
	}
	l.run(t, "", l.command(build...))
	if v := l.thing(t); v != "1.0" {
		t.Errorf("the image has thing %s", v)
	}
	l.isHeld(t)

	// The cache travels, and what it has builds the same image without a network.
	archive := filepath.Join(l.cache, "packages.tar")
	l.run(t, "", l.command("cache", "export", archive))
	l.elsewhere(t, archive, build)

	l.publish(t, "1.1", "one point one")
	if out := l.run(t, "", l.command("lock")); !strings.Contains(out, "nothing has changed in kiln.lock") || strings.Contains(out, "apt resolves") {
		t.Errorf("with nothing to move, kiln lock says\n%s", out)
	}
	fresh := l.command(build...)
	fresh.Env = append(fresh.Env, "KILN_CACHE="+t.TempDir())
	l.run(t, "no longer has the package thing 1.0: kiln lock --update thing", fresh)

	if out := l.run(t, "", l.command("lock", "--update", "thing")); !strings.Contains(out, "small thing: 1.0 → 1.1\n") || strings.Count(out, "→") != 1 {
		t.Errorf("what changed is told as\n%s", out)
	}
	// One line for the package, and one for the time.
	if n := changedLines(first, l.lock(t)); n != 2 {
		t.Errorf("%d lines of the lock changed", n)
	}

	// The same version with another content.
	l.publish(t, "1.1", "altered")
	fresh = l.command(build...)
	fresh.Env = append(fresh.Env, "KILN_CACHE="+t.TempDir())
	l.run(t, "thing 1.1", fresh)

	l.asksForMore(t, profile)
}

// isHeld looks at the base tree: thing stays, what is the distribution's doesn't.
func (l *lockedSite) isHeld(t *testing.T) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(l.cache, "build/steps/base-*/out/tree/var/lib/dpkg/status"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	status, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(status), "Package: thing\nStatus: hold ok installed\n") || strings.Count(string(status), "Status: hold") != 1 {
		t.Error("thing alone should be held")
	}
}

// elsewhere builds with the exported packages alone, in another cache, without a
// network, with another umask, host name and time zone.
func (l *lockedSite) elsewhere(t *testing.T, archive string, build []string) {
	t.Helper()
	store := &images.Store{Dir: filepath.Join(l.cache, "images")}
	want, err := store.Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	other := *l
	other.bakery = &bakery{kiln: l.kiln, site: l.site, cache: t.TempDir()}
	moved := filepath.Join(t.TempDir(), "gone")
	if err := os.Rename(l.repo, moved); err != nil {
		t.Fatal(err)
	}
	other.run(t, "", other.command("cache", "import", archive))
	cmd := other.command(append([]string{"-c", `umask 077; hostname elsewhere; exec "$@"`, "sh", other.kiln}, build...)...)
	cmd.Path, cmd.Args = "/usr/bin/unshare", append([]string{"unshare", "--net", "--uts", "--", "sh"}, cmd.Args[1:]...)
	cmd.Env = append(cmd.Env, "TZ=Asia/Tokyo")
	other.run(t, "", cmd)
	if err := os.Rename(moved, l.repo); err != nil {
		t.Fatal(err)
	}
	got, err := (&images.Store{Dir: filepath.Join(other.cache, "images")}).Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != want.ID {
		t.Errorf("another image: %s, not %s", got.ID, want.ID)
	}
}

// asksForMore: a profile that has changed needs a new lock, in which what was
// locked stays.
func (l *lockedSite) asksForMore(t *testing.T, profile string) {
	t.Helper()
	before := l.lock(t)
	place(t, filepath.Join(l.site, "profiles/tiny/profile.yaml"), strings.Replace(fmt.Sprintf(profile, l.repo, l.key.fingerprint), "[thing]", "[thing, less]", 1))
	l.run(t, "kiln.lock has no packages for the profile tiny on small as they are now: run kiln lock", l.command("build", "tiny", "--image", "small"))
	// The mirror has thing 1.1 with another content than was locked.
	l.run(t, "thing 1.1", l.command("lock"))
	if l.lock(t) != before {
		t.Error("a lock that failed changed the file")
	}
	l.publish(t, "1.0", "one")
	if out := l.run(t, "", l.command("lock", "--update", "thing")); !strings.Contains(out, "small thing: 1.1 → 1.0\n") || !strings.Contains(out, "small less: none → ") {
		t.Errorf("what changed is told as\n%s", out)
	}

	other := newSigner(t, "Another <another@example.org>")
	place(t, filepath.Join(l.site, "keys/things.asc"), string(other.public))
	place(t, filepath.Join(l.site, "profiles/tiny/profile.yaml"), strings.Replace(fmt.Sprintf(profile, l.repo, other.fingerprint), "[thing]", "[thing, less]", 1))
	l.run(t, "locked with "+l.key.fingerprint, l.command("build", "tiny", "--image", "small"))
}

func changedLines(a, b string) int {
	before := map[string]bool{}
	for line := range strings.Lines(a) {
		before[line] = true
	}
	n := 0
	for line := range strings.Lines(b) {
		if !before[line] {
			n++
		}
	}
	return n
}
