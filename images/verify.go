package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/alisw/kiln/internal/regular"
)

// manifest reads the bytes of an image's manifest.
func (s *Store) manifest(id string) ([]byte, error) {
	data, err := regular.ReadFile(s.Path(id, ManifestName))
	if err != nil {
		return nil, fmt.Errorf("the image's manifest: %w", err)
	}
	return data, nil
}

// Manifest reads the manifest of the image id.
func (s *Store) Manifest(id string) (*Manifest, error) {
	data, err := s.manifest(id)
	if err != nil {
		return nil, err
	}
	return s.parse(data, id)
}

// Verified reads the manifest of an image that one of the keys has signed. No
// other is to be believed: what was read before may be another by now.
func (s *Store) Verified(id string, keys []PublicKey) (*Manifest, *PublicKey, error) {
	data, err := s.manifest(id)
	if err != nil {
		return nil, nil, err
	}
	signature, err := s.Signature(id)
	if err != nil {
		return nil, nil, err
	}
	by, err := CheckSignature(data, signature, keys)
	if err != nil {
		return nil, nil, err
	}
	m, err := s.parse(data, id)
	return m, by, err
}

// parse reads a manifest that must be the one of the image id: a signed manifest in
// another image's folder has a good signature, too.
func (s *Store) parse(data []byte, id string) (*Manifest, error) {
	m, err := ParseManifest(data, s.Path(id, ManifestName))
	if err == nil && m.ID != id {
		return nil, fmt.Errorf("the manifest %s is that of another image, %s: kiln images remove %s", s.Path(id, ManifestName), m.ID, id[:min(shortID, len(id))])
	}
	return m, err
}

// Wrong is a file of an image that isn't what the manifest says.
type Wrong struct {
	Name string `json:"name"` // below the image's folder
	What string `json:"what"`
}

// CheckFiles compares files of an image with the manifest: all of its artifacts, or
// those with one of the formats; where it's all, also SHA256SUMS, and that there
// is nothing else. Progress is told of bytes as they are read; nil is nobody. The
// error is that the check couldn't be done.
func (s *Store) CheckFiles(ctx context.Context, m *Manifest, formats []Format, progress func(n int)) ([]Wrong, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var wrong []Wrong
	known := map[string]bool{ManifestName: true, SumsName: true, SignatureName: true}
	for i := range m.Artifacts {
		a := &m.Artifacts[i]
		known[a.Name] = true
		if len(formats) > 0 && !slices.Contains(formats, a.Format) {
			continue
		}
		what, err := s.checkArtifact(ctx, m, a, progress)
		if err != nil {
			return wrong, fmt.Errorf("reading %s: %w", s.Path(m.ID, a.Name), err)
		}
		if what != "" {
			wrong = append(wrong, Wrong{a.Name, what})
		}
	}
	if len(formats) > 0 {
		return wrong, nil
	}
	if sums, err := regular.ReadFile(s.Path(m.ID, SumsName)); err != nil || !bytes.Equal(sums, m.Sums()) {
		wrong = append(wrong, Wrong{SumsName, "it doesn't say what the manifest says"})
	}
	extra, err := s.strangers(m.ID, known)
	return append(wrong, extra...), err
}

// checkArtifact says what is wrong with a file; "" is nothing.
func (s *Store) checkArtifact(ctx context.Context, m *Manifest, a *Artifact, progress func(n int)) (string, error) {
	if !filepath.IsLocal(a.Name) {
		return "its name leads out of the image's folder", nil
	}
	// A link could lead to what somebody changes after the check.
	path := s.Path(m.ID, a.Name)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "it isn't there", nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "it is no regular file", nil
	case info.Size() != a.Size:
		return fmt.Sprintf("it has %d bytes, not %d", info.Size(), a.Size), nil
	}
	f, err := regular.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if a.SHA256 == "" {
		return checkBlocks(ctx, f, m.Disk, progress)
	}
	sum, err := Hash(ctx, f, progress)
	if err != nil {
		return "", err
	}
	if sum != a.SHA256 {
		return fmt.Sprintf("its SHA-256 is %s, not %s", sum, a.SHA256), nil
	}
	return "", nil
}

// Hash is the SHA-256 of what r has, in hexadecimal digits. Progress is told of
// bytes as they are read; nil is nobody.
func Hash(ctx context.Context, r io.Reader, progress func(n int)) (string, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if progress != nil {
			progress(n)
		}
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// checkBlocks compares the raw disk with the hashes of its blocks, both of which are
// in the image's ID.
func checkBlocks(ctx context.Context, f io.Reader, d *Disk, progress func(n int)) (string, error) {
	if d == nil || d.BlockSize <= 0 || d.BlockSize > 1<<30 {
		return "the manifest has no hash of it", nil
	}
	buf := make([]byte, d.BlockSize)
	for i := 0; ; i++ {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := io.ReadFull(f, buf)
		if progress != nil {
			progress(n)
		}
		switch {
		case errors.Is(err, io.EOF) && i == len(d.Blocks):
			return "", nil
		case errors.Is(err, io.EOF) || err == nil && i >= len(d.Blocks):
			return fmt.Sprintf("it has another number of blocks than the %d of the manifest", len(d.Blocks)), nil
		case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
			return "", err
		}
		if i >= len(d.Blocks) {
			return fmt.Sprintf("it has another number of blocks than the %d of the manifest", len(d.Blocks)), nil
		}
		if sum := sha256.Sum256(buf[:n]); hex.EncodeToString(sum[:]) != d.Blocks[i] {
			return fmt.Sprintf("the %d bytes from %d on have the SHA-256 %x, not %s", n, int64(i)*int64(d.BlockSize), sum, d.Blocks[i]), nil
		}
	}
}

// strangers are files in an image's folder that the manifest doesn't know.
func (s *Store) strangers(id string, known map[string]bool) ([]Wrong, error) {
	var wrong []Wrong
	root := s.Path(id, "")
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		// Those begin with a dot that a build which was killed was writing.
		if dir, base := filepath.Split(rel); !known[rel] && (dir != "" || base[0] != '.') {
			wrong = append(wrong, Wrong{rel, "the manifest doesn't know it"})
		}
		return nil
	})
	if err != nil {
		return wrong, fmt.Errorf("listing the image's files: %w", err)
	}
	return wrong, nil
}
