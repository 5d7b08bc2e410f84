package bake

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
)

// contentsName is what a tree's step leaves beside the tree: hashing all of it
// takes longer than the rest of a build that has nothing to do.
const contentsName = "contents.json"

// contents are what the manifest says of a tree.
type contents struct {
	Packages []images.Package `json:"packages"`
	Files    []images.File    `json:"files"`
}

// describeTree writes the contents of a tree to a file.
func describeTree(ctx context.Context, root, to string) error {
	installed, err := readStatus(root)
	if err != nil {
		return err
	}
	var c contents
	for _, p := range installed {
		c.Packages = append(c.Packages, images.Package{Name: p.Name, Version: p.Version, Architecture: p.Architecture})
	}
	if c.Files, err = listFiles(ctx, root); err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// listFiles describes all that is in a tree, in the order of paths.
func listFiles(ctx context.Context, root string) ([]images.File, error) {
	var list []images.File
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		f := images.File{Path: strings.TrimPrefix(name, root), Type: "other", Mode: octal(info.Mode())}
		if f.Path == "" {
			f.Path = "/"
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			f.UID, f.GID = int(st.Uid), int(st.Gid)
		}
		switch {
		case info.IsDir():
			f.Type = "directory"
		case info.Mode()&fs.ModeSymlink != 0:
			f.Type = "link"
			if f.Target, err = os.Readlink(name); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			f.Type, f.Size = "file", info.Size()
			if f.SHA256, err = hashFile(ctx, name); err != nil {
				return err
			}
		}
		all, err := extendedOf(name)
		if err != nil {
			return err
		}
		f.Attributes = attributes(all)
		list = append(list, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the image's files: %w", err)
	}
	slices.SortFunc(list, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// octal is a mode as chmod(1) takes it.
func octal(m fs.FileMode) string {
	n := m.Perm()
	for flag, bit := range map[fs.FileMode]fs.FileMode{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			n |= bit
		}
	}
	return fmt.Sprintf("%04o", n)
}

// attributes are extended ones as the manifest has them; nil where there are none.
func attributes(all map[string][]byte) map[string]string {
	if len(all) == 0 {
		return nil
	}
	list := make(map[string]string, len(all))
	for key, value := range all {
		list[key] = hex.EncodeToString(value)
	}
	return list
}

// with gives the files of an image: those of its base, as the layer changes them.
func (c *contents) with(entries []disk.Entry) []images.File {
	changed := make(map[string]int, len(entries)) // path → entry, of several the last
	var gone []string                             // with all that is below
	for i := range entries {
		e := &entries[i]
		changed[e.Path] = i
		if e.Type != fs.ModeDir {
			gone = append(gone, e.Path+"/")
		}
	}
	below := func(path string) bool {
		return slices.ContainsFunc(gone, func(dir string) bool { return strings.HasPrefix(path, dir) })
	}
	files := make([]images.File, 0, len(c.Files)+len(entries))
	for i := range c.Files {
		if _, ok := changed[c.Files[i].Path]; !ok && !below(c.Files[i].Path) {
			files = append(files, c.Files[i])
		}
	}
	for i := range entries {
		if e := &entries[i]; e.Type != disk.Gone && changed[e.Path] == i {
			files = append(files, fileOfEntry(e))
		}
	}
	slices.SortFunc(files, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// fileOfEntry describes what a layer brings.
func fileOfEntry(e *disk.Entry) images.File {
	f := images.File{Path: e.Path, Type: "file", Mode: fmt.Sprintf("%04o", e.Mode&0o7777), UID: int(e.UID), GID: int(e.GID), Attributes: attributes(e.Extended)}
	switch e.Type {
	case fs.ModeDir:
		f.Type = "directory"
	case fs.ModeSymlink:
		f.Type, f.Target = "link", e.Target
	default:
		f.Size, f.SHA256 = int64(len(e.Content)), hash(e.Content)
	}
	return f
}
