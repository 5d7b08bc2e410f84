// Package driver loads the kernel modules that a machine's hardware asks for. The
// kernel says of each device what it is, in a line called modalias; the modules'
// own index has patterns of what each drives. udev does the same; an installer
// has none.
package driver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// mostLine is the longest line of an index that is read, in bytes.
const mostLine = 1 << 20

// Index is what depmod(8) wrote of a kernel's modules.
type Index struct {
	modules map[string]module  // by name, as key makes it
	builtin map[string]bool    // in the kernel itself
	aliases map[string][]alias // by what patterns begin with, up to the first colon
	soft    map[string]softDependency
}

type module struct {
	file string   // below the folder of modules
	deps []string // keys
}

type alias struct{ pattern, module string }

// softDependency are modules that one works better, or only, with.
type softDependency struct{ before, after []string }

// key is a module's name as the kernel has it: dashes and underscores are one.
func key(name string) string { return strings.ReplaceAll(name, "-", "_") }

// nameOf is the name of the module in a file: kernel/drivers/nvme/host/nvme-core.ko.zst
// has nvme_core.
func nameOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return key(name)
}

// ReadIndex reads the index in the folder of a kernel's modules. Those of builtin
// modules and of soft dependencies may be missing.
func ReadIndex(dir fs.FS) (*Index, error) {
	x := &Index{modules: map[string]module{}, builtin: map[string]bool{}, aliases: map[string][]alias{}, soft: map[string]softDependency{}}
	for _, part := range []struct {
		file   string
		needed bool
		line   func(string) error
	}{
		{"modules.dep", true, x.depends}, {"modules.alias", true, x.alias},
		{"modules.builtin", false, x.isBuiltin}, {"modules.softdep", false, x.softDepends},
	} {
		f, err := dir.Open(part.file)
		if errors.Is(err, fs.ErrNotExist) && !part.needed {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the index of the kernel's modules: %w", err)
		}
		err = lines(f, part.line)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("the index of the kernel's modules, %s: %w", part.file, err)
		}
	}
	return x, nil
}

// lines calls line with all that say something.
func lines(r io.Reader, line func(string) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, mostLine)
	for n := 1; s.Scan(); n++ {
		text := strings.TrimSpace(s.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		if err := line(text); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return s.Err()
}

// depends reads "FILE: FILE…".
func (x *Index) depends(line string) error {
	file, rest, ok := strings.Cut(line, ":")
	if !ok {
		return fmt.Errorf("%.80q names no module", line)
	}
	m := module{file: file}
	for _, d := range strings.Fields(rest) {
		m.deps = append(m.deps, nameOf(d))
	}
	x.modules[nameOf(file)] = m
	return nil
}

// alias reads "alias PATTERN MODULE".
func (x *Index) alias(line string) error {
	f := strings.Fields(line)
	if len(f) < 3 || f[0] != "alias" {
		return fmt.Errorf("%.80q is no alias", line)
	}
	kind := kindOf(f[1])
	x.aliases[kind] = append(x.aliases[kind], alias{f[1], key(f[2])})
	return nil
}

// kindOf is the bus that a modalias or a pattern is of; patterns have no
// wildcards in it.
func kindOf(s string) string {
	kind, _, found := strings.Cut(s, ":")
	if !found || strings.ContainsAny(kind, "*?[") {
		return ""
	}
	return kind
}

func (x *Index) isBuiltin(line string) error {
	x.builtin[nameOf(line)] = true
	return nil
}

// softDepends reads "softdep MODULE pre: MODULE… post: MODULE…".
func (x *Index) softDepends(line string) error {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != "softdep" {
		return fmt.Errorf("%.80q is no soft dependency", line)
	}
	s := x.soft[key(f[1])]
	var into *[]string
	for _, word := range f[2:] {
		switch {
		case word == "pre:":
			into = &s.before
		case word == "post:":
			into = &s.after
		case into != nil: // what comes before them has no meaning
			*into = append(*into, key(word))
		}
	}
	x.soft[key(f[1])] = s
	return nil
}

// Match lists the modules that drive a device, in the order of the index.
func (x *Index) Match(modalias string) []string {
	var found []string
	seen := map[string]bool{}
	for _, kind := range []string{kindOf(modalias), ""} {
		for _, a := range x.aliases[kind] {
			if !seen[a.module] && match(a.pattern, modalias) {
				seen[a.module] = true
				found = append(found, a.module)
			}
		}
		if kind == "" {
			break
		}
	}
	return found
}

// Has tells whether there is a module of that name, or the kernel has it itself.
func (x *Index) Has(name string) bool {
	_, ok := x.modules[key(name)]
	return ok || x.builtin[key(name)]
}

// Order lists the files to load for a module, dependencies first; none where the
// kernel has it itself. The error is of a module that isn't there.
func (x *Index) Order(name string) ([]string, error) {
	w := walk{x: x, seen: map[string]bool{}}
	if err := w.add(key(name), true); err != nil {
		return nil, err
	}
	return w.files, nil
}

type walk struct {
	x     *Index
	seen  map[string]bool
	files []string
}

// add adds a module. Soft dependencies that aren't there don't matter, nor do circles:
// a module is added once.
func (w *walk) add(name string, needed bool) error {
	if w.seen[name] || w.x.builtin[name] {
		return nil
	}
	w.seen[name] = true
	m, ok := w.x.modules[name]
	if !ok {
		found := false
		for _, a := range w.x.aliases[""] {
			// A module may be asked for by another name: crypto-crc32c.
			if key(a.pattern) == name && w.add(a.module, needed) == nil {
				found = true
			}
		}
		if needed && !found {
			return fmt.Errorf("there is no module %s", name)
		}
		return nil
	}
	soft := w.x.soft[name]
	for _, s := range soft.before {
		_ = w.add(s, false)
	}
	// modules.dep has those of dependencies too, the nearest first.
	for i := len(m.deps) - 1; i >= 0; i-- {
		if err := w.add(m.deps[i], true); err != nil {
			return fmt.Errorf("the module %s needs another: %w", name, err)
		}
	}
	w.files = append(w.files, m.file)
	for _, s := range soft.after {
		_ = w.add(s, false)
	}
	return nil
}
