//go:build integration

package integration

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
)

// bakery is a site whose images are small: few packages, and no kernel.
type bakery struct {
	kiln  string // the program
	site  string
	cache string
	wrap  []string // what runs it, if anything
}

const smallImage = `description: A tree of few packages
distribution: debian
version: "12"
codename: bookworm
kernel: none
firmware: []
packages: [systemd]
`

const tinyProfile = `image:
  apt_sources:
    hashicorp: {uris: ["file://%s"], suites: [$(codename)], components: [main], fingerprint: %s}
  packages: [consul]
  groups: {ops: {gid: 9001}}
  users: {ops: {uid: 9001, group: ops, system: true, home: /var/lib/ops, shell: /usr/sbin/nologin}}
  directories: {/srv/data: {owner: ops, group: ops, mode: "2750"}}
  files:
    /etc/tiny: {owner: root, group: ops, mode: "0640", content: "a file\n"}
    /etc/tiny-link: {link: /dev/null}
  units: {systemd-networkd.service: enabled, fstrim.timer: masked}
`

func newBakery(t *testing.T, profile string) *bakery {
	t.Helper()
	return bakeryOf(t, bakersKiln(t), profile)
}

// bakersKiln builds the program.
func bakersKiln(t *testing.T) string {
	t.Helper()
	needRoot(t)
	program(t, "mmdebstrap")
	kiln := filepath.Join(t.TempDir(), "kiln")
	build := exec.Command("go", "build", "-o", kiln, "./cmd/kiln")
	build.Dir = repository(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return kiln
}

// bakeryOf is a bakery that has the program already.
func bakeryOf(t *testing.T, kiln, profile string) *bakery {
	t.Helper()
	dir := t.TempDir()
	b := &bakery{kiln: kiln, site: filepath.Join(dir, "site"), cache: filepath.Join(dir, "cache")}
	place(t, filepath.Join(b.site, "site.yaml"), "domain: example.org\n")
	place(t, filepath.Join(b.site, "images/small.yaml"), smallImage)
	place(t, filepath.Join(b.site, "profiles/tiny/profile.yaml"), profile)
	return b
}

func (b *bakery) command(args ...string) *exec.Cmd {
	args = append(append(append([]string{}, b.wrap...), b.kiln), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = b.site
	cmd.Env = append(os.Environ(), "KILN_CACHE="+b.cache, "KILN_CACHE_SIZE="+strconv.Itoa(buildsKeep))
	return cmd
}

// nothingMounted fails the test if something is mounted below the cache.
func (b *bakery) nothingMounted(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), b.cache+"/") {
		t.Errorf("a mount is left: %v\n%s", err, mounts)
	}
}

// clean fails the test if a build has left a mount, a process or half a result.
func (b *bakery) clean(t *testing.T) {
	t.Helper()
	b.nothingMounted(t)
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte(b.cache)) {
			t.Errorf("a process is left: %s", bytes.ReplaceAll(line, []byte{0}, []byte(" ")))
		}
	}
	for _, pattern := range []string{"build/tmp/*", "images/new-*"} {
		if found, err := filepath.Glob(filepath.Join(b.cache, pattern)); err != nil || found != nil {
			t.Errorf("left in the cache: %v, %v", found, err)
		}
	}
}

