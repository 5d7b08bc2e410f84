//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/profiles"
)

// maker runs packages.sh with a cache of its own, in which the programs are
// there already.
type maker struct {
	script, cache string
	versions      map[string]string // of the programs, which are pinned
}

// newMaker links to the programs that are built. With small, there are programs
// that say nothing but their name: for what doesn't depend on them.
func newMaker(t *testing.T, small bool) *maker {
	t.Helper()
	scripts := filepath.Join(repository(t), "scripts/hashicorp")
	m := &maker{filepath.Join(scripts, "packages.sh"), t.TempDir(), map[string]string{}}
	tools := filepath.Join(strings.TrimSpace(output(t, filepath.Join(scripts, "build.sh"), "--bin")), "../../tools")
	if _, err := os.Stat(filepath.Join(tools, "nfpm")); err != nil {
		t.Fatalf("%v: run make setup", err)
	}
	if err := os.Symlink(tools, filepath.Join(m.cache, "tools")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"consul", "nomad"} {
		m.link(t, name, small)
	}
	return m
}

// link puts a program into the maker's cache.
func (m *maker) link(t *testing.T, name string, small bool) {
	t.Helper()
	built := filepath.Dir(strings.TrimSpace(output(t, filepath.Join(filepath.Dir(m.script), "build.sh"), "--pinned", name)))
	m.versions[name] = strings.TrimPrefix(filepath.Base(built), name+"-")
	folder := filepath.Join(m.cache, "hashicorp", filepath.Base(built))
	if small {
		place(t, filepath.Join(folder, name), "#!/bin/sh\necho "+name+"\n")
		if err := os.Chmod(filepath.Join(folder, name), 0o755); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(built, folder); err != nil {
		t.Fatal(err)
	}
}

// try runs the script, env beside the usual environment.
func (m *maker) try(env []string, args ...string) (string, error) {
	cmd := exec.Command(m.script, args...)
	cmd.Env = append(append(os.Environ(), "KILN_CACHE="+m.cache, "KILN_APT_KEY=", "SOURCE_DATE_EPOCH="), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// make runs the script, and returns what it says.
func (m *maker) make(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out, err := m.try(env, args...)
	if err != nil {
		t.Fatalf("packages.sh: %v\n%s", err, out)
	}
	return out
}

// deb is where the package of a program is in a repository.
func (m *maker) deb(name string) string {
	return fmt.Sprintf("pool/main/%s/%s/%[2]s_%s-1_%s.deb", name[:1], name, m.versions[name], debArchitecture())
}

func debArchitecture() string {
	out, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// packageSite is a site that takes HashiCorp's programs from a repository, with
// a host of each release.
func packageSite(t *testing.T, uri, key, fingerprint string) map[string]string {
	t.Helper()
	return map[string]string{
		"keys/hashicorp.asc": key,
		"hosts.yaml": "- name: bookworm\n  profile: plain\n  image: debian-12\n  advertise: 192.0.2.11\n" +
			"- name: noble\n  profile: plain\n  image: ubuntu-24.04\n  advertise: 192.0.2.12\n",
		"site.yaml": "domain: example.org\nservers: {join: [nomad1.example.org]}\ndns: {consul: [192.0.2.62], upstream: [192.0.2.53]}\n" +
			"apt:\n  sources:\n    hashicorp: {uris: [\"" + uri + "\"], fingerprint: " + fingerprint + "}\n",
	}
}

// renderedApt lays the /etc/apt of a host's image out, and returns its folder.
func renderedApt(t *testing.T, host, uri, repo string) string {
	t.Helper()
	s := site(t, packageSite(t, uri, read(t, repo, "key.asc"), strings.TrimSpace(read(t, repo, "fingerprint"))))
	files, err := render.ImageFiles(&hostPlan(t, s, host).Image)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	layOut(t, root, files)
	return filepath.Join(root, "etc/apt")
}

// TestPackages makes real packages of the real programs, and has dpkg, apt and
// systemd take them.
func TestPackages(t *testing.T) {
	needRoot(t)
	program(t, "apt-ftparchive")
	m := newMaker(t, false)
	repo := filepath.Join(t.TempDir(), "apt")
	out := m.make(t, nil, "--output", repo)
	key, err := aptkey.Parse([]byte(read(t, repo, "key.asc")))
	if err != nil || key.Fingerprint != strings.TrimSpace(read(t, repo, "fingerprint")) || !strings.Contains(out, key.Fingerprint) {
		t.Fatalf("the key %s, %v, isn't the one that is said:\n%s", key.Fingerprint, err, out)
	}
	if info, err := os.Stat(filepath.Join(m.cache, "hashicorp/apt-key")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the key's folder: %v, %v", info, err)
	}
	readable(t, repo)
	for name := range m.versions {
		t.Run(name, func(t *testing.T) { m.checkPackage(t, repo, name) })
	}
	t.Run("apt", func(t *testing.T) {
		server := httptest.NewServer(http.FileServer(http.Dir(repo)))
		defer server.Close()
		t.Setenv("no_proxy", "127.0.0.1")
		for host, uri := range map[string]string{"bookworm": "file://" + repo, "noble": server.URL} {
			out, err := aptUpdate(t, renderedApt(t, host, uri, repo))
			if err != nil || !strings.Contains(out, "Candidate: "+m.versions["consul"]+"-1") || !strings.Contains(out, strings.TrimPrefix(uri, "file://")+" "+host+"/main") {
				t.Errorf("%s: apt doesn't offer the package: %v\n%s", host, err, out)
			}
		}
	})
	t.Run("installed", func(t *testing.T) { m.install(t, repo) })
}

// readable fails where somebody else couldn't read what is served.
func readable(t *testing.T, repo string) {
	t.Helper()
	err := filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		want := fs.FileMode(0o644)
		if d.IsDir() {
			want = 0o755
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// checkPackage compares a package with what upstream's sources make of it.
func (m *maker) checkPackage(t *testing.T, repo, name string) {
	deb := filepath.Join(repo, m.deb(name))
	upstream := packaged(t, name)
	for field, want := range map[string]string{
		"Package": name, "Version": m.versions[name] + "-1", "Architecture": debArchitecture(), "Maintainer": "HashiCorp",
		"Vendor": "HashiCorp", "Homepage": "https://github.com/hashicorp/" + name, "Section": "admin",
	} {
		if got := strings.TrimSpace(output(t, "dpkg-deb", "--field", deb, field)); got != want {
			t.Errorf("%s: %q, not %q", field, got, want)
		}
	}
	if got := output(t, "dpkg-deb", "--field", deb, "Description"); len(got) < 40 || strings.Contains(got, `"`) {
		t.Errorf("Description: %q", got)
	}
	if got := output(t, "dpkg-deb", "--field", deb, "Depends"); !strings.HasPrefix(got, "openssl") {
		t.Errorf("Depends: %q", got)
	}

	dir := t.TempDir()
	output(t, "dpkg-deb", "--raw-extract", deb, dir)
	conffiles := "/usr/share/doc/" + name + "/LICENSE.txt\n"
	err := filepath.WalkDir(upstream, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		inside := strings.TrimPrefix(path, upstream)
		if read(t, dir, inside) != read(t, path) {
			t.Errorf("%s isn't upstream's", inside)
		}
		conffiles += inside + "\n"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := sorted(read(t, dir, "DEBIAN/conffiles")), sorted(conffiles); got != want {
		t.Errorf("conffiles:\n%s\nnot:\n%s", got, want)
	}
	scripts := filepath.Dir(upstream)
	names := map[string]string{"preinst": "preinst", "postinst": "postinst", "postrm": "postrm"}
	if name == "consul" {
		names = map[string]string{"preinst": "preinstall", "postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"}
	}
	for ours, theirs := range names {
		if read(t, dir, "DEBIAN", ours) != read(t, scripts, theirs) {
			t.Errorf("%s isn't upstream's %s", ours, theirs)
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(output(t, "dpkg-deb", "--contents", deb)), "\n") {
		f := strings.Fields(line)
		want := "-rw-r--r--"
		if strings.HasSuffix(f[5], "/") {
			want = "drwxr-xr-x"
		} else if strings.HasPrefix(f[5], "./usr/bin/") {
			want = "-rwxr-xr-x"
		}
		if f[0] != want || f[1] != "root/root" {
			t.Errorf("%s", line)
		}
	}
}

func sorted(lines string) string {
	l := strings.Split(strings.TrimSpace(lines), "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}

// installing has a tree's own apt install both packages from the rendered
// source, and nothing else. systemd seems to run there, and notes what it is
// asked to do.
const installing = `set -e
cd "$1"
mkdir up work root
mount -t overlay -o lowerdir="$2",upperdir=up,workdir=work overlay root
rm -rf root/etc/apt/sources.list root/etc/apt/sources.list.d
cp -a "$3/." root/etc/apt/
mkdir -p root/srv/hashicorp root/run/systemd/system
mount --bind "$4" root/srv/hashicorp
mount -t proc proc root/proc
mount -t tmpfs -o "$5" tmpfs root/opt
mv root/usr/bin/systemctl root/usr/bin/systemctl.real
printf '#!/bin/sh\necho "$@" >>/systemctl.log\n' >root/usr/bin/systemctl
chmod 755 root/usr/bin/systemctl
export DEBIAN_FRONTEND=noninteractive
chroot root apt-get -qq -o APT::Update::Error-Mode=any update
chroot root apt-get -qq -y --no-install-recommends -o DPkg::Options::=--force-unsafe-io install nomad consul
mv root/usr/bin/systemctl.real root/usr/bin/systemctl
rmdir root/run/systemd/system
echo "systemctl:" $(sort -u root/systemctl.log)
for agent in nomad consul; do
	chroot root "$agent" version | head -n 1
	chroot root getent passwd "$agent" | cut -d : -f 1,7
	chroot root id -Gn "$agent"
	stat -c '%U:%G %n' root/usr/bin/"$agent"
	chroot root stat -c '%U:%G %n' /etc/"$agent".d/"$agent".hcl
done
echo "opt:" $(cd root/opt && chroot .. find /opt -mindepth 1 -printf '%u:%g %p\n' | sort)
echo "enabled:" $(cd root/etc/systemd/system && find . -name 'nomad*' -o -name 'consul*')
systemctl --root root enable nomad.service consul.service
echo "enabled:" $(cd root/etc/systemd/system && find . -name 'nomad*' -o -name 'consul*' | sort)
chroot root systemd-analyze --man=no verify nomad.service consul.service
chroot root dpkg --purge nomad consul
chroot root getent passwd nomad consul || echo "gone:" $(ls -d root/etc/nomad.d root/etc/consul.d root/usr/bin/nomad 2>/dev/null)
`

// install checks what the packages do to a host, one with and one without an
// /opt that can be written to.
func (m *maker) install(t *testing.T, repo string) {
	around := newSpace(t)
	for _, opt := range []struct{ mode, holds string }{
		{"ro", "opt:\n"},
		{"rw", "opt: consul:consul /opt/consul nomad:nomad /opt/nomad/data root:root /opt/nomad\n"},
	} {
		t.Run("opt "+opt.mode, func(t *testing.T) {
			apt := renderedApt(t, "bookworm", "file:///srv/hashicorp", repo)
			out, status := around.try(t, fmt.Sprintf("unshare --mount sh -c '%s' sh %s %s %s %s %s",
				strings.ReplaceAll(installing, "'", `'\''`), t.TempDir(), hostTree(t), apt, repo, opt.mode))
			if status != 0 {
				t.Fatalf("exit status %d:\n%s", status, out)
			}
			for _, want := range []string{
				"systemctl: --system daemon-reload\n", opt.holds, "gone:\n",
				"Nomad v" + m.versions["nomad"] + "\nnomad:/bin/false\nnomad\nroot:root root/usr/bin/nomad\nnomad:nomad /etc/nomad.d/nomad.hcl\n",
				"Consul v" + m.versions["consul"] + "\nconsul:/bin/false\nconsul\nroot:root root/usr/bin/consul\nconsul:consul /etc/consul.d/consul.hcl\n",
				"enabled:\n", "enabled: ./multi-user.target.wants/consul.service ./multi-user.target.wants/nomad.service\n",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}

// TestPackagesRepository makes repositories again: for other keys and suites, or
// where something is missing.
func TestPackagesRepository(t *testing.T) {
	program(t, "apt-ftparchive")
	m := newMaker(t, true)
	repo := filepath.Join(t.TempDir(), "apt")
	m.make(t, nil, "--output", repo)
	first := map[string]string{}
	for name := range m.versions {
		first[name] = read(t, repo, m.deb(name))
		if depends := output(t, "dpkg-deb", "--field", filepath.Join(repo, m.deb(name)), "Depends"); depends != "openssl\n" {
			t.Errorf("%s, a script, depends on %s", name, depends)
		}
	}

	// Nothing has changed.
	before := read(t, repo, "dists/noble/InRelease")
	if out := m.make(t, nil, "--output", repo); !strings.Contains(out, "nothing to do") || read(t, repo, "dists/noble/InRelease") != before {
		t.Errorf("what is up to date was made again:\n%s", out)
	}

	// A file is gone, and another is damaged; the programs look younger, and are
	// the same.
	if err := os.Remove(filepath.Join(repo, m.deb("nomad"))); err != nil {
		t.Fatal(err)
	}
	place(t, filepath.Join(repo, m.deb("consul")), "not a package")
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(m.cache, "hashicorp/nomad-"+m.versions["nomad"], "nomad"), later, later); err != nil {
		t.Fatal(err)
	}
	m.make(t, nil, "--output", repo)
	for name := range m.versions {
		if read(t, repo, m.deb(name)) != first[name] {
			t.Errorf("%s: the same input makes another package", name)
		}
	}

	// The site's own key, another suite, another time.
	own := newSigner(t, "Site <site@example.org>")
	env := []string{"GNUPGHOME=" + own.home, "KILN_APT_KEY=" + own.fingerprint, "SOURCE_DATE_EPOCH=1000000000"}
	m.make(t, env, "--output", repo, "--suite", "trixie")
	if got := strings.TrimSpace(read(t, repo, "fingerprint")); got != own.fingerprint {
		t.Errorf("signed by %s, not by the site's key %s", got, own.fingerprint)
	}
	release := filepath.Join(repo, "dists/trixie")
	own.gpg(t, "--verify", filepath.Join(release, "InRelease"))
	own.gpg(t, "--verify", filepath.Join(release, "Release.gpg"), filepath.Join(release, "Release"))
	if listing := output(t, "dpkg-deb", "--contents", filepath.Join(repo, m.deb("nomad"))); strings.Count(listing, "2001-09-09 ") != strings.Count(listing, "\n") {
		t.Errorf("files don't bear the time that was said:\n%s", listing)
	}
	m.make(t, append(env, "SOURCE_DATE_EPOCH=1000000001"), "--output", repo, "--suite", "trixie")
	if suites, err := os.ReadDir(filepath.Join(repo, "dists")); err != nil || len(suites) != 1 {
		t.Errorf("%v: suites that aren't made any more stay: %v", suites, err)
	}
	readable(t, repo)

	// kiln check takes the key that signed, and no other.
	for fingerprint, problem := range map[string]string{own.fingerprint: "", strings.Repeat("AB", 20): "has the fingerprint " + own.fingerprint} {
		dir := t.TempDir()
		for name, text := range packageSite(t, "file://"+repo, read(t, repo, "key.asc"), fingerprint) {
			place(t, filepath.Join(dir, name), text)
		}
		problems, _, err := profiles.Check(t.Context(), dir)
		if err != nil || (problem == "" && problems.Err() != nil) || (problem != "" && (problems.Err() == nil || !strings.Contains(problems.Error(), problem))) {
			t.Errorf("kiln check, with the fingerprint %s: %v, %v", fingerprint, err, problems)
		}
	}
}

// TestPackagesRefuses leaves alone what it wasn't asked for.
func TestPackagesRefuses(t *testing.T) {
	m := newMaker(t, true)
	other := t.TempDir()
	place(t, filepath.Join(other, "precious"), "data")
	fresh := filepath.Join(t.TempDir(), "apt")
	for _, c := range []struct {
		says string
		env  []string
		args []string
	}{
		{"holds something else", nil, []string{"--output", other}},
		{"a release's codename is wanted", nil, []string{"--output", fresh, "--suite", "../x"}},
		{"--suite wants a value", nil, []string{"--output", fresh, "--suite"}},
		{"usage:", nil, []string{fresh}},
		{"no secret key " + strings.Repeat("AB", 20), []string{"GNUPGHOME=" + t.TempDir(), "KILN_APT_KEY=" + strings.Repeat("AB", 20)}, []string{"--output", fresh}},
		{"a number of seconds", []string{"SOURCE_DATE_EPOCH=today"}, []string{"--output", fresh}},
		{"the Go module proxy must be reachable", []string{"GOPROXY=off", "GOMODCACHE=" + t.TempDir()}, []string{"--output", fresh}},
	} {
		out, err := m.try(c.env, c.args...)
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("%q: %v, says nothing of %q:\n%s", c.args, err, c.says, out)
		}
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(fresh), "*"))
		if b := []byte(read(t, other, "precious")); !bytes.Equal(b, []byte("data")) || len(left) > 0 {
			t.Errorf("%q leaves %v", c.args, left)
		}
	}
}
