package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

func newImagesCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	var asJSON bool
	list := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
		cmd.RunE = verb(func(context.Context, *cobra.Command, []string) error { return runImagesList(asJSON, u) })
		return cmd
	}
	cmd := list(&cobra.Command{
		Use:     "images",
		Aliases: []string{"image"},
		Short:   "List, show, sign, verify, check, export and remove golden images",
		Long: `Images lists the golden images that kiln build has made, newest first. They are
in $KILN_CACHE/images, or else in .cache/kiln/images of the user's home.

An image is named by its ID, by the beginning of its ID, or by its profile: then
the newest is meant.`,
		Example: "  kiln images\n  kiln images export alissandra --format qcow2 -o alissandra.qcow2\n  kiln images prune --keep 2",
		Args:    onlyVerbs,
	})
	cmd.AddCommand(
		list(&cobra.Command{Use: "list", Short: "List the images", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions}),
		newImagesShowCommand(u), newImagesSBOMCommand(u), newImagesSignCommand(u), newImagesVerifyCommand(global, u), newImagesCheckCommand(global, u), newImagesExportCommand(u), newImagesRemoveCommand(u), newImagesPruneCommand(u),
	)
	return cmd
}

// findImage finds the image that is meant, as Store.Find does, in the user's store.
func findImage(what string) (*images.Store, *images.Manifest, error) {
	store, err := baking.OpenStore()
	if err != nil {
		return nil, nil, err
	}
	m, err := store.Find(what)
	return store, m, err
}

// useImage is findImage for whoever reads the image's files: they stay until release
// is called.
func useImage(what string) (store *images.Store, m *images.Manifest, release func(), err error) {
	if store, m, err = findImage(what); err != nil {
		return nil, nil, nil, err
	}
	release, err = store.Use(m.ID)
	return store, m, release, err
}

// imageInfo is an image as kiln images --json lists it.
type imageInfo struct {
	ID         string            `json:"id"`
	Profile    string            `json:"profile"`
	Definition string            `json:"definition"`
	Created    time.Time         `json:"created"`
	Packages   int               `json:"packages"`
	Size       int64             `json:"size"` // of its disk, in bytes
	Artifacts  []images.Artifact `json:"artifacts"`
	Directory  string            `json:"directory"`
	Signed     bool              `json:"signed"` // whoever signed it: kiln images verify tells
}

func infoOf(m *images.Manifest, store *images.Store) *imageInfo {
	i := &imageInfo{
		ID: m.ID, Profile: m.Profile, Definition: m.Definition, Created: m.Created, Packages: len(m.Packages), Artifacts: m.Artifacts, Directory: store.Path(m.ID, ""),
	}
	if m.Disk != nil {
		i.Size = m.Disk.Size
	}
	_, err := store.Signature(m.ID)
	i.Signed = err == nil
	return i
}

func runImagesList(asJSON bool, u *ui.UI) error {
	store, err := baking.OpenStore()
	if err != nil {
		return err
	}
	list, damaged, err := store.ListAll()
	if err != nil {
		return err
	}
	for _, d := range damaged {
		u.Notef("damaged: %v: kiln images remove %s", d.Err, d.ID[:12])
	}
	if asJSON {
		infos := make([]*imageInfo, len(list))
		for i, m := range list {
			infos[i] = infoOf(m, store)
		}
		return printJSON(u, infos)
	}
	if len(list) == 0 && len(damaged) == 0 {
		u.Notef("There are no images yet: kiln build PROFILE makes one.")
		return nil
	}
	w := tabwriter.NewWriter(u.Out, 0, 8, 2, ' ', 0)
	if len(list) > 0 {
		fmt.Fprintln(w, "ID\tPROFILE\tIMAGE\tMADE\tFORMATS")
	}
	for _, m := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Short(), m.Profile, m.Definition, m.Created.Local().Format("2006-01-02 15:04"), strings.Join(m.FormatsOf(), ","))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the images: %w", err)
	}
	return nil
}

