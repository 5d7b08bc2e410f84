package bake

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/internal/run"
)

// layerName is the layer's file in its step's result: what an image has besides
// its packages, in the form that container images have: a tar in the order of
// paths, in which .wh.NAME says that NAME is gone.
const layerName = "layer.tar"

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq" // all that the base has in the folder is gone
)

// layerStep makes the layer: out/layer.tar. The scripts of the plan run in a tree
// that shows the base, and what they change is the layer.
func (b *builder) layerStep(base Result, sources []source) (Step, error) {
	l, err := b.layer(sources)
	if err != nil {
		return Step{}, err
	}
	arguments := b.kernelArguments()
	s := Step{Name: stepLayer, Inputs: []Input{
		{"recipe", "1"}, {"base", base.Key}, {"seal", hash([]byte(l.seal))},
		{"kernel arguments", strings.Join(arguments, " ")}, {"clock", strconv.FormatInt(b.epoch, 10)},
	}}
	more, err := l.inputs()
	if err != nil {
		return Step{}, err
	}
	s.Inputs = append(s.Inputs, more...)
	tree := filepath.Join(base.Dir, "tree")
	s.Run = func(ctx context.Context, dir string) error {
		if err := b.nothingInstalled(tree); err != nil {
			return err
		}
		work := filepath.Join(dir, "work")
		err := overlaid(tree, work, func(root string) error {
			if b.definition.Kernel != "" && len(arguments) > 0 {
				if err := disk.Configure(root, arguments, b.ids); err != nil {
					return err
				}
			}
			return b.apply(ctx, root, l)
		})
		if err != nil {
			return err
		}
		entries, err := changed(ctx, tree, filepath.Join(work, "up"))
		if err != nil {
			return fmt.Errorf("reading the layer: %w", err)
		}
		data, err := encodeLayer(entries, b.epoch)
		if err != nil {
			return fmt.Errorf("writing the layer: %w", err)
		}
		return errors.Join(os.WriteFile(filepath.Join(dir, layerName), data, 0o600), os.RemoveAll(work))
	}
	return s, nil
}

func (b *builder) kernelArguments() []string {
	var list []string
	for _, a := range b.image.KernelArguments {
		list = append(list, a.Value)
	}
	return list
}

// inputs are what the layer is made of, each by itself, so that one can be named
// that has changed.
func (l *layer) inputs() ([]Input, error) {
	var list []Input
	for _, d := range l.directories {
		list = append(list, Input{"directory " + d.Path, fmt.Sprintf("%s:%s %o", d.Owner, d.Group, d.Mode)})
	}
	for _, f := range l.files {
		content, err := f.Content.Bytes()
		if err != nil {
			return nil, fmt.Errorf("the content of %s: %w", f.Path, err)
		}
		value := fmt.Sprintf("%s:%s %o %s", f.Owner, f.Group, f.Mode, hash(content))
		if f.Target != "" {
			value = "link to " + f.Target
		}
		list = append(list, Input{"file " + f.Path, value})
	}
	for i := range l.groups {
		list = append(list, Input{"group " + l.groups[i].Name, strings.TrimSpace(groupScript(&l.groups[i]))})
	}
	for i := range l.users {
		u := &l.users[i]
		list = append(list, Input{"user " + u.Name, strings.TrimSpace(userScript(u, l.groups))})
		if len(u.SSHKeys) > 0 {
			list = append(list, Input{"SSH keys of " + u.Name, strings.Join(u.SSHKeys, "\n")})
		}
	}
	for _, u := range l.enabled {
		list = append(list, Input{"unit " + u.Name, string(u.State)})
	}
	return list, nil
}

// apply lays l over the tree at root, and seals it.
func (b *builder) apply(ctx context.Context, root string, l *layer) error {
	if err := b.inside(ctx, root, l.script); err != nil {
		return fmt.Errorf("making the users and groups: %w", err)
	}
	names, err := readNames(root)
	if err != nil {
		return err
	}
	t := &treeWriter{root: root, names: names}
	if err := t.write(l.files, l.directories); err != nil {
		return err
	}
	if err := t.sshKeys(l.users); err != nil {
		return err
	}
	if err := b.inside(ctx, root, l.units); err != nil {
		return b.explainUnits(err)
	}
	return b.sealing(ctx, root, l.seal, l.keep)
}

// sealing takes out of a tree what no golden image may have.
func (b *builder) sealing(ctx context.Context, root, script string, keep map[string]bool) error {
	if err := b.run.Run(ctx, run.Command{Name: "sh", Args: []string{"-eu", "-s", root}, Stdin: strings.NewReader(script), Env: []string{"BUILD_USER=root", "LC_ALL=C.UTF-8"}}); err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	return sealTree(root, keep)
}

