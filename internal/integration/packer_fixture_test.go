//go:build integration

package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/alisw/kiln/images"
)

// Packer's builds start from a base image that kiln build made, in a network that
// has nothing but a mirror of the few packages that they need. So base image,
// native image and what Packer makes are of the very same packages, whatever the
// archive has by now.

// packerDefinition is what a stock cloud image has, and no more. $(…) is filled in
// by kiln.
const packerDefinition = `description: Debian 12, small, for VMs
distribution: debian
version: "12"
codename: bookworm
kernel: linux-image-cloud-$(architecture)
firmware: []
suites: [bookworm]
security_suites: []
components: [main]
packages: [systemd-sysv, dbus, udev, kmod, initramfs-tools, zstd, libpam-systemd, cloud-init, e2fsprogs, netplan.io, netbase, iproute2, procps, openssh-server,
  sudo, ca-certificates, shim-signed, grub-efi-amd64-signed, grub-pc-bin]
`

// packerBase is the profile of the base image, which has cloud-init make its default
// user, as stock images do, and packerTiny of what is made of
// it: a package alone, one with a service and a user, and one of each thing that an
// image half can have.
const (
	packerBase = `description: a stock cloud image
image:
  files:
    /etc/cloud/cloud.cfg.d/95-stock.cfg: {content: "datasource_list: [NoCloud, None]\nusers: [default]\n"}
`
	packerTiny = `extends: [bare]
image:
  packages: [acl, dnsmasq]
  groups: {ops: {gid: 9001}}
  users:
    ops: {uid: 9001, group: ops, groups: [adm], system: true, home: /var/lib/ops, shell: /usr/sbin/nologin}
    robot: {uid: 9002, shell: /bin/bash, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvQqGZ8p1Hfb1mQ8Tq0lJ0oTqf2u3yq9Xr8o1tq0d5a robot@example.org"]}
  directories: {/srv/data: {owner: ops, group: ops, mode: "2750"}}
  files:
    /etc/tiny: {owner: root, group: ops, mode: "0640", content: "a file\n"}
    /etc/deep/down/tiny: {content: "another\n"}
    /etc/dnsmasq.d/tiny.conf: {content: "bind-dynamic\n"}
    /usr/local/bin/tiny: {mode: "0755", content: "#!/bin/sh\nexec sleep infinity\n"}
    /etc/systemd/system/tiny.service: {content: "[Service]\nExecStart=/usr/local/bin/tiny\n[Install]\nWantedBy=multi-user.target\n"}
    /etc/tiny-link: {link: /etc/tiny}
  units: {tiny.service: enabled, dnsmasq.service: disabled, fstrim.timer: masked}
`
)

// packerMore are packages that tiny's only recommend: the mirror has them, and no
// image is to.
const packerMore = "image:\n  packages: [acl, dnsmasq, dns-root-data]\n"

// packerMirror is where the mirror is, in a network of its own.
const packerMirror = "http://10.66.0.1/mirror"

// packerSite is a site with both profiles, in the mirror's network.
type packerSite struct {
	kiln  string // the program
	site  string
	cache string
	space *space
}

var packerMirrorOnce sync.Mutex

// newPackerSite writes the site, and starts its mirror.
func newPackerSite(t *testing.T) *packerSite {
	t.Helper()
	s := &packerSite{kiln: bakersKiln(t), site: filepath.Join(t.TempDir(), "site"), cache: filepath.Join(testCache(t), "packer"), space: newSpace(t)}
	mirror := s.mirror(t)
	s.write(t, packerMirror)
	place(t, filepath.Join(s.site, "keys/debian.asc"), read(t, mirror, "key.asc"))
	s.space.sh(t, "set -e\nip link add lab0 type bridge\nip address add 10.66.0.1/24 dev lab0\nip link set lab0 up")
	www := t.TempDir()
	if err := os.Symlink(mirror, filepath.Join(www, "mirror")); err != nil {
		t.Fatal(err)
	}
	s.space.daemon(t, program(t, "python3"), "-m", "http.server", "--bind", "10.66.0.1", "--directory", www, "80")
	eventually(t, "the mirror answers", func() bool {
		_, status := s.space.try(t, "curl --silent --fail --output /dev/null "+packerMirror+"/dists/bookworm/InRelease")
		return status == 0
	})
	return s
}

