package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/alisw/kiln/internal/flock"
	"github.com/alisw/kiln/internal/scratch"
	"github.com/alisw/kiln/internal/strictyaml"
)

// Files of each image in a store.
const (
	ManifestName  = "manifest.json"
	SumsName      = "SHA256SUMS"
	SignatureName = ManifestName + ".minisig" // where it is signed
)

const (
	shortID = 12 // digits of an ID that people are shown
	leastID = 4  // and that they have to write
)

// CacheDir is Kiln's folder in the user's cache: $KILN_CACHE, else kiln in
// $XDG_CACHE_HOME or its default.
func CacheDir() (string, error) {
	if dir := os.Getenv("KILN_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache: %w: name a folder in KILN_CACHE", err)
	}
	return filepath.Join(dir, "kiln"), nil
}

// Store keeps finished images, each in a folder of its ID.
type Store struct {
	Dir string
	// Held, if not nil, tells why an image has to stay that nobody reads at the moment,
	// with an ErrInUse; nil: it hasn't to. It is asked when nobody can begin to use it.
	Held func(id string) error
}

// Path is the place of one of an image's files, or of its folder where name is
// empty.
func (s *Store) Path(id, name string) string { return filepath.Join(s.Dir, id, name) }

// Damaged is an image of the store whose manifest can't be read.
type Damaged struct {
	ID  string
	Err error
}

// List gives the manifests of all images that are whole, newest first.
func (s *Store) List() ([]*Manifest, error) {
	list, _, err := s.ListAll()
	return list, err
}

// ListAll is List, and the images that are damaged.
func (s *Store) ListAll() (list []*Manifest, damaged []Damaged, err error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing the images: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !IsHash(e.Name()) {
			continue
		}
		m, err := ReadManifest(s.Path(e.Name(), ManifestName))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It is being removed, or that was interrupted.
		case err != nil:
			damaged = append(damaged, Damaged{e.Name(), err})
		default:
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b *Manifest) int { return b.Created.Compare(a.Created) })
	return list, damaged, nil
}

// IsHash tells whether s is a SHA-256 in hexadecimal digits, as IDs, keys of steps
// and hashes of files are.
func IsHash(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// Find gives the image that is meant: by its ID, by the beginning of it that no
// other has (four digits at least), or the newest of a profile.
func (s *Store) Find(what string) (*Manifest, error) {
	list, damaged, err := s.ListAll()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range list {
		if m.Profile == what {
			return m, nil
		}
		if !slices.Contains(names, m.Profile) {
			names = append(names, m.Profile)
		}
	}
	var found []*Manifest
	if len(what) >= leastID {
		for _, m := range list {
			if strings.HasPrefix(m.ID, what) {
				found = append(found, m)
			}
		}
		for _, d := range damaged {
			if len(found) == 0 && strings.HasPrefix(d.ID, what) {
				return nil, fmt.Errorf("%w: kiln images remove %s, and build it anew", d.Err, d.ID[:shortID])
			}
		}
	}
	switch len(found) {
	case 0:
		remedy := "kiln images lists them, kiln build makes one"
		if guess := strictyaml.DidYouMean(what, names); strings.HasPrefix(guess, "did you mean") {
			remedy = guess
		}
		return nil, fmt.Errorf("there is no image %q, by its ID or its profile: %s", what, remedy)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d images begin with %q: write more of the ID", len(found), what)
}

// FindID gives the ID that begins so, of a damaged image, too.
func (s *Store) FindID(start string) (string, error) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("listing the images: %w", err)
	}
	var found []string
	for _, e := range entries {
		if len(start) >= leastID && IsHash(e.Name()) && strings.HasPrefix(e.Name(), start) {
			found = append(found, e.Name())
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d images have an ID that begins with %q: kiln images lists them", len(found), start)
	}
	return found[0], nil
}

// Put adds an image whose files are in dir, the path of what NewDir gave. Where
// the store has the image already, it gets the formats that it lacks, and loses
// its signature, which was of the manifest as it was: m.SignatureDropped says so.
func (s *Store) Put(m *Manifest, dir string) (err error) {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	final := s.Path(m.ID, "")
	old, err := ReadManifest(filepath.Join(final, ManifestName))
	if err != nil {
		// What has no proper manifest is none of ours, or was damaged.
		if err := os.RemoveAll(final); err != nil {
			return fmt.Errorf("the store: %w", err)
		}
		if err := m.write(dir); err != nil {
			return err
		}
		if err := os.Rename(dir, final); err != nil {
			return fmt.Errorf("the store: %w", err)
		}
		return nil
	}
	for _, a := range old.Artifacts {
		if !slices.ContainsFunc(m.Artifacts, func(n Artifact) bool { return n.Name == a.Name }) && !m.Has(a.Format) {
			m.Artifacts = append(m.Artifacts, a)
		}
	}
	for _, a := range m.Artifacts {
		from := filepath.Join(dir, a.Name)
		if _, err := os.Lstat(from); err != nil {
			continue // it's there already
		}
		to := filepath.Join(final, a.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Rename(from, to)); err != nil {
			return fmt.Errorf("the store: %w", err)
		}
	}
	// It was of the manifest that is replaced now.
	switch err := os.Remove(filepath.Join(final, SignatureName)); {
	case err == nil:
		m.SignatureDropped = true
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the store: %w", err)
	}
	return m.write(final)
}

// newPrefix is what the names of NewDir's folders begin with.
const newPrefix = "new-"

// NewDir makes a folder in the store for the files of an image, before Put. The
// caller removes it in any case: what was put has another name by then.
func (s *Store) NewDir() (*scratch.Dir, error) {
	d, err := scratch.New(s.Dir, newPrefix)
	if err != nil {
		return nil, fmt.Errorf("the store: %w", err)
	}
	return d, nil
}

// Sweep removes what those who were killed have left in the store: half of an
// image that was put there, or removed.
func (s *Store) Sweep() error {
	if err := scratch.Sweep(s.Dir, newPrefix); err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !IsHash(e.Name()) {
			continue
		}
		if _, err := os.Stat(s.Path(e.Name(), ManifestName)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// What is no image any more is held by nobody.
		if err := s.remove(e.Name(), nil); err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the image %s: %w", e.Name(), err)
		}
	}
	return nil
}