// changed lists what the folder of an overlay has that its base hasn't.
func changed(ctx context.Context, base, up string) ([]disk.Entry, error) {
	var entries []disk.Entry
	err := filepath.WalkDir(up, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		at := strings.TrimPrefix(name, up)
		if at == "" {
			at = "/"
		}
		e, isOpaque, err := entryOf(name, at)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if isOpaque {
			entries = append(entries, disk.Entry{Path: at, Type: disk.Gone})
		} else if e.Type != disk.Gone {
			// Looked at is copied, and so are the folders above.
			was, _, err := entryOf(filepath.Join(base, at), at)
			if err == nil && same(e, was) {
				return nil
			}
		}
		entries = append(entries, *e)
		return nil
	})
	slices.SortStableFunc(entries, func(a, b disk.Entry) int { return strings.Compare(a.Path, b.Path) })
	return entries, err
}

// entryOf describes a file of a tree; isOpaque is that a folder hides what the
// base has at its place.
func entryOf(name, at string) (e *disk.Entry, isOpaque bool, err error) {
	info, err := os.Lstat(name)
	if err != nil {
		return nil, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, false, errors.New("this system doesn't say whose it is")
	}
	e = &disk.Entry{Path: at, Type: info.Mode().Type(), Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid}
	switch {
	case info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0:
		return &disk.Entry{Path: at, Type: disk.Gone}, false, nil
	case info.Mode()&fs.ModeSymlink != 0:
		e.Mode = 0o777
		e.Target, err = os.Readlink(name)
	case info.Mode().IsRegular():
		e.Content, err = os.ReadFile(name)
	case !info.IsDir():
		err = fmt.Errorf("a layer has files, directories and links, and no %s", e.Type)
	}
	if err != nil {
		return nil, false, err
	}
	all, err := extendedOf(name)
	for key, value := range all {
		isOpaque = isOpaque || strings.HasSuffix(key, ".overlay.opaque") && string(value) == "y"
		if strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.") {
			delete(all, key)
		}
	}
	if len(all) > 0 {
		e.Extended = all
	}
	return e, isOpaque, err
}

func same(a, b *disk.Entry) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Target == b.Target &&
		bytes.Equal(a.Content, b.Content) && maps.EqualFunc(a.Extended, b.Extended, bytes.Equal)
}

// extendedOf are a file's extended attributes; nil where there are none.
func extendedOf(name string) (map[string][]byte, error) {
	const most = 64 << 10 // Linux's limit of both
	size, err := unix.Llistxattr(name, nil)
	if err != nil || size == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	buf := make([]byte, most)
	if size, err = unix.Llistxattr(name, buf); err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	all := map[string][]byte{}
	value := make([]byte, most)
	for key := range strings.SplitSeq(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		all[key] = slices.Clone(value[:n])
	}
	return all, nil
}

// xattrRecord is what tar calls an extended attribute.
const xattrRecord = "SCHILY.xattr."

// encodeLayer writes a layer's tar.
func encodeLayer(entries []disk.Entry, clock int64) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range entries {
		e := &entries[i]
		h := &tar.Header{Name: strings.TrimPrefix(e.Path, "/"), Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: time.Unix(clock, 0), Format: tar.FormatPAX}
		for key, value := range e.Extended {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrRecord+key] = string(value)
		}
		switch e.Type {
		case disk.Gone:
			h.Typeflag, h.Name = tar.TypeReg, path.Join(path.Dir(h.Name), whiteout+path.Base(h.Name))
			if i+1 < len(entries) && entries[i+1].Path == e.Path {
				h.Name = path.Join(strings.TrimPrefix(e.Path, "/"), opaque)
			}
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, "./"+h.Name
			h.Name = strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/") + "/"
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.Content))
		}
		if h.Name == "/" {
			h.Name = "./"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
		if _, err := w.Write(e.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// decodeLayer reads what encodeLayer has written.
func decodeLayer(data []byte) ([]disk.Entry, error) {
	var entries []disk.Entry
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		e := disk.Entry{Path: path.Clean("/" + h.Name), Mode: uint16(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Target: h.Linkname}
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, xattrRecord); ok {
				if e.Extended == nil {
					e.Extended = map[string][]byte{}
				}
				e.Extended[name] = []byte(value)
			}
		}
		base := path.Base(e.Path)
		switch {
		case base == opaque:
			e = disk.Entry{Path: path.Dir(e.Path), Type: disk.Gone}
		case strings.HasPrefix(base, whiteout):
			e = disk.Entry{Path: path.Join(path.Dir(e.Path), strings.TrimPrefix(base, whiteout)), Type: disk.Gone}
		case h.Typeflag == tar.TypeDir:
			e.Type = fs.ModeDir
		case h.Typeflag == tar.TypeSymlink:
			e.Type = fs.ModeSymlink
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%s is of a type that no layer has", h.Name)
		default:
			if e.Content, err = io.ReadAll(r); err != nil {
				return nil, fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		entries = append(entries, e)
	}
}
