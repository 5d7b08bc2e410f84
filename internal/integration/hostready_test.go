//go:build integration

package integration

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lsblk as on a machine that has the disks of the table: the devices, their
// contents and what is mounted of them are real.
const lsblkOfMachine = `#!/bin/sh
table=/run/machine/disks
for last; do :; done
of() { awk -v d="${last#/dev/}" -v n="$1" '$1 == d && $n != "-" { print $n }' "$table"; }
case "$*" in
"-bdnro NAME,TYPE,SIZE")
	while read -r name serial wwn; do
		echo "$name disk $(cat "/sys/block/$name/size" | awk '{ print $1 * 512 }')"
	done <"$table"
	echo "sr0 rom 1073741312"
	echo "zram0 disk 1073741824" ;;
"-bdno TYPE -- "*) echo disk ;;
"-bdno SERIAL -- "*) of 2 ;;
"-bdno WWN -- "*) of 3 ;;
*) exec /run/machine/lsblk "$@" ;;
esac
`

// machine is a space with a file system tree to set up, and disks.
type machine struct {
	*space
	t     *testing.T
	disks []string
}

// newMachine has the scripts of the profile base, and nothing of the real
// machine's /etc and /run that they change.
func newMachine(t *testing.T) *machine {
	t.Helper()
	for _, name := range []string{"losetup", "mkfs.ext4", "mkfs.xfs", "blkid", "findmnt", "systemd-tmpfiles", "systemd-escape"} {
		program(t, name)
	}
	m := &machine{newSpace(t), t, nil}
	m.sh(t, `
		mkdir -p /run/machine /run/disk /etc/kiln && : >/run/machine/disks
		cp /usr/bin/lsblk /run/machine/
		[ ! -d /dev/disk ] || mount --bind /run/disk /dev/disk
		grep -q ^consul: /etc/passwd || echo consul:x:7001:7001::/:/bin/false >>/etc/passwd
		grep -q ^consul: /etc/group || echo consul:x:7001: >>/etc/group`)
	m.write("/run/machine/lsblk.sh", lsblkOfMachine, "755")
	m.sh(t, "mount --bind /run/machine/lsblk.sh /usr/bin/lsblk")
	for _, name := range []string{"host-ready", "data-disks"} {
		b, err := os.ReadFile(filepath.Join(repository(t), "profiles/base/image/usr/lib/kiln", name))
		if err != nil {
			t.Fatal(err)
		}
		m.write("/run/kiln-lib/"+name, string(b), "755")
	}
	return m
}

