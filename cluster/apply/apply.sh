#!/bin/sh
# What the steps of an apply are made of. $d is a folder for root alone, with
# the files to write, the list pending, and what is expected. Kiln adds the calls.
# shellcheck disable=SC2154 # $d is of the script that reads this one
set -eu
LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
# Whoever asked may go at any time: that is seen between two steps.
trap '' PIPE HUP

pending=/var/lib/kiln/apply.pending
# That a network was written, and not made to count. A boot makes it count, and
# forgets this.
waiting=/run/kiln-apply/network

complain() {
	echo "kiln: $*" >&2
	exit 1
}

# lock keeps every other apply away until this one ends.
lock() {
	exec 9>/run/kiln-apply/lock
	# Whoever only looks holds it for a moment.
	flock -w 3 9 || complain "another apply is at work on this host: $(cat /run/kiln-apply/holder 2>/dev/null || :)"
	echo "$1, since $(date -u +%H:%M:%S) UTC" >/run/kiln-apply/holder
	# What runs that were killed have left.
	for other in /run/kiln-apply/[0-9]*; do
		if [ "$other" != "$d" ] && ! kill -0 "${other##*/}" 2>/dev/null; then rm -rf "$other"; fi
	done
}

state_of() {
	if [ -L "$1" ]; then
		echo "link $(readlink -- "$1")"
	elif [ -f "$1" ]; then
		sha256sum <"$1" | cut -d ' ' -f 1
	elif [ -e "$1" ]; then
		echo other
	else
		echo none
	fi
}

# expected: nothing has changed since it was looked at. A line has a path and,
# behind a tab, its state.
expected() {
	while IFS='	' read -r path state; do
		[ "$(state_of "$path")" = "$state" ] ||
			complain "$path has changed since it was looked at, and nothing was done: look again"
	done <"$d/expected"
}

# pend writes down what is to be done in the end, before anything is done.
pend() {
	[ -d "${pending%/*}" ] || mkdir -m 0700 -- "${pending%/*}"
	cat "$d/pending" >"$pending.new"
	sync "$pending.new"
	mv -f -- "$pending.new" "$pending"
}

# settle LINE: that is done.
settle() {
	[ -f "$pending" ] || return 0
	grep -vxF -e "$1" -- "$pending" >"$pending.new" || :
	sync "$pending.new"
	mv -f -- "$pending.new" "$pending"
}

# finish: all is in its place. What may be left is for whoever asked to do.
finish() {
	if grep -qv '^stale ' -- "$pending"; then
		grep -v '^stale ' -- "$pending" >"$pending.new"
		mv -f -- "$pending.new" "$pending"
	else
		rm -f -- "$pending"
	fi
}

# step N, done N: who asked is told, and has to be there still.
step() { echo "begin $1" 2>/dev/null || complain "nobody listens any more: stopped before step $1"; }
done_with() { echo "done $1" 2>/dev/null || :; }

# beside PATH: the name that its new content has until it is complete. Whatever
# reads a whole folder leaves it alone.
beside() { printf '%s/.%s.kiln-new' "${1%/*}" "${1##*/}"; }

# keep_acl OLD NEW: the access control list goes over, and with it who may read
# a file beside those that its mode says.
keep_acl() {
	[ -f "$1" ] && [ ! -L "$1" ] && command -v getfacl >/dev/null || return 0
	list=$(getfacl --omit-header --absolute-names -- "$1" | grep -E '^(user|group):[^:]+:|^mask:') || return 0
	printf '%s\n' "$list" | setfacl --no-mask --modify-file=- -- "$2"
}

# put N MODE OWNER GROUP PATH: writes a file, all of it or nothing. Until it is
# its owner's, root alone can read it.
put() {
	[ -d "${5%/*}/" ] || (umask 022 && mkdir -p -- "${5%/*}/")
	new=$(beside "$5")
	rm -f -- "$new"
	# Without clobbering: it opens no file that somebody has put there.
	(set -C && cat "$d/$1" >"$new")
	chown -- "$3:$4" "$new"
	chmod -- "$2" "$new"
	keep_acl "$5" "$new"
	sync "$new"
	mv -fT -- "$new" "$5"
}

# valid_network N: netplan takes it. A host with one that it doesn't take would
# boot without a network.
valid_network() {
	mkdir -p "$d/root/etc/netplan"
	cat "$d/$1" >"$d/root/etc/netplan/kiln.yaml"
	netplan generate --root-dir "$d/root" || complain "netplan doesn't take the network of the plan"
	rm -rf "$d/root"
}

# link N OWNER GROUP PATH: makes a symbolic link to what the file N holds.
link() {
	[ -d "${4%/*}/" ] || (umask 022 && mkdir -p -- "${4%/*}/")
	new=$(beside "$4")
	rm -f -- "$new"
	ln -s -- "$(cat "$d/$1")" "$new"
	chown -h -- "$2:$3" "$new"
	mv -fT -- "$new" "$4"
}

# own MODE OWNER GROUP PATH [ACL]: its content is right already.
own() {
	chown -- "$2:$3" "$4"
	if [ -n "${5:-}" ]; then
		# With a list, chmod would change the mask, and with it what others have.
		setfacl --no-mask -m "$5" -- "$4"
	else
		chmod -- "$1" "$4"
	fi
}

# folder MODE OWNER GROUP PATH
folder() {
	[ -d "$4" ] || (umask 022 && mkdir -p -- "$4")
	chown -- "$2:$3" "$4"
	chmod -- "$1" "$4"
}

# await_addresses: netplan doesn't wait, and an agent that is restarted next can't
# listen at an address that isn't there yet. An interface without a cable may never
# get its own: so this isn't for long.
await_addresses() {
	tries=60
	while read -r address; do
		until ip -o address show to "$address" | grep -qv ' tentative'; do
			tries=$((tries - 1))
			[ "$tries" -gt 0 ] || return 0
			sleep 0.25
		done
	done <"$d/addresses"
}

# act VERB UNIT
act() {
	case $1 in
	daemon-reload) systemctl daemon-reload ;;
	directories) systemd-tmpfiles --create /etc/tmpfiles.d/kiln.conf ;;
	# The connection may end with the old address. Nobody tells sshd, so that the
	# steps behind this one are done all the same.
	network)
		netplan apply </dev/null
		await_addresses
		rm -f -- "$waiting"
		;;
	start) systemctl restart -- "$2" ;;
	restart | reload) renew "$1" "$2" ;;
	esac
	settle "$1${2:+ $2}"
}

# renew VERB UNIT: one that an administrator stopped, or that waits for
# something, isn't started by that.
renew() {
	case $2:$(systemctl show -p ActiveState --value -- "$2") in
	kiln-host.service:*) systemctl restart -- "$2" ;;
	*:failed)
		systemctl reset-failed -- "$2" || :
		systemctl restart -- "$2"
		;;
	*:inactive) ;;
	*:active) if [ "$1" = reload ]; then systemctl reload-or-restart -- "$2"; else systemctl restart -- "$2"; fi ;;
	*) systemctl restart -- "$2" ;;
	esac
}