// write puts the manifest and its sums into dir.
func (m *Manifest) write(dir string) error {
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("the manifest: %w", err)
	}
	return errors.Join(writeIn(dir, SumsName, m.Sums()), writeIn(dir, ManifestName, append(data, '\n')))
}

// writeIn writes a file of an image: all of it, or none.
func writeIn(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, "."+name)
	file, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = file.Write(data)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// ErrInUse is that somebody uses an image, so that it can't be removed.
var ErrInUse = errors.New("it is in use")

// Use keeps an image from being removed until release is called, or the process
// ends.
func (s *Store) Use(id string) (release func(), err error) {
	f, err := os.Open(s.Path(id, ""))
	if err != nil {
		return nil, fmt.Errorf("using the image %s: %w", id, err)
	}
	// Whoever removes it has the lock until it's gone, which doesn't take long.
	if err := flock.Lock(f, syscall.LOCK_SH); err != nil {
		f.Close()
		return nil, fmt.Errorf("using the image %s: %w", id, err)
	}
	if _, err := os.Stat(s.Path(id, ManifestName)); err != nil {
		f.Close()
		return nil, fmt.Errorf("using the image %s: %w", id, err)
	}
	return func() { f.Close() }, nil
}

// Remove takes an image away, unless it is in use, or held: then the error is an
// ErrInUse.
func (s *Store) Remove(id string) error {
	if err := s.remove(id, s.Held); err != nil {
		return fmt.Errorf("removing the image %s: %w", id, err)
	}
	return nil
}

func (s *Store) remove(id string, held func(id string) error) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	dir, err := os.Open(s.Path(id, ""))
	if err != nil {
		return err
	}
	defer dir.Close()
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
		return err
	}
	// Who holds it has more to say than who reads it.
	if held != nil {
		if err := held(id); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("%w, by a kiln serve, boot, arm or images export: remove it when that has ended", ErrInUse)
	}
	// Without a manifest it's no image any more, however far the removal gets.
	if err := os.Remove(s.Path(id, ManifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(s.Path(id, ""))
}

// Left is an image that stays, and why.
type Left struct {
	*Manifest
	Why error // an ErrInUse
}

// Prune removes all but the newest keep images of each profile and definition. It
// gives what it has removed, and what it has left because it is in use.
func (s *Store) Prune(keep int) (removed []*Manifest, left []Left, err error) {
	list, err := s.List()
	if err != nil {
		return nil, nil, err
	}
	seen := map[[2]string]int{}
	for _, m := range list {
		of := [2]string{m.Profile, m.Definition}
		if seen[of]++; seen[of] <= keep {
			continue
		}
		switch err := s.remove(m.ID, s.Held); {
		case errors.Is(err, ErrInUse):
			left = append(left, Left{m, err})
		case errors.Is(err, fs.ErrNotExist):
			// Somebody else was quicker.
		case err != nil:
			return removed, left, fmt.Errorf("removing the image %s: %w", m.ID, err)
		default:
			removed = append(removed, m)
		}
	}
	return removed, left, nil
}

// lock keeps others from changing the store.
func (s *Store) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("the store: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the store: %w", err)
	}
	if err := flock.Lock(f, syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking the store: %w", err)
	}
	return func() { f.Close() }, nil
}
