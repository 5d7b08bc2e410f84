// Package render turns a Plan into the texts that bring a host up: cloud-init's
// user-data, meta-data and network-config, a NoCloud seed, a tree of files,
// Ignition and Butane, and a Packer template.
//
// All of it is pure: the same plan gives the same bytes. Contents that wait for
// a secret are written with its reference, unless the caller resolved them
// first with plan.Plan.WithSecrets.
package render

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// Target says what kind of image the output is for, and with it which halves
// of the plan it carries.
type Target int

const (
	// Golden is a golden image of ours, which has the Image half already: the
	// output carries the Host half alone.
	Golden Target = iota
	// Stock is somebody else's cloud image: the output carries both halves.
	Stock
	// imageOnly is a machine that becomes a golden image: the output carries
	// the Image half alone, and starts nothing of it.
	imageOnly
)

// String is the target as the command line spells it.
func (t Target) String() string {
	switch t {
	case Golden:
		return "golden"
	case Stock:
		return "stock"
	case imageOnly:
		return "image"
	}
	return "Target(" + strconv.Itoa(int(t)) + ")"
}

// ParseTarget reads a target as the command line spells it.
func ParseTarget(s string) (Target, error) {
	switch s {
	case "golden":
		return Golden, nil
	case "stock":
		return Stock, nil
	}
	return 0, fmt.Errorf("no target is called %q: use golden for an image of ours, stock for somebody else's cloud image", s)
}

func (t Target) hasImage() bool { return t != Golden }
func (t Target) hasHost() bool  { return t != imageOnly }

// Options are the caller's choices. Its zero value renders for a golden image.
type Options struct {
	Target Target
	// Gzip compresses user-data, which cloud-init unpacks by itself.
	Gzip bool
	// Variant is the system that Butane and Ignition configs are for; empty is
	// Flatcar.
	Variant Variant
	// Provisioner is what a Packer template has bring the Image half into the
	// machine; empty is cloud-init.
	Provisioner Provisioner
}

// Paths that Kiln's own machinery reads on a host. The profile base, which
// holds that machinery, knows the same ones.
const (
	// ManifestPath lists the Host half's files; it is the last one written.
	ManifestPath = "/etc/kiln/host.manifest"
	// DisksPath lists the data disks.
	DisksPath = "/etc/kiln/disks"
	// TmpfilesPath lists the directories of both halves, as tmpfiles.d(5) has them.
	// It isn't in tmpfiles.d itself: systemd reads that before data disks are
	// mounted, and would make them on the bare mount points.
	TmpfilesPath = "/etc/kiln/directories.conf"
	// BootTmpfilesPath is the same list on a host without the profile base, which
	// has no data disks, and nothing but systemd to make its directories.
	BootTmpfilesPath = "/etc/tmpfiles.d/kiln.conf"
	// ImageListPath has the path of each file of the Image half: what moves from
	// the Host half into the Image half is no leftover.
	ImageListPath = "/etc/kiln/image.list"
	// markPath is there once this host has all that was delivered to it.
	markPath = "/etc/kiln/host-ready"
	// hostUnit looks at all that, and sets the mark that agents wait for.
	hostUnit = "kiln-host.service"
)

// Manifest is the content of ManifestPath: for each file one line
//
//	SHA256  MODE OWNER GROUP PATH
//
// sorted by path, with a mode of four octal digits. A host holds its agents
// back until every file that is listed is there with that hash. Symbolic links
// have no content and aren't listed.
func Manifest(files []plan.File) ([]byte, error) {
	files = slices.Clone(files)
	slices.SortStableFunc(files, func(a, b plan.File) int { return strings.Compare(a.Path, b.Path) })
	b := make([]byte, 0, 128*len(files))
	for i := range files {
		f := &files[i]
		if f.Target != "" || f.Path == ManifestPath {
			continue
		}
		if err := checkFile(f); err != nil {
			return nil, err
		}
		content, err := f.Content.Bytes()
		if err != nil {
			return nil, fmt.Errorf("the content of %s: %w", f.Path, err)
		}
		sum := sha256.Sum256(content)
		b = hex.AppendEncode(b, sum[:])
		b = append(b, ' ', ' ')
		b = appendMode(b, f.Mode)
		for _, word := range []string{f.Owner, f.Group, f.Path} {
			b = append(b, ' ')
			b = append(b, word...)
		}
		b = append(b, '\n')
	}
	return b, nil
}

