package apply

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/plan"
)

// Kiln's own bookkeeping, which nobody wants to see the lines of. A hash of a
// file with a secret is also best not shown.
var bookkeeping = []string{manifestPath, imageList}

// stateOf is what apply.sh's state_of prints for an entry.
func stateOf(e *entry) string {
	switch {
	case e == nil:
		return "none"
	case e.kind == tar.TypeSymlink:
		return "link " + e.target
	case e.kind == tar.TypeReg:
		sum := sha256.Sum256(e.content)
		return hex.EncodeToString(sum[:])
	}
	return "other"
}

// allFiles compares the files, and has the manifest be the last that is written:
// without it the host holds on to what it was given before.
func (p *planner) allFiles() {
	var manifest *plan.File
	for i := range p.want.Layer.Files {
		f := &p.want.Layer.Files[i]
		if f.Path == manifestPath {
			manifest = f
			continue
		}
		p.file(f)
	}
	if manifest == nil {
		return
	}
	before := len(p.List)
	p.file(manifest)
	// A host that boots between two steps mustn't start its agents on a mixture.
	p.marked = len(p.List) > before && p.want.hasUnit(hostUnit)
}

func (p *planner) file(f *plan.File) {
	if p.want.Leave[f.Path] {
		return
	}
	p.owner(f.Path, f.Owner, f.Group)
	e := p.state.files[f.Path]
	after, err := f.Content.Bytes()
	if err != nil {
		p.problem("the content of %s: %w", f.Path, err)
		return
	}
	if e != nil && e.kind == tar.TypeDir {
		p.problem("%s is a directory there, and is to be a file: move it away", f.Path)
		return
	}
	if slices.ContainsFunc(bootFiles, func(of string) bool { return below(f.Path, of) }) {
		if e == nil || !bytes.Equal(e.content, after) {
			p.note("%s isn't changed in place: a new image and a reinstallation bring it, or by hand with update-grub and a boot", f.Path)
		}
		return
	}
	if f.Target != "" {
		p.link(f, e)
		return
	}
	c := Change{Kind: "file", Name: f.Path, What: "new", content: after, script: call("put", "@", octal(f.Mode), f.Owner, f.Group, f.Path), expects: stateOf(e)}
	var before []byte
	switch {
	case p.state.large[f.Path]:
		c.What, c.expects = "changed; what is there is too large to be shown", ""
	case e == nil:
	case e.kind == tar.TypeSymlink:
		c.What = "takes the place of a link to " + e.target
	case bytes.Equal(e.content, after):
		if c = p.ownershipOnly(f, e); c.What == "" {
			return
		}
		before = e.content
	default:
		before, c.What = e.content, "changed"
		if what := ownership(e, f.Mode, f.Owner, f.Group); what != "" {
			c.What += ", " + what
		}
	}
	if c.Kind == "file" && c.content != nil && !slices.Contains(bookkeeping, f.Path) {
		c.Diff = fileDiff(f, e, after)
	}
	// An empty file was one, too.
	if before == nil && e != nil {
		before = []byte{}
	}
	p.follow(&c, f.Path, before, after)
	p.add(c)
}

// follow adds what a changed file has to be followed by.
func (p *planner) follow(c *Change, path string, before, after []byte) {
	does, note := p.want.readers(path, before, after)
	c.does = append(c.does, does...)
	if note == networkNote {
		p.changesNetwork(c)
		return
	}
	if note != "" {
		p.note("%s", note)
	}
}

// ownershipOnly is the change of a file whose content is right.
func (p *planner) ownershipOnly(f *plan.File, e *entry) Change {
	what := ownership(e, f.Mode, f.Owner, f.Group)
	words := []string{"own", octal(f.Mode), f.Owner, f.Group, f.Path}
	if e.acl != "" {
		words = append(words, fmt.Sprintf("u::%s,g::%s,o::%s", letters(f.Mode>>6), letters(f.Mode>>3), letters(f.Mode)))
	}
	return Change{Kind: "file", Name: f.Path, What: what, script: call(words...), expects: stateOf(e)}
}

