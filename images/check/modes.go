package check

import "fmt"

const (
	setuid      = 0o4000
	setgid      = 0o2000
	sticky      = 0o1000
	forAll      = 0o002
	capability  = "security.capability"
	executables = 0o111
)

// modes looks for what everybody can write, and for programs that run as
// somebody else than who starts them.
func (c *checker) modes() error {
	names, nodes := map[string]bool{}, map[string]*node{}
	special := map[string]string{}
	var failed error
	c.tree.root.walk("", func(name string, n *node) {
		i := n.inode
		mode := i.Permissions()
		switch {
		case i.IsLink():
			return
		case i.IsDir():
			if mode&forAll != 0 && mode&sticky == 0 {
				c.found(WorldWritable, name, fmt.Sprintf("a folder of mode %04o: everybody can remove others' files there", mode), "give it the sticky bit (1777), or take the right away")
			}
			return
		case mode&forAll != 0:
			c.found(WorldWritable, name, fmt.Sprintf("a file of mode %04o: everybody can write it", mode), "take the right away: chmod o-w")
		}
		what := ""
		switch {
		case !i.IsRegular():
			return
		case mode&(setuid|setgid) != 0:
			what = fmt.Sprintf("a file of mode %04o that no package brings", mode)
		default:
			attributes, err := c.tree.disk.fs.Attributes(i)
			if err != nil && failed == nil {
				failed = fmt.Errorf("%s: %w", name, err)
			}
			if _, ok := attributes[capability]; !ok {
				return
			}
			what = "a file with capabilities that no package brings"
		}
		names[name], nodes[name], special[name] = true, n, what
	})
	if failed != nil || len(names) == 0 {
		return failed
	}
	owned, err := c.dpkg().owned(names)
	if err != nil {
		return err
	}
	for name, what := range special {
		if owned[name] {
			continue
		}
		mode, ok, err := c.dpkg().override(name)
		if err != nil {
			return err
		}
		if !ok || mode != nodes[name].inode.Permissions() {
			c.found(Setuid, name, what, "remove it, have a package bring it, or write it into the profile with its mode")
		}
	}
	return nil
}
