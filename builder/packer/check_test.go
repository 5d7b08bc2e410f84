package packer

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/plan"
)

// diskWith is a raw disk, as a stock image has it: one partition, whose files are
// given.
func diskWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	tree, root, name := filepath.Join(dir, "tree"), filepath.Join(dir, "root"), filepath.Join(dir, "disk")
	for path, text := range files {
		to := filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := `truncate -s 30M "$2"; mke2fs -q -t ext4 -d "$1" "$2"
truncate -s 32M "$3"; echo '2048,61440,L' | sfdisk -q --label gpt "$3"
dd if="$2" of="$3" bs=1M seek=1 conv=notrunc status=none`
	cmd := exec.Command("sh", "-euc", script, "sh", tree, root, name)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("making a disk: %v\n%s", err, out)
	}
	return name
}

// sealed are the files of a tree that has nothing to be found.
func sealed() map[string]string {
	return map[string]string{"etc/machine-id": "", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/shadow": "root:!:1:::::\n", "etc/group": "root:x:0:\n", "var/lib/dpkg/status": "", "usr/bin/x": ""}
}

func process(t *testing.T, s Sites, options map[string]any, a packersdk.Artifact) (*said, error) {
	t.Helper()
	c, ui := &Check{sites: s}, &said{}
	if err := c.Configure(options); err != nil {
		t.Fatal(err)
	}
	out, keep, force, err := c.PostProcess(t.Context(), ui, a)
	if out != a || !keep || !force {
		t.Errorf("the artifact isn't kept: %v, %v, %v", out, keep, force)
	}
	return ui, err
}

func TestCheck(t *testing.T) {
	good := diskWith(t, sealed())
	ui, err := process(t, newSite(), nil, &packersdk.MockArtifact{FilesValue: []string{good}})
	if err != nil || !ui.has("Nothing was found") || !ui.has("No site is named") {
		t.Errorf("%v\n%s", err, ui.text())
	}
	files := sealed()
	files["etc/hostname"], files["etc/ssh/ssh_host_rsa_key"], files["srv/x"] = "builder\n", "x", "the secret is s3cr3t-of-the-site\n"
	bad := diskWith(t, files)
	_, err = process(t, newSite(), nil, &packersdk.MockArtifact{FilesValue: []string{bad}})
	if err == nil || !strings.Contains(err.Error(), "identity: /etc/hostname: ") || !strings.Contains(err.Error(), "keys: /etc/ssh/ssh_host_rsa_key: ") || !strings.Contains(err.Error(), "these 2 things") {
		t.Errorf("without a site: %v", err)
	}
	s := newSite()
	s.search = Search{Canaries: []check.Canary{{Name: "token", Value: plan.NewSecret("s3cr3t-of-the-site")}}, Missed: []string{"the secret other: no program"}}
	s.search.Allowed = func(_, path string) bool { return path == "/etc/hostname" }
	ui, err = process(t, s, map[string]any{"site": "here", "profile": "plain"}, &packersdk.MockArtifact{FilesValue: []string{bad}})
	if err == nil || !strings.Contains(err.Error(), "canaries: /srv/x") || strings.Contains(err.Error(), "hostname") || strings.Contains(err.Error()+ui.text(), "s3cr3t") {
		t.Errorf("with a site: %v", err)
	}
	if s.asked[0] != "search here plain " || !ui.has("Not searched for: the secret other") {
		t.Errorf("asked for %q, said\n%s", s.asked, ui.text())
	}
}

// TestCheckQCOW2 has the disk of the qemu builder, whose name says nothing.
func TestCheckQCOW2(t *testing.T) {
	files := sealed()
	files["etc/hostname"] = "builder\n"
	raw := diskWith(t, files)
	dir := t.TempDir()
	name := filepath.Join(dir, "packer-disk")
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, err := process(t, newSite(), nil, &packersdk.MockArtifact{FilesValue: []string{name}})
	if err == nil || !strings.Contains(err.Error(), "packer-disk: identity: /etc/hostname: ") {
		t.Errorf("%v", err)
	}
	if left := entries(t, dir); len(left) != 1 {
		t.Errorf("it leaves %q", left)
	}
}

// TestCheckOwn has an image of the builder kiln, which says what it is of.
func TestCheckOwn(t *testing.T) {
	s := newSite()
	a := &packersdk.MockArtifact{BuilderIdValue: BuilderID, FilesValue: []string{diskWith(t, sealed())}, StateValues: map[string]any{StateProfile: "plain", StateDefinition: "debian-12"}}
	if _, err := process(t, s, nil, a); err != nil || s.asked[0] != "search . plain debian-12" {
		t.Errorf("%v, asked for %q", err, s.asked)
	}
}

func TestCheckNoDisk(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("no disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, files := range map[string][]string{"none of the artifact's files is a disk": {name}, "it has no files": {}, "no such file": {name + "x"}} {
		if _, err := process(t, newSite(), nil, &packersdk.MockArtifact{FilesValue: files}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", files, err)
		}
	}
	if err := new(Check).Configure(map[string]any{"profile": "x"}); err == nil || !strings.Contains(err.Error(), "needs a site") {
		t.Errorf("a profile without a site: %v", err)
	}
}

func TestFormatOf(t *testing.T) {
	sector := strings.Repeat("\x00", 510) + "\x55\xaa"
	pad := strings.Repeat("\x00", 512)
	for name, test := range map[string]struct{ content, want string }{
		"empty": {"", ""}, "short": {"QFI", ""}, "text": {strings.Repeat("text ", 1000), ""}, "kernel": {sector + "\x00\x00HdrS" + pad, ""},
		"qcow2": {"QFI\xfb\x00\x00\x00\x03", "qcow2"}, "GPT": {sector + "EFI PART" + pad, "raw"}, "MBR": {sector + pad, "raw"},
	} {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(test.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := formatOf(file); err != nil || got != test.want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if got, err := formatOf(t.TempDir()); err != nil || got != "" {
		t.Errorf("a folder is %q, %v", got, err)
	}
}

func TestCheckCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &Check{sites: newSite()}
	a := &packersdk.MockArtifact{FilesValue: []string{diskWith(t, sealed())}}
	if _, _, _, err := c.PostProcess(ctx, &said{}, a); err == nil || err.Error() != "the check was cancelled" {
		t.Errorf("%v", err)
	}
}
