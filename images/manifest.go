package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// Format is a form that an image comes in.
type Format string

// The formats.
const (
	FormatRaw     Format = "raw"     // a whole disk
	FormatQCOW2   Format = "qcow2"   // the same, for QEMU and clouds
	FormatNetboot Format = "netboot" // kernel, initramfs, and the disk in compressed chunks
	FormatTar     Format = "tar"     // the root file system's tree, .tar.zst
)

// Formats lists all of them.
var Formats = []Format{FormatRaw, FormatQCOW2, FormatNetboot, FormatTar}

// ParseFormats reads formats as the command line has them, between commas.
func ParseFormats(list []string) ([]Format, error) {
	var formats []Format
	for _, s := range list {
		f := Format(s)
		if !slices.Contains(Formats, f) {
			return nil, fmt.Errorf("there is no format %q: %s", s, strictyaml.DidYouMean(s, []string{"raw", "qcow2", "netboot", "tar"}))
		}
		if !slices.Contains(formats, f) {
			formats = append(formats, f)
		}
	}
	return formats, nil
}

// BlockSize is how much of a raw image one of its hashes is of, in bytes.
const BlockSize = 4 << 20

// Manifest says what a finished image is, and what it was made of.
type Manifest struct {
	ID         string            `json:"id"` // see ContentID
	Profile    string            `json:"profile"`
	Definition string            `json:"definition"`
	Release    plan.Release      `json:"release"`
	Created    time.Time         `json:"created"`
	Inputs     []Input           `json:"inputs"`
	Packages   []Package         `json:"packages"`
	Files      []File            `json:"files"` // all of the root file system
	Disk       *Disk             `json:"disk,omitempty"`
	Artifacts  []Artifact        `json:"artifacts"`
	Steps      []Step            `json:"steps"`
	Tools      map[string]string `json:"tools"` // program → what it says its version is
	// Kernel and Initrd are paths in the root file system.
	Kernel          string `json:"kernel,omitempty"`
	Initrd          string `json:"initrd,omitempty"`
	KernelArguments string `json:"kernel_arguments,omitempty"`
	// SignatureDropped is that Store.Put has removed a signature that was of
	// another manifest of this image.
	SignatureDropped bool `json:"-"`
	// Bare is that it was read off a disk: it says what is in the image, and neither
	// what that is called nor how it was made.
	Bare bool `json:"-"`
}

// Input is one thing that an image was made of.
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Package is one distribution package in an image.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	// SHA256 is its file's, and Source the apt source that had it, where the
	// image was built from a lock.
	SHA256 string `json:"sha256,omitempty"`
	Source string `json:"source,omitempty"`
}

// File is one entry of an image's root file system.
type File struct {
	Path   string `json:"path"`
	Type   string `json:"type"` // file, directory, link, or other
	Mode   string `json:"mode"` // as chmod(1) takes it
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Size   int64  `json:"size,omitempty"` // bytes
	SHA256 string `json:"sha256,omitempty"`
	Target string `json:"target,omitempty"` // of a link
	// Attributes are extended ones, capabilities among them, in hexadecimal
	// digits.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Disk is the raw image.
type Disk struct {
	Size      int64    `json:"size"`       // bytes
	BlockSize int      `json:"block_size"` // bytes
	Blocks    []string `json:"blocks"`     // the SHA-256 of each block
}

// Artifact is one file of an image in the store.
type Artifact struct {
	Name   string `json:"name"` // below the image's folder
	Format Format `json:"format"`
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // none of the raw disk, which has its blocks' in Disk
}

// Step is one step of the build.
type Step struct {
	Name   string `json:"name"`
	Key    string `json:"key,omitempty"`
	Cached bool   `json:"cached,omitempty"` // an earlier build has made it
	// Seconds is how long making it took, whichever build it was.
	Seconds float64 `json:"seconds"`
	Inputs  []Input `json:"inputs,omitempty"` // what its key is made of
}

// ContentID is the hash of what is in the image: the same content has the same
// ID, in whatever formats, whoever made it and when.
func (m *Manifest) ContentID() string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	_ = enc.Encode([]string{m.Profile, m.Definition})
	_ = enc.Encode(m.Files)
	if m.Disk != nil {
		_ = enc.Encode(m.Disk)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Short is the ID as people are shown it.
func (m *Manifest) Short() string { return m.ID[:min(shortID, len(m.ID))] }

// Has tells whether the image is there in that format.
func (m *Manifest) Has(f Format) bool {
	return slices.ContainsFunc(m.Artifacts, func(a Artifact) bool { return a.Format == f })
}

// FormatsOf lists the formats that the image is there in.
func (m *Manifest) FormatsOf() []string {
	var list []string
	for _, f := range Formats {
		if m.Has(f) {
			list = append(list, string(f))
		}
	}
	return list
}

// Sums is the content of SHA256SUMS, for sha256sum -c. The raw disk isn't in it: an
// export is hashed as a whole, and in the store it has the hashes of its blocks.
func (m *Manifest) Sums() []byte {
	artifacts := slices.Clone(m.Artifacts)
	slices.SortFunc(artifacts, func(a, b Artifact) int { return cmp.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, a := range artifacts {
		if a.SHA256 != "" {
			b.WriteString(a.SHA256 + "  " + a.Name + "\n")
		}
	}
	return []byte(b.String())
}

// ReadManifest reads an image's manifest.
func ReadManifest(name string) (*Manifest, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("the image's manifest: %w", err)
	}
	return ParseManifest(data, name)
}

// ParseManifest reads a manifest, whose content must have its ID; name is how
// errors call it.
func ParseManifest(data []byte, name string) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("the manifest %s: %w", name, err)
	}
	if m.ID == "" || m.ID != m.ContentID() {
		return nil, fmt.Errorf("the manifest %s isn't what was written: its content doesn't have its ID", name)
	}
	return &m, nil
}

// NewArtifact describes the file called name below dir.
func NewArtifact(dir, name string, format Format) (Artifact, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return Artifact{}, err
	}
	defer f.Close()
	var size int64
	sum, err := Hash(context.Background(), f, func(n int) { size += int64(n) })
	if err != nil {
		return Artifact{}, fmt.Errorf("reading %s: %w", name, err)
	}
	return Artifact{Name: name, Format: format, Size: size, SHA256: sum}, nil
}

// ExportName is what the image's file, or folder, of a format is called outside
// the store.
func (m *Manifest) ExportName(f Format) string {
	name := m.Profile + "-" + m.Definition + "-" + m.Short()
	switch f {
	case FormatNetboot:
		return name
	case FormatTar:
		return name + ".tar.zst"
	}
	return name + "." + string(f)
}
