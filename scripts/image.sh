#!/bin/sh
# From a fresh machine to a golden image that has booted and joined a cluster:
# what make image runs, as root. Run again, it does what is left to do.
#
#   scripts/image.sh [--netboot] [FOLDER]
#
# With --netboot (make demo-netboot), a machine with an empty disk is installed with the image over
# the network, from power-on to ready.
#
# FOLDER (default out) gets site/, the example site that kiln init makes, the
# program that the trial is, and image.txt, the image's ID. Images are in kiln's cache, as kiln build has them.
#
#   KILN_PACKAGES   where a repository of Nomad and Consul is made, should
#                   HashiCorp's not be within reach (/var/cache/kiln/hashicorp)
set -eu

cd "$(dirname "$0")/.."
how=boot
if [ "${1-}" = --netboot ]; then
	how=netboot
	shift
fi
folder=${1:-out}
site=$folder/site
profile=alissandra
host=build03 # of the example site, with that profile
packages=${KILN_PACKAGES:-/var/cache/kiln/hashicorp}
official=https://apt.releases.hashicorp.com
suite=bookworm
mark='# make image: HashiCorp' # begins and ends what is added to site.yaml

say() { printf '\n== %s\n' "$*"; }

fail() {
	echo "image.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "baking an image needs root: sudo make image"
command -v go >/dev/null || fail "go is missing: https://go.dev/doc/install"

say "what this machine needs"
scripts/setup.sh image
command -v qemu-system-x86_64 >/dev/null || fail "QEMU is missing still: install the package qemu-system-x86"

say "kiln"
make --no-print-directory build
kiln=$PWD/bin/kiln

say "the example site, in $site"
if [ -e "$site/site.yaml" ]; then
	echo "$site is there already, and stays as it is"
else
	"$kiln" init "$site" >/dev/null
	echo "made $site, as kiln init does"
fi

# reachable: HashiCorp's own repository, by apt's own way, with its proxies.
reachable() {
	work=$(mktemp -d)
	found=0
	/usr/lib/apt/apt-helper -oAPT::Sandbox::User=root -oAcquire::Retries=0 -oAcquire::https::Timeout=15 -oAcquire::http::Timeout=15 \
		download-file "$official/dists/$suite/InRelease" "$work/InRelease" >/dev/null 2>&1 || found=1
	rm -rf "$work"
	return "$found"
}

# without_packages prints site.yaml without what an earlier call added.
without_packages() { sed "/^$mark/,/^$mark/d" "$site/site.yaml"; }

say "Nomad and Consul"
if without_packages | grep -q '^apt:'; then
	echo "$site/site.yaml says itself where packages come from"
elif reachable; then
	echo "HashiCorp's repository can be reached: the image's packages come from there"
	without_packages >"$site/.site.yaml.new"
	mv "$site/.site.yaml.new" "$site/site.yaml"
	if [ -e "$packages/key.asc" ] && cmp -s "$packages/key.asc" "$site/keys/hashicorp.asc"; then
		rm "$site/keys/hashicorp.asc"
	fi
	"$kiln" --site "$site" keys fetch
else
	echo "HashiCorp's repository ($official) can't be reached: the image gets packages of the same programs, which are built here from their"
	echo "sources (minutes, at the first time), and are signed with a key of this machine"
	scripts/hashicorp/packages.sh --output "$packages"
	mkdir -p "$site/keys"
	cp "$packages/key.asc" "$site/keys/hashicorp.asc"
	{
		without_packages
		cat <<-END
			$mark's repository couldn't be reached: these packages were built on this
			# machine, and signed with its own key. Hosts have no such folder: in their images
			# the source is disabled. docs/air-gapped.md has more.
			apt:
			  sources:
			    hashicorp:
			      uris: ["file://$packages"]
			      fingerprint: $(cat "$packages/fingerprint")
			$mark: end
		END
	} >"$site/.site.yaml.new"
	mv "$site/.site.yaml.new" "$site/site.yaml"
fi
"$kiln" --site "$site" check

say "the golden image of $profile"
format=raw
[ "$how" = boot ] || format=netboot
"$kiln" --site "$site" build "$profile" --format "$format" >"$folder/image.txt"
cat "$folder/image.txt"
id=$(cut -d ' ' -f 1 "$folder/image.txt")
[ -n "$id" ] || fail "no image was made: see above"

scripts/hashicorp/build.sh consul nomad
go build -o "$folder/trial" ./internal/lab/trial
if [ "$how" = netboot ]; then
	say "a machine with an empty disk, which is to become $host, boots from the network"
	"$folder/trial" --netboot "$kiln" "$site" "$id" "$host" "$(scripts/hashicorp/build.sh --bin)"
	printf '\n== done: from power-on to ready, with nobody'"'"'s hands on it. docs/netboot.md has the same for a network of your own.\n'
	exit
fi
say "its first boot, as $host, beside real servers of Nomad and Consul"
"$folder/trial" "$kiln" "$site" "$id" "$host" "$(scripts/hashicorp/build.sh --bin)"

cat <<END

== done: the image is there, and comes up as a member of a cluster

  $("$kiln" images show "$id" | sed -n 's/^folder *//p')/image.raw

What comes next:

  export PATH=$PWD/bin:\$PATH
  kiln images                                          what images there are
  kiln images export $profile --format qcow2 -o $profile.qcow2
  kiln boot $profile                                 boot it once more, and look at its console
  kiln init mysite                                     a site of your own: its servers, its hosts, its secrets;
                                                       then kiln build $profile, and kiln render HOST --format seed
END
