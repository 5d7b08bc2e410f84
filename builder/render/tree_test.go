package render

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

type resolver struct{}

func (resolver) Resolve(context.Context, plan.Ref) (plan.Secret, error) {
	return plan.NewSecret("s3cret"), nil
}

func withSecrets(t *testing.T, p *plan.Plan) *plan.Plan {
	t.Helper()
	p, err := p.WithSecrets(context.Background(), resolver{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tree(t *testing.T, p *plan.Plan, target Target) *Tree {
	t.Helper()
	tree, err := Files(p, Options{Target: target})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestTreeList(t *testing.T) {
	for _, target := range []Target{Golden, Stock} {
		golden(t, "files/"+target.String(), tree(t, testPlan(), target).List())
	}
}

func TestTar(t *testing.T) {
	var a, b bytes.Buffer
	if err := tree(t, testPlan(), Stock).WriteTar(&a); err != nil {
		t.Fatal(err)
	}
	if err := tree(t, testPlan(), Stock).WriteTar(&b); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Errorf("the same tree made other bytes (%v)", err)
	}
	want := tree(t, testPlan(), Stock).Entries
	r := tar.NewReader(&a)
	for _, e := range want {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		mode := int64(e.Mode)
		if e.Target != "" {
			mode, content = 0o777, e.Content
		}
		if "/"+strings.TrimSuffix(h.Name, "/") != e.Path || h.Uname != e.Owner || h.Gname != e.Group || h.Mode != mode || h.Linkname != e.Target || !bytes.Equal(content, e.Content) || h.ModTime.Unix() != 0 {
			t.Errorf("%s arrived as %+v", e.Path, h)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last entry: %v", err)
	}
}

func TestWriteDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "out")
	for range 2 { // the second replaces the first
		if err := tree(t, testPlan(), Stock).WriteDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range tree(t, testPlan(), Stock).Entries {
		path := filepath.Join(dir, "rootfs", e.Path)
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if e.Target != "" {
			if target, err := os.Readlink(path); target != e.Target {
				t.Errorf("%s points to %s (%v)", e.Path, target, err)
			}
			continue
		}
		if info.Mode()&^fs.ModeDir != goMode(e.Mode) || info.IsDir() != e.Dir {
			t.Errorf("%s has mode %v, and not %o", e.Path, info.Mode(), e.Mode)
		}
		if got, err := os.ReadFile(path); !e.Dir && !bytes.Equal(got, e.Content) {
			t.Errorf("%s holds %q (%v)", e.Path, got, err)
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, "MANIFEST"))
	if err != nil || !bytes.Equal(list, tree(t, testPlan(), Stock).List()) {
		t.Errorf("MANIFEST holds %q (%v)", list, err)
	}
	if others := names(t, filepath.Dir(dir)); len(others) != 1 {
		t.Errorf("left behind: %v", others)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestWriteDirWithSecrets(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	p := withSecrets(t, testPlan())
	p.Host.Files[1].Mode = 0o644
	if err := tree(t, p, Golden).WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{"": 0o700, "rootfs/etc/nomad.d/nomad.hcl": 0o600, "rootfs/etc/kiln/disks": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v (%v), and not %o", path, info, err, want)
		}
	}
}

func TestDirectoryOfOthersStays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tree(t, testPlan(), Golden).WriteDir(dir); err == nil {
		t.Error("a tree replaced somebody's directory")
	}
	if err := WriteSeed(dir, []NamedFile{{"user-data", nil}}); err == nil {
		t.Error("a seed replaced somebody's directory")
	}
	if got := names(t, dir); !slices.Equal(got, []string{"thesis"}) {
		t.Errorf("now there is %v", got)
	}
}

func TestFailedWriteLeavesOld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := tree(t, testPlan(), Golden).WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	broken := &Tree{Entries: []Entry{{Path: "/a", Owner: "root", Group: "root"}, {Path: "/a/b", Owner: "root", Group: "root"}}}
	if err := broken.WriteDir(dir); err == nil {
		t.Error("a file below a file was written")
	}
	list, err := os.ReadFile(filepath.Join(dir, "MANIFEST"))
	if err != nil || !bytes.Equal(list, tree(t, testPlan(), Golden).List()) {
		t.Errorf("the old tree is gone (%v)", err)
	}
	if others := names(t, filepath.Dir(dir)); len(others) != 1 {
		t.Errorf("left behind: %v", others)
	}
}

func TestTreeRefused(t *testing.T) {
	for _, path := range []string{"/../x", "/a/../b", "/a//b", "/etc/nomad.d/nomad.hcl/x", "/build/nomad"} {
		p := testPlan()
		p.Host.Files = append(p.Host.Files, testplan.File(path, "root", "root", 0o644, ""))
		if _, err := Files(p, Options{}); err == nil {
			t.Errorf("a file at %s passed", path)
		}
	}
}

func TestSeed(t *testing.T) {
	files, err := Seed(testPlan(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "seed")
	for range 2 {
		if err := WriteSeed(dir, files); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"meta-data", "network-config", "user-data"}) {
		t.Errorf("the seed has %v", got)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", f.Name, info.Mode(), err)
		}
		if got, err := os.ReadFile(path); !bytes.Equal(got, f.Data) {
			t.Errorf("%s differs (%v)", f.Name, err)
		}
	}
	meta, err := MetaData(testPlan(), Options{})
	if err != nil || !bytes.Equal(meta, files[len(files)-1].Data) {
		t.Errorf("MetaData isn't the seed's (%v)", err)
	}
	packed, err := Seed(testPlan(), Options{Gzip: true})
	if err != nil || !bytes.Equal(packed[len(packed)-1].Data, meta) {
		t.Errorf("compressing changes the instance-id (%v)", err)
	}
	p := testPlan()
	p.Host.Network = plan.Network{}
	if files, err := Seed(p, Options{}); err != nil || len(files) != 2 {
		t.Errorf("without a network the seed has %d files (%v)", len(files), err)
	}
}

func TestVolume(t *testing.T) {
	files := []NamedFile{{"user-data", []byte("#cloud-config\n")}, {"meta-data", nil}}
	a, err := SeedVolume(files)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := SeedVolume(files)
	if !bytes.Equal(a, b) || len(a)%(1<<20) != 0 {
		t.Error("the same files made other bytes, or no whole MiB")
	}
	files[0].Data = bytes.Repeat([]byte("x"), 31<<20)
	if b, err := SeedVolume(files); err != nil || len(b) > 33<<20 {
		t.Errorf("31 MiB gave %d bytes (%v)", len(b), err)
	}
	files[0].Data = bytes.Repeat([]byte("x"), 33<<20)
	if _, err := SeedVolume(files); err == nil {
		t.Error("33 MiB fitted")
	}
	for _, name := range []string{"", "a/b", strings.Repeat("x", 256)} {
		if _, err := SeedVolume([]NamedFile{{Name: name}}); err == nil {
			t.Errorf("a file called %.10q passed", name)
		}
	}
}

// TestArgumentsTest runs the test of the kernel's command line in a real shell.
func TestArgumentsTest(t *testing.T) {
	dir := t.TempDir()
	config, cmdline := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "cmdline")
	f, err := grubFile([]plan.Text{{Value: "quiet"}, {Value: "a.b=1,2"}})
	if err != nil {
		t.Fatal(err)
	}
	content, _ := f.Content.Bytes()
	if err := os.WriteFile(config, content, 0o600); err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer(grubPath, config, "/proc/cmdline", cmdline).Replace(argumentsTest)
	for line, want := range map[string]bool{
		"root=/dev/vda1 quiet a.b=1,2\n": true, "a.b=1,2 quiet": true, "quiet a.b=1,23\n": false, "quietly a.b=1,2\n": false, "quiet aXb=1,2": false, "\n": false,
	} {
		if err := os.WriteFile(cmdline, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		err := exec.Command("sh", "-c", script).Run()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) || (err == nil) != want {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// TestPolicy runs the commands around the installation of packages in a real
// shell, with and without a policy that the image has itself.
func TestPolicy(t *testing.T) {
	for _, own := range []string{"", "#!/bin/sh\nexit 0\n"} {
		dir := t.TempDir()
		policy := filepath.Join(dir, "policy-rc.d")
		if own != "" {
			if err := os.WriteFile(policy, []byte(own), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		run := func(script string) {
			t.Helper()
			script = strings.NewReplacer("/usr/sbin", dir, "cloud-init-per instance kiln_policy ", "").Replace(script)
			if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		for range 2 { // a boot may come between
			run(denyStarts)
			var exit *exec.ExitError
			if err := exec.Command(policy).Run(); !errors.As(err, &exit) || exit.ExitCode() != 101 {
				t.Errorf("a package may start its service: %v", err)
			}
		}
		run(allowStarts)
		got, err := os.ReadFile(policy)
		if string(got) != own || (own == "") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("afterwards the policy is %q (%v), and not %q", got, err, own)
		}
		if n := len(names(t, dir)); own == "" && n != 0 || own != "" && n != 1 {
			t.Errorf("left behind: %v", names(t, dir))
		}
	}
}
