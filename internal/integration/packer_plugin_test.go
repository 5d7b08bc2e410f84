//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/alisw/kiln/images"
)

// TestPackerPluginCheck has HashiCorp's own program look at the plugin.
func TestPackerPluginCheck(t *testing.T) {
	plugin := kilnPlugin(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(testCache(t), "../tools/packer-sdc"), "plugin-check", filepath.Base(plugin))
	cmd.Dir = filepath.Dir(plugin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("packer-sdc plugin-check: %v: make setup builds it\n%s", err, out)
	}
}

// dataTemplate writes what both data sources give into files. Its blank is the
// site.
const dataTemplate = `data "kiln-host" "golden" {
  site = %[1]q
  host = "build01"
}

data "kiln-host" "stock" {
  site   = %[1]q
  host   = "build01"
  target = "stock"
}

data "kiln-profile" "tiny" {
  site    = %[1]q
  profile = "tiny"
  image   = "small"
}

source "file" "golden" {
  content = replace(data.kiln-host.golden.user_data, "{{", "{{ \"{{\" }}")
  target  = "golden"
}

source "file" "stock" {
  content = replace(data.kiln-host.stock.user_data, "{{", "{{ \"{{\" }}")
  target  = "stock"
}

source "file" "meta" {
  content = data.kiln-host.golden.meta_data
  target  = "meta"
}

source "file" "facts" {
  content = join("\n", concat(data.kiln-profile.tiny.packages, [
    data.kiln-profile.tiny.image, data.kiln-profile.tiny.files["/etc/tiny"], data.kiln-host.golden.profile
  ]))
  target = "facts"
}

build {
  sources = ["source.file.golden", "source.file.stock", "source.file.meta", "source.file.facts"]
}
`

// packerTree is ten packages' worth of a profile, for an image without a kernel.
const packerTree = `image:
  packages: [acl]
  files: {/etc/tiny: {content: "a file\n"}}
`

// TestPackerDataSources uses both in a template, and compares what they give with
// kiln's own.
func TestPackerDataSources(t *testing.T) {
	b := newBakery(t, packerTree)
	place(t, filepath.Join(b.site, "hosts.yaml"), "- {name: build01, profile: tiny, image: small}\n")
	p := newPacker(t)
	place(t, filepath.Join(p.dir, templateName), fmt.Sprintf(dataTemplate, b.site))
	p.must("fmt", "-check", "-diff", templateName)
	p.must("build", templateName)
	for name, args := range map[string][]string{"golden": {"render", "build01"}, "stock": {"render", "build01", "--for", "stock"}} {
		if got, want := read(t, p.dir, name), printed(t, b.command(args...)); got != want {
			t.Errorf("%s is\n%s\nand kiln renders\n%s", name, got, want)
		}
	}
	if facts := read(t, p.dir, "facts"); facts != "acl\nsmall\na file\n\ntiny" {
		t.Errorf("the profile has %q", facts)
	}
	if meta := read(t, p.dir, "meta"); !strings.Contains(meta, "build01.example.org") {
		t.Errorf("the host's meta-data is %s", meta)
	}
	place(t, filepath.Join(p.dir, templateName), strings.Replace(fmt.Sprintf(dataTemplate, b.site), `"build01"`, `"build02"`, 1))
	if out, err := p.run("build", templateName); err == nil || !strings.Contains(out, `did you mean "build01`) {
		t.Errorf("a host that isn't there: %v\n%s", err, out)
	}
}

// builderTemplate bakes natively. Its blanks are the site and the profile.
const builderTemplate = `source "kiln" "golden" {
  site             = %q
  profile          = %q
  image            = "small"
  formats          = ["tar"]
  output_directory = "output"
}

build {
  sources = ["source.kiln.golden"]

  post-processor "manifest" {
    output = "manifest.json"
  }
}
`

// TestPackerBuilder bakes with the builder: the same image as kiln build's, in
// Packer's hands.
func TestPackerBuilder(t *testing.T) {
	b := newBakery(t, packerTree)
	p := newPacker(t)
	p.env = []string{"KILN_CACHE=" + b.cache}
	place(t, filepath.Join(p.dir, templateName), fmt.Sprintf(builderTemplate, b.site, "tiny"))
	p.must("fmt", "-check", "-diff", templateName)
	p.must("validate", templateName)
	out, err := p.run("build", templateName)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m, err := images.ReadManifest(filepath.Join(p.dir, "output", images.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, m.Short()) || !strings.Contains(read(t, p.dir, "manifest.json"), m.ID) {
		t.Errorf("Packer doesn't have the artifact's ID %s:\n%s\n%s", m.ID, out, read(t, p.dir, "manifest.json"))
	}
	if id := printed(t, b.command("build", "tiny", "--image", "small", "--format", "tar")); !strings.HasPrefix(id, m.Short()) {
		t.Errorf("kiln build makes %s, Packer %s", id, m.ID)
	}
	b.clean(t)

	// It isn't overwritten unasked.
	if out, err := p.run("build", templateName); err == nil || !strings.Contains(out, "output is there already") {
		t.Errorf("the output was there: %v\n%s", err, out)
	}
	p.must("build", "-force", templateName)

	place(t, filepath.Join(b.site, "profiles/bad/profile.yaml"), "image:\n  packages: [xfsprgos]\n")
	place(t, filepath.Join(p.dir, templateName), strings.Replace(fmt.Sprintf(builderTemplate, b.site, "bad"), `"output"`, `"other"`, 1))
	if out, err := p.run("build", templateName); err == nil || !strings.Contains(out, `profiles/bad/profile.yaml:2:14: no source of the image has a package xfsprgos: did you mean "xfsprogs"?`) {
		t.Errorf("a misspelt package: %v\n%s", err, out)
	}
	b.clean(t)
}

// TestPackerCancelled interrupts a build while it installs packages: it says so, and
// leaves nothing.
func TestPackerCancelled(t *testing.T) {
	b := newBakery(t, packerTree)
	p := newPacker(t)
	p.env = []string{"KILN_CACHE=" + b.cache}
	place(t, filepath.Join(p.dir, templateName), fmt.Sprintf(builderTemplate, b.site, "tiny"))
	out, err := p.interrupt(t, " base", "build", templateName)
	if err == nil || !strings.Contains(out, "cancelled") {
		t.Errorf("a build that is interrupted: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "output")); err == nil {
		t.Error("it has left its output")
	}
	b.clean(t)
}

// interrupt runs Packer, and sends it ^C once it says a text.
func (p *packerDir) interrupt(t *testing.T, text string, args ...string) (string, error) {
	t.Helper()
	cmd := p.command(args...)
	// As a terminal does: to the plugins, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := &listener{text: text, heard: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("it ended before it said %q: %v\n%s", text, err, out.String())
	case <-out.heard:
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	err := <-ended
	return out.String(), err
}

// listener keeps what is written to it, and hears when that has a text.
type listener struct {
	mu    sync.Mutex
	b     bytes.Buffer
	text  string
	heard chan struct{}
	once  sync.Once
}

func (l *listener) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(b)
	if strings.Contains(l.b.String(), l.text) {
		l.once.Do(func() { close(l.heard) })
	}
	return len(b), nil
}

func (l *listener) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
