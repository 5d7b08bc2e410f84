package bake

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

func TestInTree(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"usr/lib", "run", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"lib": "usr/lib", "var": "/run", "up": "../../../..", "etc/x": "../var", "loop": "loop", "etc/last": "/etc/shadow"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/etc/a": "/etc/a", "/lib/systemd/x": "/usr/lib/systemd/x", "/var/x/y": "/run/x/y", "/up/etc/passwd": "/etc/passwd", "/etc/x/z": "/run/z",
		"/etc/last": "/etc/last", "/top": "/top", "/../../x": "/x",
	} {
		if got, err := inTree(root, name); err != nil || got != root+want {
			t.Errorf("%s: got %s, %v", name, strings.TrimPrefix(got, root), err)
		}
	}
	if _, err := inTree(root, "/loop/x"); err == nil {
		t.Error("a loop of links has an end")
	}
}

func TestAccounts(t *testing.T) {
	id := func(n int) *int { return &n }
	got := AccountsScript(&plan.Layer{
		Groups: []plan.Group{{Name: "mesosci", GID: id(9001), System: true}, {Name: "ops"}},
		Users: []plan.User{
			{Name: "alice", Groups: []string{"adm", "ops"}, Comment: "it's alice", SSHKeys: []string{"ssh-ed25519 A"}},
			{Name: "mesosci", UID: id(9001), Group: "mesosci", System: true, Home: "/var/lib/mesosci"},
			{Name: "ops", System: true, SSHKeys: []string{"ssh-ed25519 A"}, Home: "/srv/ops"},
		},
	})
	const want = `getent group mesosci >/dev/null || groupadd --system --gid 9001 mesosci
getent group ops >/dev/null || groupadd ops
getent passwd alice >/dev/null || useradd --create-home --user-group --home-dir '/home/alice' --shell '/bin/bash' --comment 'it'\''s alice' alice
usermod --append --groups adm,ops alice
getent passwd mesosci >/dev/null || useradd --system --no-create-home --uid 9001 --gid mesosci --home-dir '/var/lib/mesosci' --shell '/usr/sbin/nologin' --comment '' mesosci
getent passwd ops >/dev/null || useradd --system --create-home --gid ops --home-dir '/srv/ops' --shell '/usr/sbin/nologin' --comment '' ops
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestDisableLocal: a host's apt leaves a source alone that only the building
// machine has.
func TestDisableLocal(t *testing.T) {
	for _, tt := range []struct {
		uris     []string
		disabled bool
	}{
		{[]string{"file:///srv/hashicorp"}, true},
		{[]string{"file:/srv/hashicorp", "copy:/srv/more"}, true},
		{[]string{"https://deb.example.org/hashicorp"}, false},
		{[]string{"file:///srv/hashicorp", "https://deb.example.org/hashicorp"}, false},
	} {
		image := plan.Image{AptSources: []plan.AptSource{{Name: "hashicorp", URIs: tt.uris, Suites: []string{"bookworm"}, Components: []string{"main"}, Key: []byte("a key")}}}
		b := &builder{image: image, definition: images.Definition{Release: plan.Release{ID: "debian"}}}
		l, err := b.layer([]source{{name: "debian", uri: "http://deb.example.org/debian", suites: []string{"bookworm"}, keyring: "/keys"}})
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, f := range l.files {
			text, err := f.Content.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			switch f.Path {
			case "/etc/apt/sources.list.d/hashicorp.sources":
				seen++
				if got := strings.Contains("\n"+string(text), "\nEnabled: no\nTypes: deb\n"); got != tt.disabled {
					t.Errorf("%v: disabled is %t:\n%s", tt.uris, got, text)
				}
			case "/etc/apt/sources.list.d/debian.sources":
				seen++
				if strings.Contains(string(text), "Enabled") {
					t.Errorf("the archive is disabled:\n%s", text)
				}
			}
		}
		if seen != 2 {
			t.Errorf("%v: %d sources in the image", tt.uris, seen)
		}
	}
}

func TestWithLocked(t *testing.T) {
	packages := []images.Package{{Name: "acl", Version: "1", Architecture: "amd64"}, {Name: "dbus", Version: "2", Architecture: "amd64"}, {Name: "less", Version: "1", Architecture: "amd64"}}
	set := &images.PackageSet{Packages: []images.LockedPackage{
		{Name: "acl", Version: "1", Architecture: "amd64", SHA256: "0a", Source: "debian"}, {Name: "dbus", Version: "1", Architecture: "amd64", SHA256: "0b", Source: "debian"},
	}}
	for i, p := range withLocked(packages, set) {
		if want := []string{"0a debian", " ", " "}[i]; p.SHA256+" "+p.Source != want {
			t.Errorf("%s: got %q %q", p.Name, p.SHA256, p.Source)
		}
	}
	if got := withLocked(packages[:1], nil); len(got) != 1 {
		t.Errorf("without a lock: %v", got)
	}
}
