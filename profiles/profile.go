package profiles

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
)

// The profiles that come with Kiln, as an operator would write them.
//
//go:embed all:base all:agent all:plain all:alissandra all:server
var shipped embed.FS

// profile is one profile's folder, as it was written.
type profile struct {
	name       string
	dir        string // the folder's name as errors show it
	shipped    bool
	file       ProfileFile
	fsys       fs.FS
	delimiters [2]string
	half       [2][]folderFile // by half
}

// half tells the two halves of a profile apart.
type half int

const (
	imageHalf half = iota
	hostHalf
)

// String is the half's name.
func (h half) String() string { return h.folder() + " half" }

// folder is the half's folder within a profile.
func (h half) folder() string { return [...]string{"image", "host"}[h] }

// folderFile is a file in one of a profile's two folders.
type folderFile struct {
	path       string // in the profile: host/etc/nomad.d/nomad.hcl.tmpl
	target     string // on the host: /etc/nomad.d/nomad.hcl
	isTemplate bool
	executable bool
	link       string // set for a symbolic link
}

const templateSuffix = ".tmpl"

var profileName = lazyregexp.New(`^[a-z0-9][a-z0-9._-]*$`)

// loadProfiles reads the shipped profiles and those in dir/profiles, which
// replace shipped ones of the same name.
func loadProfiles(dir string, problems *problem.List) (map[string]*profile, error) {
	all := map[string]*profile{}
	if err := loadProfileFolders(shipped, "kiln:profiles", true, all, problems); err != nil {
		return nil, err
	}
	own := filepath.Join(dir, "profiles")
	if _, err := os.Stat(own); errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err := loadProfileFolders(os.DirFS(own), own, false, all, problems); err != nil {
		return nil, err
	}
	return all, nil
}

func loadProfileFolders(fsys fs.FS, shown string, isShipped bool, into map[string]*profile, problems *problem.List) error {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return fmt.Errorf("listing the profiles in %s: %w", shown, err)
	}
	for _, e := range entries {
		name := e.Name()
		at := problem.Position{File: shown + "/" + name}
		// Asked for anew, since a profile may be a link to a folder elsewhere.
		info, err := fs.Stat(fsys, name)
		switch {
		case strings.HasPrefix(name, "."):
			continue
		case err != nil:
			return fmt.Errorf("reading the profile %s: %w", at.File, err)
		case !info.IsDir():
			if strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
				problems.Addf(at, "a profile is a folder: profiles/NAME/profile.yaml", "this file is no profile")
			}
			continue
		case !profileName().MatchString(name):
			problems.Addf(at, "use lower-case letters, digits, dots and dashes", "%q can't name a profile", name)
			continue
		}
		sub, err := fs.Sub(fsys, name)
		if err != nil {
			return fmt.Errorf("opening the profile %s: %w", at.File, err)
		}
		if !isShipped {
			// Unlike what Sub gives, this tells what a file is without opening it.
			sub = os.DirFS(filepath.Join(shown, name))
		}
		p := &profile{name: name, dir: at.File, shipped: isShipped, fsys: sub}
		if err := p.load(problems); err != nil {
			return err
		}
		into[name] = p
	}
	return nil
}

func (p *profile) load(problems *problem.List) error {
	data, err := regular.ReadFS(p.fsys, "profile.yaml")
	if errors.Is(err, fs.ErrNotExist) {
		problems.Addf(problem.Position{File: p.dir}, "write one (it may be empty, but for a description)", "the profile %s has no profile.yaml", p.name)
	} else if err != nil {
		return fmt.Errorf("reading the profile %s: %w", p.name, err)
	}
	strictyaml.Decode(data, p.dir+"/profile.yaml", 0, &p.file, problems)
	p.delimiters = [2]string{"{{", "}}"}
	if d := p.file.Delimiters; len(d) == 2 && d[0].V != "" && d[1].V != "" && d[0].V != d[1].V {
		p.delimiters = [2]string{d[0].V, d[1].V}
	} else if d != nil {
		at := p.file.Pos
		if len(d) > 0 {
			at = d[0].Pos
		}
		problems.Addf(at, `write two different ones, such as ["[[", "]]"]`, "the profile's delimiters aren't a pair")
	}
	if err := p.strays(problems); err != nil {
		return err
	}
	for _, h := range []half{imageHalf, hostHalf} {
		if p.half[h], err = p.walk(h.folder(), problems); err != nil {
			return err
		}
	}
	return nil
}

