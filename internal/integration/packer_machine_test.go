//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/lab"
)

// packerMachine is a machine that somebody else has started, as far as Packer
// knows: the base image's tree in a container, with its own systemd and an sshd.
type packerMachine struct {
	*space
	key string // who has it may log in as debian
}

// newPackerMachine boots one, in the mirror's network. Its sshd listens there.
func (s *packerSite) newPackerMachine(t *testing.T) *packerMachine {
	t.Helper()
	base := s.build(t, "bare", "raw", "qcow2", "tar")
	dir := t.TempDir()
	m := &packerMachine{key: filepath.Join(dir, "key")}
	makeSSHKey(t, m.key)
	layer := filepath.Join(dir, "layer")
	place(t, filepath.Join(layer, "etc/ssh/sshd_config.d/test.conf"), "Port 2222\nListenAddress 10.66.0.1\nUseDNS no\n")
	place(t, filepath.Join(layer, "etc/sudoers.d/debian"), "debian ALL=(ALL) NOPASSWD:ALL\n")
	// Its network is there already.
	place(t, filepath.Join(layer, "etc/cloud/cloud-init.disabled"), "")
	leader := bootTree(t, s.space, dir, s.tree(t, base.ID), "built", `mknod -m 666 root/dev/null c 1 3
chroot root useradd --create-home --shell /bin/bash debian
mkdir -m 700 root/home/debian/.ssh
cp key.pub root/home/debian/.ssh/authorized_keys
chroot root chown -R debian:debian /home/debian
chroot root ssh-keygen -A >/dev/null
chroot root systemctl --quiet mask systemd-networkd.service systemd-networkd.socket`)
	m.space = &space{lab.SpaceOf(leader)}
	eventually(t, "the machine lets one log in", func() bool {
		out, _ := m.try(t, "ss -Hltn sport = :2222; systemctl is-system-running --wait")
		return strings.Contains(out, ":2222")
	})
	return m
}

// tree is the tree of an image, unpacked, and kept as long as the mirror is.
func (s *packerSite) tree(t *testing.T, id string) string {
	t.Helper()
	packerMirrorOnce.Lock()
	defer packerMirrorOnce.Unlock()
	dir := filepath.Join(s.cache, "trees", id)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	fresh := dir + ".new"
	printed(t, exec.CommandContext(t.Context(), "sh", "-c", `rm -rf "$1" && mkdir -p "$1" &&
tar --extract --file "$2" --zstd --numeric-owner --same-permissions --xattrs --xattrs-include='*' --acls --directory "$1" && mv -T "$1" "$3"`,
		"sh", fresh, filepath.Join(s.cache, "images", id, "root.tar.zst"), dir))
	return dir
}

// nullTemplate has Packer run the provisioner on the machine. Its blanks are its
// address, its key, the site, the profile and whether to seal.
const nullTemplate = `source "null" "machine" {
  ssh_host             = %q
  ssh_port             = 2222
  ssh_username         = "debian"
  ssh_private_key_file = %q
  ssh_timeout          = "20s"
}

build {
  sources = ["source.null.machine"]

  provisioner "kiln" {
    site    = %q
    profile = %q
    image   = "small-vm"
    seal    = %t
  }
}
`

// provisioner is Packer in the mirror's network, with a template for the machine.
func (s *packerSite) provisioner(t *testing.T, m *packerMachine, profile string, seal bool) *packerDir {
	t.Helper()
	p := newPacker(t)
	p.wrap = s.net()
	p.env = []string{"KILN_CACHE=" + s.cache}
	place(t, filepath.Join(p.dir, templateName), fmt.Sprintf(nullTemplate, "10.66.0.1", m.key, s.site, profile, seal))
	return p
}

// state is all that an image half can change on the machine.
func (m *packerMachine) state(t *testing.T) string {
	t.Helper()
	return m.sh(t, `cd / && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp -o -path ./var/tmp -o -path ./var/log -o -path ./var/lib/apt/lists -o -path ./var/cache \) -prune \
	-o -printf '%p %y %m %U:%G %l\n' | sort
find etc srv usr/local var/lib/dpkg/status -xdev -type f -exec sha256sum {} + | sort -k 2
# Each login has a scope of its own.
systemctl list-unit-files --no-legend --no-pager | grep -v '^session-' | sort`)
}

// TestPackerProvisioner applies a profile to a machine over SSH, twice: the second
// time nothing is changed. Then it is sealed.
func TestPackerProvisioner(t *testing.T) {
	s := newPackerSite(t)
	m := s.newPackerMachine(t)
	p := s.provisioner(t, m, "tiny", false)
	p.must("validate", templateName)
	p.must("build", templateName)
	m.isTiny(t)
	first := m.state(t)
	out, err := p.run("build", templateName)
	if err != nil {
		t.Fatalf("the second time: %v\n%s", err, out)
	}
	if second := m.state(t); second != first {
		t.Errorf("applied again, the machine is another one:\n%s", lineDiff(first, second))
	}
	for _, step := range []string{"1/5 looking at the machine", "all are there", "the image half is applied"} {
		if !strings.Contains(out, step) {
			t.Errorf("Packer doesn't show %q:\n%s", step, out)
		}
	}
	s.provisioner(t, m, "tiny", true).must("build", templateName)
	m.isTiny(t)
	if out := m.sh(t, "cat /etc/machine-id; ls -A /var/lib/apt/lists /var/log/journal 2>/dev/null; ls -d /etc/hostname 2>/dev/null || :"); strings.Contains(out, "hostname") || strings.Contains(out, "InRelease") {
		t.Errorf("sealing has left:\n%s", out)
	}
}

