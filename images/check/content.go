package check

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

var (
	proxyVariable = lazyregexp.New(`(?i)\b(?:https?|ftp|all|socks)_proxy["']?\s*[=:]\s*["']?[^\s"';#]`)
	aptProxy      = lazyregexp.New(`(?i)\b(?:https?|ftp)(?:::|[\s{]).{0,80}?\bproxy(?:-auto-detect)?(?:::\S+)?\s+"([^"]*)"`)
)

// identity looks at files that have to be there, but with nothing of one host.
func (c *checker) identity() error {
	const id, dbus = "/etc/machine-id", "/var/lib/dbus/machine-id"
	const remedy = "empty it while sealing (: >/etc/machine-id): each host makes its own"
	switch n := c.tree.lstat(id); {
	case n == nil:
		if c.tree.stat("/usr/lib/systemd/systemd") != nil || c.tree.stat("/lib/systemd/systemd") != nil {
			c.found(Identity, id, "it isn't there: systemd takes the first boot for one in which packages' presets apply", "make it, empty")
		}
	case !n.inode.IsRegular() || n.inode.Size > 0:
		c.found(Identity, id, "it isn't empty: all hosts would have the same", remedy)
	}
	if n := c.tree.lstat(dbus); n != nil && !n.inode.IsLink() {
		c.found(Identity, dbus, "a machine-id of its own: all hosts would have the same", "remove it while sealing")
	}
	if err := c.words("/etc/iscsi/initiatorname.iscsi", func(key, value string) {
		if key == "InitiatorName" && value != "" {
			c.found(Identity, "/etc/iscsi/initiatorname.iscsi", "an iSCSI name that all hosts would share", "write GenerateName=yes there while sealing")
		}
	}); err != nil {
		return err
	}
	return c.eachLine("/etc/hosts", func(line string) {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "127.0.1.1" || strings.Contains(line, "kiln-build")) {
			c.found(Identity, "/etc/hosts", "it has the building machine's name", "remove that line while sealing")
		}
	})
}

// eachLine calls each for the lines of a file that aren't empty or comments,
// without those at their ends. A file that isn't there has none.
func (c *checker) eachLine(name string, each func(line string)) error {
	b, err := c.tree.read(c.tree.stat(name))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
			each(line)
		}
	}
	return nil
}

func (c *checker) words(name string, each func(key, value string)) error {
	return c.eachLine(name, func(line string) {
		if key, value, ok := strings.Cut(line, "="); ok {
			each(strings.TrimSpace(key), strings.TrimSpace(value))
		}
	})
}

// network looks for the building machine's resolvers and proxies.
func (c *checker) network() error {
	const resolver = "/etc/resolv.conf"
	if n := c.tree.lstat(resolver); n != nil && n.inode.IsRegular() {
		err := c.eachLine(resolver, func(line string) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] == "options" {
				return
			}
			if addr, err := netip.ParseAddr(f[1]); f[0] == "nameserver" && err == nil && addr.IsLoopback() {
				return
			}
			c.found(Network, resolver, "it has resolvers or search domains of the building machine", "empty it while sealing, or have the profile write it")
		})
		if err != nil {
			return err
		}
	}
	if err := c.aptProxies(); err != nil {
		return err
	}
	return c.proxies()
}

// aptProxies reads apt's configuration, blocks in braces flattened as far as it
// takes to see a proxy.
func (c *checker) aptProxies() error {
	for _, n := range append(c.tree.glob("etc/apt/apt.conf"), c.tree.glob("etc/apt/apt.conf.d/*")...) {
		b, err := c.tree.read(n)
		if err != nil {
			return err
		}
		var text strings.Builder
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "//") && !strings.HasPrefix(line, "#") {
				text.WriteString(line + " ")
			}
		}
		for _, m := range aptProxy().FindAllStringSubmatch(text.String(), -1) {
			if m[1] != "" && !strings.EqualFold(m[1], "DIRECT") && !strings.EqualFold(m[1], "false") {
				c.found(Network, n.path(), "apt goes through a proxy of the building machine's", "remove it while sealing, or have the profile write it")
			}
		}
	}
	for _, n := range append(c.tree.glob("etc/apt/auth.conf"), c.tree.glob("etc/apt/auth.conf.d/*")...) {
		if n.inode.IsRegular() && n.inode.Size > 0 {
			c.found(Secrets, n.path(), "credentials for package sources", "remove it while sealing")
		}
	}
	return nil
}

