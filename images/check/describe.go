package check

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ext4"
)

// Describe reads off a finished disk what a manifest says of an image: its files,
// packages, release, kernel and initramfs. It is for disks whose manifest isn't at
// hand, whatever has made them; the manifest is Bare.
func Describe(ctx context.Context, file string) (*images.Manifest, error) {
	m, err := describe(ctx, file)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("reading the disk %s: %w", file, err)
	}
	return m, nil
}

func describe(ctx context.Context, file string) (*images.Manifest, error) {
	d, err := openDisk(file)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	t, err := readTree(ctx, d)
	if err != nil {
		return nil, err
	}
	m := &images.Manifest{Bare: true}
	if err := t.release(m); err != nil {
		return nil, err
	}
	if m.Packages, err = t.installed(); err != nil {
		return nil, err
	}
	sums := map[uint32]string{} // hard links are read once
	add := func(name string, n *node) {
		if err != nil || ctx.Err() != nil || name == "/lost+found" {
			return
		}
		var f images.File
		if f, err = t.describe(name, n.inode, sums); err == nil {
			m.Files = append(m.Files, f)
		}
	}
	add("/", t.root)
	t.root.walk("", add)
	if err = errors.Join(err, context.Cause(ctx)); err != nil {
		return nil, err
	}
	slices.SortFunc(m.Files, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	m.Kernel, m.Initrd = images.Newest(m.Files, "/boot/vmlinuz-"), images.Newest(m.Files, "/boot/initrd.img-")
	return m, nil
}

// describe is one entry, as a build writes it into its manifest.
func (t *tree) describe(name string, i *ext4.Inode, sums map[uint32]string) (f images.File, err error) {
	f = images.File{Path: name, Type: "other", Mode: fmt.Sprintf("%04o", i.Permissions()), UID: int(i.UID), GID: int(i.GID)}
	switch {
	case i.IsDir():
		f.Type = "directory"
	case i.IsLink():
		f.Type, f.Mode = "link", "0777"
		f.Target, err = t.disk.fs.Readlink(i)
	case i.IsRegular():
		f.Type, f.Size = "file", i.Size
		f.SHA256, err = t.sum(i, sums)
	}
	if err != nil {
		return f, fmt.Errorf("%s: %w", name, err)
	}
	all, err := t.disk.fs.Attributes(i)
	if err != nil {
		return f, fmt.Errorf("%s: %w", name, err)
	}
	for key, value := range all {
		if f.Attributes == nil {
			f.Attributes = map[string]string{}
		}
		f.Attributes[key] = hex.EncodeToString(value)
	}
	return f, nil
}

func (t *tree) sum(i *ext4.Inode, sums map[uint32]string) (string, error) {
	if sum, ok := sums[i.Number]; ok {
		return sum, nil
	}
	content, err := t.disk.fs.File(i)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(content, 0, content.Size())); err != nil {
		return "", err
	}
	sums[i.Number] = hex.EncodeToString(h.Sum(nil))
	return sums[i.Number], nil
}

// release reads os-release.
func (t *tree) release(m *images.Manifest) error {
	b, err := t.read(t.stat("/etc/os-release"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			m.Release.ID = value
		case "VERSION_ID":
			m.Release.Version = value
		case "VERSION_CODENAME":
			m.Release.Codename = value
		}
	}
	return nil
}

// installed are the packages that dpkg has as installed, in the order of names.
func (t *tree) installed() ([]images.Package, error) {
	b, err := t.read(t.stat(path.Join(dpkgDir, "status")))
	if err != nil {
		return nil, err
	}
	installed, err := images.ReadInstalled(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	var list []images.Package
	for _, p := range installed {
		list = append(list, images.Package{Name: p.Name, Version: p.Version, Architecture: p.Architecture})
	}
	return list, nil
}