// strays warns of what is in the profile's folder and in neither half: a
// misspelled folder's files would be left out in silence.
func (p *profile) strays(problems *problem.List) error {
	entries, err := fs.ReadDir(p.fsys, ".")
	if err != nil {
		return fmt.Errorf("reading the profile %s: %w", p.name, err)
	}
	for _, e := range entries {
		name := e.Name()
		readme := strings.HasPrefix(strings.ToLower(name), "readme")
		if name != "profile.yaml" && name != imageHalf.folder() && name != hostHalf.folder() && name[0] != '.' && !readme {
			problems.Warnf(problem.Position{File: p.shown(name)}, "a profile has profile.yaml and the folders image/ and host/", "this is left out: it belongs to neither half")
		}
	}
	return nil
}

// walk lists the files below one of the profile's two folders.
func (p *profile) walk(folder string, problems *problem.List) ([]folderFile, error) {
	var files []folderFile
	byTarget := map[string]string{}
	err := fs.WalkDir(p.fsys, folder, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == folder {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		f, err := p.folderFile(name, folder, d, problems)
		if err != nil || f == nil {
			return err
		}
		if other, twice := byTarget[f.target]; twice {
			problems.Addf(problem.Position{File: p.shown(name), Line: 1, Column: 1}, "keep one of the two", "two files for one path: %s also makes %s", p.shown(other), f.target)
			return nil
		}
		byTarget[f.target] = name
		files = append(files, *f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the profile %s: %w", p.name, err)
	}
	slices.SortFunc(files, func(a, b folderFile) int { return strings.Compare(a.target, b.target) })
	return files, nil
}

func (p *profile) folderFile(name, folder string, d fs.DirEntry, problems *problem.List) (*folderFile, error) {
	f := &folderFile{path: name, target: strings.TrimPrefix(name, folder)}
	switch {
	case editorLeftover(path.Base(name)):
		problems.Warnf(problem.Position{File: p.shown(name)}, "remove it, or keep it outside the profile", "this looks like an editor's leftover, and is left out")
		return nil, nil
	case d.Type()&fs.ModeSymlink != 0:
		target, err := fs.ReadLink(p.fsys, name)
		if err != nil {
			return nil, err
		}
		f.link = target
		return f, nil
	case !d.Type().IsRegular():
		problems.Addf(problem.Position{File: p.shown(name)}, "remove it", "this is neither a file nor a link")
		return nil, nil
	}
	info, err := d.Info()
	if err != nil {
		return nil, err
	}
	if p.shipped {
		// Files in the program lose their modes: what begins like a script is one.
		data, err := fs.ReadFile(p.fsys, name)
		if err != nil {
			return nil, err
		}
		f.executable = strings.HasPrefix(string(data[:min(2, len(data))]), "#!")
	} else {
		f.executable = info.Mode()&0o111 != 0
	}
	if t, ok := strings.CutSuffix(f.target, templateSuffix); ok && path.Base(t) != "/" {
		f.target, f.isTemplate = t, true
	}
	return f, nil
}

func editorLeftover(base string) bool {
	return strings.HasSuffix(base, "~") || strings.HasSuffix(base, ".swp") || strings.HasPrefix(base, ".#") || base == ".DS_Store" ||
		strings.HasPrefix(base, "#") && strings.HasSuffix(base, "#")
}

// shown is the name of one of the profile's files, as errors show it.
func (p *profile) shown(name string) string { return p.dir + "/" + name }

// linearize orders a profile and all it extends: what is extended first, and
// each once, however often it is reached.
func linearize(name string, all map[string]*profile, problems *problem.List) []*profile {
	var order []*profile
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(p *profile, chain []string)
	visit = func(p *profile, chain []string) {
		state[p.name] = 1
		for _, e := range p.file.Extends {
			parent := all[e.V]
			switch {
			case parent == nil:
				problems.Addf(e.Pos, strictyaml.DidYouMean(e.V, profileNames(all)), "the profile %s extends %q, which doesn't exist", p.name, e.V)
			case state[e.V] == 1:
				i := slices.Index(chain, e.V)
				problems.Addf(e.Pos, "remove one of these extends", "profiles extend each other in a circle: %s", strings.Join(append(slices.Clone(chain[i:]), e.V), " → "))
			case state[e.V] == 0:
				visit(parent, append(slices.Clone(chain), parent.name))
			}
		}
		state[p.name] = 2
		order = append(order, p)
	}
	if p := all[name]; p != nil {
		visit(p, []string{name})
	}
	return order
}

func profileNames(all map[string]*profile) []string {
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
