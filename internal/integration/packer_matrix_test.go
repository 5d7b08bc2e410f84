//go:build integration && matrix

package integration

import (
	"testing"

	"github.com/alisw/kiln/builder/render"
)

// TestPackerMatrix makes the same image in each way there is, and compares each with
// the native one.
func TestPackerMatrix(t *testing.T) {
	s := newPackerSite(t)
	native := s.build(t, "tiny", "raw")
	list := newKnownDifferences(t)
	t.Run("a stock image after its first boot", func(t *testing.T) { list.check(t, "stock", s.diff(t, native, s.firstBoot(t))) })
	t.Run("the qemu build with cloud-init", func(t *testing.T) {
		list.check(t, "qemu", s.diff(t, native, s.qemuBuild(t, render.CloudInitProvisioner)))
	})
	t.Run("the qemu build with the kiln provisioner", func(t *testing.T) {
		list.check(t, "provisioner", s.diff(t, native, s.qemuBuild(t, render.KilnProvisioner)))
	})
}
