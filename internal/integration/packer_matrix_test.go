//go:build integration && matrix

package integration

import (
	"testing"

	"github.com/alisw/kiln/builder/render"
)

// TestPackerMatrix makes the same image in each way there is, and compares each with
// the native one.
func TestPackerMatrix(t *testing.T) {
	known := newKnownDifferences(t)
	s := newPackerSite(t)
	native := s.build(t, "tiny", "raw")
	for _, way := range []struct {
		name, as string
		make     func(t *testing.T) string
	}{
		{"a stock image after its first boot", "stock", s.firstBoot},
		{"the qemu build with cloud-init", "qemu", func(t *testing.T) string { return s.qemuBuild(t, render.CloudInitProvisioner) }},
		{"the qemu build with the kiln provisioner", "provisioner", func(t *testing.T) string { return s.qemuBuild(t, render.KilnProvisioner) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			s.compare(t, known, way.as, native, way.make(t))
		})
	}
}
