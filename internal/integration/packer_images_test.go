//go:build integration && matrix

package integration

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images"
)

// qemuBuild has Packer build tiny from the base image, in a virtual machine that
// runs in software, and gives the disk that it made.
func (s *packerSite) qemuBuild(t *testing.T, provisioner render.Provisioner) string {
	t.Helper()
	base := s.build(t, "bare", "raw", "qcow2", "tar")
	p := newPacker(t, stockPlugins...)
	p.wrap = s.net()
	p.env = []string{"KILN_CACHE=" + s.cache}
	place(t, filepath.Join(p.dir, templateName), s.run(t, "render", "build01", "--format", "packer", "--provisioner", string(provisioner)))
	args := []string{"build", "-only=qemu.*"}
	for _, v := range []string{
		"base_image_url=" + s.file(base, "image.qcow2"), "base_image_checksum=sha256:" + sumOf(t, base, "image.qcow2"), "image_name=tiny",
		// The kernel of clouds knows no SATA.
		"machine_type=pc", "efi_boot=false", "accelerator=tcg", "disk_size=2G", "memory=1024", "ssh_timeout=30m",
	} {
		args = append(args, "-var", v)
	}
	if provisioner == render.KilnProvisioner {
		args = append(args, "-var", "site="+s.site)
	}
	out, err := p.run(append(args, templateName)...)
	if err != nil {
		t.Fatalf("packer build: %v\n%s", err, out)
	}
	disk := filepath.Join(p.dir, "output/tiny.qcow2")
	checkManifest(t, p, disk)
	return disk
}

func sumOf(t *testing.T, m *images.Manifest, name string) string {
	t.Helper()
	for _, a := range m.Artifacts {
		if a.Name == name {
			return a.SHA256
		}
	}
	t.Fatalf("the image has no %s", name)
	return ""
}

// checkManifest looks at what the post-processors left.
func checkManifest(t *testing.T, p *packerDir, disk string) {
	t.Helper()
	var manifest struct {
		Builds []struct {
			Files []struct{ Name string }
			Data  map[string]string `json:"custom_data"`
		}
	}
	if err := json.Unmarshal([]byte(read(t, p.dir, "tiny.manifest.json")), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Builds) != 1 || manifest.Builds[0].Data["profile"] != "tiny" || manifest.Builds[0].Data["definition"] != "small-vm" {
		t.Errorf("the manifest is %+v", manifest)
	}
	sums := printed(t, exec.CommandContext(t.Context(), "sha256sum", disk))
	hash, _, _ := strings.Cut(sums, " ")
	if sums := read(t, p.dir, "output/SHA256SUMS"); !strings.Contains(sums, hash) {
		t.Errorf("%s isn't among the checksums:\n%s", hash, sums)
	}
}

// compare wants no difference but those of the list.
func (s *packerSite) compare(t *testing.T, known knownDifferences, way string, native *images.Manifest, disk string) {
	t.Helper()
	known.check(t, way, s.diff(t, native, disk), contentsOf(t, s.file(native, "image.raw")), contentsOf(t, disk))
}

// diff is what kiln diff says of a disk and a native image.
func (s *packerSite) diff(t *testing.T, native *images.Manifest, disk string) *images.Diff {
	t.Helper()
	cmd := s.inside(t, s.kiln, "diff", native.ID, disk, "--json")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() > 1 {
		t.Fatalf("kiln diff: %v\n%s", err, said.String())
	}
	var d images.Diff
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}
