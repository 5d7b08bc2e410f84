//go:build integration && matrix

package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// TestSameBytes builds one image in all the circumstances that mustn't matter, and
// compares every byte of what is delivered. `make matrix` runs it, for half an hour.
func TestSameBytes(t *testing.T) {
	b := newDiskBakery(t)
	const files = "  files: {/etc/a: {content: \"a\\n\"}, /etc/b: {content: \"%s\\n\"}}\n  units: {fstrim.timer: disabled}\n  users: {op: {uid: 9100, group: users, ssh_keys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvQqGZ8p1Hfb1mQ8Tq0lJ0oTqf2u3yq9Xr8o1tq0d5a op@example.org\"]}}\n"
	b.profile(t, "tiny", fmt.Sprintf(files, "b"))
	place(t, filepath.Join(b.site, "hosts.yaml"), "- {name: a, profile: tiny, image: disk}\n")
	if out, err := b.command("lock").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	args := []string{"build", "tiny", "--image", "disk", "--format", "qcow2,netboot,tar"}
	var want map[string]string
	compare := func(t *testing.T, b *bakery) {
		t.Helper()
		got := b.delivered(t)
		if want == nil {
			want = got
			t.Logf("%d files are compared from now on", len(want))
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("%s: %q, and first it was %q", name, got[name], want[name])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d files, and first it were %d", len(got), len(want))
		}
	}
	run := func(t *testing.T, cmd *exec.Cmd) {
		t.Helper()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	t.Run("cold", func(t *testing.T) {
		run(t, b.command(args...))
		compare(t, b)
	})
	t.Run("after an edit and its reversal", func(t *testing.T) {
		b.profile(t, "tiny", fmt.Sprintf(files, "another"))
		run(t, b.command(args...))
		b.profile(t, "tiny", fmt.Sprintf(files, "b"))
		b.forget(t, "layer", "disk", "qcow2", "netboot", "tar")
		run(t, b.command(args...))
		compare(t, b)
	})
	t.Run("its base's disk made anew", func(t *testing.T) {
		b.forget(t, "basedisk", "layer", "disk", "qcow2", "netboot", "tar")
		run(t, b.command(args...))
		compare(t, b)
	})
	for _, elsewhere := range []struct {
		name   string
		memory bool
		wrap   []string
		env    []string
	}{
		{"on a disk's file system with another umask", false, []string{"sh", "-c", `umask 077; exec "$@"`, "sh"}, nil},
		{"with another host name and time zone and language", true, []string{"unshare", "--uts", "sh", "-c", `hostname elsewhere; exec "$@"`, "sh"}, []string{"TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "HOME=/nonexistent"}},
		{"on one processor without a network", true, []string{"unshare", "--net", "taskset", "1"}, []string{"GOMAXPROCS=1"}},
	} {
		t.Run(elsewhere.name, func(t *testing.T) {
			other := &bakery{kiln: b.kiln, site: filepath.Join(t.TempDir(), "a-site-elsewhere"), cache: filepath.Join(t.TempDir(), "and-its-cache")}
			run(t, exec.Command("cp", "-r", b.site, other.site))
			if elsewhere.memory {
				other.inMemory(t)
			}
			// The packages alone: none has to be fetched.
			run(t, exec.Command("mkdir", "-p", filepath.Join(other.cache, "build")))
			run(t, exec.Command("cp", "-r", filepath.Join(b.cache, "build/debs"), filepath.Join(other.cache, "build/debs")))
			cmd := other.command(args...)
			cmd.Args = append(append(slices.Clone(elsewhere.wrap), other.kiln), args...)
			path, err := exec.LookPath(cmd.Args[0])
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path, cmd.Env = path, append(cmd.Env, elsewhere.env...)
			run(t, cmd)
			compare(t, other)
		})
	}
}

// forget takes results of steps out of the cache, and the images.
func (b *bakery) forget(t *testing.T, steps ...string) {
	t.Helper()
	for _, s := range steps {
		found, err := filepath.Glob(filepath.Join(b.cache, "build/steps", s+"-*"))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %q, %v", s, found, err)
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(filepath.Join(b.cache, "images")); err != nil {
		t.Fatal(err)
	}
}

// delivered are the hashes of all files of the only image, but for those that say
// when it was made.
func (b *bakery) delivered(t *testing.T) map[string]string {
	t.Helper()
	store := &images.Store{Dir: filepath.Join(b.cache, "images")}
	m, err := store.Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{"the ID": m.ID}
	err = filepath.WalkDir(store.Path(m.ID, ""), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == images.ManifestName {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		sums[strings.TrimPrefix(name, store.Path(m.ID, ""))] = hex.EncodeToString(h.Sum(nil))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}
