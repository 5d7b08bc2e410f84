package render

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/alisw/kiln/plan"
)

// NamedFile is a file of a seed.
type NamedFile struct {
	Name string
	Data []byte
}

// seedNames are the files that a NoCloud seed can have.
var seedNames = []string{"meta-data", "network-config", "user-data", "vendor-data"}

// Seed is the host's NoCloud seed: user-data, network-config where the plan has
// a network, and meta-data. They belong into /var/lib/cloud/seed/nocloud, or
// into a volume that SeedVolume makes. Since no metadata service stands between,
// nothing limits their size.
func Seed(p *plan.Plan, o Options) ([]NamedFile, error) {
	text, err := cloudConfig(p, o.Target)
	if err != nil {
		return nil, err
	}
	network, err := NetworkConfig(p)
	if err != nil {
		return nil, err
	}
	userData := text
	if o.Gzip {
		if userData, err = compress(text); err != nil {
			return nil, fmt.Errorf("compressing the user-data of %s: %w", p.Host.Name, err)
		}
	}
	files := []NamedFile{{"user-data", userData}}
	if network != nil {
		files = append(files, NamedFile{"network-config", network})
	}
	return append(files, NamedFile{"meta-data", metaData(p, text, network)}), nil
}

// WriteSeed puts a seed's files into dir, which it makes with mode 0700 or, if
// it holds nothing but a seed, replaces. Nobody else can read them. A failure
// leaves dir as it was.
func WriteSeed(dir string, files []NamedFile) error {
	err := replaceDirectory(dir, isSeed, func(tmp string) error {
		for _, f := range files {
			if err := writeSynced(filepath.Join(tmp, f.Name), f.Data, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing the seed %s: %w", dir, err)
	}
	return nil
}

// isSeed tells whether the entries of a directory are those of a seed.
func isSeed(_ string, entries []fs.DirEntry) bool {
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !slices.Contains(seedNames, e.Name()) })
}