func (s *packerSite) write(t *testing.T, mirror string) {
	t.Helper()
	text := "domain: example.org\n"
	if mirror != "" {
		text += "apt: {mirror: \"" + mirror + "\"}\n"
	}
	place(t, filepath.Join(s.site, "site.yaml"), text)
	place(t, filepath.Join(s.site, "hosts.yaml"), "- {name: build01, profile: tiny, image: small-vm}\n")
	place(t, filepath.Join(s.site, "images/small-vm.yaml"), packerDefinition)
	place(t, filepath.Join(s.site, "profiles/bare/profile.yaml"), packerBase)
	place(t, filepath.Join(s.site, "profiles/tiny/profile.yaml"), packerTiny)
}

// net is what runs a command of this machine in the mirror's network.
func (s *packerSite) net() []string { return []string{"nsenter", "--net=" + s.space.Network(), "--"} }

// inside is a command of this machine in the mirror's network, with this machine's
// files.
func (s *packerSite) inside(t *testing.T, argv ...string) *exec.Cmd {
	argv = append(s.net(), argv...)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "KILN_CACHE="+s.cache)
	cmd.Dir = s.site
	return cmd
}

// run runs kiln in the mirror's network.
func (s *packerSite) run(t *testing.T, args ...string) string {
	t.Helper()
	return printed(t, s.inside(t, append([]string{s.kiln}, args...)...))
}

// printed is what a command that has to succeed prints.
func printed(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, said.String())
	}
	return string(out)
}

// build has kiln build a profile's image, where it isn't there yet.
func (s *packerSite) build(t *testing.T, profile string, formats ...string) *images.Manifest {
	t.Helper()
	out := s.run(t, "build", profile, "--image", "small-vm", "--format", strings.Join(formats, ","))
	id, _, _ := strings.Cut(out, " ")
	store := &images.Store{Dir: filepath.Join(s.cache, "images")}
	m, err := store.Find(id)
	if err != nil {
		t.Fatalf("%v: kiln build said\n%s", err, out)
	}
	return m
}

// file is one of an image's.
func (s *packerSite) file(m *images.Manifest, name string) string {
	return filepath.Join(s.cache, "images", m.ID, name)
}

// mirror is the folder of the mirror: packages of this machine's own, and their key.
// It is made once, and kept.
func (s *packerSite) mirror(t *testing.T) string {
	t.Helper()
	packerMirrorOnce.Lock()
	defer packerMirrorOnce.Unlock()
	key := sha256.Sum256([]byte(packerDefinition + packerMore + "1"))
	dir := filepath.Join(s.cache, fmt.Sprintf("mirror-%x", key[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	t.Logf("making a mirror in %s: once", dir)
	fresh := dir + ".new"
	binary := filepath.Join(fresh, "dists/bookworm/main/binary-amd64")
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(filepath.Join(fresh, "pool"), 0o755), os.MkdirAll(binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	s.write(t, "")
	all := filepath.Join(t.TempDir(), "packages.tar")
	place(t, filepath.Join(s.site, "profiles/more/profile.yaml"), packerMore)
	for _, args := range [][]string{{"lock", "--profile", "more", "--image", "small-vm"}, {"cache", "export", all}} {
		cmd := exec.CommandContext(t.Context(), s.kiln, args...)
		cmd.Dir, cmd.Env = s.site, append(os.Environ(), "KILN_CACHE="+s.cache)
		printed(t, cmd)
	}
	if err := errors.Join(os.Remove(filepath.Join(s.site, images.LockFile)), os.RemoveAll(filepath.Join(s.site, "profiles/more"))); err != nil {
		t.Fatal(err)
	}
	unpackDebs(t, all, filepath.Join(fresh, "pool"))
	printed(t, exec.CommandContext(t.Context(), "sh", "-c", `set -e
cd "$1"
apt-ftparchive packages pool >dists/bookworm/main/binary-amd64/Packages
gzip --keep dists/bookworm/main/binary-amd64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Suite=bookworm -o APT::FTPArchive::Release::Codename=bookworm \
	-o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64 release dists/bookworm >Release
mv Release dists/bookworm/Release`, "sh", fresh))
	signer := newSignerUntil(t, "Kiln test <test@example.org>", "never")
	release := filepath.Join(fresh, "dists/bookworm/Release")
	signer.gpg(t, "--clearsign", "--output", filepath.Join(filepath.Dir(release), "InRelease"), release)
	place(t, filepath.Join(fresh, "key.asc"), string(signer.public))
	if err := os.Rename(fresh, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// unpackDebs puts the packages of what kiln cache export wrote into a folder.
func unpackDebs(t *testing.T, from, to string) {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, strings.TrimSuffix(filepath.Base(h.Name), ".deb")+".deb"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