// letters are three bits of a mode as setfacl takes them.
func letters[T ~uint32](bits T) string {
	b := []byte("---")
	for i, l := range []byte("rwx") {
		if bits&(4>>i) != 0 {
			b[i] = l
		}
	}
	return string(b)
}

func (p *planner) link(f *plan.File, e *entry) {
	c := Change{Kind: "link", Name: f.Path, What: "new, to " + f.Target, content: []byte(f.Target), script: call("link", "@", f.Owner, f.Group, f.Path), expects: stateOf(e)}
	switch {
	case p.state.large[f.Path]:
		c.expects = ""
	case e == nil:
	case e.kind != tar.TypeSymlink:
		c.What = "takes the place of a file, and leads to " + f.Target
	case e.target == f.Target && e.owner == f.Owner && e.group == f.Group:
		return
	default:
		c.What = e.target + " → " + f.Target
	}
	p.follow(&c, f.Path, []byte{}, []byte(f.Target))
	p.add(c)
}

// leftovers are files that an earlier delivery has brought, and this one hasn't:
// agents read all files of their folders, sudo too. One that was changed on the
// host stays.
func (p *planner) leftovers() {
	old := p.state.files[acceptedPath]
	if old == nil {
		old = p.state.files[manifestPath]
	}
	if old == nil {
		return
	}
	kept := map[string]bool{}
	for i := range p.want.Layer.Files {
		kept[p.want.Layer.Files[i].Path] = true
	}
	removed := []Change{}
	for line := range strings.Lines(string(old.content)) {
		sum, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		f := strings.SplitN(rest, " ", 4)
		if len(f) != 4 || kept[f[3]] {
			continue
		}
		path := f[3]
		e := p.state.files[path]
		if e == nil || e.kind != tar.TypeReg {
			continue
		}
		if stateOf(e) != sum {
			p.note("%s was delivered once, and no longer; it was changed there, so it stays: remove it if nobody needs it", path)
			continue
		}
		c := Change{Kind: "file", Name: path, What: "no longer delivered: removed", script: call("rm", "-f", "--", path), expects: sum}
		p.follow(&c, path, e.content, nil)
		removed = append(removed, c)
	}
	p.insert(removed)
	p.formerImage(kept)
}

// insert puts changes before that of the manifest: as long as it is the old one,
// the host knows what else it was given.
func (p *planner) insert(changes []Change) {
	at := len(p.List)
	if at > 0 && p.List[at-1].Name == manifestPath {
		at--
	}
	p.List = slices.Insert(p.List, at, changes...)
	for i := range changes {
		p.actions = append(p.actions, changes[i].does...)
	}
}

// formerImage names files that the Image half had, and has no longer: nobody
// knows any more what they held, so they stay.
func (p *planner) formerImage(kept map[string]bool) {
	old := p.state.files[imageList]
	if old == nil {
		return
	}
	for path := range strings.Lines(string(old.content)) {
		if path = strings.TrimSuffix(path, "\n"); path != "" && !kept[path] {
			p.note("%s was part of the image, and no longer is; it stays: remove it if nobody needs it", path)
		}
	}
}

// sameNetwork tells whether a file of netplan's says the same as a network-config.
func sameNetwork(file, config []byte) (bool, error) {
	var is struct {
		Network map[string]any `yaml:"network"`
	}
	var want map[string]any
	if err := yaml.Unmarshal(file, &is); err != nil {
		return false, fmt.Errorf("it can't be read: %w", err)
	}
	if err := yaml.Unmarshal(config, &want); err != nil {
		return false, fmt.Errorf("the network of the plan can't be read: %w", err)
	}
	// Written anew, keys are sorted.
	a, err := yaml.Marshal(is.Network)
	if err != nil {
		return false, err
	}
	b, err := yaml.Marshal(want)
	return bytes.Equal(a, b), err
}
