package bake

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

const failedScript = `Setting up adduser (3.134) ...
adduser said something
Setting up nginxx (1.2) ...
creating the user
useradd: cannot create directory
dpkg: error processing package nginxx (--configure):
 installed nginxx package post-installation script subprocess returned error exit status 3
Setting up zlib1g:amd64 (1.2) ...
Errors were encountered while processing:
 nginxx
E: Sub-process env returned an error code (1)
E: run_chroot failed: E: apt-get failed`

func TestExplain(t *testing.T) {
	origin := plan.Origin{Profile: "web", Position: problem.Position{File: "profiles/web/profile.yaml", Line: 4, Column: 16}}
	b := &builder{
		cache: &Cache{Dir: "/cache"}, definition: images.Definition{Name: "debian-12", Packages: []string{"zstdd"}, Pos: problem.Position{File: "images/debian-12.yaml"}},
		image: plan.Image{Packages: []plan.Package{{Name: "nginxx", Origin: origin}}},
	}
	sources := []source{{name: "debian", uri: "http://deb.example.org/debian", keyFile: "keys/debian.asc"}, {name: "own", uri: "file:///srv/repo", plan: &plan.AptSource{}}}
	tree := grow(t, map[string]string{"var/lib/apt/lists/x_Packages": "Package: nginx\nVersion: 1\n\nPackage: apache2\n"})
	cause := os.ErrInvalid
	for _, tt := range []struct{ printed, want string }{
		{"E: Unable to locate package nginxx", `profiles/web/profile.yaml:4:16: no source of the image has a package nginxx: did you mean "nginx"?`},
		{"E: Unable to locate package zstdd", "images/debian-12.yaml: no source of the image has a package zstdd: is its name right"},
		{"E: Package 'nginxx' has no installation candidate", "no source of the image has a package nginxx"},
		{"W: GPG error: http://deb.example.org/debian stable InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 0123", "the apt source debian isn't signed with the key that it's trusted through (keys/debian.asc): compare"},
		{"W: GPG error: file:/srv/repo stable InRelease: The following signatures were invalid: BADSIG 0123", "the apt source own isn't signed with the key that it's trusted through: compare the fingerprint with the one that its owner publishes, and get the key again (kiln keys fetch)"},
		{"E: The repository 'http://x.example.org stable Release' is not signed.", "a source isn't signed with the key"},
		{"E: Release file for http://deb.example.org/InRelease is expired (invalid since 3d)", "does nobody update this mirror any more"},
		{"cp: error writing 'x': No space left on device", "no space is left for /cache: make room there (kiln images prune removes old images), or have the cache elsewhere with KILN_CACHE"},
		{failedScript, "profiles/web/profile.yaml:4:16: installing nginxx failed; the last that was said of it:\n    creating the user\n    useradd: cannot create directory\n    installed nginxx package post-installation script subprocess returned error exit status 3\nmend"},
		{"E: something else", "the packages couldn't be installed:\n    E: something else"},
		{"a hook speaks\nand fails", "the packages couldn't be installed:\n    a hook speaks\n    and fails"},
	} {
		p := &aptProgress{tell: func(Event) {}}
		for line := range strings.Lines(tt.printed) {
			p.line(line)
		}
		err := b.explain(p, tree, sources, cause)
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.printed, err, tt.want)
		}
		if strings.Contains(err.Error(), "adduser said") {
			t.Errorf("another package speaks: %v", err)
		}
		if strings.Contains(tt.printed, "No space") != errors.Is(err, ErrMachine) && !strings.Contains(tt.printed, "expired") {
			t.Errorf("%s: is it the machine's? %v", tt.printed, err)
		}
	}
	if err := b.explain(&aptProgress{}, tree, sources, cause); err != cause {
		t.Errorf("got %v", err)
	}
	if err := b.explain(&aptProgress{complaints: []string{"E: main() received signal TERM"}}, tree, sources, context.Canceled); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestProgressOfApt(t *testing.T) {
	var got []Event
	p := &aptProgress{tell: func(e Event) { got = append(got, e) }}
	for line := range strings.Lines(`0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:9 http://deb.example.org/debian bookworm/main amd64 Packages [8790 kB]
Need to get 3000 kB of archives.
Get:1 http://deb.example.org/debian bookworm/main amd64 acl amd64 2.3.1-3 [1500 kB]
Unpacking acl (2.3.1-3) ...
Setting up acl (2.3.1-3) ...
update-initramfs: Generating /boot/initrd.img-6.1.0-1-amd64
`) {
		p.line(line)
	}
	want := []Event{
		{Step: stepBase, State: StateProgress, Done: 1_500_000, Total: 3_000_000, Unit: unitBytes, Message: "fetching packages"},
		{Step: stepBase, State: StateProgress, Done: 1, Total: 4, Message: "unpacking acl"},
		{Step: stepBase, State: StateProgress, Done: 2, Total: 4, Message: "setting up acl"},
		{Step: stepBase, State: StateProgress, Message: "making the initramfs"},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
}
