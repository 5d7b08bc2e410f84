//go:build integration

package integration

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestVaultsPackage: a repository has Vault's package where it was asked for, or
// had it before. What is in it is upstream's.
func TestVaultsPackage(t *testing.T) {
	program(t, "apt-ftparchive")
	m := newMaker(t, true)
	m.link(t, "vault", true)
	repo := filepath.Join(t.TempDir(), "apt")
	listed := func() bool {
		return strings.Contains(read(t, repo, "dists/bookworm/main/binary-"+debArchitecture(), "Packages"), "Package: vault\n")
	}
	m.make(t, nil, "--output", repo, "--suite", "bookworm")
	if listed() {
		t.Error("the repository has Vault, which nobody has asked for")
	}
	for _, args := range [][]string{{"--vault"}, nil} {
		m.make(t, nil, append([]string{"--output", repo, "--suite", "bookworm"}, args...)...)
		if !listed() {
			t.Fatalf("%q: the repository has no Vault", args)
		}
	}
	if out := m.make(t, nil, "--output", repo, "--suite", "bookworm", "--vault"); !strings.Contains(out, "nothing to do") {
		t.Errorf("what is up to date was made again:\n%s", out)
	}
	m.checkPackage(t, repo, "vault")
}
