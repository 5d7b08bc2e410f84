//go:build integration

package integration

import "testing"

func TestPackerZBase(t *testing.T) {
	s := newPackerSite(t)
	m := s.build(t, "bare", "raw", "qcow2", "tar")
	t.Log(s.file(m, "image.raw"))
}