// TestBakeATree bakes a profile with a package from a repository on this
// machine's disk, and looks at the tree.
func TestBakeATree(t *testing.T) {
	key := newSigner(t, "Kiln test <test@example.org>")
	repo := aptRepository(t, key, "bookworm")
	b := newBakery(t, fmt.Sprintf(tinyProfile, repo, key.fingerprint))
	place(t, filepath.Join(b.site, "keys/hashicorp.asc"), string(key.public))

	// consul of that repository has neither files nor dependencies.
	out, err := b.command("build", "tiny", "--image", "small").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "profiles/tiny/profile.yaml:4:14: the package consul 1.22.2-1 installs nothing") {
		t.Fatalf("a package that installs nothing: %v\n%s", err, out)
	}
	b.clean(t)

	// Without it, the base tree is another.
	place(t, filepath.Join(b.site, "profiles/tiny/profile.yaml"), strings.Replace(fmt.Sprintf(tinyProfile, repo, key.fingerprint), "[consul]", "[acl]", 1))
	if out, err := b.command("build", "tiny", "--image", "small").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.clean(t)
	store := &images.Store{Dir: filepath.Join(b.cache, "images")}
	m, err := store.Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/srv/data":                        "directory 2750 9001:9001 ",
		"/etc/tiny":                        "file 0640 0:9001 ",
		"/etc/tiny-link":                   "link 0777 0:0 /dev/null",
		"/etc/machine-id":                  "file 0444 0:0 ",
		"/etc/systemd/system/fstrim.timer": "link 0777 0:0 /dev/null",
		"/etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "link 0777 0:0 /lib/systemd/system/systemd-networkd.service",
		"/etc/apt/keyrings/hashicorp.asc":                                      "file 0644 0:0 ",
		"/etc/apt/sources.list.d/hashicorp.sources":                            "file 0644 0:0 ",
	}
	for _, f := range m.Files {
		if w, ok := want[f.Path]; ok {
			got := fmt.Sprintf("%s %s %d:%d %s", f.Type, f.Mode, f.UID, f.GID, f.Target)
			if f.Path == "/etc/machine-id" {
				got = strings.Replace(got, f.Mode, "0444", 1)
				if f.Size != 0 {
					t.Error("the image has a machine-id")
				}
			}
			if got != w {
				t.Errorf("%s: got %s, want %s", f.Path, got, w)
			}
			delete(want, f.Path)
		}
		for _, p := range []string{"/etc/hostname", "/etc/apt/sources.list.d/0000", "/etc/ssh/ssh_host_", "/usr/sbin/policy-rc.d", "/var/lib/apt/lists/", "/run/", "/dev/", "/var/log/dpkg.log", repo} {
			if strings.HasPrefix(f.Path, p) {
				t.Errorf("the image has %s", f.Path)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("the image lacks %v", want)
	}
	sums := exec.Command("sha256sum", "-c", "--quiet", images.SumsName)
	sums.Dir = store.Path(m.ID, "")
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	// Once more is nothing: each step is there already.
	out, err = b.command("build", "tiny", "--image", "small", "--json").Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var id struct {
		Image struct{ ID string }
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &id); err != nil || id.Image.ID != m.ID {
		t.Errorf("built again it's another image: %s, %v", lines[len(lines)-1], err)
	}
	for _, l := range lines {
		for _, step := range []string{"base", "layer", "tar"} {
			if bytes.Contains(l, []byte(`"step":"`+step+`"`)) && !bytes.Contains(l, []byte(`"state":"cached"`)) {
				t.Errorf("it ran again: %s", l)
			}
		}
	}
	b.explained(t, m.ID)
}

// explained changes the site after a build, and sees which steps run, and why.
func (b *bakery) explained(t *testing.T, first string) {
	t.Helper()
	profile := filepath.Join(b.site, "profiles/tiny/profile.yaml")
	written := read(t, profile)
	var last string
	// build tells which steps ran, each with its reasons.
	build := func() map[string][]string {
		t.Helper()
		out, err := b.command("build", "tiny", "--image", "small", "--json").Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		ran := map[string][]string{}
		for line := range bytes.Lines(out) {
			var e struct {
				Step, State string
				Because     []string
				Image       struct{ ID string }
			}
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if e.State == "started" && e.Step != "sources" {
				ran[e.Step] = e.Because
			}
			last = cmp.Or(e.Image.ID, last)
		}
		return ran
	}
	now := time.Now()
	for _, name := range []string{profile, filepath.Join(b.site, "site.yaml"), filepath.Join(b.site, "images/small.yaml")} {
		if err := os.Chtimes(name, now, now); err != nil {
			t.Fatal(err)
		}
	}
	if ran := build(); len(ran) != 0 || last != first {
		t.Errorf("nothing changed but times, and %v ran: %s", ran, last)
	}
	place(t, profile, "# A comment.\n"+written)
	if ran := build(); len(ran) != 0 || last != first {
		t.Errorf("nothing changed but a comment, and %v ran: %s", ran, last)
	}
	place(t, profile, strings.Replace(written, "a file\\n", "another\\n", 1))
	ran := build()
	if len(ran) != 3 || strings.Join(ran["layer"], " ") == "" || !strings.HasPrefix(ran["layer"][0], "file /etc/tiny: ") || len(ran["layer"]) != 1 ||
		!slices.Equal(ran["tar"], []string{"layer changed"}) || ran["store"] == nil && len(ran) != 3 || last == first {
		t.Errorf("a file has another content, and these ran: %v: %s", ran, last)
	}
	place(t, profile, written)
	if ran := build(); len(ran) != 0 || last != first {
		t.Errorf("all is as at first, and %v ran: %s", ran, last)
	}
	text, err := b.command("build", "tiny", "--image", "small", "--explain").CombinedOutput()
	if err != nil || strings.Contains(string(text), "because") {
		t.Errorf("%v\n%s", err, text)
	}
	place(t, profile, strings.Replace(written, "fstrim.timer: masked", "fstrim.timer: disabled", 1))
	if text, err = b.command("build", "tiny", "--image", "small", "--explain").CombinedOutput(); err != nil || !strings.Contains(string(text), "layer is made, because\n    unit fstrim.timer: +disabled -masked\n") {
		t.Errorf("%v\n%s", err, text)
	}
	place(t, profile, written)
}

// passable lets any user come to these files of the test's.
func passable(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		for dir := filepath.Dir(file); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// hidden runs a build as if this machine didn't have a program.
func hidden(program string) []string {
	return []string{"unshare", "--mount", "sh", "-c", `mount --bind /dev/null "$(command -v ` + program + `)" && exec "$@"`, "sh"}
}

// TestBakeErrors has builds fail in the ways that they do before there is a base,
// and sees that each says what to do and leaves nothing.
func TestBakeErrors(t *testing.T) {
	const plain = "image:\n  packages: [%s]\n"
	ours, other := newSigner(t, "Kiln test <test@example.org>"), newSigner(t, "Somebody else <other@example.org>")
	foreign := aptRepository(t, other, "bookworm")
	kiln := bakersKiln(t)
	const sourced = "image:\n  apt_sources:\n    own: {uris: [%q], suites: [bookworm], components: [main], fingerprint: %s}\n  packages: [acl]\n"
	for _, tt := range []struct {
		name, pkg string
		image     string // small, where it's empty
		formats   string
		files     map[string]string
		wrap      []string // runs the build
		want      []string
	}{
		{name: "unreachable mirror", pkg: "acl", files: map[string]string{"site.yaml": "apt: {mirror: \"http://127.0.0.1:1/debian\"}\n"},
			want: []string{"the apt source debian can't be had", "http://127.0.0.1:1/debian", "site.yaml's apt.mirror"}},
		{name: "unreachable source", files: map[string]string{"profiles/tiny/profile.yaml": fmt.Sprintf(sourced, "http://127.0.0.1:1/own", ours.fingerprint), "keys/own.asc": string(ours.public)},
			want: []string{"profiles/tiny/profile.yaml:3:5: the apt source own can't be had", "site.yaml's apt.sources.own.uris names another"}},
		{name: "wrong key", pkg: "acl", files: map[string]string{"keys/debian.asc": string(other.public)},
			want: []string{"the apt source debian isn't signed with the key that it's trusted through (", "keys/debian.asc), " + other.fingerprint, "NO_PUBKEY"}},
		{name: "no key", pkg: "acl", files: map[string]string{"keys/debian.asc": "<html>404</html>\n"},
			want: []string{"keys/debian.asc: ", "no OpenPGP public key", "remove the file"}},
		{name: "another's signature", files: map[string]string{"profiles/tiny/profile.yaml": fmt.Sprintf(sourced, "file://"+foreign, ours.fingerprint), "keys/own.asc": string(ours.public)},
			want: []string{"the apt source own isn't signed with", ours.fingerprint, "kiln keys fetch"}},
		{name: "another fingerprint", files: map[string]string{"profiles/tiny/profile.yaml": fmt.Sprintf(sourced, "file://"+foreign, ours.fingerprint), "keys/own.asc": string(other.public)},
			want: []string{"keys/own.asc:1:1: the key of the apt source own", other.fingerprint, ours.fingerprint}},
		{name: "misspelt package", pkg: "xfsprgos",
			want: []string{`profiles/tiny/profile.yaml:2:14: no source of the image has a package xfsprgos: did you mean "xfsprogs"?`}},
		{name: "misspelt package of the definition", pkg: "acl", files: map[string]string{"images/small.yaml": strings.Replace(smallImage, "[systemd]", "[sytsemd]", 1)},
			want: []string{"images/small.yaml: no source of the image has a package sytsemd", `did you mean "systemd"?`}},
		{name: "no root", pkg: "acl", wrap: []string{"setpriv", "--reuid=65534", "--clear-groups", "env", "KILN_CACHE=/tmp/kiln-of-nobody"},
			want: []string{"kiln build works with the owners of images' files", "the user nobody has no subordinate UIDs", "sudo usermod --add-subuids", "sudo kiln build"}},
		{name: "no space", pkg: "acl", wrap: []string{"unshare", "--mount", "sh", "-c", `mkdir -p "$KILN_CACHE" && mount -t tmpfs -o size=60m none "$KILN_CACHE" && exec "$@"`, "sh"},
			want: []string{"no space is left", "KILN_CACHE"}},
		{name: "no space at all", pkg: "acl", wrap: []string{"unshare", "--mount", "sh", "-c", `mkdir -p "$KILN_CACHE" && mount -t tmpfs -o size=4k none "$KILN_CACHE" && exec "$@"`, "sh"},
			want: []string{"no space is left", "KILN_CACHE"}},
		{name: "no mmdebstrap", pkg: "acl", wrap: hidden("mmdebstrap"),
			want: []string{"this machine lacks mmdebstrap, which a build runs: install it: apt-get install mmdebstrap"}},
		{name: "no mke2fs", pkg: "acl", wrap: hidden("mke2fs"),
			want: []string{"this machine lacks mke2fs", "apt-get install e2fsprogs"}},
		{name: "no qemu-img", pkg: "acl", image: "debian-12-cloud", formats: "qcow2", wrap: hidden("qemu-img"),
			want: []string{"this machine lacks qemu-img", "apt-get install qemu-utils"}},
		{name: "no disk to convert", pkg: "acl", formats: "qcow2",
			want: []string{"the image definition small makes no disk (kernel: none), so that there is no qcow2 of it: only tar"}},
		{name: "another architecture", pkg: "acl", files: map[string]string{"images/small.yaml": smallImage + "architecture: arm64\n"},
			want: []string{"the image definition small is for arm64, and this machine is amd64"}},
		{name: "no mirror", pkg: "acl", image: "ubuntu-24.04",
			want: []string{"this machine's apt has no source of ubuntu noble: name a mirror of it in site.yaml, as apt.mirror (and apt.security), and put its archive's key into the site, as keys/ubuntu.asc"}},
		{name: "no archive key", pkg: "acl", image: "ubuntu-24.04", files: map[string]string{"site.yaml": "apt: {mirror: \"http://127.0.0.1:1/ubuntu\", security: \"http://127.0.0.1:1/ubuntu\"}\n"},
			want: []string{"this machine has no archive key of ubuntu", "put it into the site as keys/ubuntu.asc (ubuntu's package ubuntu-keyring has it)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bakeryOf(t, kiln, fmt.Sprintf(plain, tt.pkg))
			for name, text := range tt.files {
				place(t, filepath.Join(b.site, name), text)
			}
			args := []string{"build", "tiny", "--image", cmp.Or(tt.image, "small")}
			if tt.formats != "" {
				args = append(args, "--format", tt.formats)
			}
			passable(t, b.kiln, b.cache)
			b.wrap = tt.wrap
			out, err := b.command(args...).CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.ExitCode() != 1 {
				t.Errorf("got %v, want exit status 1", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("it doesn't say %q:\n%s", w, out)
				}
			}
			b.clean(t)
		})
	}
}
