//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/alisw/kiln/images"
)

// smallDisk is a definition whose images have a disk, and little on it.
const smallDisk = `description: A disk of few packages
distribution: debian
version: "12"
codename: bookworm
kernel: kiln-kernel
firmware: []
packages: [systemd, shim-signed, grub-efi-amd64-signed, grub-pc-bin]
`

// packagesForBaking are packages of the tests' own: a kernel that is none, and one
// that can't be installed.
const packagesForBaking = `set -eu
cd "$1"
package() {
	mkdir -p "deb/$1/DEBIAN" pool
	printf 'Package: %s\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: Test <test@example.org>\nDescription: test\n' "$1" >"deb/$1/DEBIAN/control"
}
package kiln-kernel
mkdir -p deb/kiln-kernel/boot
echo kernel >deb/kiln-kernel/boot/vmlinuz-6.0-kiln
echo initrd >deb/kiln-kernel/boot/initrd.img-6.0-kiln
package kiln-fails
mkdir -p deb/kiln-fails/usr/share/kiln-fails
touch deb/kiln-fails/usr/share/kiln-fails/x
printf '#!/bin/sh\necho it is about to fail\necho because it is a test >&2\nexit 3\n' >deb/kiln-fails/DEBIAN/postinst
chmod 755 deb/kiln-fails/DEBIAN/postinst
for d in deb/*; do
	dpkg-deb --build --root-owner-group "$d" pool >/dev/null
done
binary=dists/bookworm/main/binary-amd64
mkdir -p "$binary"
apt-ftparchive packages pool >"$binary/Packages"
apt-ftparchive -o APT::FTPArchive::Release::Suite=bookworm -o APT::FTPArchive::Release::Codename=bookworm \
	-o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64 release dists/bookworm >Release
mv Release dists/bookworm/Release
`

// newDiskBakery is a bakery with a small disk's definition, disk, and a repository
// of packagesForBaking, kilntest, in profiles that extend common.
func newDiskBakery(t *testing.T) *bakery {
	t.Helper()
	program(t, "apt-ftparchive")
	key := newSigner(t, "Kiln test <test@example.org>")
	repo := t.TempDir()
	if out, err := exec.Command("sh", "-c", packagesForBaking, "sh", repo).CombinedOutput(); err != nil {
		t.Fatalf("making a repository: %v\n%s", err, out)
	}
	release := filepath.Join(repo, "dists/bookworm/Release")
	key.gpg(t, "--clearsign", "--output", filepath.Join(filepath.Dir(release), "InRelease"), release)
	b := newBakery(t, "extends: [common]\n")
	b.inMemory(t)
	place(t, filepath.Join(b.site, "images/disk.yaml"), smallDisk)
	place(t, filepath.Join(b.site, "keys/kilntest.asc"), string(key.public))
	place(t, filepath.Join(b.site, "profiles/common/profile.yaml"), fmt.Sprintf(
		"image:\n  apt_sources:\n    kilntest: {uris: [\"file://%s\"], suites: [bookworm], components: [main], fingerprint: %s}\n", repo, key.fingerprint))
	return b
}

