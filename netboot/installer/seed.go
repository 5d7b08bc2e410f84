package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/alisw/kiln/netboot/protocol"
)

// seedDir is where cloud-init looks for a NoCloud seed, in the installed root.
const seedDir = "var/lib/cloud/seed/nocloud"

// WriteSeed writes a seed into the root file system at dir. It holds secrets: only
// root may read it. Links in the root don't lead out of it.
func WriteSeed(dir string, seed *protocol.Seed) error {
	if err := checkSeed(seed); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the installed root: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(path.Dir(seedDir), 0o755); err != nil {
		return fmt.Errorf("the seed's folder in the installed root: %w", err)
	}
	// What another seed has left must not be mixed with this one.
	if err := root.RemoveAll(seedDir); err != nil {
		return fmt.Errorf("the seed's folder in the installed root: %w", err)
	}
	if err := root.Mkdir(seedDir, 0o700); err != nil {
		return fmt.Errorf("the seed's folder in the installed root: %w", err)
	}
	for _, f := range seed.Files {
		if err := writeSynced(root, path.Join(seedDir, f.Name), f.Data); err != nil {
			return fmt.Errorf("writing %s of the seed: %w", f.Name, err)
		}
	}
	for d := seedDir; ; d = path.Dir(d) {
		if err := syncFolder(root, d); err != nil {
			return fmt.Errorf("the installed root: %w", err)
		}
		if d == "." {
			return nil
		}
	}
}

// checkSeed refuses what is no seed: a host without user-data and meta-data would
// come up without a name, and open to nobody.
func checkSeed(seed *protocol.Seed) error {
	seen := map[string]bool{}
	for _, f := range seed.Files {
		if f.Name == "" || f.Name != filepath.Base(f.Name) || strings.HasPrefix(f.Name, ".") || seen[f.Name] {
			return fmt.Errorf("the seed has a file called %q", f.Name)
		}
		seen[f.Name] = true
	}
	for _, name := range []string{"user-data", "meta-data"} {
		if !seen[name] {
			return fmt.Errorf("the seed has no %s", name)
		}
	}
	return nil
}

func writeSynced(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(fs.FileMode(0o600)), f.Sync(), f.Close())
}

func syncFolder(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
