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
	t.Run("a stock image after its first boot", func(t *testing.T) { s.compare(t, "stock", native, s.firstBoot(t)) })
	t.Run("the qemu build with cloud-init", func(t *testing.T) {
		s.compare(t, "qemu", native, s.qemuBuild(t, render.CloudInitProvisioner))
	})
	t.Run("the qemu build with the kiln provisioner", func(t *testing.T) {
		s.compare(t, "provisioner", native, s.qemuBuild(t, render.KilnProvisioner))
	})
}
