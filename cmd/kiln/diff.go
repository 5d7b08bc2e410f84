package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

func newDiffCommand(u *ui.UI) *cobra.Command {
	var asJSON, files bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Compare two images, and say what made them differ",
		Long: `Diff shows how the image B differs from A: packages, files, modes and owners, units,
kernel and its command line, and which input of the build caused it. An image is
named by its ID, the beginning of it, or its profile: then its newest is meant. A name
with a slash in it is a disk's file, raw or qcow2, whatever has made that: of its root
file system (ext4), the content is compared.

The exit status is 0 if the images are the same, 1 if they differ, and 2 if anything
is in the way of comparing them.`,
		Example: `  kiln diff plain alissandra
  kiln diff 4f1c2e alissandra --files      # what has the last build changed?
  kiln diff alissandra output/alissandra.qcow2   # has Packer made the same?
  kiln diff 4f1c2e alissandra --json | jq -r '.packages[].name'`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			if strings.Contains(prefix, "/") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeBootable(cmd, nil, prefix)
		},
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			return runDiff(ctx, args[0], args[1], asJSON, files, u)
		}),
	}
	cmd.Flags().BoolVar(&files, "files", false, "list all files, however many they are")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all that differs as JSON")
	return cmd
}

// runDiff has its own exit statuses: any error but errShown is trouble.
func runDiff(ctx context.Context, a, b string, asJSON, allFiles bool, u *ui.UI) error {
	d, err := diff(ctx, a, b)
	if err == nil {
		if asJSON {
			err = printJSON(u, d)
		} else {
			err = printDiff(u.Out, d, allFiles)
		}
	}
	switch {
	case err != nil:
		return &troubleError{err}
	case !d.Same:
		return errShown
	}
	return nil
}

// The most that the table shows of one kind.
const (
	mostFiles  = 20 // below one folder of the root
	mostCauses = 20
)

// sections prints what differs, a section for each kind.
type sections struct{ w *tabwriter.Writer }

func (s *sections) head(format string, args ...any) { fmt.Fprintf(s.w, "\n"+format+"\n", args...) }

// row prints cells, which may come from somebody else's image.
func (s *sections) row(cells ...string) {
	for i := range cells {
		cells[i] = visible(strings.ReplaceAll(cells[i], "\n", " ⏎ "))
	}
	fmt.Fprintln(s.w, "  "+strings.Join(cells, "\t"))
}

func printDiff(out io.Writer, d *images.Diff, allFiles bool) error {
	s := &sections{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	for _, c := range []struct {
		name string
		of   *images.Compared
	}{{"A", &d.A}, {"B", &d.B}} {
		if c.of.ID == "" {
			fmt.Fprintln(s.w, visible(fmt.Sprintf("%s  the disk %s", c.name, c.of.Profile)))
			continue
		}
		fmt.Fprintln(s.w, visible(fmt.Sprintf("%s  %s  %s on %s, made %s", c.name, c.of.ID[:min(12, len(c.of.ID))], c.of.Profile, c.of.Definition, c.of.Created.Local().Format("2006-01-02 15:04"))))
	}
	if d.Same {
		fmt.Fprintln(s.w, "\nThe images are the same.")
	}
	if len(d.About) > 0 {
		s.head("of")
		s.changes(d.About)
	}
	s.packages(d.Packages)
	s.files(d.Files, allFiles)
	s.modes(d.Modes, allFiles)
	if len(d.Units) > 0 {
		s.head("units")
		for _, c := range d.Units {
			s.row(c.Name, c.Before.String()+" → "+c.After.String())
		}
	}
	if len(d.Kernel) > 0 {
		s.head("kernel")
		s.changes(d.Kernel)
	}
	s.disk(d.Disk)
	s.causes(d)
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("printing the difference: %w", err)
	}
	return nil
}

func (s *sections) changes(list []images.Change) {
	for _, c := range list {
		s.row(c.Name, between(c.Before, c.After))
	}
}

func (s *sections) packages(list []images.PackageChange) {
	if len(list) == 0 {
		return
	}
	n := map[string]int{}
	for _, c := range list {
		n[c.Change]++
	}
	s.head("packages: %s", counts(n, "of another version"))
	for _, c := range list {
		switch {
		case c.Change == images.Added:
			s.row("+ "+c.Name, c.After.Version)
		case c.Change == images.Removed:
			s.row("- "+c.Name, c.Before.Version)
		case c.Before.Version != c.After.Version:
			s.row("~ "+c.Name, c.Before.Version+" → "+c.After.Version)
		case c.Before.Architecture != c.After.Architecture:
			s.row("~ "+c.Name, c.Before.Architecture+" → "+c.After.Architecture)
		default:
			s.row("~ "+c.Name, c.Before.Version+", made anew: SHA-256 "+between(c.Before.SHA256, c.After.SHA256))
		}
	}
}

// counts says how many were added, removed and changed.
func counts(n map[string]int, changed string) string {
	var parts []string
	for _, p := range []struct{ change, word string }{{images.Added, "added"}, {images.Removed, "removed"}, {images.Changed, changed}} {
		if n[p.change] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[p.change], p.word))
		}
	}
	return strings.Join(parts, ", ")
}

// top is the folder of the root that a path is in.
func top(path string) string {
	parts := strings.SplitN(path, "/", 3)
	if len(parts) < 3 {
		return path
	}
	return "/" + parts[1] + "/"
}

