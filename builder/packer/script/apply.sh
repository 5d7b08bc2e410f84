#!/bin/sh
# Applies what lies beside it in $KILN_WORK to this machine, or stops at the first
# thing that fails. It may be run again: what is as it should be, stays.
work=$KILN_WORK
# RELEASE, ARCHITECTURE, USERS, STEPS, SEAL and ARGUMENTS.
# shellcheck source=/dev/null
. "$work/settings"
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
number=0

step() {
	number=$((number + 1))
	echo "kiln: $number/$STEPS $*"
}
fail() {
	printf '%s\n' "$*" | sed 's/^/kiln-error: /' >&2
	exit 1
}
# quietly WHAT COMMAND... runs a command whose output is shown only where it fails:
# what it says of the cause, or else the end of it.
quietly() {
	what=$1
	shift
	status=0
	"$@" >"$work/log" 2>&1 || status=$?
	if [ "$status" = 0 ]; then
		return
	fi
	{
		grep -B 6 -A 2 -E '^dpkg(-deb)?: (error|dependency problems)' "$work/log" | grep -v '^--$' | tail -n 40
		grep -E '^(E: |Err:|W: Failed|W: GPG error|Errors were encountered)' "$work/log" | tail -n 20
	} >"$work/causes" || :
	if [ ! -s "$work/causes" ]; then
		tail -n 30 "$work/log" >"$work/causes"
	fi
	fail "$what failed with status $status:
$(cat "$work/causes")"
}
apt() {
	apt-get -y -q -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
		-o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 -o APT::Update::Error-Mode=any "$@"
}
unpack() {
	tar -x -p -m --same-owner --keep-directory-symlink -C / -f "$work/$1.tar"
}

# looks sees that this is the machine that the image half is for.
looks() {
	step "looking at the machine"
	if [ -d /run/systemd/system ] && [ -n "$(systemctl --plain --no-legend list-jobs 'cloud-*')" ]; then
		# The first boot goes on, and packages are cloud-init's business, too.
		timeout 900 cloud-init status --wait >/dev/null 2>&1 || :
	fi
	# shellcheck source=/dev/null
	is=$(. /etc/os-release && echo "$ID ${VERSION_CODENAME-}")
	if [ "$is" != "$RELEASE" ]; then
		fail "this machine is $is, and the profile is resolved for $RELEASE: name the image definition of this release as image"
	fi
	is=$(dpkg --print-architecture)
	if [ "$is" != "$ARCHITECTURE" ]; then
		fail "this machine's architecture is $is, and the profile is resolved for $ARCHITECTURE: name an image definition of this architecture as image"
	fi
	if [ "$SEAL" = yes ]; then
		case $USERS in
		*" $BUILD_USER "*) fail "the profile makes the user $BUILD_USER, whom sealing would remove: have Packer log in as another one" ;;
		esac
	fi
}

# missing prints what to install: packages that aren't there, or not in the version
# that is locked.
missing() {
	while read -r name version; do
		is=$(dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$name" 2>/dev/null || :)
		case $is in
		"installed $version") continue ;;
		"installed "*) [ -n "$version" ] || continue ;;
		esac
		echo "$name${version:+=$version}"
	done <"$work/packages"
}

# counts says now and then how far dpkg is, until it is killed.
counts() {
	was=
	while sleep 10 >/dev/null 2>&1; do
		is=$(grep -c -E '^(Unpacking|Setting up) ' "$work/log" || :)
		if [ "$is" != "$was" ]; then
			echo "kiln:     $is of $1 done"
			was=$is
		fi
	done
}

installed() {
	dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\n' | sed -n 's/^installed //p' | sort
}

# packages installs the profile's, without starting what they bring.
packages() {
	step "installing packages"
	missing >"$work/missing"
	if [ ! -s "$work/missing" ]; then
		echo "kiln:     all are there"
		return
	fi
	quietly "writing the apt sources" unpack apt
	mkdir -p /etc/apt/preferences.d
	if [ -s "$work/locked" ]; then
		awk '{ printf "Package: %s\nPin: version %s\nPin-Priority: 999\n\n", $1, $2 }' "$work/locked" >/etc/apt/preferences.d/00-kiln-lock
	fi
	if [ -e /usr/sbin/policy-rc.d ] && ! grep -q 'by kiln' /usr/sbin/policy-rc.d; then
		mv /usr/sbin/policy-rc.d /usr/sbin/policy-rc.d.kiln
	fi
	printf '#!/bin/sh\n# by kiln, while packages are installed\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
	quietly "reading the apt sources" apt update
	# What an earlier run was stopped in.
	quietly "dpkg --configure -a" dpkg --configure -a
	installed >"$work/before"
	quietly "choosing the packages" xargs -a "$work/missing" apt-get -s -q --no-install-recommends install
	total=$(grep -c '^Inst ' "$work/log" || :)
	echo "kiln:     $total packages: $(tr '\n' ' ' <"$work/missing")and what they need"
	: >"$work/log"
	counts $((2 * total)) &
	counter=$!
	trap 'kill "$counter" 2>/dev/null || :' EXIT
	quietly "installing the packages" install_missing
	kill "$counter" 2>/dev/null || :
	trap - EXIT
	against_lock
}
install_missing() {
	set -- --no-install-recommends install
	while read -r word; do
		set -- "$@" "$word"
	done <"$work/missing"
	apt "$@"
}

# against_lock sees that what was installed now is what the lock says.
against_lock() {
	if [ ! -s "$work/locked" ]; then
		return
	fi
	installed >"$work/after"
	comm -13 "$work/before" "$work/after" >"$work/new"
	awk 'NR == FNR { version[$1] = $2; next } ($1 in version) && version[$1] != $2 { print "  " $1 " " $2 ", locked: " version[$1] }' \
		"$work/locked" "$work/new" >"$work/other"
	if [ -s "$work/other" ]; then
		fail "the mirror gave other versions than kiln.lock has (kiln lock --update takes newer ones):
$(cat "$work/other")"
	fi
}

files() {
	step "making users and groups"
	quietly "making users and groups" sh -eu "$work/accounts"
	step "writing files"
	while read -r kind name; do
		getent "$kind" "$name" >/dev/null || fail "a file of the profile belongs to $name, and there is no such entry in $kind: no package and no profile makes it"
	done <"$work/owners"
	quietly "writing the files" unpack apt
	quietly "writing the files" unpack layer
	if [ "$ARGUMENTS" = yes ]; then
		quietly "update-grub, which puts the kernel's arguments into effect," update-grub
	fi
}

units() {
	step "setting units"
	if [ -d /run/systemd/system ]; then
		quietly "systemctl daemon-reload" systemctl daemon-reload
	fi
	quietly "setting the units" sh -eu "$work/units"
}

seal() {
	if [ "$SEAL" = yes ]; then
		step "sealing"
		cd /
		quietly "sealing" sh -eu "$work/seal"
	fi
}

looks
packages
files
units
seal
echo "kiln: the image half is applied"
