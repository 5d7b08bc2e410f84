package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/ui"
)

// version is set by the linker for a release: -X main.version=1.2.3.
var version string

func newVersionCommand(u *ui.UI) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Print kiln's version",
		Long:              "Version prints which kiln this is, and what it was built with and for.",
		Example:           "  kiln version",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runVersion(ctx, u) }),
	}
}

func runVersion(_ context.Context, u *ui.UI) error {
	u.Printf("kiln %s (%s, %s/%s)\n", versionOf(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// versionOf is the release, else the commit that it was built from.
func versionOf() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	commit, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+changes"
		}
	}
	switch {
	case commit != "":
		return commit + changed
	case info.Main.Version != "":
		return info.Main.Version
	}
	return "(devel)"
}
