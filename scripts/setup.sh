#!/bin/sh
# What Kiln's own development needs of the machine.
#
#   scripts/setup.sh packages      install the Debian packages that the tests run
#   scripts/setup.sh image         install those alone that make image runs
#   scripts/setup.sh netboot       install those alone that make bench-netboot runs
#   scripts/setup.sh shellcheck    check every shell script of the repository
set -eu

cd "$(dirname "$0")/.."

packages='acl apt-utils atftp ca-certificates chromium cloud-init cpio curl dnsmasq-base dosfstools e2fsprogs fdisk
	fonts-dejavu-core gcc gdisk git gnupg grub-common ignition iproute2 ipxe ipxe-qemu isc-dhcp-client
	isc-dhcp-relay jq minisign mmdebstrap mtools network-manager nginx-light openssh-client ovmf pass procps
	python3 python3-jsonschema python3-yaml qemu-system-x86 qemu-utils seabios shellcheck systemd systemd-container
	tcpdump tftp-hpa udhcpc uidmap util-linux xfsprogs xorriso zstd'
# Enough to bake an image, to boot it, and to build the programs of its cluster.
image_packages='apt-utils ca-certificates dnsmasq-base dosfstools e2fsprogs fdisk gcc git gnupg grub-common ipxe ipxe-qemu iproute2 mmdebstrap mtools
	ovmf procps qemu-system-x86 qemu-utils seabios util-linux zstd'
# What the speed of booting is measured with.
netboot_packages='curl iproute2 nginx-light util-linux'
# Those of which the tests only want the programs: nothing of them is to run.
asleep='cloud-init isc-dhcp-relay network-manager nginx-light'

# sleep_tight PACKAGE keeps what was just installed from running at the next boot.
sleep_tight() {
	case $1 in
	cloud-init)
		mkdir -p /etc/cloud
		touch /etc/cloud/cloud-init.disabled
		;;
	isc-dhcp-relay) systemctl disable isc-dhcp-relay.service >/dev/null 2>&1 || true ;;
	nginx-light) systemctl disable nginx.service >/dev/null 2>&1 || true ;;
	network-manager) systemctl disable NetworkManager.service NetworkManager-wait-online.service >/dev/null 2>&1 || true ;;
	esac
}

case ${1-} in
packages | image | netboot)
	case $1 in
	image) packages=$image_packages ;;
	netboot) packages=$netboot_packages ;;
	esac
	missing=
	for p in $packages; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
	done
	[ -n "$missing" ] || exit 0
	echo "packages: installing$missing"
	[ "$(id -u)" = 0 ] || {
		echo "setup.sh: installing packages needs root: run it as root, or install them yourself:$missing" >&2
		exit 1
	}
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f $policy' EXIT
		trap 'exit 130' INT TERM
		printf '#!/bin/sh\n# while kiln installs packages: none of them is to start\nexit 101\n' >$policy
		chmod 755 $policy
	fi
	# shellcheck disable=SC2086 # a list of names
	apt-get install -y -qq --no-install-recommends $missing
	for p in $asleep; do
		case " $missing " in
		*" $p "*) sleep_tight "$p" ;;
		esac
	done
	;;
shellcheck)
	command -v shellcheck >/dev/null || {
		echo "setup.sh: shellcheck is missing: make setup installs it" >&2
		exit 1
	}
	# Templates aren't scripts yet, and test data may be wrong on purpose.
	git ls-files -co --exclude-standard ':!*.tmpl' ':!*.erb' ':!*/testdata/*' | while IFS= read -r f; do
		[ -f "$f" ] || continue
		case $(head -c 64 "$f" | tr -d '\0' | head -n 1) in
		'#!/bin/sh'* | '#!/bin/bash'* | '#!/usr/bin/env bash'*) printf '%s\0' "$f" ;;
		esac
	done | xargs -0 -r shellcheck
	;;
*)
	echo "usage: setup.sh packages|image|netboot|shellcheck" >&2
	exit 2
	;;
esac
