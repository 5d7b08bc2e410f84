# Looks at a host, and changes nothing on it. kiln verify sends this, with what to
# look at behind it; a line of what it writes is a record, its fields apart by tabs.
set -u
LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
tab=$(printf '\t')

# mark: whether Kiln has set this host up.
mark() {
	if [ -e /etc/kiln/host.manifest ]; then echo "kiln${tab}yes"; else echo "kiln${tab}no"; fi
}

# unit NAME: its state; and where it doesn't run, why.
unit() {
	systemctl show --property=LoadState,ActiveState,SubState,UnitFileState,Result,ConditionResult,Type,RemainAfterExit,NRestarts -- "$1" |
		sed "s/^/unit$tab$1$tab/"
	case $(systemctl is-active -- "$1") in active | reloading) return ;; esac
	systemctl status --no-pager --full --lines=0 -- "$1" 2>/dev/null | sed -n "s/^.*\(Condition[A-Za-z]*=.* was not met\).*/unmet$tab$1$tab\1/p"
	journalctl --no-pager --quiet --output=short-iso --lines=12 --unit="$1" 2>/dev/null | sed "s/^/journal$tab$1$tab/"
}

# content FILE: in base64, unless it is very long.
content() {
	[ "$(stat -L -c %s -- "$1")" -le 262144 ] && base64 -w0 <"$1"
	echo
}

# file PATH HASH: what is there; its content only if it has another hash.
file() {
	if [ -L "$1" ]; then
		printf 'link\t%s\t%s\n' "$1" "$(readlink -- "$1")"
	elif [ -d "$1" ]; then
		printf 'directory\t%s\t%s\n' "$1" "$(stat -c '%a %U %G' -- "$1")"
	elif [ -f "$1" ]; then
		hash=$(sha256sum <"$1")
		printf 'file\t%s\t%s\t%s\t' "$1" "$(stat -c '%a %U %G' -- "$1")" "${hash%% *}"
		if [ "${hash%% *}" = "$2" ]; then echo; else content "$1"; fi
	elif [ -e "$1" ]; then
		printf 'other\t%s\t%s\n' "$1" "$(stat -c %F -- "$1")"
	else
		printf 'missing\t%s\n' "$1"
	fi
}

# certificate FILE
certificate() {
	printf 'certificate\t%s\t' "$1"
	if [ -f "$1" ] && [ -r "$1" ]; then content "$1"; else echo; fi
}

# name NAME: whether this host's own resolver finds it.
name() { printf 'name\t%s\t%s\n' "$1" "$(timeout 10 getent ahosts "$1" | awk '{ print $1 }' | sort -u | paste -sd ' ' -)"; }

