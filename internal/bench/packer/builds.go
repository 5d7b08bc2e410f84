package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The site: a small image as stock ones are, and a profile with packages, a user,
// files and units. Its blank is what changes.
const (
	definition = `description: Debian 12, small, for VMs
distribution: debian
version: "12"
codename: bookworm
kernel: linux-image-cloud-$(architecture)
firmware: []
packages: [systemd-sysv, dbus, udev, kmod, initramfs-tools, zstd, libpam-systemd, cloud-init, e2fsprogs, netplan.io, netbase, systemd-resolved, iproute2, procps,
  openssh-server, sudo, ca-certificates, shim-signed, grub-efi-amd64-signed, grub-pc-bin]
`
	bare = `image:
  files:
    /etc/cloud/cloud.cfg.d/95-stock.cfg: {content: "datasource_list: [NoCloud, None]\nusers: [default]\n"}
`
	tiny = `extends: [bare]
image:
  packages: [acl, dnsmasq]
  groups: {ops: {gid: 9001}}
  users: {ops: {uid: 9001, group: ops, system: true, home: /var/lib/ops, shell: /usr/sbin/nologin}}
  files: {/etc/bench.conf: {content: "%d\n"}}
  units: {fstrim.timer: masked}
`
	native = `source "kiln" "golden" {
  site             = "../site"
  profile          = "tiny"
  image            = "small-vm"
  formats          = ["qcow2"]
  output_directory = "output"
}

build {
  sources = ["source.kiln.golden"]
}
`
)

func (b *bench) site() error {
	return errors.Join(
		b.write("site/site.yaml", "domain: example.org\n"),
		b.write("site/hosts.yaml", "- {name: build01, profile: tiny, image: small-vm}\n"),
		b.write("site/images/small-vm.yaml", definition),
		b.write("site/profiles/bare/profile.yaml", bare),
		b.write("site/profiles/tiny/profile.yaml", fmt.Sprintf(tiny, 0)),
	)
}

func (b *bench) run(cache string, args ...string) (string, error) {
	return b.output(filepath.Join(b.dir, "site"), b.settings(cache), b.kiln, args...)
}

// packages has all of them in a cache: the mirror's speed isn't what is measured.
func (b *bench) packages() error {
	say("fetching the packages")
	all := filepath.Join(b.dir, "packages.tar")
	if _, err := b.run("cold", "lock", "--profile", "tiny", "--image", "small-vm"); err != nil {
		return err
	}
	if _, err := b.run("cold", "cache", "export", all); err != nil {
		return err
	}
	return errors.Join(os.Remove(all), os.Remove(filepath.Join(b.dir, "site/kiln.lock")))
}

// qemu times the qemu build, whose base image kiln makes before.
func (b *bench) qemu() (time.Duration, error) {
	say("making the base image")
	if _, err := b.run("base", "build", "bare", "--image", "small-vm", "--format", "qcow2"); err != nil {
		return 0, err
	}
	base := filepath.Join(b.dir, "base.qcow2")
	if _, err := b.run("base", "images", "export", "bare", "--format", "qcow2", "-o", base); err != nil {
		return 0, err
	}
	sum, err := b.output("", nil, "sha256sum", base)
	if err != nil {
		return 0, err
	}
	sum, _, _ = strings.Cut(sum, " ")
	if _, err := b.output(b.dir, nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.dir, "build_key")); err != nil {
		return 0, err
	}
	template, err := b.run("base", "render", "build01", "--format", "packer")
	if err != nil {
		return 0, err
	}
	say("the qemu build")
	return b.timed("qemu", "base", "qemu", template, "base_image_url="+base, "base_image_checksum=sha256:"+sum, "ssh_private_key_file="+filepath.Join(b.dir, "build_key"),
		// The kernel of clouds knows no SATA.
		"machine_type=pc", "efi_boot=false", "accelerator="+b.accelerator, "disk_size=3G", "ssh_timeout=60m")
}

// native times the builder kiln.
func (b *bench) native(cache string) (time.Duration, error) {
	say("the native build")
	return b.timed("native", cache, "kiln", native)
}
