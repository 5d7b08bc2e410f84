package apply

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/quote"
)

// action is what becomes of a unit once its files are there.
type action struct {
	verb string // restart, reload, start, daemon-reload, network
	unit string
}

// The verbs of actions, as they stand in PendingPath.
const (
	restart      = "restart"
	reload       = "reload" // restart, for a unit that can't
	start        = "start"  // of one that does its work and ends
	daemonReload = "daemon-reload"
	network      = "network"
	directories  = "directories" // systemd-tmpfiles makes them
)

func (a action) String() string { return strings.TrimSpace(a.verb + " " + a.unit) }

func parseAction(line string) (action, bool) {
	verb, unit, _ := strings.Cut(line, " ")
	switch verb {
	case restart, reload, start:
		return action{verb, unit}, unit != ""
	case daemonReload, network, directories:
		return action{verb: verb}, unit == ""
	}
	return action{}, false
}

// known are the units that read files which don't have their name, or that take
// them in another way than by a restart: those that stand first count. A folder
// stands for all below it. No unit: nothing has to be told.
var known = []struct {
	path string
	does action
	note string // what people have to know
	// distribution is set for units that every Debian has: no profile has to name
	// them.
	distribution bool
}{
	{path: "/etc/kiln/reserve", does: action{restart, nomadUnit}},
	{path: "/etc/kiln/grid.sh", does: action{start, "kiln-grid.service"}},
	{path: "/etc/kiln/resolv.conf", does: action{start, "kiln-resolv.service"}},
	{path: "/etc/kiln/", does: action{restart, hostUnit}},
	{path: "/usr/lib/kiln/host-ready", does: action{restart, hostUnit}},
	{path: "/usr/lib/kiln/data-disks", does: action{restart, hostUnit}},
	{path: "/usr/lib/kiln/grid-access", does: action{start, "kiln-grid.service"}},
	{path: "/usr/lib/kiln/use-dnsmasq", does: action{start, "kiln-resolv.service"}},
	{path: "/etc/tmpfiles.d/kiln.conf", does: action{verb: directories}},
	// Restarted, it would be sealed.
	{path: "/etc/vault.d/", does: action{reload, "vault.service"}, note: "vault.service is only told to reload: what it reads at its start alone needs a restart by hand, one server at a time, and unsealing"},
	{path: "/etc/docker/", note: "docker.service isn't restarted, since its containers would end: --restart docker.service does it"},
	{path: "/etc/ssh/", does: action{reload, "ssh.service"}, distribution: true},
	{path: "/etc/sysctl.d/", does: action{restart, "systemd-sysctl.service"}, distribution: true},
	{path: "/etc/systemd/journald.conf", does: action{restart, "systemd-journald.service"}, distribution: true},
	{path: "/etc/systemd/journald.conf.d/", does: action{restart, "systemd-journald.service"}, distribution: true},
	{path: "/etc/systemd/resolved.conf", does: action{restart, "systemd-resolved.service"}, distribution: true},
	{path: "/etc/systemd/resolved.conf.d/", does: action{restart, "systemd-resolved.service"}, distribution: true},
	{path: "/etc/systemd/timesyncd.conf", does: action{restart, "systemd-timesyncd.service"}, distribution: true},
	{path: "/etc/systemd/timesyncd.conf.d/", does: action{restart, "systemd-timesyncd.service"}, distribution: true},
	{path: "/etc/systemd/network/", note: networkNote},
	{path: "/etc/network/", note: networkNote},
	{path: "/etc/netplan/", note: networkNote},
}

const networkNote = "the network isn't touched: what is written counts from the next boot on, or at once with --network; until then nothing can start that is to listen at a new address"

// bootFiles are read before there is a system to change: a host takes them only
// with update-grub or update-initramfs, and a boot.
var bootFiles = []string{"/etc/default/grub", "/etc/default/grub.d/", "/etc/initramfs-tools/", "/boot/"}

// below tells whether a path is the one named, or below the folder named.
func below(file, of string) bool {
	return file == of || strings.HasSuffix(of, "/") && strings.HasPrefix(file, of)
}

