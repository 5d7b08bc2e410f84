package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

// example is the site that kiln init makes. Its dot files stand there without
// the dot, lest they mean something to this repository.
//
//go:embed all:example
var example embed.FS

const (
	exampleRoot = "example"
	dotPrefix   = "dot."
	schemaDir   = ".kiln"
)

func newInitCommand(u *ui.UI) *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make a small site to start from",
		Long: `Init makes a small, commented, working site in DIR, which must be empty or not
exist yet: site.yaml, an inventory of four hosts, a profile of one's own, and
the files' JSON Schemas for editors.`,
		Example: "  kiln init mysite\n  cd mysite && kiln check",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runInit(ctx, args, u) }),
	}
}

func runInit(_ context.Context, args []string, u *ui.UI) error {
	dir := filepath.Clean(args[0])
	entries, err := os.ReadDir(dir)
	exists := err == nil
	switch {
	case exists && len(entries) > 0:
		return fmt.Errorf("%s isn't empty: name a new directory", dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("making a site: %w", err)
	}
	if err := makeSite(dir, exists); err != nil {
		return fmt.Errorf("making a site in %s: %w", dir, err)
	}
	u.Printf(`Made a site in %[1]s. What comes next:

  cd %[1]s
  kiln keys fetch          get the key that HashiCorp's packages are signed with
  kiln check               find every problem of the site
  kiln plan build01        see what a host will be, and why
  kiln render build01      write its user-data

Then put your own into site.yaml and hosts.yaml; each setting has a comment.
`, dir)
	return nil
}

// makeSite makes the site beside its place, and moves it there when it is
// whole.
func makeSite(dir string, exists bool) (err error) {
	above := filepath.Dir(dir)
	if exists {
		above = dir // it may be the current directory, or a mount point
	}
	if err := os.MkdirAll(above, 0o777); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(above, ".kiln-init-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := writeExample(tmp); err != nil {
		return err
	}
	if err := writeSchemas(filepath.Join(tmp, schemaDir), profiles.JSONSchemaKinds()); err != nil {
		return err
	}
	if !exists {
		if err := os.Chmod(tmp, 0o777&^umask()); err != nil {
			return err
		}
		return os.Rename(tmp, dir)
	}
	return moveAll(tmp, dir)
}

// moveAll moves what is in from into the directory to: all of it, or nothing.
func moveAll(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			for _, moved := range entries[:i] {
				err = errors.Join(err, os.RemoveAll(filepath.Join(to, moved.Name())))
			}
			return err
		}
	}
	return nil
}

func writeExample(dir string) error {
	return fs.WalkDir(example, exampleRoot, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := example.ReadFile(name)
		if err != nil {
			return err
		}
		to := strings.TrimPrefix(name, exampleRoot+"/")
		if base, ok := strings.CutPrefix(path.Base(to), dotPrefix); ok {
			to = path.Join(path.Dir(to), "."+base)
		}
		return writeFile(filepath.Join(dir, filepath.FromSlash(to)), data, false)
	})
}
