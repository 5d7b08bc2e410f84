package render

import (
	"strings"

	"github.com/alisw/kiln/plan"
)

const (
	// denyStarts keeps packages from starting their services while they are
	// installed, before their configuration is in place, and apt from installing what
	// they only recommend, which no native image has. A policy that the image has
	// itself comes back with allowStarts.
	denyStarts = `cloud-init-per instance kiln_policy sh -c '
  cd /usr/sbin || exit
  if [ -e policy-rc.d ] && ! grep -q "by kiln" policy-rc.d; then mv policy-rc.d policy-rc.d.kiln; fi
  printf "#!/bin/sh\n# by kiln, while packages are installed\nexit 101\n" >policy-rc.d
  chmod 755 policy-rc.d
  printf "APT::Install-Recommends \"false\";\n" >/etc/apt/apt.conf.d/99kiln'
`
	allowStarts = `cd /usr/sbin && if [ -e policy-rc.d.kiln ]; then mv policy-rc.d.kiln policy-rc.d; else rm -f policy-rc.d; fi; cd /; rm -f /etc/apt/apt.conf.d/99kiln
`
	// argumentsTest succeeds if the running kernel has every argument that
	// grubPath adds.
	argumentsTest = `(. ` + grubPath + `; for a in $GRUB_CMDLINE_LINUX; do tr " " "\n" </proc/cmdline | grep -qxF -e "$a" || exit 1; done)`
)

// runCommands run once, when packages are installed and all files are there.
func (c *cloudInit) runCommands() []string {
	var commands []string
	add := func(words ...string) { commands = append(commands, strings.Join(words, " ")) }
	if c.target.hasImage() && len(c.plan.Image.Packages) > 0 {
		commands = append(commands, allowStarts)
	}
	commands = append(commands, c.groupCommands()...)
	if c.target == imageOnly {
		for _, d := range c.plan.Image.Directories {
			add("install -d -o", d.Owner, "-g", d.Group, "-m", string(appendMode(nil, d.Mode)), shellWord(d.Path))
		}
	}
	for i := range c.files {
		commands = append(commands, fileCommands(&c.files[i])...)
	}
	if c.target.hasImage() && len(c.plan.Image.KernelArguments) > 0 {
		add("update-grub")
	}
	commands = append(commands, c.unitCommands()...)
	return commands
}

// fileCommands make what write_files can't: links, and modes that a change of
// owner, which comes last there, takes away again.
func fileCommands(f *plan.File) []string {
	path := shellWord(f.Path)
	if f.Target == "" {
		if f.Mode&0o6000 != 0 {
			return []string{"chmod " + string(appendMode(nil, f.Mode)) + " " + path}
		}
		return nil
	}
	commands := []string{
		"mkdir -p " + shellWord(f.Path[:max(1, strings.LastIndexByte(f.Path, '/'))]),
		"ln -sfnT -- " + shellWord(f.Target) + " " + path,
	}
	if f.Owner != "root" || f.Group != "root" {
		commands = append(commands, "chown -h "+f.Owner+":"+f.Group+" "+path)
	}
	return commands
}

// unitCommands tell systemd about the units, and start them once the host has
// its data. They are restarted, since one may have come up on the image's
// configuration alone; without waiting, since some are ordered behind
// cloud-init, which runs this.
func (c *cloudInit) unitCommands() []string {
	commands := []string{"systemctl daemon-reload"}
	now := " --now"
	if !c.target.hasHost() {
		now = ""
	}
	for _, u := range c.units {
		switch u.State {
		case plan.UnitEnabled:
			commands = append(commands, "systemctl enable "+shellWord(u.Name))
		case plan.UnitDisabled:
			commands = append(commands, "systemctl disable"+now+" "+shellWord(u.Name))
		case plan.UnitMasked:
			commands = append(commands, "systemctl mask"+now+" "+shellWord(u.Name))
		}
	}
	if !c.target.hasHost() {
		return commands
	}
	return append(commands, c.startCommands()...)
}

// startCommands have the host look at what it was given, and its units take it.
func (c *cloudInit) startCommands() []string {
	var first []string
	commands := []string{"systemd-tmpfiles --create " + BootTmpfilesPath}
	if hasUnit(c.plan, hostUnit) {
		// Without the mark all files are checked. Otherwise, where cloud-init has
		// given up half-way and left the old manifest, a mixture would pass.
		first = []string{"rm -f " + markPath}
		commands = []string{"systemctl restart " + hostUnit}
	}
	restart := "systemctl restart --no-block"
	n := len(restart)
	for _, u := range mergeNamed(c.plan.Image.Units, c.plan.Host.Units, func(u plan.Unit) string { return u.Name }) {
		if u.State == plan.UnitEnabled && u.Name != hostUnit {
			restart += " " + shellWord(u.Name)
		}
	}
	if len(restart) > n {
		commands = append(commands, restart)
	}
	if c.target == Stock && len(c.plan.Image.KernelArguments) > 0 {
		// Otherwise the host is about to boot again, and does all that then.
		commands = []string{"if " + argumentsTest + "; then " + strings.Join(commands, "; ") + "; fi"}
	}
	return append(first, commands...)
}