// write puts a file into the machine.
func (m *machine) write(path, text, mode string) {
	m.t.Helper()
	cmd := m.Command(m.t.Context(), "sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"`, "sh", path, mode)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

// disk gives the machine an empty disk of so many MiB: its device.
func (m *machine) disk(serial string, size int64) string {
	m.t.Helper()
	file, err := os.Create(filepath.Join(m.t.TempDir(), "disk"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size << 20); err != nil {
		m.t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file.Name()).Output()
	if err != nil {
		m.t.Fatalf("a disk out of a file: %v", err)
	}
	device := strings.TrimSpace(string(out))
	m.t.Cleanup(func() {
		// What is mounted of it went with the space, or goes with it: then it is
		// detached by itself.
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			m.t.Errorf("%s: %v %s", device, err, out)
		}
	})
	m.disks = append(m.disks, fmt.Sprintf("%s %s 0x5000%s", filepath.Base(device), serial, serial))
	m.write("/run/machine/disks", strings.Join(m.disks, "\n")+"\n", "644")
	return device
}

// deliver gives the machine its host data: files and their contents, owned by
// root with mode 0644, but for consul.hcl.
func (m *machine) deliver(disks string, files ...string) {
	m.t.Helper()
	m.write("/etc/kiln/disks", "# mount\tfilesystem\n"+disks, "644")
	m.write("/etc/kiln/directories.conf", "d /build 0755 root root -\nd /build/consul 0750 consul consul -\n", "644")
	var manifest strings.Builder
	for i := 0; i+1 < len(files); i += 2 {
		m.write(files[i], files[i+1], "644")
		owner := "0644 root root"
		if strings.HasSuffix(files[i], "consul.hcl") {
			owner = "0640 root consul"
		}
		fmt.Fprintf(&manifest, "%x  %s %s\n", sha256.Sum256([]byte(files[i+1])), owner, files[i])
	}
	m.write("/etc/kiln/host.manifest", manifest.String(), "600")
}

// ready runs host-ready, which must come to this exit status and say all that.
func (m *machine) ready(status int, says ...string) string {
	m.t.Helper()
	out, got := m.try(m.t, "dash /run/kiln-lib/host-ready")
	if got != status {
		m.t.Fatalf("host-ready: exit status %d, not %d:\n%s", got, status, out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			m.t.Errorf("host-ready doesn't say %q:\n%s", s, out)
		}
	}
	if _, marked := m.try(m.t, "test -e /etc/kiln/host-ready"); (marked == 0) != (status == 0 && !strings.Contains(out, "no host data")) {
		m.t.Errorf("after exit status %d: is there a mark? %v\n%s", status, marked == 0, out)
	}
	return out
}

// umounted takes the data disk away again, and what is remembered of it: the
// root file system is new, as after an installation.
func (m *machine) reinstalled() {
	m.t.Helper()
	m.sh(m.t, "umount /build; rm -rf /etc/systemd/system/build.mount /etc/systemd/system/local-fs.target.wants/build.mount /etc/kiln/host-ready")
}

const onSerial = "/build\text4\tnoatime\tBBB\t-\t-\t-\t-\n"

func TestHostReadyWaitsForItsData(t *testing.T) {
	m := newMachine(t)
	m.ready(0, "no host data on this host yet")

	const secret = "token = \"kiln-secret:teigi://alibuild/consul#x\"\nother = 'kiln-secret:pass://a/b'\n"
	m.deliver("", "/etc/kiln/a b", "one\n", "/etc/consul.d/consul.hcl", secret)
	m.ready(1, "/etc/consul.d/consul.hcl still waits for a secret: kiln-secret:pass://a/b kiln-secret:teigi://alibuild/consul#x")

	m.deliver("", "/etc/kiln/a b", "one\n", "/etc/consul.d/consul.hcl", "token = \"kiln-secret: no reference\"\n")
	m.sh(t, "rm '/etc/kiln/a b'")
	m.ready(1, "/etc/kiln/a b isn't here yet")
	m.write("/etc/kiln/a b", "half of", "644")
	m.ready(1, "/etc/kiln/a b isn't what was delivered")
	m.write("/etc/kiln/a b", "one\n", "600")
	m.ready(0, "this host is ready")
	if got := m.sh(t, "stat -c '%a %U %G' /etc/consul.d/consul.hcl '/etc/kiln/a b'"); got != "640 root consul\n644 root root\n" {
		t.Errorf("owners and modes: %s", got)
	}
	if got := m.sh(t, "stat -c '%a %U %G' /build/consul"); got != "750 consul consul\n" {
		t.Errorf("/build/consul: %s", got)
	}

	// What an administrator changes later is not a delivery's business; a secret
	// that went missing is.
	m.write("/etc/kiln/a b", "changed", "644")
	m.ready(0)
	m.write("/etc/consul.d/consul.hcl", secret, "644")
	m.ready(1, "still waits for a secret")
	// A new delivery is checked, mark or no mark.
	m.deliver("", "/etc/kiln/a b", "two\n")
	m.ready(0)
	m.deliver("", "/etc/kiln/a b", "three\n")
	m.write("/etc/kiln/a b", "two\n", "644")
	m.ready(1, "/etc/kiln/a b isn't what was delivered")
}

// TestHostReadyRemovesLeftovers takes files out of a delivery.
func TestHostReadyRemovesLeftovers(t *testing.T) {
	m := newMachine(t)
	m.deliver("", "/etc/kiln/x", "x", "/etc/kiln/old 1", "old", "/etc/kiln/changed", "as delivered", "/etc/kiln/baked", "b", "/etc/kiln/linked", "x")
	m.ready(0)
	m.write("/etc/kiln/changed", "by hand", "644")
	// The Image half has one now, and another became a link.
	m.write("/etc/kiln/image.list", "/etc/kiln/baked\n", "644")
	m.sh(t, "ln -sf x /etc/kiln/linked")
	// Not before the new delivery is here.
	m.deliver("", "/etc/kiln/x", "x", "/etc/kiln/new", "new")
	m.sh(t, "rm /etc/kiln/new")
	m.ready(1, "/etc/kiln/new isn't here yet")
	m.sh(t, "cd /etc/kiln && test -e 'old 1' && test -e baked && test -L linked")
	m.write("/etc/kiln/new", "new", "644")
	m.ready(0, "/etc/kiln/old 1 is no longer delivered: removed", "/etc/kiln/changed was delivered once", "it was changed here, so it stays")
	m.sh(t, "cd /etc/kiln && test ! -e 'old 1' && test -e x && test -e changed && test -e baked && test -L linked && test -e new")
	// Only what a delivery brought is Kiln's: not a file of that name made later.
	m.write("/etc/kiln/old 1", "old", "644")
	m.deliver("", "/etc/kiln/x", "x2")
	if out := m.ready(0, "/etc/kiln/new is no longer delivered: removed"); strings.Contains(out, "old 1") {
		t.Errorf("host-ready speaks of somebody else's file: %s", out)
	}
	m.sh(t, "test -e '/etc/kiln/old 1' && test ! -e /etc/kiln/new")
	if got := m.sh(t, "stat -c %a /etc/kiln/host-ready.manifest"); got != "600\n" {
		t.Errorf("the manifest's copy has mode %s", got)
	}
}

func TestDataDiskIsFormattedOnceAndKept(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			m := newMachine(t)
			m.disk("AAA", 16)
			device := m.disk("BBB", 512)
			line := "/build\t" + filesystem + "\tnoatime\tBBB\t0x5000bbb\t-\t1048576\t1073741824\n"
			m.deliver(line, "/etc/kiln/x", "x")
			m.ready(0, device+" is empty: making an "+filesystem)
			if got := m.sh(t, "findmnt -rno SOURCE,FSTYPE,OPTIONS --mountpoint /build"); !strings.HasPrefix(got, device+" "+filesystem+" ") || !strings.Contains(got, "noatime") {
				t.Errorf("mounted: %s", got)
			}
			// The directories are on the disk, not below its mount point.
			m.sh(t, "echo data >/build/consul/data && stat -c '%U' /build/consul | grep -qx consul")
			uuid := m.sh(t, "blkid -p -s UUID -o value "+device)
			unit := m.sh(t, "cat /etc/systemd/system/build.mount && test -L /etc/systemd/system/local-fs.target.wants/build.mount")
			if !strings.Contains(unit, "What=/dev/disk/by-uuid/"+uuid) || !strings.Contains(unit, "Options=noatime,nofail\n") {
				t.Errorf("the mount unit for UUID %s:\n%s", uuid, unit)
			}

			if out := m.ready(0); strings.Contains(out, device) {
				t.Errorf("a second run isn't quiet: %s", out)
			}
			m.reinstalled()
			m.ready(0, "/build: mounted "+device)
			if got := m.sh(t, "cat /build/consul/data; blkid -p -s UUID -o value "+device); got != "data\n"+uuid {
				t.Errorf("a reinstallation kept %q", got)
			}

			// The rule gets ambiguous once a second disk fits it: at a boot, the
			// disk that was chosen stays.
			m.sh(t, "umount /build")
			m.disks[0] = strings.ReplaceAll(strings.Replace(m.disks[0], "AAA", "BBB", 2), "5000AAA", "5000BBB")
			m.write("/run/machine/disks", strings.Join(m.disks, "\n")+"\n", "644")
			m.ready(0, "/build: mounted "+device)
			m.reinstalled()
			m.ready(1, "2 disks fit the rule", device+" (serial BBB")
		})
	}
}

func TestDataDiskIsRefused(t *testing.T) {
	m := newMachine(t)
	big, device := m.disk("AAA", 24), m.disk("BBB", 20)
	named := strings.NewReplacer("DEV", device, "BIG", big)
	bySize := "/build\text4\t-\t-\t-\t-\t16777216\t-\n"
	for _, c := range []struct {
		name, line, prepare string
		says                []string
	}{
		{"no such disk", "/build\text4\t-\tZZZ\t-\t-\t-\t-\n", "", []string{`no disk fits the rule "serial ZZZ"`, "DEV (serial BBB, wwn 0x5000BBB, 20971520 bytes)", "serial AAA"}},
		{"ambiguous", bySize, "", []string{"2 disks fit the rule \"at least 16777216 bytes\"", "serial AAA", "serial BBB", "name one of them by its serial"}},
		{"other file system", onSerial, "mkfs.ext2 -q DEV", []string{"DEV isn't empty: it holds ext2, not ext4", "wipefs -a DEV"}},
		{"partition table", onSerial, "echo 'label: gpt' | sfdisk -q DEV", []string{"DEV isn't empty: it holds a partition table (gpt)"}},
		{"raid", onSerial, "head -c 4096 /dev/zero >/dev/null; printf 'LUKS\\272\\276\\0\\1' | dd of=DEV conv=notrunc status=none", []string{"DEV isn't empty: it holds crypto_LUKS"}},
		{"unknown data", onSerial, "echo hello | dd of=DEV bs=1 seek=70000 conv=notrunc status=none", []string{"its beginning isn't zero"}},
		{"in use", onSerial, "mkfs.ext4 -q DEV && mkdir -p /run/elsewhere && mount -o ro,noload DEV /run/elsewhere", []string{"DEV is mounted at /run/elsewhere already"}},
		{"the system's", onSerial, "mkfs.ext4 -q DEV && mkdir -p /boot && mount -o ro,noload DEV /boot", []string{"holds this system: DEV (serial BBB"}},
		{"something else mounted", onSerial, "mkdir -p /build && mount -t tmpfs tmpfs /build", []string{"is mounted there, not DEV"}},
		{"no file system of ours", "/build\tbtrfs\t-\tBBB\t-\t-\t-\t-\n", "", []string{"btrfs is no file system that Kiln makes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.sh(t, named.Replace("wipefs -qa BIG DEV; head -c 2M /dev/zero | tee BIG >DEV; rm -rf /build /etc/systemd/system/*.mount"))
			m.sh(t, named.Replace(c.prepare))
			before := m.sh(t, "blockdev --flushbufs "+device+"; sha256sum "+device)
			m.deliver(named.Replace(c.line), "/etc/kiln/x", "x")
			says := make([]string, len(c.says))
			for i, s := range c.says {
				says[i] = named.Replace(s)
			}
			m.ready(1, says...)
			// Nothing was made below the bare mount point.
			if _, status := m.try(t, "test -e /build/consul"); status == 0 {
				t.Errorf("/build/consul was made on the bare mount point")
			}
			if after := m.sh(t, "blockdev --flushbufs "+device+"; sha256sum "+device); after != before {
				t.Errorf("the disk was written to")
			}
			m.try(t, "umount /run/elsewhere; umount /boot; umount /build")
		})
	}
}

// TestDataDiskIsChecked: the disk itself, whatever else /etc/fstab has.
func TestDataDiskIsChecked(t *testing.T) {
	program(t, "debugfs")
	m := newMachine(t)
	other, device := m.disk("AAA", 24), m.disk("BBB", 24)
	// What fsck mends by itself, and what it doesn't.
	const counts, root = "set_super_value free_blocks_count 5", "clri <2>"
	damage := func(device, how string) string {
		return "mkfs.ext4 -qF " + device + "\nfor how in '" + how + "' 'set_super_value state 2'; do debugfs -w -R \"$how\" " + device + " 2>/run/debugfs; done\n"
	}
	m.sh(t, damage(other, counts)+damage(device, counts)+
		"echo '"+other+" / ext4 defaults 0 1' >/run/fstab && touch /etc/fstab && mount --bind /run/fstab /etc/fstab")
	before := m.sh(t, "sha256sum "+other)
	m.deliver(onSerial, "/etc/kiln/x", "x")
	m.ready(0, "/build: mounted "+device)
	if after := m.sh(t, "sha256sum "+other); after != before {
		t.Errorf("the disk of /etc/fstab was mended instead")
	}
	m.reinstalled()
	m.sh(t, "fsck.ext4 -fn "+device)

	m.sh(t, damage(device, root))
	m.deliver(onSerial, "/etc/kiln/x", "x")
	m.ready(1, "/build: the file system on "+device+" is damaged: mend it with fsck "+device)
	if out, status := m.try(t, "findmnt --mountpoint /build"); status == 0 {
		t.Errorf("it is mounted nevertheless: %s", out)
	}
}

// TestDataDiskBelowAnother: the outer one isn't there at first.
func TestDataDiskBelowAnother(t *testing.T) {
	m := newMachine(t)
	inner := m.disk("BBB", 24)
	lines := "/build\text4\t-\tAAA\t-\t-\t-\t-\n/build/inner\text4\t-\tBBB\t-\t-\t-\t-\n"
	m.deliver(lines, "/etc/kiln/x", "x")
	m.ready(1, `/build: no disk fits the rule "serial AAA"`, "/build/inner: it lies below /build, which isn't mounted")
	m.sh(t, "test ! -e /build/inner")
	outer := m.disk("AAA", 24)
	m.ready(0, "/build: mounted "+outer, "/build/inner: mounted "+inner)
	m.sh(t, "umount /build/inner; umount /build")
}

func TestDataDiskByPath(t *testing.T) {
	m := newMachine(t)
	// /dev is this machine's own: only what is below it is not.
	path := "/dev/disk/by-id/ata-two"
	if _, err := os.Stat("/dev/disk"); err != nil {
		path = "/run/disk/by-id/ata-two"
	}
	m.disk("AAA", 64)
	device := m.disk("BBB", 64)
	m.sh(t, "mkdir -p /run/disk/by-id && ln -s "+device+" /run/disk/by-id/ata-two")
	m.deliver("/build\text4\t-\t-\t-\t"+path+"\t-\t-\n", "/etc/kiln/x", "x")
	out := m.ready(0)
	if !regexp.MustCompile(`mounted ` + device + `\n`).MatchString(out) {
		t.Errorf("not %s: %s", device, out)
	}
}
