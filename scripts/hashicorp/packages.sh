#!/bin/sh
# Makes Debian packages of nomad and consul from the programs that build.sh
# builds, and a signed apt repository of them, for hosts that can't reach
# HashiCorp's. docs/air-gapped.md says how a site names it.
#
#   scripts/hashicorp/packages.sh [--output DIR] [--suite CODENAME]... [--vault]
#
# With --vault there is one of vault, too, which only servers need, and which takes
# as long to build as the others together. A repository that has it keeps it.
#
# DIR is the repository (default $KILN_CACHE/hashicorp/apt), with its public key
# in DIR/key.asc and that key's fingerprint in DIR/fingerprint. The suites are
# bookworm and noble unless --suite names others. Nothing is done where the
# repository in DIR is already what would be made.
#
#   KILN_APT_KEY        fingerprint of a key in the caller's own gpg to sign with;
#                       without it, a key is made once, and kept in the cache
#   SOURCE_DATE_EPOCH   time that all files in the packages bear, in seconds
#
# What the packages hold beside the program, their scripts and their fields come
# from the program's own sources, at the pinned version: users, units, directories
# and configuration files are as in HashiCorp's own packages.
set -eu
umask 022
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../tools" && pwd)
root=$(realpath -m "${KILN_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set: set KILN_CACHE to a folder for the build cache}/.cache}/kiln}")
export KILN_CACHE="$root" # for build.sh, wherever it is called from
cache=$root/hashicorp
names='nomad consul'
epoch=${SOURCE_DATE_EPOCH:-1735689600} # 2025-01-01, so that the same input makes the same packages
nfpm=github.com/goreleaser/nfpm/v2
state=.kiln-packages # in the repository: what it was made from, and the hash of each file

fail() {
	echo "packages.sh: $*" >&2
	exit 1
}

# arguments sets $output and $suites.
arguments() {
	output='' suites=''
	while [ $# -gt 0 ]; do
		if [ "$1" = --vault ]; then
			names="$names vault"
			shift
			continue
		fi
		case $1 in
		--output | --suite) [ -n "${2-}" ] || fail "$1 wants a value" ;;
		esac
		case $1 in
		--output) output=$2 ;;
		--suite)
			case $2 in
			*[!a-z0-9-]* | -*) fail "--suite $2: a release's codename is wanted, such as bookworm" ;;
			esac
			suites="$suites $2"
			;;
		*)
			echo "usage: packages.sh [--output DIR] [--suite CODENAME]... [--vault]" >&2
			exit 2
			;;
		esac
		shift 2
	done
	case $epoch in
	*[!0-9]*) fail "SOURCE_DATE_EPOCH is to be a number of seconds, not $epoch" ;;
	esac
	suites=$(echo "${suites:-bookworm noble}" | tr ' ' '\n' | sed '/^$/d' | sort -u | paste -sd ' ')
	output=$(realpath -m "${output:-$cache/apt}")
	! grep -qs ' \./pool/main/v/vault/' "$output/$state" || names="$names vault"
	names=$(echo "$names" | tr ' ' '\n' | awk '!seen[$0]++' | paste -sd ' ')
}

# needed stops where a program is missing, before anything is built.
needed() {
	missing=
	for p in dpkg:dpkg apt-ftparchive:apt-utils gpg:gnupg flock:util-linux; do
		command -v "${p%:*}" >/dev/null || missing="$missing ${p#*:}"
	done
	[ -z "$missing" ] || fail "these Debian packages are missing:$missing: make setup installs them"
	command -v go >/dev/null || fail "go is missing: https://go.dev/doc/install"
	[ ! -e "$output" ] || [ -f "$output/$state" ] || [ -z "$(ls -A "$output")" ] ||
		fail "$output holds something else than a repository made here: name another folder by --output"
}

# sources NAME prints the folder of the pinned version's sources.
sources() {
	m=github.com/hashicorp/$1
	d=$(cd "$here/$1" && go list -mod=readonly -m -f '{{.Dir}}' "$m")
	if [ -z "$d" ]; then
		# The program was in the cache, its sources aren't any more.
		v=$(cd "$here/$1" && go list -mod=readonly -m -f '{{.Version}}' "$m")
		d=$(cd "$here/$1" && GONOSUMDB='github.com/hashicorp/*' go mod download -json "$m@$v" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
	fi
	[ -n "$d" ] || fail "the sources of $1 can't be had: the Go module proxy must be reachable (go env GOPROXY)"
	[ -d "$d/.release/linux/package" ] || fail "the sources of $1 have no .release/linux/package, which HashiCorp's package is made of: $d"
	echo "$d"
}

# says KEY prints what upstream's packaging says of the program in $source, as
# YAML: the inputs of the action that makes HashiCorp's packages, in $packaging.
says() {
	awk -v key="$1:" '
		/uses: hashicorp\/actions-packaging-linux/ { on = 1; next }
		on && /^ *- / { exit }
		on && $1 == key { sub(/^[^:]*: */, ""); print; exit }' "$packaging"
}

# must KEY is what upstream says, where a package can't do without.
must() {
	v=$(says "$1")
	[ -n "$v" ] || fail "the sources of $name say nothing of their package's $1: $packaging"
	echo "$v"
}

# listed KEY prints a list that upstream writes with commas as one of YAML's.
listed() {
	echo "[$(says "$1" | tr -d "\"'")${2:+, $2}]"
}

