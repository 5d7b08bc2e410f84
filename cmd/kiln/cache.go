package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

func newCacheCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Carry the packages of kiln.lock to another machine",
		Long: `Mirrors drop packages when newer ones come. A cache that was exported builds the
images of a kiln.lock for ever, on any machine, without a network.`,
		Args: onlyVerbs,
		RunE: verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "export FILE",
		Short: "Write all packages of kiln.lock into a file",
		Long: `Export writes the packages of kiln.lock into a tar archive, each under its hash; those
that the cache lacks are fetched first. The same lock gives the same file.`,
		Example: "  kiln cache export packages.tar",
		Args:    cobra.ExactArgs(1),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runCacheExport(ctx, global, args[0], u)
		}),
	}, &cobra.Command{
		Use:     "import FILE",
		Short:   "Take the packages from such a file",
		Long:    "Import takes packages that kiln cache export wrote, each compared with its hash.",
		Example: "  kiln cache import packages.tar",
		Args:    cobra.ExactArgs(1),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runCacheImport(ctx, args[0], u)
		}),
	})
	return cmd
}

func runCacheExport(ctx context.Context, global *globalOptions, to string, u *ui.UI) error {
	site, err := global.open()
	if err != nil {
		return err
	}
	lock, err := images.ReadLock(site.Dir)
	if err != nil {
		return err
	}
	if lock == nil {
		return fmt.Errorf("the site has no %s, which says what to export: run kiln lock", images.LockFile)
	}
	cache, err := baking.CacheDir()
	if err != nil {
		return err
	}
	var packages []images.LockedPackage
	for i := range lock.Sets {
		s := &lock.Sets[i]
		if len(s.Profiles) == 0 {
			continue
		}
		b, problems, err := baking.Options(site, baking.Target{Profile: s.Profiles[0], Definition: s.Definition})
		if err := errors.Join(err, problems.Err()); err != nil {
			return err
		}
		b.Cache, b.Lock = cache, lock
		u.Notef("fetching what the cache lacks of %d packages …", len(s.Packages))
		list, err := bake.Fetch(ctx, b)
		if err != nil {
			return err
		}
		packages = append(packages, list...)
	}
	return writeFileBy(to, false, func(f io.Writer) error {
		w := bufio.NewWriter(f)
		return errors.Join(bake.ExportPackages(cache, packages, w), w.Flush())
	})
}

func runCacheImport(ctx context.Context, from string, u *ui.UI) error {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no file %s: name one that kiln cache export wrote", from)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	cache, err := baking.CacheDir()
	if err != nil {
		return err
	}
	n, err := bake.ImportPackages(ctx, cache, bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("importing %s: %w", from, err)
	}
	u.Printf("%d packages are in the cache\n", n)
	return nil
}
