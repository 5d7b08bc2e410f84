package apply

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// accounts makes the groups and users that are missing. What files have already
// (a number, a home) isn't changed under them.
func (p *planner) accounts() {
	for i := range p.want.Layer.Groups {
		p.group(&p.want.Layer.Groups[i])
	}
	for i := range p.want.Layer.Users {
		u := &p.want.Layer.Users[i]
		p.user(u)
		p.keys(u)
	}
}

const byHand = "that isn't changed in place, since files have it: change it by hand, or install the host again"

func (p *planner) group(g *plan.Group) {
	number, there := p.state.groups[g.Name]
	if there {
		if g.GID != nil && *g.GID != number {
			p.note("the group %s has the number %d, not %d: %s", g.Name, number, *g.GID, byHand)
		}
		return
	}
	words := []string{"groupadd"}
	if g.System {
		words = append(words, "--system")
	}
	if g.GID != nil {
		words = append(words, "--gid", strconv.Itoa(*g.GID))
	}
	p.add(Change{Kind: "group", Name: g.Name, What: "new", script: call(append(words, g.Name)...)})
}

func (p *planner) user(u *plan.User) {
	is := p.state.users[u.Name]
	if is == nil {
		p.add(Change{Kind: "user", Name: u.Name, What: "new", script: newUser(u)})
	} else {
		if u.UID != nil && *u.UID != is.uid {
			p.note("the user %s has the number %d, not %d: %s", u.Name, is.uid, *u.UID, byHand)
		}
		if u.Home != is.home {
			p.note("the user %s has the home %s, not %s: %s", u.Name, is.home, u.Home, byHand)
		}
		if u.Shell != is.shell {
			p.add(Change{Kind: "user", Name: u.Name, What: fmt.Sprintf("shell %s → %s", is.shell, u.Shell), script: call("usermod", "--shell", u.Shell, u.Name)})
		}
	}
	var missing []string
	for _, g := range u.Groups {
		if _, there := p.state.groups[g]; !there && !p.makesGroup(g) {
			p.problem("the user %s is to be in the group %s, which isn't on the host: a package makes it, which has to be installed first", u.Name, g)
		}
		if is == nil || !slices.Contains(is.groups, g) {
			missing = append(missing, g)
		}
	}
	if len(missing) > 0 {
		p.add(Change{
			Kind: "user", Name: u.Name, What: "joins " + strings.Join(missing, ", "),
			script: call("usermod", "-a", "-G", strings.Join(missing, ","), u.Name),
		})
	}
}

// newUser makes one without a password.
func newUser(u *plan.User) string {
	words := []string{"useradd", "--home-dir", u.Home, "--shell", u.Shell, "--comment", u.Comment}
	if u.System {
		words = append(words, "--system")
	}
	if !u.System || len(u.SSHKeys) > 0 {
		words = append(words, "--create-home")
	}
	if u.UID != nil {
		words = append(words, "--uid", strconv.Itoa(*u.UID))
	}
	if u.Group != "" {
		words = append(words, "--gid", u.Group)
	} else {
		words = append(words, "--user-group")
	}
	return call(append(words, u.Name)...)
}

func primaryGroup(u *plan.User) string {
	if u.Group != "" {
		return u.Group
	}
	return u.Name
}

