#!/bin/sh
# Applies the image half of a Kiln profile to this machine: what is packed behind
# this script. PATH.stop beside it, wherever it comes from, ends it half-way; so does
# the end of whoever reads what it prints.
set -eu
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C.UTF-8
BUILD_USER=${SUDO_USER:-$(id -un)}
export PATH LC_ALL BUILD_USER

if [ "$(id -u)" != 0 ]; then
	echo "kiln-error: the image half is applied by root, and this is $BUILD_USER: an execute_command is needed that becomes root" >&2
	rm -f -- "$0"
	exit 1
fi
self=$0
work=$(mktemp -d /run/kiln.XXXXXXXXXX)
group=

# What is made for the time of the work goes, however that ends.
# shellcheck disable=SC2317
finish() {
	rm -rf -- "$work"
	rm -f -- "$self" "$self.stop" /etc/apt/preferences.d/00-kiln-lock
	if grep -q 'by kiln' /usr/sbin/policy-rc.d 2>/dev/null; then
		rm -f /usr/sbin/policy-rc.d
		if [ -e /usr/sbin/policy-rc.d.kiln ]; then
			mv /usr/sbin/policy-rc.d.kiln /usr/sbin/policy-rc.d
		fi
	fi
}
# stop ends what runs in the group, by force where it doesn't end by itself.
stop() {
	kill -s TERM -- "-$1" 2>/dev/null || return 0
	n=0
	while [ "$n" -lt 10 ] && kill -s 0 -- "-$1" 2>/dev/null; do
		sleep 1
		n=$((n + 1))
	done
	kill -s KILL -- "-$1" 2>/dev/null || :
}
trap finish EXIT
# Nobody reads what this prints: the commands below fail at that by themselves.
trap : PIPE
trap '[ -z "$group" ] || stop "$group"; exit 143' HUP INT TERM

tail -n +@LINE@ -- "$self" | tar -xz -C "$work" -f -
KILN_WORK=$work
export KILN_WORK
status=0
setsid sh -eu "$work/apply" </dev/null &
group=$!
(
	trap : PIPE
	while sleep 1 >/dev/null; do
		# An empty line isn't shown: it tells whether Packer is still there. Where that
		# is interrupted, it doesn't wait for provisioners to stop, and a connection may
		# break: what runs here must not go on alone.
		echo || : >"$self.stop"
		if [ -e "$self.stop" ]; then
			stop "$group"
			exit
		fi
	done
) </dev/null 2>/dev/null &
watcher=$!
wait "$group" || status=$?
if [ "$status" != 0 ]; then
	# It may have ended before what it has started.
	stop "$group"
fi
if [ -e "$self.stop" ]; then
	wait "$watcher" || :
	echo "kiln-error: it was stopped half-way" >&2 || :
	status=130
else
	kill "$watcher" 2>/dev/null || :
fi
exit "$status"
