#!/bin/sh
# Builds the HashiCorp programs that Kiln's tests judge with, from the Go module
# proxy, into a cache that survives between runs.
#
#   scripts/hashicorp/build.sh NAME...        build, or find, each program
#   scripts/hashicorp/build.sh --bin          print the folder that holds them all
#   scripts/hashicorp/build.sh --pinned NAME  build the pinned version, whatever is
#                                             in PATH, and print where it is
#
# Their own release servers and apt repository aren't needed: each folder beside
# this script pins one program by go.mod and go.sum, and is built with
# -mod=readonly. A program of that name in PATH serves instead if it is the
# pinned version or newer.
#
# The cache is $KILN_CACHE/hashicorp (default ~/.cache/kiln/hashicorp).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${KILN_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set KILN_CACHE to a folder for the build cache}/.cache}/kiln}/hashicorp
bin=$cache/bin

# module NAME prints the module path that builds program NAME.
module() {
	echo "github.com/hashicorp/$1"
}

# pinned NAME prints the version that NAME's go.mod pins, without the leading v.
pinned() {
	[ -f "$here/$1/go.mod" ] || {
		echo "build.sh: nothing pins a program $1: its go.mod would be $here/$1/go.mod" >&2
		return 1
	}
	v=$(awk -v m="$(module "$1")" '$1 == "require" { sub(/^require /, "") } $1 == m { print substr($2, 2); exit }' "$here/$1/go.mod")
	[ -n "$v" ] || {
		echo "build.sh: $here/$1/go.mod requires no version of $(module "$1")" >&2
		return 1
	}
	echo "$v"
}

# version_of PROGRAM prints what the program says its version is, or nothing.
# packer 1.6.6 and its like print it bare, the others behind their name.
version_of() {
	"$1" version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9][0-9.]*[0-9]\).*/\1/p' | head -n 1
}

# at_least A B is true where version A is B or newer.
at_least() {
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# links PROGRAM as NAME into the folder of them all, by rename.
link() {
	ln -sfn "$2" "$bin/.$1.$$"
	mv -Tf "$bin/.$1.$$" "$bin/$1"
}

provide() {
	name=$1
	want=$(pinned "$name")
	# A packer plugin isn't a command of its own: nobody has one in PATH.
	case $name in
	packer-plugin-*) found= ;;
	*) found=$(PATH=$(echo "$PATH" | tr ':' '\n' | grep -vFx "$bin" | paste -sd:) command -v "$name" || true) ;;
	esac
	if [ -n "$found" ]; then
		have=$(version_of "$found")
		if [ -n "$have" ] && at_least "$have" "$want"; then
			echo "$name: using $found ($have; $want is pinned)"
			link "$name" "$found"
			return
		fi
		echo "$name: $found is ${have:-of an unknown version}, older than the pinned $want: not used"
	fi
	build
	link "$name" "$out"
}

# build has the version $want of the program $name in the cache, as $out.
build() {
	out=$cache/$name-$want/$name
	if [ -x "$out" ]; then
		echo "$name: using $want from the cache"
	else
		echo "$name: building $want from the Go module proxy (minutes, once for each version)"
		mkdir -p "$cache/$name-$want"
		# The go.sum beside go.mod holds every hash: the checksum database, which
		# lacks some of HashiCorp's inner modules, needn't be asked.
		(cd "$here/$name" && GOFLAGS='-buildvcs=false' GONOSUMDB='github.com/hashicorp/*' \
			go build -mod=readonly -trimpath -ldflags='-s -w' -o "$out.new.$$" "$(module "$name")") || {
			rm -f "$out.new.$$"
			echo "build.sh: building $name $want failed: see above; the Go module proxy must be reachable (go env GOPROXY)" >&2
			return 1
		}
		mv -f "$out.new.$$" "$out"
		echo "$name: built $want"
	fi
}

case ${1-} in
'')
	echo "usage: build.sh NAME... | --bin | --pinned NAME" >&2
	exit 2
	;;
--pinned)
	name=${2:?build.sh --pinned: which program?}
	want=$(pinned "$name")
	build >&2
	echo "$out"
	exit 0
	;;
--bin)
	echo "$bin"
	exit 0
	;;
esac

mkdir -p "$bin"
for name; do
	provide "$name"
done
