package render

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// baseGroups are those that every Debian has before any package of ours is
// installed (base-passwd's).
var baseGroups = strings.Fields(`root daemon bin sys adm tty disk lp mail news uucp man proxy kmem dialout fax voice
	cdrom floppy tape sudo audio dip www-data backup operator list irc src shadow utmp video sasl plugdev staff games users nogroup`)

// homeOf is the user's home directory; a system user has none unless the plan
// says so.
func homeOf(u *plan.User) string {
	switch {
	case u.Home != "":
		return u.Home
	case u.System:
		return "/nonexistent"
	}
	return "/home/" + u.Name
}

// shellOf is the user's login shell.
func shellOf(u *plan.User) string {
	if u.System {
		return cmp.Or(u.Shell, "/usr/sbin/nologin")
	}
	return cmp.Or(u.Shell, "/bin/bash")
}

func (c *cloudInit) checkUser(u *plan.User) error {
	if err := checkNames(append([]string{u.Name, cmp.Or(u.Group, u.Name)}, u.Groups...)...); err != nil {
		return fmt.Errorf("%s: the user %q: %w", u.Origin, u.Name, err)
	}
	for _, field := range []string{u.Comment, homeOf(u), shellOf(u)} {
		if strings.ContainsFunc(field, notInLine) || strings.Contains(field, ":") {
			return fmt.Errorf("%s: the user %s has %q: /etc/passwd can hold neither a colon nor a control character there", u.Origin, u.Name, field)
		}
	}
	for _, key := range u.SSHKeys {
		if strings.ContainsFunc(key, notInLine) {
			return fmt.Errorf("%s: the user %s has an SSH key of more than one line", u.Origin, u.Name)
		}
	}
	if u.System && u.Home == "" && len(u.SSHKeys) > 0 {
		return fmt.Errorf("%s: the system user %s has SSH keys, and no home directory to keep them in: set home", u.Origin, u.Name)
	}
	if c.target.hasImage() && u.Group != "" && !c.early(u.Group) {
		return fmt.Errorf("%s: the user %s has the group %s, which isn't there before packages are installed: declare it under groups, with system: true if a package creates it as well",
			u.Origin, u.Name, u.Group)
	}
	return nil
}

// early tells whether a group exists before any package is installed.
func (c *cloudInit) early(group string) bool {
	return c.declares(group) || slices.Contains(baseGroups, group)
}

func (c *cloudInit) declares(group string) bool {
	return slices.ContainsFunc(c.groups, func(g plan.Group) bool { return g.Name == group })
}

// bootCommands run at each boot before all else, so they do nothing where they
// find their work done. They make what cloud-init's users and groups can't say:
// a group with a number or of the system, and a system user with SSH keys.
func (c *cloudInit) bootCommands() []string {
	var commands []string
	if c.target.hasImage() && len(c.plan.Image.Packages) > 0 {
		commands = append(commands, denyStarts)
	}
	for _, g := range c.groups {
		if g.GID == nil && !g.System {
			continue
		}
		words := []string{"groupadd"}
		if g.System {
			words = append(words, "--system")
		}
		if g.GID != nil {
			words = append(words, "--gid", strconv.Itoa(*g.GID))
		}
		commands = append(commands, "getent group "+g.Name+" >/dev/null || "+strings.Join(append(words, g.Name), " "))
	}
	for i := range c.users {
		u := &c.users[i]
		if !u.System || len(u.SSHKeys) == 0 {
			continue
		}
		words := []string{"useradd --system --create-home"}
		if u.UID != nil {
			words = append(words, "--uid", strconv.Itoa(*u.UID))
		}
		if g := c.primaryGroup(u); g != "" {
			words = append(words, "--gid", g)
		}
		if groups := c.atBoot(u.Groups); len(groups) > 0 {
			words = append(words, "--groups", strings.Join(groups, ","))
		}
		words = append(words, "--home-dir", shellWord(homeOf(u)), "--shell", shellWord(shellOf(u)), "--comment", shellWord(u.Comment), u.Name)
		commands = append(commands, "getent passwd "+u.Name+" >/dev/null || "+strings.Join(words, " "))
	}
	return commands
}

// atBoot are those of groups that are surely there when bootCommands make users:
// Debian's own, and those made by the commands before. A user with another one
// couldn't be made at all; the rest comes with groupCommands.
func (c *cloudInit) atBoot(groups []string) []string {
	var there []string
	for _, name := range groups {
		made := slices.ContainsFunc(c.groups, func(g plan.Group) bool { return g.Name == name && (g.GID != nil || g.System) })
		if made || slices.Contains(baseGroups, name) {
			there = append(there, name)
		}
	}
	return there
}

// groupCommands put users into their groups once all groups are there.
// cloud-init leaves out what a user that exists already should have: one that
// bootCommands, a package, a golden image or an earlier delivery made.
func (c *cloudInit) groupCommands() []string {
	var commands []string
	for i := range c.users {
		if u := &c.users[i]; len(u.Groups) > 0 {
			commands = append(commands, "usermod -a -G "+strings.Join(u.Groups, ",")+" "+u.Name)
		}
	}
	return commands
}

// primaryGroup is the group that useradd must be told: without one it makes a
// group of the user's name, and fails if there is one.
func (c *cloudInit) primaryGroup(u *plan.User) string {
	if u.Group == "" && c.declares(u.Name) {
		return u.Name
	}
	return u.Group
}

// accounts are the groups and users. The image's own default user is among them
// only where nobody else could log in.
func (c *cloudInit) accounts(y *yamlText) {
	var groups []string
	for _, g := range c.groups {
		if g.GID == nil && !g.System {
			groups = append(groups, g.Name)
		}
	}
	if len(groups) > 0 {
		y.list("", "groups", groups)
	}
	if len(c.users) == 0 {
		return
	}
	y.line("users:")
	if c.target == imageOnly || !slices.ContainsFunc(c.users, func(u plan.User) bool { return len(u.SSHKeys) > 0 }) {
		y.line("- default")
	}
	for i := range c.users {
		c.user(y, &c.users[i])
	}
}

func (c *cloudInit) user(y *yamlText, u *plan.User) {
	y.entry("", "- name", u.Name)
	if u.UID != nil {
		y.line("  uid: ", strconv.Itoa(*u.UID))
	}
	if g := c.primaryGroup(u); g != "" {
		y.entry("  ", "primary_group", g)
	}
	if now := c.memberships(u); len(now) > 0 {
		y.list("  ", "groups", now)
	}
	if u.Comment != "" {
		y.entry("  ", "gecos", u.Comment)
	}
	y.entry("  ", "homedir", homeOf(u))
	y.entry("  ", "shell", shellOf(u))
	if u.System && len(u.SSHKeys) == 0 {
		y.line("  system: true")
	}
	y.line("  lock_passwd: true")
	if len(u.SSHKeys) > 0 {
		y.line("  ssh_authorized_keys:")
		for _, k := range u.SSHKeys {
			y.line("  - ", y.scalar(k))
		}
	}
}

// memberships are the user's groups that exist when cloud-init makes users.
// Those that packages bring it would make itself, as ordinary groups, and the
// package that wants its own would fail on them.
func (c *cloudInit) memberships(u *plan.User) []string {
	var now []string
	for _, g := range u.Groups {
		if c.target == Golden || c.early(g) {
			now = append(now, g)
		}
	}
	return now
}

// HomeOf is the user's home directory, whether the plan names one or not.
func HomeOf(u *plan.User) string { return homeOf(u) }

// ShellOf is the user's login shell, whether the plan names one or not.
func ShellOf(u *plan.User) string { return shellOf(u) }
