package check

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const systemUnits = "/etc/systemd/system"

// unitPath is where systemd looks for units, in its order.
var unitPath = []string{systemUnits, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// binaries are where systemd looks for programs without a path.
var binaries = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// units looks at those that are enabled, as far as one can know without booting:
// whether their files, programs and users are there.
func (c *checker) units() error {
	enabled := map[string]string{} // unit → the link that enables it
	for _, dir := range c.tree.glob(strings.TrimPrefix(systemUnits, "/") + "/*") {
		words := strings.Split(dir.name, ".")
		if kind := words[len(words)-1]; dir.inode.IsDir() && (kind == "wants" || kind == "requires" || kind == "upholds") {
			for _, n := range dir.children {
				enabled[n.name] = n.path()
			}
			continue
		}
		if dir.inode.IsLink() && !c.isMask(dir) && c.tree.stat(dir.path()) == nil {
			c.found(Units, dir.path(), "a link to a unit that isn't there", "remove it: systemctl disable "+dir.name)
		}
	}
	names := make([]string, 0, len(enabled))
	for n := range enabled {
		names = append(names, n)
	}
	slices.Sort(names)
	users, err := c.users()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.unit(name, enabled[name], users); err != nil {
			return err
		}
	}
	return nil
}

// users are those that the image has.
func (c *checker) users() (map[string]bool, error) {
	users := map[string]bool{}
	return users, c.eachLine("/etc/passwd", func(line string) {
		name, _, _ := strings.Cut(line, ":")
		users[name] = true
	})
}

// isMask tells whether a link says that a unit can't be started.
func (c *checker) isMask(n *node) bool {
	target, err := c.tree.disk.fs.Readlink(n.inode)
	return err == nil && path.Clean(target) == "/dev/null"
}

// template is the name of the file that instances are made of: getty@.service for
// getty@tty1.service; empty if it is no instance.
func template(unit string) string {
	prefix, rest, ok := strings.Cut(unit, "@")
	if i := strings.LastIndexByte(rest, '.'); ok && i > 0 {
		return prefix + "@" + rest[i:]
	}
	return ""
}

// unitFile finds what systemd would load for a name. masked tells that it mustn't.
func (c *checker) unitFile(name string) (n *node, masked bool) {
	for _, name := range []string{name, template(name)} {
		if name == "" {
			continue
		}
		for _, dir := range unitPath {
			at := c.tree.lstat(dir + "/" + name)
			if at == nil {
				continue
			}
			if at.inode.IsLink() && c.isMask(at) {
				return nil, true
			}
			if at = c.tree.stat(dir + "/" + name); at != nil {
				return at, false
			}
		}
	}
	return nil, false
}

// setting is one of a unit's: Service/ExecStart.
type setting struct{ key, value string }

// settings reads a unit with its drop-ins. An empty value takes away what was set
// before.
func (c *checker) settings(name string, file *node) ([]setting, error) {
	files := []*node{file}
	byName := map[string]*node{}
	for i := len(unitPath) - 1; i >= 0; i-- {
		for _, of := range []string{template(name), name} {
			if of == "" {
				continue
			}
			for _, n := range c.tree.glob(strings.TrimPrefix(unitPath[i], "/") + "/" + of + ".d/*.conf") {
				byName[n.name] = n
			}
		}
	}
	dropIns := make([]string, 0, len(byName))
	for n := range byName {
		dropIns = append(dropIns, n)
	}
	slices.Sort(dropIns)
	for _, n := range dropIns {
		files = append(files, c.tree.stat(byName[n].path()))
	}
	var list []setting
	for _, f := range files {
		b, err := c.tree.read(f)
		if err != nil {
			return nil, err
		}
		section := ""
		for line := range strings.Lines(strings.ReplaceAll(string(b), "\\\n", " ")) {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || line[0] == '#' || line[0] == ';':
			case line[0] == '[':
				section = strings.Trim(line, "[]") + "/"
			default:
				key, value, _ := strings.Cut(line, "=")
				key, value = section+strings.TrimSpace(key), strings.TrimSpace(value)
				if value == "" {
					list = slices.DeleteFunc(list, func(s setting) bool { return s.key == key })
					continue
				}
				list = append(list, setting{key, value})
			}
		}
	}
	return list, nil
}