// completeImages offers the images of the store.
func completeImages(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if store, err := baking.OpenStore(); err == nil {
		list, _ := store.List()
		for _, m := range list {
			names = append(names, cobra.CompletionWithDesc(m.Short(), m.Profile+" on "+m.Definition))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func newImagesShowCommand(u *ui.UI) *cobra.Command {
	var asJSON, packages, files bool
	cmd := &cobra.Command{
		Use:               "show IMAGE",
		Short:             "Show what an image is, and what it was made of",
		Example:           "  kiln images show alissandra\n  kiln images show 4f1c2e --packages\n  diff <(kiln images show A --files) <(kiln images show B --files)",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeImages,
		RunE: verb(func(_ context.Context, _ *cobra.Command, args []string) error {
			store, m, err := findImage(args[0])
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return printJSON(u, m)
			case packages:
				for _, p := range m.Packages {
					u.Printf("%s %s %s\n", p.Name, p.Version, p.Architecture)
				}
			case files:
				for _, f := range m.Files {
					u.Printf("%s\n", fileLine(&f))
				}
			default:
				showImage(u, m, store)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the manifest")
	cmd.Flags().BoolVar(&packages, "packages", false, "print its packages")
	cmd.Flags().BoolVar(&files, "files", false, "print its files")
	cmd.MarkFlagsMutuallyExclusive("json", "packages", "files")
	return cmd
}

func fileLine(f *images.File) string {
	line := fmt.Sprintf("%s %d:%d %s %s", f.Mode, f.UID, f.GID, cmp.Or(f.SHA256, "-"), f.Path)
	switch f.Type {
	case "link":
		line += " -> " + f.Target
	case "directory":
		line += "/"
	}
	return line
}

func showImage(u *ui.UI, m *images.Manifest, store *images.Store) {
	w := tabwriter.NewWriter(u.Out, 0, 8, 2, ' ', 0)
	row := func(what, format string, args ...any) { fmt.Fprintf(w, what+"\t"+format+"\n", args...) }
	row("ID", "%s", m.ID)
	row("profile", "%s", m.Profile)
	row("image", "%s (%s %s, %s)", m.Definition, m.Release.ID, m.Release.Version, m.Release.Architecture)
	row("made", "%s", m.Created.Local().Format(time.DateTime+" -0700"))
	row("folder", "%s", store.Path(m.ID, ""))
	row("content", "%d packages, %d files (--packages, --files)", len(m.Packages), len(m.Files))
	if m.Kernel != "" {
		row("kernel", "%s", strings.TrimSpace(strings.TrimPrefix(m.Kernel, "/boot/vmlinuz-")+"  "+m.KernelArguments))
	}
	if m.Disk != nil {
		row("disk", "%s", bytesOf(m.Disk.Size))
	}
	if _, err := store.Signature(m.ID); err == nil {
		row("signature", "%s (kiln images verify tells whose)", images.SignatureName)
	}
	_ = w.Flush()
	showFiles(u, m)
	var total float64
	u.Printf("\nsteps\n")
	for _, s := range m.Steps {
		total += s.Seconds
		how := ""
		if s.Cached {
			how = "  as an earlier build made it"
		}
		u.Printf("  %-8s %7.1f s%s\n", s.Name, s.Seconds, how)
	}
	u.Printf("  %-8s %7.1f s\n", "in all", total)
}

// showFiles lists an image's files; those of a netboot set, which are hundreds,
// as one.
func showFiles(u *ui.UI, m *images.Manifest) {
	u.Printf("\nfiles\n")
	var count, size int64
	for _, a := range m.Artifacts {
		if a.Format == images.FormatNetboot {
			count++
			size += a.Size
			continue
		}
		hashed := "sha256 " + a.SHA256
		if a.SHA256 == "" && m.Disk != nil {
			hashed = fmt.Sprintf("hashed in %d blocks", len(m.Disk.Blocks))
		}
		u.Printf("  %-14s %10s  %s\n", a.Name, bytesOf(a.Size), hashed)
	}
	if count > 0 {
		u.Printf("  %-14s %10s  %d files, each in %s\n", string(images.FormatNetboot)+"/", bytesOf(size), count, images.SumsName)
	}
}

// bytesOf is a size for people.
func bytesOf(n int64) string {
	if n < 10_000_000 {
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

func newImagesExportCommand(u *ui.UI) *cobra.Command {
	var output string
	var formats []string
	cmd := &cobra.Command{
		Use:   "export IMAGE -o PATH",
		Short: "Write an image to a file, or a netboot set to a folder",
		Long: `Export writes an image to a file, or into a folder that is there already, under
a name that tells what it is. A netboot set becomes a folder: kernel, initramfs, and
the disk in compressed chunks that chunks.json lists.

What is written appears when it's complete. An earlier file or netboot set of that
name is replaced then. Beside an image that is signed stands its manifest with the
signature, PATH.manifest.json and PATH.manifest.json.minisig.`,
		Example: `  kiln images export alissandra --format qcow2 -o alissandra.qcow2
  kiln images export alissandra --format netboot -o /srv/netboot/alissandra
  kiln images export 4f1c2e --format raw,qcow2,tar -o images/`,
		// Removing what is half-written takes as long as it takes.
		Annotations:       map[string]string{endsByItself: "yes"},
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeImages,
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runImagesExport(ctx, args[0], formats, output, u)
		}),
	}
	cmd.Flags().StringSliceVar(&formats, "format", []string{string(images.FormatRaw)}, "`FORMATS`: raw, qcow2, netboot, tar")
	cmd.Flags().StringVarP(&output, "output", "o", "", "`PATH` to write: a file, or a folder")
	complete(cmd, "format", "raw", "qcow2", "netboot", "tar")
	return cmd
}

func runImagesExport(ctx context.Context, what string, names []string, output string, u *ui.UI) error {
	if output == "" {
		return usagef("name a file or a folder to export to: -o PATH")
	}
	formats, err := images.ParseFormats(names)
	if err != nil {
		return usageError{err}
	}
	store, m, err := findImage(what)
	if err != nil {
		return err
	}
	info, err := os.Stat(output)
	isDir := err == nil && info.IsDir()
	switch {
	case err == nil && !isDir && !info.Mode().IsRegular():
		return fmt.Errorf("%s is there, and neither a regular file nor a folder: name another", output)
	case !isDir && len(formats) > 1:
		return usagef("several formats want a folder that is there: mkdir %s", output)
	case !isDir && strings.HasSuffix(output, "/") && formats[0] != images.FormatNetboot:
		return fmt.Errorf("there is no folder %s: make it, or name a file", output)
	case err == nil && !isDir && formats[0] == images.FormatNetboot:
		return fmt.Errorf("%s is a file, and a netboot set a folder: name another", output)
	}
	for _, f := range formats {
		to := filepath.Clean(output)
		if isDir && (len(formats) > 1 || f != images.FormatNetboot) {
			to = filepath.Join(output, m.ExportName(f))
		}
		if err := bake.Export(ctx, nil, store, m, f, to); err != nil {
			return err
		}
		u.Notef("wrote %s", to)
		if err := exportSignature(store, m, f, to, u); err != nil {
			return err
		}
	}
	return nil
}

func newImagesRemoveCommand(u *ui.UI) *cobra.Command {
	return &cobra.Command{
		Use:   "remove IMAGE…",
		Short: "Remove images",
		Long: `Remove removes images, each named by its ID, or the beginning of it. One that is
booted or exported at the time stays, and so does one that hosts are armed or being
installed with (kiln status), which is an error.`,
		Example:           "  kiln images remove 4f1c2e9a",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeImages,
		RunE: verb(func(_ context.Context, _ *cobra.Command, args []string) error {
			store, err := baking.OpenStore()
			if err != nil {
				return err
			}
			return runImagesRemove(store, args, u)
		}),
	}
}

func runImagesRemove(store *images.Store, names []string, u *ui.UI) error {
	var ids []string
	for _, n := range names {
		id, err := store.FindID(n)
		if err != nil {
			// Or it's the name of a profile, or of nothing.
			m, findErr := store.Find(n)
			switch {
			case findErr != nil:
				return findErr
			case !strings.HasPrefix(m.ID, n):
				return fmt.Errorf("%s is a profile's name: say which image of it, by its ID (the newest is %s)", n, m.Short())
			}
			return err
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var failed error
	for _, id := range ids {
		what := id[:12]
		if m, err := images.ReadManifest(store.Path(id, images.ManifestName)); err == nil {
			what += " (" + m.Profile + " on " + m.Definition + ")"
		}
		if err := store.Remove(id); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
			continue
		}
		u.Notef("removed %s", what)
	}
	return failed
}

func newImagesPruneCommand(u *ui.UI) *cobra.Command {
	var keep int
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove all but the newest images of each profile",
		Long: `Prune removes all but the newest images of each profile and definition, and what
builds have kept that no image is made of any more. What is booted or exported at
the time stays, and what hosts are armed or being installed with (kiln status), and
it says so.`,
		Example:           "  kiln images prune --keep 2",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: verb(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			if keep < 0 {
				return usagef("--keep %d: it's a number of images", keep)
			}
			store, err := baking.OpenStore()
			if err != nil {
				return err
			}
			dir, err := baking.CacheDir()
			if err != nil {
				return err
			}
			// Trees of builds have files of many owners.
			if _, err := os.Stat(filepath.Join(dir, "steps")); err == nil {
				if err := asOwner(ctx, "kiln images prune", dir, store); err != nil {
					return err
				}
			}
			removed, left, err := store.Prune(keep)
			for _, m := range removed {
				u.Notef("removed %s (%s on %s)", m.Short(), m.Profile, m.Definition)
			}
			for _, l := range left {
				u.Notef("left %s (%s on %s): %v", l.Short(), l.Profile, l.Definition, l.Why)
			}
			if err != nil {
				return err
			}
			freed, err := (&bake.Cache{Dir: dir}).Prune(store)
			switch {
			case errors.Is(err, bake.ErrBusy):
				u.Notef("left what builds keep: one goes on")
				return nil
			case freed > 0:
				u.Notef("removed what builds kept of images that are gone: %s", bytesOf(freed))
			}
			return err
		}),
	}
	cmd.Flags().IntVar(&keep, "keep", 1, "how many images of each profile and definition stay")
	return cmd
}
