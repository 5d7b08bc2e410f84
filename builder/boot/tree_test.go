package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTreeCommand(t *testing.T) {
	for name, tree := range map[string]Tree{
		"tree":   {},
		"tree-2": {Name: "build01", Namespace: "/run/netns/lab", NoSeed: true, Binds: []string{"/srv/nomad:/usr/bin/nomad"}},
	} {
		c := tree.command("/images/tree", "/var/tmp/kiln:1", nil)
		c.Args[slices.Index(c.Args, treeScript)] = "SCRIPT"
		golden(t, name+".txt", lines(c.String()))
	}
}

func TestTreeThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		name string
		tree Tree
		want string
	}{
		{"name", Tree{Root: "/x", Name: "A b"}, "can't be a container's name"},
		{"path", Tree{Root: "/x,y"}, "move it"},
		{"bind", Tree{Root: "/x", Binds: []string{"a:b"}}, "isn't FROM:TO"},
		{"nothing there", Tree{Root: t.TempDir()}, "that isn't a root file system"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leavesNothing(t)
			if _, err := tt.tree.Start(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTreeWithoutRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Setenv("PATH", t.TempDir())
	}
	leavesNothing(t)
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := (&Tree{Root: root}).Start(t.Context())
	want := "only root can start a container: run this as root, or boot an image in QEMU"
	if os.Geteuid() == 0 {
		want = "the program systemd-nspawn isn't there: the package systemd-container has it"
	}
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