// proxyFiles are where environments are set.
var proxyFiles = []string{
	"etc/environment", "etc/environment.d/*", "etc/profile", "etc/profile.d/*", "etc/bash.bashrc", "etc/default/*", "etc/wgetrc",
	"etc/systemd/system.conf", "etc/systemd/system.conf.d/*", "etc/systemd/system/*", "etc/systemd/system/*.d/*", "etc/sudoers.d/*",
	"root/.bashrc", "root/.profile", "root/.wgetrc", "root/.curlrc",
}

func (c *checker) proxies() error {
	for _, pattern := range proxyFiles {
		for _, n := range c.tree.glob(pattern) {
			if !n.inode.IsRegular() {
				continue
			}
			name := n.path()
			if err := c.eachLine(name, func(line string) {
				if proxyVariable().MatchString(line) {
					c.found(Network, name, "an environment with a proxy of the building machine's", "remove it while sealing, or have the profile write it")
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// passwords looks at what users are asked for when they log in.
func (c *checker) passwords() error {
	for _, name := range []string{"/etc/shadow", "/etc/passwd", "/etc/gshadow"} {
		if err := c.eachLine(name, func(line string) {
			f := strings.Split(line, ":")
			if len(f) < 3 {
				return
			}
			switch password := f[1]; {
			case password == "x" || strings.HasPrefix(password, "!") || strings.HasPrefix(password, "*"):
			case password == "" && name == "/etc/gshadow": // nobody can become a member
			case password == "":
				c.found(Passwords, name, fmt.Sprintf("%s has no password to ask for", f[0]), "lock it while sealing: passwd --lock "+f[0])
			default:
				c.found(Passwords, name, fmt.Sprintf("%s has a password, the same on all hosts", f[0]), "lock it while sealing: passwd --lock "+f[0])
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// content makes findings of what the search saw.
func (c *checker) content(s *scan) error {
	for _, x := range s.sightings {
		if x.form >= 0 {
			f := &s.search.forms[x.form]
			where, _ := c.place(&x)
			what := "the secret " + s.search.canaries[f.canary].Name + " is there"
			if how := strings.TrimSpace(f.how + " " + x.how); how != "" {
				what += ", " + how
			}
			c.found(Canaries, where, what, "find what puts it there: an image has no secrets, they are the host half's; then replace the secret if anybody got the image")
			continue
		}
		if err := c.pattern(s, &x); err != nil {
			return err
		}
	}
	return nil
}

// pattern judges what looks like a secret: packages may bring examples, byte for
// byte as they are.
func (c *checker) pattern(s *scan, x *sighting) error {
	p := &patterns[x.pattern]
	where, whole := c.place(x)
	if whole {
		brought, err := c.dpkg().brings(where, x.inode, s)
		if err == nil && !brought {
			brought, err = c.dpkg().compiledFrom(where, x.pattern, s)
		}
		if err != nil || brought {
			return err
		}
	}
	what := p.name
	if x.how != "" {
		what += ", " + x.how
	}
	c.found(p.check, where, what, "remove it: secrets are the host half's, or the site's; what a package brings unchanged is allowed")
	return nil
}

// place says where something was seen: in which file, with whole telling that it
// is in its content, or in which part of the disk. It notes the file.
func (c *checker) place(x *sighting) (name string, whole bool) {
	if x.inode != nil {
		return c.tree.nameOf(x.inode), true
	}
	d := c.tree.disk
	if r := c.tree.at(x.disk); r != nil {
		x.inode = r.inode
		if x.disk-r.start+r.at >= r.inode.Size {
			return fmt.Sprintf("behind the end of %s, byte %d of the disk", c.tree.nameOf(r.inode), x.disk), false
		}
		return c.tree.nameOf(r.inode), r.inode.IsRegular()
	}
	for _, p := range d.partitions {
		switch {
		case x.disk < p.start || x.disk >= p.end:
		case p.name != rootPartition:
			return fmt.Sprintf("the partition %s, byte %d of the disk", p.name, x.disk), false
		case !c.tree.used.Used((x.disk - p.start) / d.fs.BlockSize):
			return fmt.Sprintf("a block that no file has any more, byte %d of the disk", x.disk), false
		default:
			return fmt.Sprintf("the root filesystem's own structures, byte %d of the disk", x.disk), false
		}
	}
	return fmt.Sprintf("outside the partitions, byte %d of the disk", x.disk), false
}
