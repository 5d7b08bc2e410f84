#!/bin/sh
# Reads what this host is, and changes nothing: writes an archive with the file
# facts, and all that there is of the paths that are asked for. $d is a folder
# for root alone, with the lists paths, users, groups, units and packages.
# shellcheck disable=SC2154 # $d is of the script that reads this one
set -eu
LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH

fact() { printf '%s\n' "$*" >>"$d/facts"; }

fact hostname "$(uname -n)"
for name in ID VERSION_ID VERSION_CODENAME; do
	fact os "$name=$(sed -n "s/^$name=//p" /etc/os-release | tr -d '"' | head -n 1)"
done
[ ! -d /run/systemd/system ] || fact systemd yes
for address in /sys/class/net/*/address /sys/class/net/*/bonding_slave/perm_hwaddr; do
	[ ! -r "$address" ] || fact mac "$(cat "$address")"
done
fact cmdline "$(cat /proc/cmdline)"

# Who holds the lock says who it is.
if [ -e /run/kiln-apply/lock ] && ! flock -n /run/kiln-apply/lock true; then
	fact busy "$(cat /run/kiln-apply/holder 2>/dev/null || :)"
fi

# A network that was written, and doesn't count yet.
[ ! -e /run/kiln-apply/network ] || fact network waits

while read -r name; do
	line=$(getent passwd "$name") || continue
	fact passwd "$line"
	fact member "$name" "$(id -Gn -- "$name")"
done <"$d/users"
while read -r name; do
	line=$(getent group "$name") || continue
	fact group "$line"
done <"$d/groups"
while read -r unit; do
	enabled=$(systemctl is-enabled -- "$unit" 2>/dev/null) || :
	fact unit "$unit" "${enabled:-not-found}"
done <"$d/units"
# shellcheck disable=SC2046 # names are words
dpkg-query -W -f 'package ${Package} ${db:Status-Status}\n' $(cat "$d/packages") 2>/dev/null >>"$d/facts" || :

# What an earlier delivery brought may be superfluous now.
for manifest in /etc/kiln/host-ready.manifest /etc/kiln/host.manifest; do
	if [ -f "$manifest" ]; then
		while read -r _ _ _ _ path || [ -n "${path:-}" ]; do
			case $path in /*) printf '%s\n' "$path" ;; esac
		done <"$manifest" >>"$d/paths"
		break
	fi
done

# Nothing of Kiln's is larger than 4 MiB; what is, is named only.
: >"$d/list"
: >"$d/large"
# shellcheck disable=SC2016 # for the inner shell
sort -u "$d/paths" | tr '\n' '\0' | xargs -0 -r sh -c '
	dir=$1
	shift
	find "$@" -maxdepth 0 \( -type f -size +8192 -fprintf "$dir/more" "%p\n" -o \( -type f -o -type d -o -type l \) -fprintf "$dir/some" ".%p\0" -o -fprintf "$dir/more" "%p\n" \) 2>/dev/null
	cat "$dir/some" >>"$dir/list"
	cat "$dir/more" >>"$dir/large"' sh "$d" || :
while read -r path; do
	fact large "$path"
done <"$d/large"
tar --acls --no-recursion -cf - -C "$d" facts -C / --null -T "$d/list"
