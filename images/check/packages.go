package check

import (
	"bytes"
	"crypto/md5" //nolint:gosec // dpkg's own sums
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/ext4"
)

const dpkgDir = "/var/lib/dpkg"

// packages is what dpkg knows of files.
type packages struct {
	tree      *tree
	overrides map[string]uint16 // modes that statoverride has, by path
	sums      map[string][]string
}

func (c *checker) dpkg() *packages {
	if c.packages == nil {
		c.packages = &packages{tree: c.tree}
	}
	return c.packages
}

// lines calls each for the lines of all of dpkg's files that a pattern matches.
func (p *packages) lines(pattern string, each func(line []byte)) error {
	for _, n := range p.tree.glob(dpkgDir + "/" + pattern) {
		b, err := p.tree.read(n)
		if err != nil {
			return err
		}
		for len(b) > 0 {
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			each(line)
			b = rest
		}
	}
	return nil
}

// merged is where a path really is, if /bin and the like are links into /usr.
func (p *packages) merged(name string) string {
	first, rest, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if ok && (first == "bin" || first == "sbin" || strings.HasPrefix(first, "lib")) {
		if n := p.tree.root.child(first); n != nil && n.inode.IsLink() {
			return "/usr/" + first + "/" + rest
		}
	}
	return name
}

// owned tells which of the paths a package brings.
func (p *packages) owned(names map[string]bool) (map[string]bool, error) {
	found := map[string]bool{}
	look := func(line []byte) {
		if len(line) == 0 || line[0] != '/' {
			return
		}
		if names[string(line)] {
			found[string(line)] = true
		} else if bytes.HasPrefix(line, []byte("/bin/")) || bytes.HasPrefix(line, []byte("/sbin/")) || bytes.HasPrefix(line, []byte("/lib")) {
			if real := p.merged(string(line)); names[real] {
				found[real] = true
			}
		}
	}
	if err := p.lines("info/*.list", look); err != nil {
		return nil, err
	}
	// Where a package's file is diverted to, it is still the package's.
	return found, p.lines("diversions", look)
}

// override is the mode that dpkg-statoverride has for a path.
func (p *packages) override(name string) (uint16, bool, error) {
	if p.overrides == nil {
		p.overrides = map[string]uint16{}
		err := p.lines("statoverride", func(line []byte) {
			if f := strings.Fields(string(line)); len(f) == 4 {
				if mode, err := strconv.ParseUint(f[2], 8, 16); err == nil {
					p.overrides[p.merged(f[3])] = uint16(mode)
				}
			}
		})
		if err != nil {
			return 0, false, err
		}
	}
	mode, ok := p.overrides[name]
	return mode, ok, nil
}

// compiled is what Python's compiled files end with, between the module's name
// and .pyc: packages' scripts make them, so that no package lists them.
const compiled = ".cpython-"

// sourceOf is the file that another was compiled from, or the file itself.
func sourceOf(name string) string {
	dir, base := path.Split(name)
	if module, rest, ok := strings.Cut(base, compiled); ok && strings.HasSuffix(rest, ".pyc") && path.Base(dir) == "__pycache__" {
		return path.Join(dir, "..", module+".py")
	}
	return name
}

// brings tells whether a file is, byte for byte, one that a package brings: its
// configuration files included, as long as nobody has changed them.
func (p *packages) brings(name string, i *ext4.Inode, s *scan) (bool, error) {
	if p.sums == nil {
		if err := p.readSums(); err != nil {
			return false, err
		}
	}
	known := p.sums[name]
	if len(known) == 0 {
		return false, nil
	}
	v, key := s.options.Verdicts, ""
	if v != nil && s.blocks != nil {
		content, err := s.contentKey(p.tree, i)
		if err != nil {
			return false, err
		}
		if key = "package " + strings.Join(known, " ") + " " + content; v.Known(key) {
			return true, nil
		}
	}
	f, err := p.tree.disk.fs.File(i)
	if err != nil {
		return false, err
	}
	h := md5.New() //nolint:gosec // likewise
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, f.Size())); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if !slices.Contains(known, hex.EncodeToString(h.Sum(nil))) {
		return false, nil
	}
	if key != "" {
		v.Store(key)
	}
	return true, nil
}

// compiledFrom tells whether a file is Python's compiled form of one that a
// package brings, which has the same kind of text in it.
func (p *packages) compiledFrom(name string, pattern int, s *scan) (bool, error) {
	source := p.tree.stat(sourceOf(name))
	if source == nil || source.path() == name {
		return false, nil
	}
	brought, err := p.brings(source.path(), source.inode, s)
	if err != nil || !brought {
		return false, err
	}
	text, err := p.tree.read(source)
	if err != nil {
		return false, err
	}
	found := false
	s.search.scan(text, func(h hit) { found = found || h.pattern == pattern })
	return found, nil
}

func (p *packages) readSums() error {
	p.sums = map[string][]string{}
	add := func(name, sum string) {
		name = p.merged(path.Join("/", name))
		p.sums[name] = append(p.sums[name], sum)
	}
	err := p.lines("info/*.md5sums", func(line []byte) {
		if len(line) > 34 && line[32] == ' ' {
			add(string(line[34:]), string(line[:32]))
		}
	})
	if err != nil {
		return err
	}
	conffiles := false
	return p.lines("status", func(line []byte) {
		if len(line) == 0 || line[0] != ' ' {
			conffiles = string(line) == "Conffiles:"
			return
		}
		if f := strings.Fields(string(line)); conffiles && len(f) >= 2 {
			add(f[0], f[1])
		}
	})
}
