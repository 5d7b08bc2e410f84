//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/alisw/kiln/images"
)

// userProfile has what a user namespace could change: owners, setuid bits, file
// capabilities (ping's) and, of systemd's own, ACLs.
const userProfile = `image:
  packages: [iputils-ping, libcap2-bin]
  users: {ops: {uid: 9001, group: ops, system: true, home: /var/lib/ops, shell: /usr/sbin/nologin}}
  groups: {ops: {gid: 9001}}
  directories: {/srv/data: {owner: ops, group: ops, mode: "2750"}}
  files:
    /etc/tiny: {owner: root, group: ops, mode: "0640", content: "a file\n"}
    /usr/local/bin/tiny: {owner: ops, group: ops, mode: "4755", content: "#!/bin/sh\n"}
    /etc/motd: {link: /etc/tiny}
  units: {systemd-networkd.service: enabled, fstrim.timer: masked}
`

// lodger is a user whom only the test's own copy of /etc knows.
const (
	lodger   = "kilnlodger"
	lodgerID = 7654
)

// asLodger is what runs a program as that user, who has the subordinate IDs of
// these lines; before it, as root in its mounts, the script.
func asLodger(t *testing.T, script, subordinate string) []string {
	t.Helper()
	for _, p := range []string{"setpriv", "unshare", "newuidmap", "newgidmap"} {
		program(t, p)
	}
	dir := t.TempDir()
	etc := filepath.Join(dir, "etc")
	passable(t, etc)
	if out, err := exec.Command("cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, text := range map[string]string{
		"passwd": fmt.Sprintf("%s:x:%d:%d::%s/home:/bin/sh\n", lodger, lodgerID, lodgerID, dir),
		"group":  fmt.Sprintf("%s:x:%d:\n", lodger, lodgerID),
		"subuid": subordinate, "subgid": subordinate,
	} {
		f, err := os.OpenFile(filepath.Join(etc, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chown(home, lodgerID, lodgerID)); err != nil {
		t.Fatal(err)
	}
	return []string{"unshare", "--mount", "--propagation", "private", "sh", "-euc",
		`mount --bind "$0" /etc; export HOME="$1" USER=` + lodger + `; shift; ` + script + ` exec setpriv --reuid=` + lodger + ` --regid=` + lodger + ` --init-groups -- "$@"`, etc, home}
}

const lodgersIDs = lodger + ":700000:65536\n"

// usersBakery is one of which the cache is the user's, mounted as homes often are.
func usersBakery(t *testing.T, kiln string) *bakery {
	t.Helper()
	b := bakeryOf(t, kiln, userProfile)
	passable(t, b.kiln, b.cache)
	if err := errors.Join(os.Mkdir(b.cache, 0o755), os.Chown(b.cache, lodgerID, lodgerID)); err != nil {
		t.Fatal(err)
	}
	const flags = syscall.MS_BIND | syscall.MS_NOSUID | syscall.MS_NODEV
	if err := errors.Join(syscall.Mount(b.cache, b.cache, "", syscall.MS_BIND, ""), syscall.Mount("", b.cache, "", flags|syscall.MS_REMOUNT, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(b.cache, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b.wrap = asLodger(t, "", lodgersIDs)
	return b
}

// TestBakeAsUser has a normal user bake what root has baked: the images are the
// same. Before it comes to that, his builds are stopped.
func TestBakeAsUser(t *testing.T) {
	kiln := bakersKiln(t)
	byRoot := bakeryOf(t, kiln, userProfile)
	b := usersBakery(t, kiln)
	b.stoppedAsUser(t)

	build := []string{"build", "tiny", "--image", "small"}
	want := byRoot.bake(t, build...)
	got := b.bake(t, build...)
	if got.ID != want.ID {
		t.Errorf("the user's is another image than root's: %s", differences(got, want))
	}
	sums := func(b *bakery, id string) string {
		text, err := os.ReadFile(filepath.Join(b.cache, "images", id, images.SumsName))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if g, w := sums(b, got.ID), sums(byRoot, want.ID); g != w {
		t.Errorf("the user's files are others than root's:\n%s%s", g, w)
	}
	capable := false
	for _, f := range got.Files {
		capable = capable || f.Path == "/usr/bin/ping" && strings.HasPrefix(f.Attributes["security.capability"], "01000002")
	}
	if !capable {
		t.Error("ping lacks its capability, of the second version")
	}
	b.belongsTo(t, "images", lodgerID)

	// Neither can go on with the other's.
	for name, tt := range map[string]struct {
		cache string
		wrap  []string
		want  string
	}{
		"the user": {byRoot.cache, b.wrap, "belongs to root, and a cache serves one user"},
		"root":     {b.cache, nil, "belongs to the user 7654, and a cache serves one user"},
	} {
		other := *b
		other.cache, other.wrap = tt.cache, tt.wrap
		if out, err := other.command(build...).CombinedOutput(); err == nil || !strings.Contains(string(out), tt.want) || !strings.Contains(string(out), "KILN_CACHE") {
			t.Errorf("%s with the other's cache: %v\n%s", name, err, out)
		}
	}
	// What has other owners goes, too.
	if out, err := b.command("images", "prune", "--keep", "0").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	b.belongsTo(t, "", lodgerID)
	b.clean(t)
}

// bake builds, and gives the image.
func (b *bakery) bake(t *testing.T, args ...string) *images.Manifest {
	t.Helper()
	out, err := b.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b.clean(t)
	m, err := (&images.Store{Dir: filepath.Join(b.cache, "images")}).Find("tiny")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// differences are the first few files that two images don't have alike.
func differences(a, b *images.Manifest) string {
	lines := map[string]bool{}
	for _, f := range b.Files {
		lines[fmt.Sprint(f)] = true
	}
	var list []string
	for _, f := range a.Files {
		if !lines[fmt.Sprint(f)] && len(list) < 10 {
			list = append(list, fmt.Sprint(f))
		}
	}
	return strings.Join(list, "\n")
}

// belongsTo fails the test if anything in a folder of the cache is another user's.
func (b *bakery) belongsTo(t *testing.T, folder string, uid uint32) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(b.cache, folder), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
			return fmt.Errorf("%s belongs to %d", path, st.Uid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// stoppedAsUser stops builds of the user's in each of the ways: the process inside
// ends with the one that was stopped, and leaves nothing.
func (b *bakery) stoppedAsUser(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			k := b.start(t, "tiny", "--image", "small")
			if !k.until("base", "progress") {
				t.Fatalf("there was no step base: %d: %s", k.end(), k.stderr.String())
			}
			if err := k.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			status := k.end()
			if signal == syscall.SIGKILL {
				eventually(t, "what it ran has ended", func() bool { return b.descendants() == nil })
				return
			}
			if said := k.stderr.String(); status != 130 || strings.Count(said, "kiln: interrupted\n") != 1 || !strings.HasSuffix(said, "kiln: interrupted\n") {
				t.Errorf("exit status %d, want 130: %s", status, said)
			}
			if left := b.descendants(); left != nil {
				t.Errorf("processes are left: %q", left)
			}
			b.clean(t)
		})
	}
}

// TestUserNamespaceErrors: what keeps a user from his namespace is named, with what
// allows it.
func TestUserNamespaceErrors(t *testing.T) {
	b := usersBakery(t, bakersKiln(t))
	for _, tt := range []struct {
		name, script, ids string
		want              []string
	}{
		{"no IDs", "", "", []string{"the user kilnlodger has no subordinate UIDs", "sudo usermod --add-subuids ", "sudo usermod --add-subgids ", "sudo kiln build"}},
		{"few IDs", "", lodger + ":700000:1000\n", []string{"has 1000 subordinate UIDs (/etc/subuid), and an image takes 65536"}},
		{"another's IDs", "", lodger + ":0:65536\n" + lodger + ":4294967290:65536\n", []string{"giving a user namespace its IDs", "/etc/subuid"}},
		{"no namespaces", `echo 0 >/etc/zero; mount --bind /etc/zero /proc/sys/user/max_user_namespaces;`, lodgersIDs, []string{"user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces="}},
		{"no newuidmap", `mount --bind /dev/null "$(command -v newuidmap)";`, lodgersIDs, []string{"newuidmap isn't there: apt-get install uidmap"}},
		{"no setuid bit", `cp "$(command -v newuidmap)" /etc/plain; chmod 755 /etc/plain; mount --bind /etc/plain "$(command -v newuidmap)";`, lodgersIDs, []string{"newuidmap has lost its setuid bit", "--reinstall uidmap"}},
		{"no privileges", `set -- setpriv --no-new-privs "$@";`, lodgersIDs, []string{"no_new_privs", "NoNewPrivileges="}},
		{"a chroot", `mkdir /etc/r; mount --rbind / /etc/r; exec chroot /etc/r sh -c 'cd "$0" && exec "$@"' "$PWD" setpriv --reuid=` + lodger + ` --regid=` + lodger + ` --init-groups -- "$@";`, lodgersIDs, []string{"forbids this process to make a user namespace", "chroot"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			other := *b
			other.wrap = asLodger(t, tt.script, tt.ids)
			out, err := other.command("build", "tiny", "--image", "small").CombinedOutput()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
				t.Errorf("got %v, want exit status 1", err)
			}
			for _, w := range append(tt.want, "As root it works without: sudo kiln build") {
				if !bytes.Contains(out, []byte(w)) {
					t.Errorf("it doesn't say %q:\n%s", w, out)
				}
			}
			other.clean(t)
		})
	}
}
