package importing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

// Template is a translated template, and where on a host its file belongs.
type Template struct {
	Path string
	Result
}

// Profile is what an import puts into a profile of its own.
type Profile struct {
	Name        string
	Description string   // one line
	Extends     []string // the profiles that it builds on
	Templates   []Template
	Trees       []Tree
}

var profileName = lazyregexp.New(`^[a-z0-9][a-z0-9._-]*$`)

// ErrExists is returned for a profile or a file that is there already: an
// import never overwrites.
var ErrExists = errors.New("it exists already")

// Write makes the directory dir, a profile: profile.yaml and host/ with the
// files. It is there with all of it, or not at all. An existing one is left
// alone, with ErrExists: import into a profile with another name, and let one
// extend the other.
//
// Everything goes to the host half: what a site has on its hosts is a host's.
func Write(dir string, p Profile) (err error) {
	files, err := p.files()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("profile %s: %w: choose another name, and let one of them extend the other", dir, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("profile %s: %w", dir, err)
	}
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("making the folder of profiles: %w", err)
	}
	// The name begins with a dot, so that nothing takes it for a profile.
	temp, err := os.MkdirTemp(parent, ".kiln-import-")
	if err != nil {
		return fmt.Errorf("making profile %s: %w", dir, err)
	}
	defer os.RemoveAll(temp)
	for _, f := range files {
		if err := writeFile(filepath.Join(temp, filepath.FromSlash(f.path)), f.data, f.mode); err != nil {
			return fmt.Errorf("making profile %s: %w", dir, err)
		}
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return fmt.Errorf("making profile %s: %w", dir, err)
	}
	// Renaming fails where something has appeared there meanwhile.
	if err := os.Rename(temp, dir); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = ErrExists
		}
		return fmt.Errorf("making profile %s: %w", dir, err)
	}
	return syncDir(parent)
}

// WriteTemplates writes each result as TARGET.tmpl into the directory dir,
// which may exist: all of them, or none. A file that exists is left alone,
// with ErrExists.
func WriteTemplates(dir string, results []Result) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder for templates: %w", err)
	}
	temp, err := os.MkdirTemp(dir, ".kiln-import-")
	if err != nil {
		return fmt.Errorf("making the folder for templates: %w", err)
	}
	defer os.RemoveAll(temp)
	delimiters := CommonDelimiters(results...)
	var made []string
	defer func() {
		if err != nil {
			for _, name := range made {
				_ = os.Remove(name)
			}
		}
	}()
	for _, r := range results {
		text, err := r.WithDelimiters(delimiters)
		if err != nil {
			return err
		}
		base := r.Target + ".tmpl"
		if err := writeFile(filepath.Join(temp, base), []byte(text), treeMode(holdsSecret(r), 0o644)); err != nil {
			return fmt.Errorf("writing %s: %w", base, err)
		}
		// A link, unlike renaming, never replaces a file.
		name := filepath.Join(dir, base)
		if err := os.Link(filepath.Join(temp, base), name); err != nil {
			if errors.Is(err, fs.ErrExist) {
				err = ErrExists
			}
			return fmt.Errorf("writing %s: %w", name, err)
		}
		made = append(made, name)
	}
	return syncDir(dir)
}

// treeFile is a file of the profile's directory.
type treeFile struct {
	path string
	data []byte
	mode fs.FileMode
}

// treeMode is the mode in the profile's directory, where only whether a file
// can be executed, and whether others may read it, means anything.
func treeMode(secret bool, mode fs.FileMode) fs.FileMode {
	m := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		m = 0o755
	}
	if secret {
		m &= 0o600
	}
	return m
}

func holdsSecret(r Result) bool {
	return len(literalSecrets(r.Source, []byte(r.Text))) > 0
}

// files are all files of the profile's directory.
func (p Profile) files() ([]treeFile, error) {
	if !profileName().MatchString(p.Name) {
		return nil, fmt.Errorf("%q is no name for a profile: use lower-case letters, digits, dots, dashes and underscores", p.Name)
	}
	for _, parent := range p.Extends {
		if !profileName().MatchString(parent) {
			return nil, fmt.Errorf("%q is no name of a profile to extend", parent)
		}
	}
	seen := map[string]bool{}
	add := func(target string) error {
		switch {
		case !path.IsAbs(target) || path.Clean(target) != target || target == "/" || !hostPath(target):
			return fmt.Errorf("%q is no path of a file on a host: give one with --as, such as /etc/nomad.d/nomad.hcl", target)
		case seen[target]:
			return fmt.Errorf("%s is imported twice: import one of both", target)
		}
		seen[target] = true
		return nil
	}
	var files []treeFile
	delimiters := p.delimiters()
	for _, t := range p.Templates {
		if err := add(t.Path); err != nil {
			return nil, err
		}
		text, err := t.WithDelimiters(delimiters)
		if err != nil {
			return nil, err
		}
		files = append(files, treeFile{"host" + t.Path + ".tmpl", []byte(text), treeMode(holdsSecret(t.Result), 0o644)})
	}
	secret := false
	for _, tree := range p.Trees {
		for _, f := range tree.Files {
			if err := add(f.Path); err != nil {
				return nil, err
			}
			switch {
			case f.Link != "":
			case inYAML(f):
				secret = secret || f.Secret
			default:
				files = append(files, treeFile{"host" + f.Path, f.Data, treeMode(f.Secret, f.Mode)})
			}
		}
	}
	if err := checkNesting(seen); err != nil {
		return nil, err
	}
	files = append(files, treeFile{"profile.yaml", []byte(p.yaml(delimiters)), treeMode(secret, 0o644)})
	return files, nil
}

// checkNesting makes sure that no file stands where another needs a folder.
func checkNesting(paths map[string]bool) error {
	for p := range paths {
		for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
			if paths[dir] {
				return fmt.Errorf("%s can't be both a file and the folder of %s: import one of both", dir, p)
			}
		}
	}
	return nil
}

func (p Profile) delimiters() Delimiters {
	results := make([]Result, len(p.Templates))
	for i, t := range p.Templates {
		results[i] = t.Result
	}
	return CommonDelimiters(results...)
}

// inYAML tells whether a file stands in profile.yaml, since in the folder it
// would be a template.
func inYAML(f File) bool { return f.Link == "" && strings.HasSuffix(f.Path, ".tmpl") }

// writeFile makes a new file with this very mode, and the folders above it.
func writeFile(name string, data []byte, mode fs.FileMode) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode&0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes the names in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("writing %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", dir, err)
	}
	return nil
}

// vars are the variables of all templates, sorted by name.
func (p Profile) vars() []templateVar {
	var all []templateVar
	for _, t := range p.Templates {
		for _, v := range t.Vars {
			i := slices.IndexFunc(all, func(a templateVar) bool { return a.Name == v.Name })
			if i < 0 {
				all = append(all, templateVar{v, nil})
				i = len(all) - 1
			}
			all[i].Kind |= v.Kind
			all[i].at = append(all[i].at, fmt.Sprintf("%s line %d", path.Base(t.Source), v.Line))
		}
	}
	slices.SortFunc(all, func(a, b templateVar) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// templateVar is a variable, and where the templates use it first.
type templateVar struct {
	Var
	at []string
}