# libc PROGRAM prints what it wants of the C library, or nothing if it is static.
libc() {
	v=$(grep -ao 'GLIBC_2\.[0-9]*' "$1" | sort -Vu | tail -n 1)
	[ -z "$v" ] || echo "libc6 (>= ${v#GLIBC_})"
}

# pack NAME POOL makes the package of a program.
pack() {
	name=$1
	source=$(sources "$name")
	packaging=$source/.github/actions/build-$name/action.yml # vault's
	[ -f "$packaging" ] || packaging=$source/.github/workflows/build.yml
	program=$(readlink "$work/$name.program")
	version=$(basename "$(dirname "$program")")
	dir=$work/$name
	mtime=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
	mkdir -p "$dir/tree/usr/bin" "$dir/tree/usr/share/doc/$name"
	cp -R "$source/.release/linux/package/." "$dir/tree"
	cp "$source/LICENSE" "$dir/tree/usr/share/doc/$name/LICENSE.txt"
	find "$dir/tree" -type d -exec chmod 755 {} +
	find "$dir/tree" -type f -exec chmod 644 {} +
	find "$dir/tree" -type f -exec touch -d "@$epoch" {} +
	(cd "$dir/tree" && find . -type f | sort) >"$dir/files"
	maintainer=$(must maintainer)
	description=$(must description)
	homepage=$(must homepage)
	license=$(must license)
	{
		cat <<-END
			name: $name
			arch: $arch
			platform: linux
			version: ${version#"$name"-}
			release: 1
			section: admin
			maintainer: $maintainer
			description: $description
			homepage: $homepage
			license: $license
			depends: $(listed deb_depends "$(libc "$program")")
			recommends: $(listed deb_recommends)
			deb: {fields: {Vendor: HashiCorp}}
			mtime: $mtime
			disable_globbing: true
			contents:
			  - {src: '$(echo "$program" | sed "s/'/''/g")', dst: /usr/bin/$name, file_info: {mode: 0755, mtime: $mtime}}
		END
		# All of them are upstream's conffiles, the unit too.
		sed 's|^\.\(.*\)$|  - {src: "tree\1", dst: "\1", type: config\|noreplace}|' "$dir/files"
		echo 'scripts:'
		for script in preinstall postinstall preremove postremove; do
			from=$(says $script | tr -d "\"'")
			[ -n "$from" ] || continue
			cp "$source/$from" "$dir/$script"
			echo "  $script: $script"
		done
	} >"$dir/nfpm.yaml"
	mkdir -p "$2"
	(cd "$dir" && SOURCE_DATE_EPOCH=$epoch "$root/tools/nfpm" package --config nfpm.yaml --packager deb --target "$2/" >"$dir/log" 2>&1) || {
		cat "$dir/log" >&2
		fail "nfpm couldn't make the package of $name: see above"
	}
}

# gnupg runs gpg, on the site's own keys or on the cache's. (It talks to its agent
# through a socket beside the keys, whose path has to be short.)
gnupg() {
	if [ -n "${KILN_APT_KEY-}" ]; then
		gpg --batch --yes --quiet "$@" 9>&-
	else
		gpg --homedir "$work/gnupg" --batch --yes --quiet --no-permission-warning "$@" 9>&-
	fi
}

# secret [KEY] prints the fingerprint of a key that can sign.
secret() {
	gnupg --with-colons --list-secret-keys "$@" 2>/dev/null | awk -F: '$1 == "sec" { on = 1 } on && $1 == "fpr" { print $10; exit }'
}

# key sets $fingerprint, and makes the cache's own key where it isn't there yet.
key() {
	if [ -n "${KILN_APT_KEY-}" ]; then
		fingerprint=$(secret "$KILN_APT_KEY")
		[ -n "$fingerprint" ] || fail "KILN_APT_KEY: gpg has no secret key $KILN_APT_KEY: gpg --list-secret-keys shows those it has"
		return
	fi
	(umask 077 && mkdir -p "$cache/apt-key")
	chmod 700 "$cache/apt-key"
	ln -s "$cache/apt-key" "$work/gnupg"
	fingerprint=$(secret)
	if [ -z "$fingerprint" ]; then
		echo "packages: making a key to sign with, in $cache/apt-key"
		gnupg --passphrase '' --quick-gen-key 'Packages built by Kiln' ed25519 sign never
		fingerprint=$(secret)
	fi
	[ -n "$fingerprint" ] || fail "there is no key to sign with in $cache/apt-key: see above"
}

# inputs prints what the repository follows from.
inputs() {
	echo "$suites, $arch, $epoch, $fingerprint"
	sha256sum <"$here/packages.sh"
	grep "^[[:space:]]$nfpm " "$tools/go.mod"
	for name in $names; do
		sha256sum <"$here/$name/go.sum"
		sha256sum <"$work/$name.program"
	done
}

# current is true where the repository is there, whole, and from these inputs.
current() {
	[ -f "$output/$state" ] && [ "$(head -n 1 "$output/$state")" = "# $id" ] &&
		(cd "$output" && sed 1d "$state" | sha256sum --check --status) 2>/dev/null
}

# index makes a suite of the repository in the current folder.
index() {
	suite=dists/$1
	binary=$suite/main/binary-$arch
	mkdir -p "$binary/by-hash/SHA256"
	cp "$work/Packages" "$binary/Packages"
	gzip -9nk "$binary/Packages"
	o=APT::FTPArchive::Release
	apt-ftparchive -o $o::Origin=Kiln -o $o::Label=Kiln -o $o::Suite="$1" -o $o::Codename="$1" -o $o::Components=main \
		-o $o::Architectures="$arch" -o $o::Description="Programs of HashiCorp, built from their sources" -o $o::Acquire-By-Hash=yes \
		-o APT::FTPArchive::MD5=false -o APT::FTPArchive::SHA1=false -o APT::FTPArchive::SHA512=false \
		release "$suite" >"$work/Release"
	mv "$work/Release" "$suite/Release"
	for f in "$binary/Packages" "$binary/Packages.gz"; do
		cp "$f" "$binary/by-hash/SHA256/$(sha256sum <"$f" | cut -d ' ' -f 1)"
	done
	gnupg --local-user "$fingerprint" --digest-algo SHA512 --clearsign --output "$suite/InRelease" "$suite/Release"
	gnupg --local-user "$fingerprint" --digest-algo SHA512 --armor --detach-sign --output "$suite/Release.gpg" "$suite/Release"
}

# assemble makes the whole repository, in $fresh.
assemble() {
	mkdir -p "$root/tools"
	(cd "$tools" && GOBIN=$root/tools go install -mod=readonly "$nfpm/cmd/nfpm") || fail "building nfpm failed: see above; the Go module proxy must be reachable (go env GOPROXY)"
	for name in $names; do
		pack "$name" "$fresh/pool/main/$(printf %.1s "$name")/$name"
	done
	cd "$fresh"
	apt-ftparchive packages pool >"$work/Packages"
	for suite in $suites; do
		index "$suite"
	done
	gnupg --export --armor --export-options export-minimal "$fingerprint" >key.asc
	echo "$fingerprint" >fingerprint
	find . -type f | sort | xargs sha256sum >"$work/state"
	{ echo "# $id" && cat "$work/state"; } >$state
}

# publish puts $fresh where the repository is. apt may be reading the old one:
# each file is replaced by rename, the one that says which others belong to it
# last of its suite, and what only the old one names stays until the next time.
publish() {
	if [ ! -e "$output" ]; then
		mv -T "$fresh" "$output"
		return
	fi
	cd "$fresh"
	{ find pool dists -type f ! -name '*Release*' && find . -type f -name '*Release*' | sort -r && echo key.asc && echo fingerprint; } >"$work/order"
	while IFS= read -r f; do
		mkdir -p "$output/$(dirname "$f")"
		mv -f "$f" "$output/$f"
	done <"$work/order"
	cd "$output"
	cat "$state" "$fresh/$state" 2>/dev/null | sed -n 's/^[0-9a-f]*  //p' >"$work/kept"
	find pool dists -type f | sed 's|^|./|' | grep -vxFf "$work/kept" | while IFS= read -r f; do rm -f "$f"; done
	find pool dists -type d -empty -delete
	mv -f "$fresh/$state" "$state"
}

# unreadable prints the folder that keeps others than root from the repository.
unreadable() {
	p=$output
	while [ "$p" != / ]; do
		case $(stat -c %A "$p") in
		*[xt]) p=$(dirname "$p") ;;
		*) echo "$p" && return ;;
		esac
	done
}

# clean leaves nothing of this run behind, the key's agent neither.
clean() {
	[ ! -e "$work/gnupg" ] || gpgconf --homedir "$work/gnupg" --kill all 9>&- 2>/dev/null || true
	rm -rf "$work" "$fresh"
}

arguments "$@"
needed
arch=$(dpkg --print-architecture)
mkdir -p "$cache" "$(dirname "$output")"
exec 9>"$cache/packages.lock"
flock 9 # one at a time: what an earlier one left was killed with it
rm -rf "$output".new.*
fresh=$output.new.$$
work=$(mktemp -d)
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

key
for name in $names; do
	program=$("$here/build.sh" --pinned "$name" 9>&-)
	ln -s "$program" "$work/$name.program"
done
id=$(inputs | sha256sum | cut -d ' ' -f 1)
if current; then
	echo "packages: nothing to do: $output is up to date"
else
	echo "packages: making $names for $arch, and a repository for $suites"
	assemble
	publish
	echo "packages: made $output"
fi
echo "packages: signed by $fingerprint ($output/key.asc)"
closed=$(unreadable)
[ -z "$closed" ] || echo "packages: only its owner can look into $closed: for others, and for apt's own user, name a folder that all can read by --output" >&2
