package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
)

func newImagesSBOMCommand(u *ui.UI) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "sbom IMAGE",
		Short: "Write an image's software bill of materials (SPDX)",
		Long: `SBOM lists the packages of an image as an SPDX 2.3 document in JSON: name, version,
architecture, package URL, and where the image was built from a lock, the hash of
the package's file and the apt source that had it. The same image has the same SBOM.`,
		Example:           "  kiln images sbom alissandra -o alissandra.spdx.json\n  kiln images sbom 4f1c2e | jq -r '.packages[].externalRefs[]?.referenceLocator'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeBootable,
		RunE: verb(func(_ context.Context, _ *cobra.Command, args []string) error {
			_, m, err := findImage(args[0])
			if err != nil {
				return err
			}
			data, err := m.SBOM()
			if err != nil {
				return err
			}
			if output != "" {
				return writeFile(output, data, false)
			}
			if _, err := u.Out.Write(data); err != nil {
				return fmt.Errorf("printing the SBOM: %w", err)
			}
			return nil
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write (default: standard output)")
	return cmd
}