// hostFiles is every file of the Host half: the plan's own, and those that Kiln
// makes for each host (directories, data disks, sudo, the Image half's paths), sorted by path, and the
// manifest of all of them last. It is the same for every format. The host's
// name isn't among them: cloud-init sets it, and Ignition adds /etc/hostname.
func hostFiles(p *plan.Plan) ([]plan.File, error) {
	files := make([]plan.File, 0, len(p.Host.Files)+4)
	files = append(files, p.Host.Files...)
	disks, err := disksFile(p.Host.Disks)
	if err != nil {
		return nil, err
	}
	directories, err := tmpfilesFile(tmpfilesAt(p), p.Image.Directories, p.Host.Directories)
	if err != nil {
		return nil, err
	}
	files = append(files, disks, directories, imageList(&p.Image))
	files = append(files, sudoFiles(p.Host.Users)...)
	slices.SortStableFunc(files, func(a, b plan.File) int { return strings.Compare(a.Path, b.Path) })
	if err := checkTwice(files); err != nil {
		return nil, err
	}
	manifest, err := Manifest(files)
	if err != nil {
		return nil, err
	}
	return append(files, rootFile(ManifestPath, 0o600, manifest)), nil
}

// checkTwice finds two files for one path in files, which are sorted by path.
func checkTwice(files []plan.File) error {
	for i := range files {
		if files[i].Path == ManifestPath || i > 0 && files[i].Path == files[i-1].Path {
			return fmt.Errorf("%s: Kiln makes %s itself: give that file another path", files[i].Origin, files[i].Path)
		}
	}
	return nil
}

// rootFile is a file of root's that Kiln makes.
func rootFile(path string, mode fs.FileMode, content []byte) plan.File {
	return plan.File{Path: path, Owner: "root", Group: "root", Mode: mode, Content: plan.Literal(content)}
}

// disksFile has a line for each data disk, with tabs between its fields and -
// for what isn't set: mount point, file system, mount options, serial, WWN,
// path, smallest and largest size in bytes.
func disksFile(disks []plan.DataDisk) (plan.File, error) {
	b := []byte("# mount\tfilesystem\toptions\tserial\twwn\tpath\tmin_size\tmax_size\n")
	// A disk that is mounted below another comes after it, whatever the order in
	// the inventory.
	disks = slices.Clone(disks)
	slices.SortStableFunc(disks, func(a, b plan.DataDisk) int { return strings.Compare(a.Mount, b.Mount) })
	for _, d := range disks {
		fields := []string{d.Mount, d.Filesystem, d.Options, d.Disk.Serial, d.Disk.WWN, d.Disk.Path, size(d.Disk.MinSize), size(d.Disk.MaxSize)}
		for i, field := range fields {
			if strings.ContainsFunc(field, notInWord) {
				return plan.File{}, fmt.Errorf("%s: the data disk at %s has %q in its rule: no field may hold white space or control characters",
					d.Origin, d.Mount, field)
			}
			if i > 0 {
				b = append(b, '\t')
			}
			b = append(b, cmp.Or(field, "-")...)
		}
		b = append(b, '\n')
	}
	return rootFile(DisksPath, 0o644, b), nil
}

func size(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return strconv.FormatInt(bytes, 10)
}

// tmpfilesFile makes the directories of both halves: one below a data disk's
// mount point can only be made once that is mounted, so the image can't bring
// it. The Host half's word counts where both name a directory.
func tmpfilesFile(at string, image, host []plan.Directory) (plan.File, error) {
	var b bytes.Buffer
	b.WriteString("# The directories of this host, made by kiln.\n")
	for _, d := range mergeDirectories(image, host) {
		path, err := tmpfilesPath(d.Path)
		if err == nil {
			err = checkNames(d.Owner, d.Group)
		}
		if err != nil {
			return plan.File{}, fmt.Errorf("%s: the directory %q: %w", d.Origin, d.Path, err)
		}
		b.WriteString("d " + path + " ")
		b.Write(appendMode(b.AvailableBuffer(), d.Mode))
		b.WriteString(" " + d.Owner + " " + d.Group + " -\n")
	}
	return rootFile(at, 0o644, b.Bytes()), nil
}

