package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type schemaOptions struct {
	output string
}

func newSchemaCommand(u *ui.UI) *cobra.Command {
	o := &schemaOptions{}
	kinds := profiles.JSONSchemaKinds()
	cmd := &cobra.Command{
		Use:   "schema [" + strings.Join(kinds, " | ") + "]",
		Short: "Write JSON Schemas of the site's files, for editors",
		Long: `Schema writes the JSON Schema (draft 2020-12) of the files that make a site, so
that an editor completes and checks them: of one kind to standard output, or of
all kinds to a directory.

kiln init puts them into .kiln/ and names them in each file's first line, in the
way that the YAML language server looks for them:

  # yaml-language-server: $schema=.kiln/site.schema.json`,
		Example:           "  kiln schema -o .kiln    # anew, after an update of kiln\n  kiln schema profile",
		Args:              cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs:         kinds,
		DisableAutoGenTag: true,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runSchema(ctx, o, args, u) }),
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "`DIR` to write KIND.schema.json to")
	_ = cmd.MarkFlagDirname("output")
	return cmd
}

func runSchema(_ context.Context, o *schemaOptions, args []string, u *ui.UI) error {
	kinds := profiles.JSONSchemaKinds()
	if len(args) > 0 {
		kinds = args
	}
	if o.output == "" {
		if len(kinds) > 1 {
			return usagef("name one kind (%s), or a directory for all of them: -o DIR", strings.Join(kinds, ", "))
		}
		text, err := profiles.JSONSchema(kinds[0])
		if err != nil {
			return err
		}
		if _, err := u.Out.Write(text); err != nil {
			return fmt.Errorf("writing to standard output: %w", err)
		}
		return nil
	}
	return writeSchemas(o.output, kinds)
}

func writeSchemas(dir string, kinds []string) error {
	for _, k := range kinds {
		text, err := profiles.JSONSchema(k)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, k+".schema.json"), text, false); err != nil {
			return err
		}
	}
	return nil
}
