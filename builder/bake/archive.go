package bake

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/lazyregexp"
)

// Fetch gets the image's packages of the lock into the cache, and gives them.
func Fetch(ctx context.Context, o Options) ([]images.LockedPackage, error) {
	b := newBuilder(&o)
	set, err := b.lockedSet(o.Lock)
	if err != nil {
		return nil, err
	}
	sources, err := b.lockedSources(ctx, set)
	if err != nil {
		return nil, err
	}
	return set.Packages, b.fetchLocked(ctx, sources, set)
}

// ExportPackages writes packages of the cache as a tar archive, each under its
// hash. The same packages give the same bytes.
func ExportPackages(cache string, list []images.LockedPackage, to io.Writer) error {
	c := &packageCache{dir: packagesDir(cache)}
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b images.LockedPackage) int { return strings.Compare(a.SHA256, b.SHA256) })
	sorted = slices.CompactFunc(sorted, func(a, b images.LockedPackage) bool { return a.SHA256 == b.SHA256 })
	w := tar.NewWriter(to)
	for _, p := range sorted {
		if err := exportOne(w, c.path(p, ".deb"), p); err != nil {
			return fmt.Errorf("exporting the package %s: %w", &p, err)
		}
	}
	return w.Close()
}

func exportOne(w *tar.Writer, file string, p images.LockedPackage) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := w.WriteHeader(&tar.Header{Name: p.SHA256 + ".deb", Mode: 0o644, Size: p.Size, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

var exportedName = lazyregexp.New(`^[0-9a-f]{64}\.deb$`)

// ImportPackages takes packages that ExportPackages wrote into the cache. Each is
// compared with the hash that is its name.
func ImportPackages(ctx context.Context, cache string, from io.Reader) (count int, err error) {
	steps := &Cache{Dir: cache}
	c := &packageCache{dir: packagesDir(cache), cache: steps}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return 0, err
	}
	dir, err := steps.Scratch("import")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.Remove()) }()
	archive := tar.NewReader(from)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			if count == 0 {
				return 0, errors.New("no package is in it: take a file that kiln cache export wrote")
			}
			return count, nil
		}
		if err != nil {
			return count, fmt.Errorf("this is no whole archive of kiln cache export's: %w", err)
		}
		if h.Typeflag != tar.TypeReg || !exportedName().MatchString(h.Name) {
			return count, fmt.Errorf("it has %q, which kiln cache export doesn't write", h.Name)
		}
		if err := ctx.Err(); err != nil {
			return count, context.Cause(ctx)
		}
		p := images.LockedPackage{Name: h.Name, SHA256: strings.TrimSuffix(h.Name, ".deb"), Size: h.Size}
		file := filepath.Join(dir.Path, h.Name)
		if err := importOne(ctx, archive, file, p); err != nil {
			return count, noSpace(cache, err)
		}
		if err := c.put(ctx, file, p); err != nil {
			return count, err
		}
		count++
	}
}

func importOne(ctx context.Context, from io.Reader, file string, p images.LockedPackage) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if verify(ctx, file, p) != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s in it hasn't the hash that is its name: it was altered, or cut short", p.Name)
	}
	return nil
}
