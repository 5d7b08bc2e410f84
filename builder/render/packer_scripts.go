package render

import (
	"path"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// waitScript waits in the building machine until cloud-init is done, and fails
// if that failed.
func waitScript(p *plan.Plan) (string, error) {
	var names []string
	for _, u := range p.Image.Users {
		names = append(names, u.Name)
	}
	return strings.ReplaceAll(waitText, "@USERS@", quote.Word(" "+strings.Join(names, " ")+" ")), nil
}

const waitText = `# Waits until cloud-init is done with what it was given; fails if it failed.
users=@USERS@
case $users in
*" $BUILD_USER "*)
	echo "the profile makes the user $BUILD_USER, whom sealing would remove: set ssh_username to another one" >&2
	exit 1
	;;
esac
status=0
cloud-init status --wait --long || status=$?
# 2 is done with complaints. Those about deprecated keys are harmless.
if [ "$status" = 2 ] && ! cloud-init status --format json | grep -Eq '"(WARNING|ERROR|CRITICAL)"'; then
	status=0
fi
if [ "$status" != 0 ]; then
	echo "cloud-init failed with status $status; the end of its log:" >&2
	tail -n 100 /var/log/cloud-init-output.log >&2
	grep -E 'WARNING|ERROR|CRITICAL' /var/log/cloud-init.log >&2 || :
	exit 1
fi
`

// forgotten is what a golden image must not have of the machine that built it,
// as patterns below the root: identities that each host makes for itself, what
// that machine's network was, caches, and remains of the build.
const forgotten = `
	var/lib/systemd/random-seed var/lib/systemd/credential.secret boot/efi/loader/random-seed boot/loader/random-seed
	var/lib/NetworkManager/secret_key
	etc/hostname etc/netplan/50-cloud-init.yaml etc/network/interfaces.d/50-cloud-init*
	etc/systemd/network/10-cloud-init-* etc/NetworkManager/system-connections/cloud-init-*
	etc/udev/rules.d/70-persistent-net.rules
	var/lib/dhcp/* var/lib/dhclient/* var/lib/dhcpcd/* var/lib/NetworkManager/*lease* var/lib/NetworkManager/timestamps
	var/lib/chrony/chrony.drift var/lib/ntpsec/ntp.drift var/lib/systemd/timers/* var/lib/systemd/timesync/*
	var/lib/cloud/* var/log/journal/* var/log/*.gz var/log/*.[0-9] var/log/*/*.gz var/log/*/*.[0-9]
	var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/cache/debconf/*-old
	var/lib/dpkg/*-old var/backups/* var/crash/* tmp/* tmp/.[!.]* var/tmp/* var/tmp/.[!.]*
	etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid-
	root/.bash_history root/.lesshst root/.wget-hsts root/.cache root/.ssh/known_hosts
	etc/.pwd.lock etc/.updated var/.updated etc/*.dpkg-* etc/*.ucf-* var/lib/ucf/*.[0-9]
	var/log/apt/* var/log/alternatives.log var/log/bootstrap.log var/log/dpkg.log var/log/fontconfig.log var/log/unattended-upgrades/*
	var/cache/ldconfig/aux-cache var/cache/apt/archives/lock var/cache/apt/archives/partial/*
	var/lib/dpkg/lock* var/lib/dpkg/triggers/Lock var/lib/apt/periodic/* var/lib/systemd/catalog/database.tmp
	initrd.img.old vmlinuz.old
`

// connection is what must be forgotten as well, and what the build's connection
// to a live machine may need until that is shut down: who has to connect anew
// meanwhile still can.
const connection = "etc/ssh/ssh_host_* etc/ssh/sshd_config.d/50-cloud-init.conf root/.ssh/authorized_keys"

// agentState are the places below an agent's data directory where it keeps
// what it calls itself.
var agentState = []string{"node-id", "client/client-id", "client/secret-id", "client/state.db*", "server/*", "serf/*", "raft/*", "checks/*", "services/*"}

// dataDirectories are the agents' usual data directories, and those of the
// plan that are named after them.
func dataDirectories(image *plan.Image) []string {
	list := []string{"opt/nomad/data", "opt/consul", "var/lib/nomad", "var/lib/consul"}
	for _, d := range image.Directories {
		if base := path.Base(d.Path); base == "nomad" || base == "consul" {
			list = append(list, strings.TrimPrefix(path.Clean(d.Path), "/"))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// sealScript makes the building machine's disk a golden image. What the plan
// itself put where such remains usually are, stays.
func sealScript(p *plan.Plan) (string, error) {
	directories := dataDirectories(&p.Image)
	patterns := strings.Fields(forgotten + connection)
	for _, d := range directories {
		for _, state := range agentState {
			patterns = append(patterns, d+"/"+state)
		}
	}
	files, err := ImageFiles(&p.Image)
	if err != nil {
		return "", err
	}
	keep := "\n"
	for _, f := range files {
		if slices.ContainsFunc(patterns, func(pattern string) bool { return covers(pattern, f.Path) }) {
			keep += f.Path + "\n"
		}
	}
	for i := range p.Image.Users {
		if u := &p.Image.Users[i]; len(u.SSHKeys) > 0 {
			keep += path.Join(homeOf(u), ".ssh/authorized_keys") + "\n"
		}
	}
	resolver := "[ -L etc/resolv.conf ] || : >etc/resolv.conf"
	if slices.ContainsFunc(files, func(f plan.File) bool { return f.Path == "/etc/resolv.conf" }) {
		resolver = ": # the profile has an /etc/resolv.conf of its own"
	}
	var lines strings.Builder
	for line := range strings.Lines(forgotten) {
		if line = strings.TrimSpace(line); line != "" {
			lines.WriteString("forget " + line + "\n")
		}
	}
	lines.WriteString("later " + connection + "\n")
	if slices.ContainsFunc(p.Image.Packages, func(p plan.Package) bool { return p.Name == "vault" }) {
		lines.WriteString("# A key that Vault's package makes for whoever has none.\nforget opt/vault/tls/*\n")
	}
	lines.WriteString("# What agents call themselves.\nfor data in")
	for _, d := range directories {
		lines.WriteString(" " + shellWord(d))
	}
	lines.WriteString("; do\n\tforget")
	for _, state := range agentState {
		lines.WriteString(` "$data"/` + state)
	}
	lines.WriteString("\ndone\n")
	return strings.NewReplacer("@KEEP@", quote.Word(keep), "@RESOLVER@", resolver, "@FORGET@\n", lines.String()).Replace(sealText), nil
}

// covers tells whether removing what matches pattern would remove file.
func covers(pattern, file string) bool {
	file = strings.TrimPrefix(file, "/")
	for file != "." && file != "/" {
		if ok, err := path.Match(pattern, file); ok || err != nil {
			return true
		}
		file = path.Dir(file)
	}
	return false
}

const sealText = `# Seals this machine's disk as a golden image: nothing may be left that hosts
# would share and mustn't, or that tells of the build. With an argument it
# cleans a tree of files instead.
cd "${1:-/}"
live=$([ "$PWD" = / ] && echo yes || echo no)
booted=$([ "$live" = yes ] && [ -d /run/systemd/system ] && echo yes || echo no)
keep=@KEEP@
remove=remove_now

# forget removes files, but for those that the profile has put there.
forget() {
	for path; do
		if [ ! -e "$path" ] && [ ! -L "$path" ]; then
			continue
		fi
		case $keep in
		*"
/$path
"*) ;;
		*"
/$path/"*)
			# A directory that holds such files: go into it.
			forget "$path"/*
			;;
		*) "$remove" "$path" ;;
		esac
	done
}
remove_now() {
	rm -rf -- "$1"
}
remove_at_shutdown() {
	printf '%s\n' "$1" >>/run/kiln-forget-list
}

# later is forget for what a live machine still needs: until it is shut down, the
# connection of the build can be made anew.
later() {
	if [ "$booted" = yes ]; then
		remove=remove_at_shutdown
	fi
	forget "$@"
	remove=remove_now
}

if [ "$booted" = yes ]; then
	# These write their state when they are stopped.
	systemctl stop nomad.service consul.service systemd-random-seed.service 2>/dev/null || :
	rm -f /run/kiln-forget-list
fi
if [ "$live" = yes ]; then
	if command -v cloud-init >/dev/null; then
		cloud-init clean --logs --seed
		# It has told debconf which disk this machine starts from, for a package
		# that needn't be there, and will tell it on each host.
		if [ ! -e var/lib/dpkg/info/grub-pc.list ] && command -v debconf-communicate >/dev/null; then
			echo purge | DEBIAN_FRONTEND=noninteractive debconf-communicate grub-pc >/dev/null
		fi
	fi
	apt-get clean
fi

@FORGET@
forget home/"$BUILD_USER"/.bash_history
later home/"$BUILD_USER"/.ssh/authorized_keys
find var/log -xdev -type f -exec truncate -s 0 {} +
if [ -e etc/hosts ]; then
	sed -i '/kiln-build/d' etc/hosts
fi
@RESOLVER@
: >etc/machine-id
# Another name of it, which each boot makes anew.
forget var/lib/dbus/machine-id
rmdir var/lib/cloud 2>/dev/null || :

if [ "$live" = yes ]; then
	# The user that Packer is logged in as goes when the machine does.
	cat >/run/kiln-forget-builder <<EOF
builder='$BUILD_USER'
EOF
	cat >>/run/kiln-forget-builder <<'EOF'
cd /
# The journal is open, and would be written to once more.
journalctl --relinquish-var || :
if [ "$builder" != root ]; then
	userdel --force --remove "$builder"
fi
if [ -e /run/kiln-forget-list ]; then
	while IFS= read -r path; do
		# A private key would stay in the disk's free blocks.
		find "./$path" -xdev -type f -exec shred --iterations=0 --zero {} + || :
		rm -rf -- "$path"
	done </run/kiln-forget-list
fi
rm -f etc/sudoers.d/90-cloud-init-users etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid- etc/.pwd.lock
rm -rf var/log/journal/*
find var/log -xdev -type f -exec truncate -s 0 {} +
sync
fstrim -a || :
EOF
fi
if [ "$booted" = yes ]; then
	cat >/run/systemd/system/kiln-forget-builder.service <<'EOF'
[Unit]
Description=Remove the user that built this image
# It has its turn late: after the shutdown is written down in wtmp, and before file
# systems go.
DefaultDependencies=no
After=local-fs.target
Before=systemd-update-utmp.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh /run/kiln-forget-builder
EOF
	systemctl daemon-reload
	systemctl start kiln-forget-builder.service
	fstrim -a || :
	sync
elif [ "$live" = yes ]; then
	# In a container nothing is shut down.
	sh /run/kiln-forget-builder
fi
`

// SealScript is a shell script that seals a tree of files, its first argument, as
// a golden image of the plan's. It expects BUILD_USER in its environment.
func SealScript(image *plan.Image) (string, error) { return sealScript(&plan.Plan{Image: *image}) }