// inMemory has the cache on a file system of its own, which can be made full.
func (b *bakery) inMemory(t *testing.T) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(b.cache, 0o755), syscall.Mount("kiln-test", b.cache, "tmpfs", 0, memorySize)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(b.cache, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

const (
	memorySize = "size=8G"
	// buildsKeep is what KILN_CACHE_SIZE is: room for a base, its disk, and an image in
	// all formats.
	buildsKeep = 2_500_000_000
)

// keepsToItsSize adds up what builds have kept.
func (b *bakery) keepsToItsSize(t *testing.T) {
	t.Helper()
	out, err := exec.Command("du", "--summarize", "--block-size=1", filepath.Join(b.cache, "build")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var bytes int64
	if _, err := fmt.Sscan(string(out), &bytes); err != nil || bytes > buildsKeep*11/10 {
		t.Errorf("builds keep %s, which is more than %d: %v", out, int64(buildsKeep), err)
	}
}

// isFull leaves the cache 256 KiB, as long as do takes.
func (b *bakery) isFull(t *testing.T, do func()) {
	t.Helper()
	eventually(t, "the cache is full", func() bool {
		var st syscall.Statfs_t
		if err := syscall.Statfs(b.cache, &st); err != nil {
			t.Fatal(err)
		}
		used := (int64(st.Blocks) - int64(st.Bfree)) * st.Bsize
		return syscall.Mount("", b.cache, "", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", used+256<<10)) == nil
	})
	do()
	if err := syscall.Mount("", b.cache, "", syscall.MS_REMOUNT, memorySize); err != nil {
		t.Fatal(err)
	}
}

// profile writes one more profile.
func (b *bakery) profile(t *testing.T, name, image string) {
	t.Helper()
	place(t, filepath.Join(b.site, "profiles", name, "profile.yaml"), "extends: [common]\nimage:\n"+image)
}

// descendants are processes that a build has started and left: they have its
// environment.
func (b *bakery) descendants() (found []string) {
	processes, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range processes {
		if env, err := os.ReadFile(p); err == nil && bytes.Contains(env, []byte("KILN_CACHE="+b.cache+"\x00")) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return found
}

// baking is a build that runs.
type baking struct {
	cmd    *exec.Cmd
	events *json.Decoder
	stderr bytes.Buffer
}

func (b *bakery) start(t *testing.T, args ...string) *baking {
	t.Helper()
	k := &baking{cmd: b.command(append([]string{"build", "--json"}, args...)...)}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.cmd.Stderr = &k.stderr
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.events = json.NewDecoder(out)
	return k
}

// until waits for an event of a step; it tells whether that came.
func (k *baking) until(step, state string) bool {
	for {
		var e struct{ Step, State string }
		if k.events.Decode(&e) != nil {
			return false
		}
		if e.Step == step && e.State == state {
			return true
		}
	}
}

// end reads the rest, and gives the exit status.
func (k *baking) end() int {
	for {
		var e any
		if err := k.events.Decode(&e); err != nil {
			break
		}
	}
	_ = k.cmd.Wait()
	return k.cmd.ProcessState.ExitCode()
}

// TestBakeGoesWrong stops builds, has two make the same, and bakes profiles of
// which some can't be, all on one base, which takes the longest.
func TestBakeGoesWrong(t *testing.T) {
	b := newDiskBakery(t)
	b.bakeStopped(t)
	t.Run("bad profiles", b.bakeBadProfiles)
}

// bakeStopped stops builds in each of their steps, in each of the ways: nothing is
// left, and the next one succeeds. Before its first one does, two at once make the
// same.
func (b *bakery) bakeStopped(t *testing.T) {
	const formats = "qcow2,netboot,tar"
	stop := func(t *testing.T, n int, step, state string, signal syscall.Signal) {
		t.Helper()
		b.profile(t, "tiny", fmt.Sprintf("  files: {/etc/n: {content: \"%d\"}}\n", n))
		k := b.start(t, "tiny", "--image", "disk", "--format", formats)
		if !k.until(step, state) {
			t.Fatalf("there was no step %s: %d: %s", step, k.end(), k.stderr.String())
		}
		if err := k.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		status := k.end()
		if signal == syscall.SIGKILL {
			// What it ran dies with it, and its mounts with that. The rest is the next
			// build's to remove.
			eventually(t, "what it ran has ended", func() bool { return b.descendants() == nil })
			b.nothingMounted(t)
		} else {
			if status != 130 || !strings.HasSuffix(k.stderr.String(), "kiln: interrupted\n") {
				t.Errorf("exit status %d, want 130: %s", status, k.stderr.String())
			}
			if left := b.descendants(); left != nil {
				t.Errorf("processes are left: %q", left)
			}
			b.clean(t)
		}
		store := &images.Store{Dir: filepath.Join(b.cache, "images")}
		if list, err := store.List(); err != nil || list != nil {
			t.Errorf("there is an image: %v, %v", list, err)
		}
	}
	for n, tt := range []struct {
		state  string
		signal syscall.Signal
	}{{"started", syscall.SIGTERM}, {"progress", syscall.SIGKILL}, {"progress", syscall.SIGTERM}} {
		t.Run(fmt.Sprintf("base %s %s", tt.state, tt.signal), func(t *testing.T) { stop(t, n, "base", tt.state, tt.signal) })
	}
	full := func(step, state string) {
		t.Run(step+" on a full disk", func(t *testing.T) {
			b.profile(t, "tiny", fmt.Sprintf("  files: {/etc/full: {content: %q}}\n", step))
			if step == "basedisk" {
				// All images of the base have the same one.
				found, err := filepath.Glob(filepath.Join(b.cache, "build/steps/basedisk-*"))
				if err != nil || len(found) != 1 || os.RemoveAll(found[0]) != nil {
					t.Fatalf("%q, %v", found, err)
				}
			}
			k := b.start(t, "tiny", "--image", "disk", "--format", formats)
			if !k.until(step, state) {
				t.Fatalf("there was no step %s: %d: %s", step, k.end(), k.stderr.String())
			}
			b.isFull(t, func() {
				if status := k.end(); status != 1 || !strings.Contains(k.stderr.String(), "no space is left for "+b.cache) {
					t.Errorf("exit status %d: %s", status, k.stderr.String())
				}
			})
			if left := b.descendants(); left != nil {
				t.Errorf("processes are left: %q", left)
			}
			b.clean(t)
			if step == "base" {
				return // two at once make it
			}
			if out, err := b.command("build", "tiny", "--image", "disk", "--format", formats).CombinedOutput(); err != nil {
				t.Errorf("and with room again: %v\n%s", err, out)
			}
			b.clean(t)
			b.keepsToItsSize(t)
			// Each would take room that the next one needs.
			if err := os.RemoveAll(filepath.Join(b.cache, "images")); err != nil {
				t.Error(err)
			}
		})
	}
	full("base", "progress")
	t.Run("two at once", func(t *testing.T) { b.bakeTwice(t, "tiny", "--image", "disk") })
	if err := os.RemoveAll(filepath.Join(b.cache, "images")); err != nil {
		t.Fatal(err)
	}
	for n, step := range []string{"sources", "layer", "disk", "qcow2", "netboot", "tar", "check", "store"} {
		signal := []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM}[n%3]
		t.Run(step+" "+signal.String(), func(t *testing.T) { stop(t, 10+n, step, "started", signal) })
	}
	for _, step := range []string{"layer", "basedisk", "disk", "qcow2", "netboot", "tar"} {
		full(step, "started")
	}
	if out, err := b.command("build", "tiny", "--image", "disk", "--format", formats).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.clean(t)
	b.export(t)
}

// bakeTwice runs two builds of the same at once.
func (b *bakery) bakeTwice(t *testing.T, args ...string) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ids []string
	waited := false
	for range 2 {
		wg.Go(func() {
			out, err := b.command(append([]string{"build"}, args...)...).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			waited = waited || strings.Contains(string(out), "another build is at it: waiting for that")
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			ids = append(ids, strings.Fields(lines[len(lines)-1])[0])
		})
	}
	wg.Wait()
	if len(ids) != 2 || ids[0] != ids[1] || !waited {
		t.Errorf("they made %q; one waited: %t", ids, waited)
	}
	b.clean(t)
}

// export writes the one image out in all formats.
func (b *bakery) export(t *testing.T) {
	t.Helper()
	to := t.TempDir()
	netboot := filepath.Join(to, "netboot")
	for range 2 { // the second time in place of the first
		for _, args := range [][]string{{"--format", "raw,qcow2,tar", "-o", to}, {"--format", "netboot", "-o", netboot}} {
			if out, err := b.command(append([]string{"images", "export", "tiny"}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
		}
	}
	store := &images.Store{Dir: filepath.Join(b.cache, "images")}
	m, err := store.Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	entries, err := os.ReadDir(to)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, strings.TrimPrefix(e.Name(), "tiny-disk-"+m.Short()))
	}
	slices.Sort(got)
	if want := []string{".qcow2", ".raw", ".tar.zst", "netboot"}; !slices.Equal(got, want) {
		t.Errorf("exported %q", got)
	}
	for _, a := range m.Artifacts {
		file := filepath.Join(to, a.Name)
		if a.Format != images.FormatNetboot {
			file = filepath.Join(to, "tiny-disk-"+m.Short()+strings.TrimPrefix(strings.TrimPrefix(a.Name, "image"), "root"))
		}
		exported, err := images.NewArtifact(filepath.Dir(file), filepath.Base(file), a.Format)
		if a.Format == images.FormatRaw {
			stored, err := images.NewArtifact(store.Path(m.ID, ""), a.Name, a.Format)
			if err != nil || a.SHA256 != "" {
				t.Errorf("%s in the store: %+v, %v", a.Name, a, err)
			}
			a.SHA256 = stored.SHA256
		}
		if err != nil || exported.SHA256 != a.SHA256 {
			t.Errorf("%s isn't what is in the store: %v", a.Name, err)
		}
	}
}

// bakeBadProfiles has profiles that can't be built, and one that can: the others
// don't keep it from that.
func (b *bakery) bakeBadProfiles(t *testing.T) {
	b.profile(t, "good", "  files: {/etc/good: {content: \"x\"}}\n")
	b.profile(t, "unit", "  units: {no-such.service: enabled}\n")
	b.profile(t, "owner", "  packages: [{name: systemd, creates: {users: [nobodys]}}]\n  files: {/etc/x: {owner: nobodys, content: \"x\"}}\n")
	b.profile(t, "clash", "  files: {/etc/systemd: {content: \"x\"}}\n")
	b.profile(t, "fails", "  packages: [kiln-fails]\n")
	k := b.start(t, "unit", "owner", "clash", "good", "fails", "--image", "disk")
	var failed []string
	built := ""
	for {
		var e struct {
			Profile, Error string
			Image          struct{ Profile string }
		}
		if err := k.events.Decode(&e); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		built += e.Image.Profile
		if e.Error != "" {
			failed = append(failed, e.Profile)
		}
	}
	if status := k.end(); status != 1 || built != "good" || !slices.Equal(failed, []string{"unit", "owner", "clash", "fails"}) {
		t.Errorf("exit status %d, built %q, failed %q", status, built, failed)
	}
	for _, want := range []string{
		"building unit on disk: layer: unit profiles/unit/profile.yaml:3:11: the unit no-such.service isn't there: no package and no file of the profile brings it",
		"building owner on disk: layer: owner profiles/owner/profile.yaml:4:11: the file /etc/x: the image has no user nobodys: no package of the profile makes it",
		"building clash on disk: layer: clash profiles/clash/profile.yaml:3:11: the file /etc/systemd: a directory is there already",
		"building fails on disk: base: fails profiles/fails/profile.yaml:3:14: installing kiln-fails failed; the last that was said of it:\n    it is about to fail\n    because it is a test\n",
		"4 of 5 images weren't built: unit on disk, owner on disk, clash on disk, fails on disk",
	} {
		if !strings.Contains(k.stderr.String(), want) {
			t.Errorf("it doesn't say %q:\n%s", want, k.stderr.String())
		}
	}
	b.clean(t)
}
