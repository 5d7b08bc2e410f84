//go:build integration && matrix

package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	booting "github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/builder/render"
)

// firstBoot starts the base image as a host with stock user-data, waits until
// cloud-init is done and has switched it off, and gives its disk.
func (s *packerSite) firstBoot(t *testing.T) string {
	t.Helper()
	base := s.build(t, "bare", "raw", "qcow2", "tar")
	seed := filepath.Join(t.TempDir(), "seed")
	s.run(t, "render", "build01", "--format", "seed", "--for", "stock", "-o", seed)
	entries, err := os.ReadDir(seed)
	if err != nil {
		t.Fatal(err)
	}
	var files []render.NamedFile
	for _, e := range entries {
		files = append(files, render.NamedFile{Name: e.Name(), Data: []byte(read(t, seed, e.Name()))})
	}
	// Beside the user-data, which stays as it is rendered.
	files = append(files, render.NamedFile{Name: "vendor-data", Data: []byte("#cloud-config\npower_state: {mode: poweroff, condition: true}\n")})
	volume, err := render.SeedVolume(files)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "seed.img"), filepath.Join(dir, "disk.qcow2")
	if err := os.WriteFile(image, volume, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := booting.Overlay(t.Context(), nil, s.file(base, "image.raw"), "raw", disk, 2<<30); err != nil {
		t.Fatal(err)
	}
	var console strings.Builder
	m := &booting.Machine{
		Disk: disk, Format: "qcow2", NoSeed: true, DataDisks: []booting.DataDisk{{Path: image}}, Firmware: booting.BIOS, Memory: 1024,
		Accel: booting.AccelTCG, Namespace: s.space.Network(), Console: &console,
	}
	// Only a bound: machines in software take minutes.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	r, err := m.Start(ctx)
	if err == nil {
		err = r.Wait()
	}
	if err != nil {
		t.Fatalf("the first boot with stock user-data: %v\n%s", err, tail([]byte(console.String()), 6000))
	}
	return disk
}