// keys adds those that a user hasn't got. Others may be anybody's: they are
// named only.
func (p *planner) keys(u *plan.User) {
	if len(u.SSHKeys) == 0 {
		return
	}
	file := keysFile(u)
	e := p.state.files[file]
	if e != nil && e.kind != tar.TypeReg {
		p.problem("%s is no file there: move it away", file)
		return
	}
	var has []string
	text := ""
	if e != nil {
		text = string(e.content)
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				has = append(has, line)
			}
		}
	}
	added := 0
	for _, key := range u.SSHKeys {
		if slices.ContainsFunc(has, func(line string) bool { return sameKey(line, key) }) {
			continue
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += key + "\n"
		added++
	}
	for _, line := range has {
		if !slices.ContainsFunc(u.SSHKeys, func(key string) bool { return sameKey(line, key) }) {
			p.note("the user %s also lets in a key that isn't in the plan, %s: remove it from %s if nobody needs it", u.Name, keyName(line), file)
		}
	}
	if added == 0 {
		return
	}
	var before []byte
	if e != nil {
		before = e.content
	}
	group := primaryGroup(u)
	if is := p.state.users[u.Name]; is != nil && u.Group == "" {
		group = strconv.Itoa(is.gid)
	}
	p.add(Change{
		Kind: "keys", Name: file, What: fmt.Sprintf("%d more", added), Diff: diffOf(file, before, []byte(text)), content: []byte(text), expects: stateOf(e),
		script: "[ -d " + quote.Word(path.Dir(file)) + " ] || " + call("folder", "0700", u.Name, group, path.Dir(file)) + "\n" + call("put", "@", "0600", u.Name, group, file),
	})
}

// sameKey compares keys without their options and comments.
func sameKey(a, b string) bool {
	key := func(line string) string {
		words := strings.Fields(line)
		for i, w := range words[:max(0, len(words)-1)] {
			if strings.HasPrefix(words[i+1], "AAAA") {
				return w + " " + words[i+1]
			}
		}
		return line
	}
	return key(a) == key(b)
}

// keyName is what people know a key by: its comment, or its end.
func keyName(line string) string {
	words := strings.Fields(line)
	for i, w := range words {
		if strings.HasPrefix(w, "AAAA") {
			if i+1 < len(words) {
				return strings.Join(words[i+1:], " ")
			}
			return "…" + w[max(0, len(w)-12):]
		}
	}
	return "of an unknown form"
}

// units puts units into their states.
func (p *planner) units() {
	for i := range p.want.Layer.Units {
		u := &p.want.Layer.Units[i]
		is := p.state.units[u.Name]
		c := Change{Kind: "unit", Name: u.Name, What: is + " → " + string(u.State)}
		switch u.State {
		case plan.UnitEnabled:
			if !slices.Contains([]string{"disabled", "masked", "enabled-runtime", "masked-runtime", "not-found", "bad"}, is) {
				continue
			}
			if is == "not-found" && !p.want.knowsFile(u.Name) {
				p.note("%s isn't there: the package that has it isn't installed", u.Name)
				continue
			}
			if strings.HasPrefix(is, "masked") {
				c.script = call("systemctl", "--quiet", "unmask", u.Name) + "\n"
			}
			c.script += call("systemctl", "--quiet", "enable", u.Name)
			c.does = []action{{start, u.Name}}
		case plan.UnitDisabled:
			if !strings.HasPrefix(is, "enabled") {
				continue
			}
			c.script = call("systemctl", "--quiet", "disable", "--now", u.Name)
		case plan.UnitMasked:
			if is == "masked" {
				continue
			}
			c.script = call("systemctl", "--quiet", "mask", "--now", u.Name)
		}
		p.add(c)
	}
}

// image names what of the Image half can't be changed in place.
func (p *planner) image() {
	image := &p.want.Plan.Image
	const way = "it needs a new image and a reinstallation, or apt by hand"
	if r := p.state.Release; r.ID != image.Release.ID || r.Codename != image.Release.Codename {
		p.note("the host runs %s %s, and its image is to be %s %s: a reinstallation brings that", r.ID, r.Codename, image.Release.ID, image.Release.Codename)
	}
	for _, pkg := range image.Packages {
		if !p.state.packages[packageName(pkg.Name)] {
			p.note("the package %s isn't installed: %s", pkg.Name, way)
		}
	}
	for _, a := range image.KernelArguments {
		if !slices.Contains(p.state.kernel, a.Value) {
			p.note("the kernel was started without %s: it needs a new image and a reinstallation, or update-grub by hand and a boot", a.Value)
		}
	}
}
