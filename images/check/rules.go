package check

import (
	"path"
	"strings"
)

// rule says that nothing may be where a pattern matches: no file, no link, and no
// folder with something in it. Wildcards stand in a path's last element, or in
// the one above it.
type rule struct {
	check    string
	patterns string
	what     string
	remedy   string
}

const (
	removeIt = "remove it while sealing; what the profile itself puts there is allowed"
	perHost  = "each host makes its own: remove it while sealing"
)

// rules has all that render's and bake's sealing take away; a test compares.
var rules = []rule{
	{Keys, `etc/ssh/ssh_host_*`, "an SSH host key, which all hosts of the image would share", perHost},
	{Keys, `root/.ssh/authorized_keys`, "somebody's key lets them in as root on each host", "remove it, or write it into the profile"},
	{Keys, `root/.gnupg etc/ssl/private/ssl-cert-snakeoil.key opt/vault/tls/*`, "a key that was made while the image was", perHost},
	{Identity, `etc/hostname`, "the building machine's name, or a name for all hosts", perHost},
	{Identity, `var/lib/systemd/random-seed boot/efi/loader/random-seed boot/loader/random-seed efi/loader/random-seed`, "a random seed that all hosts would share", perHost},
	{Identity, `var/lib/systemd/credential.secret var/lib/NetworkManager/secret_key`, "a secret that all hosts would share", perHost},
	{Identity, `var/lib/cloud/*`, "cloud-init's state of another machine: it wouldn't run its first boot", "run cloud-init clean --seed, or remove it while sealing"},
	{Identity, `etc/nvme/hostid etc/nvme/hostnqn`, "a number that all hosts would share", perHost},
	{Network, `etc/.resolv.conf.systemd-resolved.bak`, "a copy of the building machine's resolvers", removeIt},
	{Network, `etc/netplan/50-cloud-init.yaml etc/network/interfaces.d/50-cloud-init* etc/systemd/network/10-cloud-init-* etc/NetworkManager/system-connections/* etc/udev/rules.d/70-persistent-net.rules`,
		"the network of another machine", removeIt},
	{Leases, `var/lib/dhcp/* var/lib/dhclient/* var/lib/dhcpcd/* var/lib/NetworkManager/*lease* var/lib/NetworkManager/timestamps run/systemd/netif/leases/*`, "a DHCP lease of another machine", removeIt},
	{Logs, `var/log/journal/* var/log/*.gz var/log/*.[0-9] var/log/*/*.gz var/log/*/*.[0-9] var/log/apt/* var/log/alternatives.log var/log/bootstrap.log var/log/dpkg.log var/log/fontconfig.log var/log/unattended-upgrades/*`,
		"a log of the build", "remove or empty it while sealing"},
	{Caches, `var/cache/apt/*.bin var/cache/apt/archives/*.deb var/cache/apt/archives/lock var/cache/apt/archives/partial/* var/lib/apt/lists/*`, "apt's cache, which tells of the build and grows old", "run apt-get clean, or remove it while sealing"},
	{Caches, `var/cache/debconf/*-old var/cache/ldconfig/aux-cache root/.cache`, "a cache of the build", removeIt},
	{Remains, `etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid- var/lib/dpkg/*-old var/backups/*`, "a backup of what was before", removeIt},
	{Remains, `usr/sbin/policy-rc.d usr/sbin/policy-rc.d.kiln`, "it keeps packages from starting their services", removeIt},
	{Remains, `etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/ssh/sshd_config.d/50-cloud-init.conf`, "settings that are for the build alone", removeIt},
	{Remains, `etc/.pwd.lock etc/.updated var/.updated etc/*.dpkg-* etc/*.ucf-* var/lib/dpkg/lock* var/lib/dpkg/triggers/Lock var/lib/ucf/*.[0-9] var/lib/apt/periodic/* var/lib/systemd/catalog/database.tmp`,
		"what packages' scripts have left", removeIt},
	{Remains, `var/lib/systemd/timers/* var/lib/systemd/timesync/* var/lib/chrony/chrony.drift var/lib/ntpsec/ntp.drift`, "another machine's clock", removeIt},
	{Remains, `run/* dev/* tmp/* var/tmp/* var/crash/*`, "a temporary file", removeIt},
	{Remains, `initrd.img.old vmlinuz.old`, "a link to a kernel that isn't there any more", removeIt},
	{Remains, `root/.bash_history root/.lesshst root/.wget-hsts root/.viminfo root/.python_history root/.ssh/known_hosts`, "what somebody did while the image was made", removeIt},
}

// placed is a rule at a folder: what its pattern says of the folder's entries.
type placed struct {
	base string
	rule *rule
}

// ruleTable is the rules by the folders that they are about. A folder whose name
// has a wildcard stands under that.
func ruleTable() map[string][]placed {
	table := map[string][]placed{}
	for i := range rules {
		for _, p := range strings.Fields(rules[i].patterns) {
			dir, base := path.Split("/" + p)
			dir = strings.TrimSuffix(dir, "/")
			table[dir] = append(table[dir], placed{base, &rules[i]})
		}
	}
	return table
}

// ruleFor is the rule that an entry of a folder falls under, or nil.
func ruleFor(table map[string][]placed, dir, base string) *rule {
	lists := [][]placed{table[dir]}
	if dir != "" {
		lists = append(lists, table[path.Dir(dir)+"/*"])
	}
	for _, list := range lists {
		for _, p := range list {
			if ok, err := path.Match(p.base, base); ok && err == nil {
				return p.rule
			}
		}
	}
	return nil
}

// paths looks for files that mustn't be there, and for logs that aren't empty.
func (c *checker) paths() error {
	table := ruleTable()
	var below func(dir string, n *node, under *rule)
	below = func(dir string, n *node, under *rule) {
		for _, e := range n.children {
			name, r := dir+"/"+e.name, under
			if r == nil {
				r = ruleFor(table, dir, e.name)
			}
			switch {
			case e.inode.IsDir():
				below(name, e, r)
			case r != nil:
				c.found(r.check, name, r.what, r.remedy)
			case e.inode.IsRegular() && e.inode.Size > 0 && strings.HasPrefix(name, "/var/log/"):
				c.found(Logs, name, "a log of the build", "empty it while sealing")
			case isAgentState(name):
				c.found(Identity, name, "what an agent calls itself, or its state: hosts that share it can't all join", "remove it while sealing")
			}
		}
	}
	below("", c.tree.root, nil)
	return nil
}

// isAgentState tells whether Nomad or Consul has made a file in its data
// directory, wherever that is.
func isAgentState(name string) bool {
	if strings.HasPrefix(name, "/usr/") {
		return false
	}
	words := strings.Split(name, "/")[1:]
	base, above := words[len(words)-1], ""
	if len(words) > 1 {
		above = words[len(words)-2]
	}
	switch {
	case base == "node-id":
		return true
	case above == "client" && (base == "client-id" || base == "secret-id" || strings.HasPrefix(base, "state.db")):
		return true
	}
	for i, w := range words[:len(words)-1] {
		if i == 0 {
			continue
		}
		switch w {
		case "server", "serf", "raft", "checks", "services":
			if isAgentDirectory("/" + strings.Join(words[:i], "/")) {
				return true
			}
		}
	}
	return false
}

// isAgentDirectory tells whether a folder is an agent's usual data directory, or
// is called like one.
func isAgentDirectory(dir string) bool {
	switch base := path.Base(dir); {
	case strings.HasPrefix(dir, "/etc/"):
		return false
	case base == "nomad" || base == "consul":
		return true
	default:
		return dir == "/opt/nomad/data"
	}
}