// isTiny wants what the profile tiny has.
func (m *packerMachine) isTiny(t *testing.T) {
	t.Helper()
	got := m.sh(t, `stat -c '%n %a %U:%G' /etc/tiny /srv/data /usr/local/bin/tiny
readlink /etc/tiny-link
id -u ops robot
id -nG ops
dpkg-query -W -f '${db:Status-Status} ${Package}\n' acl dnsmasq dns-root-data 2>/dev/null | grep ^installed
for u in tiny.service dnsmasq.service fstrim.timer; do systemctl is-enabled $u || :; done
systemctl is-active dnsmasq.service tiny.service || :
ls /usr/sbin/policy-rc.d /etc/apt/apt.conf.d/99kiln 2>/dev/null || :`)
	want := `/etc/tiny 640 root:ops
/srv/data 2750 ops:ops
/usr/local/bin/tiny 755 root:root
/etc/tiny
9001
9002
ops adm
installed acl
installed dnsmasq
enabled
disabled
masked
inactive
inactive
`
	if got != want {
		t.Errorf("the machine has\n%s, not\n%s", got, want)
	}
}

// lineDiff is the lines that only one of two texts has.
func lineDiff(a, b string) string {
	var out strings.Builder
	for _, side := range []struct{ sign, of, other string }{{"-", a, b}, {"+", b, a}} {
		has := map[string]bool{}
		for line := range strings.Lines(side.other) {
			has[line] = true
		}
		for line := range strings.Lines(side.of) {
			if !has[line] {
				out.WriteString(side.sign + line)
			}
		}
	}
	return out.String()
}

// TestPackerErrors has builds fail, and wants the cause in what Packer says.
func TestPackerErrors(t *testing.T) {
	s := newPackerSite(t)
	m := s.newPackerMachine(t)
	place(t, filepath.Join(s.site, "profiles/absent/profile.yaml"), "extends: [tiny]\nimage:\n  packages: [nosuchpackage]\n")
	place(t, filepath.Join(s.site, "profiles/failing/profile.yaml"), "extends: [bare]\nimage:\n  packages: [acl]\n")
	before := m.state(t)
	for _, test := range []struct {
		name, profile string
		prepare       string // a script on the machine
		address       string
		want          []string
	}{
		{"an unknown package", "absent", "", "", []string{"nosuchpackage", "profiles/absent/profile.yaml:3:14"}},
		{"a package that can't be installed", "failing", "mkdir -p /etc/dpkg/dpkg.cfg.d && echo 'pre-invoke=echo the hook says no; exit 3' >/etc/dpkg/dpkg.cfg.d/no", "",
			[]string{"failed with status", "the hook says no"}},
		{"an unknown profile", "tinny", "", "", []string{"tinny", `did you mean "tiny"`}},
		{"an unreachable machine", "tiny", "", "10.66.0.99", []string{"SSH"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.prepare != "" {
				m.sh(t, test.prepare)
				defer m.sh(t, "rm -f /etc/dpkg/dpkg.cfg.d/no")
			}
			p := s.provisioner(t, m, test.profile, false)
			if test.address != "" {
				place(t, filepath.Join(p.dir, templateName), fmt.Sprintf(nullTemplate, test.address, m.key, s.site, test.profile, false))
			}
			out, err := p.run("build", templateName)
			if err == nil {
				t.Fatalf("the build succeeded:\n%s", out)
			}
			for _, w := range test.want {
				if !strings.Contains(out, w) {
					t.Errorf("Packer doesn't say %q:\n%s", w, out)
				}
			}
			if left := m.sh(t, "ls -d /run/kiln.* /tmp/packer-kiln-* /usr/sbin/policy-rc.d 2>/dev/null || :"); left != "" {
				t.Errorf("left on the machine: %s", left)
			}
		})
	}
	t.Run("an interrupted build", func(t *testing.T) {
		m.sh(t, "mkdir -p /etc/dpkg/dpkg.cfg.d && echo 'pre-invoke=[ \"$DPKG_HOOK_ACTION\" = configure ] || sleep 600' >/etc/dpkg/dpkg.cfg.d/no")
		defer m.sh(t, "rm -f /etc/dpkg/dpkg.cfg.d/no")
		out, err := s.provisioner(t, m, "tiny", false).interrupt(t, "and what they need", "build", templateName)
		if err == nil || !strings.Contains(out, "Cleanly cancelled") {
			t.Errorf("%v\n%s", err, out)
		}
		// Packer doesn't wait for it.
		eventually(t, "nothing is left on the machine", func() bool {
			left, _ := m.try(t, "ls -d /run/kiln.* /tmp/packer-kiln-* /usr/sbin/policy-rc.d 2>/dev/null; pgrep --list-full 'apt|dpkg|sleep'")
			return left == ""
		})
	})
	if after := m.state(t); !strings.Contains(after, "./etc/passwd ") || strings.Contains(lineDiff(before, after), "tiny") {
		t.Errorf("failed builds have changed the machine:\n%s", lineDiff(before, after))
	}
}