func (c *checker) unit(name, link string, users map[string]bool) error {
	file, masked := c.unitFile(name)
	if masked {
		return nil
	}
	if file == nil {
		c.found(Units, link, "it enables a unit that isn't there", "install what brings it, or remove the link: systemctl disable "+name)
		return nil
	}
	settings, err := c.settings(name, file)
	if err != nil {
		return err
	}
	if c.skipped(settings) {
		return nil
	}
	starts := c.starts(name, settings)
	for _, s := range settings {
		switch s.key {
		case "Service/ExecStart", "Service/ExecStartPre", "Service/ExecStartPost", "Service/ExecCondition":
			if program := c.missing(s.value); program != "" {
				c.found(Units, file.path(), fmt.Sprintf("it is enabled, and its %s is no program of the image: %s", strings.TrimPrefix(s.key, "Service/"), program), "install what brings it, or disable the unit")
			}
		case "Service/User":
			if !users[s.value] && !strings.ContainsAny(s.value, "%0123456789") && !slices.Contains(settings, setting{"Service/DynamicUser", "yes"}) &&
				!slices.Contains(settings, setting{"Service/DynamicUser", "true"}) {
				c.found(Units, file.path(), fmt.Sprintf("it is enabled, and its user %s isn't there", s.value), "install what makes the user, or write it into the profile")
			}
		}
	}
	if starts != "" {
		if n, masked := c.unitFile(starts); n == nil && !masked {
			c.found(Units, file.path(), fmt.Sprintf("it is enabled, and %s isn't there, which it starts", starts), "install what brings it, or disable the unit")
		}
	}
	return nil
}

// starts is the unit that a timer, a path or a socket is there for.
func (c *checker) starts(name string, settings []setting) string {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return ""
	}
	service := name[:i] + ".service"
	for _, s := range settings {
		switch s.key {
		case "Timer/Unit", "Path/Unit", "Socket/Service":
			return s.value
		case "Socket/Accept":
			if s.value == "yes" || s.value == "true" {
				service = name[:i] + "@.service"
			}
		}
	}
	switch name[i:] {
	case ".timer", ".path", ".socket":
		return service
	}
	return ""
}

// skipped tells whether a condition keeps systemd from starting a unit at all.
func (c *checker) skipped(settings []setting) bool {
	for _, s := range settings {
		switch s.key {
		case "Unit/ConditionPathExists", "Unit/ConditionFileIsExecutable", "Unit/ConditionFileNotEmpty", "Unit/ConditionDirectoryNotEmpty", "Unit/ConditionPathIsDirectory":
			// What is preceded by ! or | is for the host to know.
			if path.IsAbs(s.value) && !strings.Contains(s.value, "%") && c.tree.stat(s.value) == nil {
				return true
			}
		}
	}
	return false
}

// missing is the program of a command line if the image doesn't have it.
func (c *checker) missing(command string) string {
	prefixes := len(command) - len(strings.TrimLeft(command, "@-:+!|"))
	mayFail := strings.Contains(command[:prefixes], "-")
	words := strings.Fields(command[prefixes:])
	if mayFail || len(words) == 0 {
		return ""
	}
	program := strings.Trim(words[0], `"'`)
	if strings.ContainsAny(program, "%$\\") {
		return "" // only the host knows
	}
	places := []string{program}
	if !path.IsAbs(program) {
		places = places[:0]
		for _, dir := range binaries {
			places = append(places, dir+"/"+program)
		}
	}
	for _, p := range places {
		if n := c.tree.stat(p); n != nil && n.inode.IsRegular() && n.inode.Permissions()&executables != 0 {
			return ""
		}
	}
	return program
}