func (s *sections) files(list []images.FileChange, all bool) {
	if len(list) == 0 {
		return
	}
	n, below := map[string]int{}, map[string]map[string]int{}
	for _, c := range list {
		n[c.Change]++
		t := top(c.Path)
		if below[t] == nil {
			below[t] = map[string]int{}
		}
		below[t][c.Change]++
	}
	s.head("files: %s", counts(n, "changed"))
	folded := ""
	for _, c := range list {
		t := top(c.Path)
		switch m := below[t]; {
		case all || m[images.Added]+m[images.Removed]+m[images.Changed] <= mostFiles:
			s.file(&c)
		case t != folded:
			folded = t
			s.row("  "+t+" …", counts(m, "changed")+" (--files lists them)")
		}
	}
}

func (s *sections) file(c *images.FileChange) {
	switch c.Change {
	case images.Added:
		s.row("+ " + c.Path + kind(c.After))
	case images.Removed:
		s.row("- " + c.Path + kind(c.Before))
	default:
		what := strings.Join(c.What, ", ")
		if slices.Contains(c.What, "target") {
			what += " " + between(c.Before.Target, c.After.Target)
		}
		s.row("~ "+c.Path, what)
	}
}

// kind shows what an entry is, as kiln images show --files does.
func kind(f *images.File) string {
	switch f.Type {
	case "directory":
		return "/"
	case "link":
		return " -> " + f.Target
	}
	return ""
}

func (s *sections) modes(list []images.ModeChange, all bool) {
	if len(list) == 0 {
		return
	}
	s.head("modes and owners: %d changed", len(list))
	below := map[string]int{}
	for _, c := range list {
		below[top(c.Path)]++
	}
	folded := ""
	for _, c := range list {
		switch t := top(c.Path); {
		case all || below[t] <= mostFiles:
			s.row("~ "+c.Path, c.Before.String()+" → "+c.After.String())
		case t != folded:
			folded = t
			s.row("  "+t+" …", fmt.Sprintf("%d changed (--files lists them)", below[t]))
		}
	}
}

func (s *sections) disk(d *images.DiskChange) {
	switch {
	case d == nil:
	case d.Before == 0:
		s.head("disk: only B has one, of %s", bytesOf(d.After))
	case d.After == 0:
		s.head("disk: only A has one, of %s", bytesOf(d.Before))
	case d.Before != d.After:
		s.head("disk: %s → %s, %d of %d blocks differ", bytesOf(d.Before), bytesOf(d.After), d.Blocks, d.Of)
	case d.Of > 0:
		s.head("disk: %d of %d blocks differ", d.Blocks, d.Of)
	default:
		s.head("disk: its blocks aren't of the same size")
	}
}

func (s *sections) causes(d *images.Diff) {
	if len(d.Causes) > 0 {
		s.head("caused by")
	}
	for i, c := range d.Causes {
		if i == mostCauses {
			s.row(fmt.Sprintf("… and %d more (--json lists them)", len(d.Causes)-i))
			break
		}
		input := c.Input
		if input == "recipe" {
			input = "recipe (Kiln itself, of another version)"
		}
		s.row(strings.Join(c.Steps, ", "), input, cause(&c))
	}
	switch {
	case len(d.Remade) > 0:
		s.row("so these steps ran again: " + strings.Join(d.Remade, ", "))
	case len(d.Causes) == 0 && !d.Same && d.A.ID != "" && d.B.ID != "":
		s.head("caused by nothing that the manifests tell of")
	}
	if len(d.Tools) > 0 {
		s.head("made with other tools")
		s.changes(d.Tools)
	}
}

// cause shows how an input differs: of a list or a text, what came and what went.
func cause(c *images.Cause) string {
	switch {
	case c.Change == images.Added:
		return "new: " + shorten(c.After)
	case c.Change == images.Removed:
		return "gone: " + shorten(c.Before)
	}
	return between(c.Before, c.After)
}

// between shows two values: whole if they are short, else what differs of their
// lines or words.
func between(before, after string) string {
	const most = 60
	if before == "" {
		before = "none"
	}
	if after == "" {
		after = "none"
	}
	separator := " "
	if strings.Contains(before+after, "\n") {
		separator = "\n"
	}
	if images.IsHash(before) || images.IsHash(after) || separator == " " && len(before)+len(after) <= most {
		return shorten(before) + " → " + shorten(after)
	}
	gone, come := images.ChangedParts(before, after, separator)
	var parts []string
	for _, w := range gone {
		parts = append(parts, "-"+shorten(w))
	}
	for _, w := range come {
		parts = append(parts, "+"+shorten(w))
	}
	if len(parts) == 0 {
		return "in another order"
	}
	const mostParts = 12
	if len(parts) > mostParts {
		parts = append(parts[:mostParts], fmt.Sprintf("… and %d more", len(parts)-mostParts))
	}
	if separator == "\n" {
		return strings.Join(parts, "; ")
	}
	return strings.Join(parts, " ")
}

// shorten cuts hashes, and what is too long for a line.
func shorten(s string) string {
	const most = 160
	words := strings.Split(s, " ")
	for i, w := range words {
		if images.IsHash(w) {
			words[i] = w[:12]
		}
	}
	s = strings.Join(words, " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