// readers says what has to be done about a file that was changed, and what
// people are to be told. By these rules, the first that fits:
//
//   - a unit's own file or drop-in: systemd reads it again, and the unit is
//     restarted
//   - what known says
//   - a file of Consul's: it reloads where that is enough
//   - /etc/NAME.d, /etc/NAME, /etc/default/NAME and /etc/NAME.conf are NAME.service's,
//     if the plan has a unit of that name: it is restarted
func (w *Want) readers(file string, before, after []byte) (does []action, note string) {
	if unit, whole := unitOf(file); unit != "" {
		return unitActions(unit, whole, after == nil)
	}
	for _, k := range known {
		if below(file, k.path) {
			if k.does.verb != "" && (k.does.unit == "" || w.knows(k.does.unit) || k.distribution) {
				does = append(does, k.does)
			}
			return does, k.note
		}
	}
	name := serviceOf(file)
	if name == "" || !w.hasUnit(name) {
		return nil, ""
	}
	if name == "consul.service" && consulReloads(before, after) {
		return []action{{reload, name}}, ""
	}
	return []action{{restart, name}}, ""
}

// unitFolders are where an administrator's and the packages' units are.
var unitFolders = []string{"/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"}

// unitOf is the unit whose file or drop-in it is; whole is set for its file.
func unitOf(file string) (unit string, whole bool) {
	for _, folder := range unitFolders {
		rest, ok := strings.CutPrefix(file, folder)
		if !ok {
			continue
		}
		name, below, dropIn := strings.Cut(rest, "/")
		if !dropIn {
			return name, true
		}
		if unit, ok := strings.CutSuffix(name, ".d"); ok && strings.HasSuffix(below, ".conf") {
			return unit, false
		}
	}
	return "", false
}

// unitActions are for a unit whose own file was changed.
func unitActions(unit string, whole, gone bool) ([]action, string) {
	again := action{verb: daemonReload}
	switch kind := path.Ext(unit); {
	case gone && whole:
		return []action{again}, unit + ": its file is gone: if it still runs, stop it by hand"
	case kind == ".service" && !strings.Contains(unit, "@."), kind == ".path", kind == ".timer":
		return []action{again, {restart, unit}}, ""
	case kind == ".target" || kind == ".slice":
		return []action{again}, ""
	}
	// A mount would be unmounted, a socket is busy.
	return []action{again}, unit + " isn't restarted by itself: what was changed counts from its next start on"
}

// serviceOf is the service that a file below /etc has its name from.
func serviceOf(file string) string {
	rest, ok := strings.CutPrefix(file, "/etc/")
	if !ok {
		return ""
	}
	rest = strings.TrimPrefix(rest, "default/")
	name, _, _ := strings.Cut(rest, "/")
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".d"), ".conf")
	return name + ".service"
}

// order sorts actions into the order in which they are done, each unit once:
// systemd first, then the host's directories and its mark, then the units as the
// plan has them, then others by name.
func (w *Want) order(actions []action) []action {
	strongest := map[string]action{}
	for _, a := range actions {
		key := a.unit
		if key == "" {
			key = a.verb
		}
		// A restart does what a reload would, and a start comes to one that doesn't run.
		if old, ok := strongest[key]; !ok || old.verb == reload || a.verb == start {
			strongest[key] = a
		}
	}
	rank := func(a action) int {
		switch {
		case a.verb == daemonReload:
			return -4
		case a.verb == network:
			return -3
		case a.verb == directories:
			return -2
		case a.unit == hostUnit:
			return -1
		}
		for i := range w.Layer.Units {
			if w.Layer.Units[i].Name == a.unit {
				return i
			}
		}
		return len(w.Layer.Units)
	}
	all := make([]action, 0, len(strongest))
	for _, a := range strongest {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b action) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a.String(), b.String())) })
	return all
}

// shell is the call of apply.sh's function that does it.
func (a action) shell() string { return fmt.Sprintf("act %s %s", a.verb, quote.Word(a.unit)) }