// tmpfilesAt is where the list of a host's directories belongs.
func tmpfilesAt(p *plan.Plan) string {
	if hasUnit(p, hostUnit) {
		return TmpfilesPath
	}
	return BootTmpfilesPath
}

// hasUnit tells whether the plan has an enabled unit of that name, in either
// half.
func hasUnit(p *plan.Plan, unit string) bool {
	for _, units := range [][]plan.Unit{p.Host.Units, p.Image.Units} {
		for i := range units {
			if units[i].Name == unit {
				return units[i].State == plan.UnitEnabled
			}
		}
	}
	return false
}

// imageList has the paths of the Image half's files, one a line, sorted.
func imageList(image *plan.Image) plan.File {
	var paths []string
	for _, files := range [][]plan.File{image.Files, sudoFiles(image.Users)} {
		for i := range files {
			paths = append(paths, files[i].Path)
		}
	}
	slices.Sort(paths)
	var b []byte
	for _, path := range slices.Compact(paths) {
		b = append(append(b, path...), '\n')
	}
	return rootFile(ImageListPath, 0o644, b)
}

// mergeDirectories is both lists as one, sorted by path.
func mergeDirectories(image, host []plan.Directory) []plan.Directory {
	all := make([]plan.Directory, 0, len(image)+len(host))
	// The host's come first, so that they stay where a path occurs twice.
	all = append(append(all, host...), image...)
	slices.SortStableFunc(all, func(a, b plan.Directory) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(all, func(a, b plan.Directory) bool { return a.Path == b.Path })
}

// tmpfilesPath writes a path as tmpfiles.d(5) wants it: specifiers doubled, and
// C-style quotes around what a line would split.
func tmpfilesPath(path string) (string, error) {
	if !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, notInLine) {
		return "", fmt.Errorf("a path is absolute and has no control characters")
	}
	path = strings.ReplaceAll(path, "%", "%%")
	if !strings.ContainsAny(path, ` "'\`) && !strings.ContainsFunc(path, notInWord) {
		return path, nil
	}
	return `"` + strings.ReplaceAll(strings.ReplaceAll(path, `\`, `\\`), `"`, `\"`) + `"`, nil
}

// sudoFiles lets users become root without a password. One file for each, so
// that rendering again replaces it, where cloud-init's own sudo key appends
// another line at each run.
func sudoFiles(users []plan.User) []plan.File {
	var files []plan.File
	for _, u := range users {
		if u.Sudo {
			f := rootFile("/etc/sudoers.d/90-kiln-"+u.Name, 0o440, []byte(u.Name+" ALL=(ALL:ALL) NOPASSWD:ALL\n"))
			f.Origin = u.Origin
			files = append(files, f)
		}
	}
	return files
}

// appendMode adds a mode as chmod(1) takes it, as four octal digits.
func appendMode(b []byte, mode fs.FileMode) []byte {
	m := uint32(mode) & 0o7777
	return append(b, '0'+byte(m>>9), '0'+byte(m>>6&7), '0'+byte(m>>3&7), '0'+byte(m&7))
}

// checkFile refuses what no format could put into one line.
func checkFile(f *plan.File) error {
	if !strings.HasPrefix(f.Path, "/") || strings.ContainsFunc(f.Path, notInLine) {
		return fmt.Errorf("%s: the file %q: a path is absolute and has no control characters", f.Origin, f.Path)
	}
	if strings.ContainsFunc(f.Target, notInLine) {
		return fmt.Errorf("%s: the link %s has the target %q: a target has no control characters", f.Origin, f.Path, f.Target)
	}
	if err := checkNames(f.Owner, f.Group); err != nil {
		return fmt.Errorf("%s: the file %s: %w", f.Origin, f.Path, err)
	}
	return nil
}

// checkNames refuses names of users and groups that would be more than one
// word, or an option, to the programs that get them.
func checkNames(names ...string) error {
	for _, name := range names {
		if name == "" {
			return fmt.Errorf("an owner or group is missing")
		}
		for i := range len(name) {
			c := name[i]
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
			if !letter && (i == 0 && c == '-' || !(c >= '0' && c <= '9' || c == '-' || c == '.' || c == '$' && i == len(name)-1)) {
				return fmt.Errorf("%q is no name of a user or group: use letters, digits, - and _", name)
			}
		}
	}
	return nil
}
