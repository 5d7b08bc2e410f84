# Packer template of the golden image of the profile "plain", on debian 12 (amd64).
# Made by kiln: change the profile, not this file.
#
# It starts a stock cloud image, has cloud-init install the image half of the
# profile there, seals the result and keeps it. It holds no secret and nothing
# of any one host.
#
#     packer init FILE
#     packer build -only='qemu.*' -var base_image_url=FILE-OR-URL -var base_image_checksum=sha512:HASH FILE
#     packer build -only='openstack.*' -var flavor=m1.small -var source_image_name=NAME FILE
#
# For qemu, make the key that Packer logs in with first: it is passed in
# meta-data, and gone from the finished image.
#
#     ssh-keygen -q -t ed25519 -N '' -f build_key
#
# OpenStack's own variables (OS_CLOUD, or OS_AUTH_URL and the rest) say where
# and as whom to build; the openstack plugin logs in even for packer validate.
# `packer inspect FILE` lists all variables.

packer {
  required_version = ">= 1.10.0"
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.9, < 2.0.0"
    }
    openstack = {
      source  = "github.com/hashicorp/openstack"
      version = ">= 1.1.2, < 2.0.0"
    }
  }
}

# --- What a site changes.

variable "image_name" {
  description = "The name of the finished image."
  type        = string
  default     = "plain-debian-12"

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._-]*$", var.image_name))
    error_message = "The image_name may have letters, digits, dots, dashes and underscores."
  }
}

variable "ssh_username" {
  description = "The user whom the stock image's cloud-init makes by itself. The sealed image has it no more."
  type        = string
  default     = "debian"

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]*$", var.ssh_username))
    error_message = "The ssh_username must be the name of a user."
  }
}

variable "ssh_timeout" {
  description = "How long to wait for the machine to let Packer log in, such as 20m."
  type        = string
  default     = "20m"

  validation {
    condition     = can(regex("^([0-9]+(ms|s|m|h))+$", var.ssh_timeout))
    error_message = "The ssh_timeout must be a duration, such as 90s or 20m."
  }
}

variable "base_image_url" {
  description = "qemu: URL or path of the stock cloud image to start from: debian bookworm for amd64, qcow2. Of Debian's, the generic one: the kernel of genericcloud can't read a SATA CD, which is what brings user-data."
  type        = string
  default     = ""
}

variable "base_image_checksum" {
  description = "qemu: what that image must hash to, such as sha512:HASH, or file:URL of the list of hashes beside it."
  type        = string
  default     = ""

  validation {
    condition     = var.base_image_checksum == "" || can(regex("^((md5|sha1|sha224|sha256|sha384|sha512):)?[0-9a-fA-F]+$|^file:.", var.base_image_checksum))
    error_message = "The base_image_checksum must be a hash behind its kind, or file: and a URL; none isn't taken."
  }
}

variable "disk_size" {
  description = "qemu: size of the image's disk; the stock image grows to it."
  type        = string
  default     = "10G"

  validation {
    condition     = can(regex("^[0-9]+[MGT]$", var.disk_size))
    error_message = "The disk_size must be a number and M, G or T."
  }
}

variable "memory" {
  description = "qemu: memory of the machine, in MiB."
  type        = number
  default     = 2048

  validation {
    condition     = var.memory >= 512
    error_message = "The memory must be at least 512 MiB."
  }
}

variable "cpus" {
  description = "qemu: processors of the machine."
  type        = number
  default     = 2

  validation {
    condition     = var.cpus >= 1
    error_message = "The cpus must be at least 1."
  }
}

variable "accelerator" {
  description = "qemu: kvm, hvf, tcg and so on; empty takes kvm where there is one, else tcg."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "kvm", "tcg", "hvf", "whpx", "xen", "none"], var.accelerator)
    error_message = "The accelerator must be kvm, tcg, hvf, whpx, xen, none or empty."
  }
}

variable "qemu_binary" {
  description = "qemu: the program, or its path."
  type        = string
  default     = "qemu-system-x86_64"
}

variable "machine_type" {
  description = "qemu: the kind of machine."
  type        = string
  default     = "q35"
}

variable "cpu_model" {
  description = "qemu: the kind of processor; max is all that this computer can do."
  type        = string
  default     = "max"
}

variable "efi_boot" {
  description = "qemu: start through UEFI."
  type        = bool
  default     = true
}

variable "efi_firmware_code" {
  description = "qemu: the UEFI firmware (here: where Debian has it)."
  type        = string
  default     = "/usr/share/OVMF/OVMF_CODE_4M.fd"
}

variable "efi_firmware_vars" {
  description = "qemu: the template of the firmware's variables."
  type        = string
  default     = "/usr/share/OVMF/OVMF_VARS_4M.fd"
}

variable "headless" {
  description = "qemu: show no window."
  type        = bool
  default     = true
}

variable "output_directory" {
  description = "qemu: where the image goes; it must not exist yet."
  type        = string
  default     = "output"
}

variable "ssh_private_key_file" {
  description = "qemu: the key that Packer logs in with; its public half is the file of that name and .pub."
  type        = string
  default     = "build_key"

  validation {
    condition     = var.ssh_private_key_file != ""
    error_message = "The ssh_private_key_file must name a key: make one with ssh-keygen -t ed25519 -N '' -f build_key."
  }
}

variable "cloud" {
  description = "openstack: the entry of clouds.yaml to use; empty takes OS_CLOUD or the other OS_ variables."
  type        = string
  default     = ""
}

variable "flavor" {
  description = "openstack: name or ID of the server's flavor."
  type        = string
  default     = ""
}

variable "source_image_name" {
  description = "openstack: name of the stock cloud image to start from: debian bookworm. Either this, or source_image."
  type        = string
  default     = ""
}

variable "source_image" {
  description = "openstack: ID of the stock cloud image to start from."
  type        = string
  default     = ""
}

variable "networks" {
  description = "openstack: IDs of the networks to attach the server to; none takes the project's only one."
  type        = list(string)
  default     = []
}

variable "security_groups" {
  description = "openstack: names of security groups; one must let SSH in."
  type        = list(string)
  default     = []
}

variable "floating_ip_network" {
  description = "openstack: the network to take a floating address from; empty takes none."
  type        = string
  default     = ""
}

variable "ssh_ip_version" {
  description = "openstack: 4 or 6, the kind of address to log in to; empty takes the first."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", "4", "6"], var.ssh_ip_version)
    error_message = "The ssh_ip_version must be 4, 6 or empty."
  }
}

variable "config_drive" {
  description = "openstack: bring user-data on a drive, too, for clouds without a metadata service."
  type        = bool
  default     = true
}

variable "image_visibility" {
  description = "openstack: private, shared, community or public."
  type        = string
  default     = "private"

  validation {
    condition     = contains(["private", "shared", "community", "public"], var.image_visibility)
    error_message = "The image_visibility must be private, shared, community or public."
  }
}

# --- The machine that qemu starts.

source "qemu" "golden" {
  iso_url            = var.base_image_url
  iso_checksum       = var.base_image_checksum
  disk_image         = true
  disk_size          = var.disk_size
  format             = "qcow2"
  disk_compression   = true
  disk_discard       = "unmap"
  disk_detect_zeroes = "unmap"
  output_directory   = var.output_directory
  vm_name            = "${var.image_name}.qcow2"

  qemu_binary  = var.qemu_binary
  machine_type = var.machine_type
  accelerator  = var.accelerator
  cpu_model    = var.cpu_model
  cpus         = var.cpus
  memory       = var.memory
  headless     = var.headless
  # Either firmware path would switch UEFI on by itself.
  efi_boot          = var.efi_boot
  efi_firmware_code = var.efi_boot ? var.efi_firmware_code : null
  efi_firmware_vars = var.efi_boot ? var.efi_firmware_vars : null

  # A NoCloud seed. The key goes to the stock image's own user, as a cloud's
  # metadata service would have it.
  cd_label = "cidata"
  cd_content = {
    "meta-data" = jsonencode({
      "instance-id"    = "kiln-build"
      "local-hostname" = "kiln-build"
      "public-keys"    = [trimspace(file(pathexpand("${var.ssh_private_key_file}.pub")))]
    })
    "user-data" = local.user_data_protected
  }

  ssh_username         = var.ssh_username
  ssh_private_key_file = var.ssh_private_key_file
  ssh_timeout          = var.ssh_timeout
  shutdown_command     = "sudo systemctl poweroff"
  shutdown_timeout     = "5m"
}

# --- The machine that openstack starts.

source "openstack" "golden" {
  cloud               = var.cloud
  flavor              = var.flavor
  source_image        = var.source_image
  source_image_name   = var.source_image_name
  networks            = var.networks
  security_groups     = var.security_groups
  floating_ip_network = var.floating_ip_network
  config_drive        = var.config_drive

  image_name       = var.image_name
  image_visibility = var.image_visibility
  metadata = {
    kiln_profile = "plain"
    os_distro    = "debian"
    os_version   = "12"
  }

  user_data = local.user_data_protected

  ssh_username   = var.ssh_username
  ssh_ip_version = var.ssh_ip_version
  ssh_timeout    = var.ssh_timeout
}

# --- What becomes of it.

build {
  sources = ["source.qemu.golden", "source.openstack.golden"]

  provisioner "shell" {
    inline           = [local.wait]
    environment_vars = ["BUILD_USER=${var.ssh_username}"]
    execute_command  = "sudo env {{ .Vars }} sh -eu {{ .Path }}"
  }

  provisioner "shell" {
    inline           = [local.seal]
    environment_vars = ["BUILD_USER=${var.ssh_username}"]
    execute_command  = "sudo env {{ .Vars }} sh -eu {{ .Path }}"
  }

  post-processor "checksum" {
    only           = ["qemu.golden"]
    checksum_types = ["sha256"]
    output         = "${var.output_directory}/SHA256SUMS"
  }

  post-processor "manifest" {
    output     = "${var.image_name}.manifest.json"
    strip_path = true
    custom_data = {
      architecture = "amd64"
      definition   = "debian-12"
      profile      = "plain"
      release      = "bookworm"
    }
  }
}

# --- The image half, and the scripts around it.

locals {
  user_data = <<END_OF_USER_DATA
#cloud-config
# The image half, for a machine that becomes a golden image.
bootcmd:
- |
  cloud-init-per instance kiln_policy sh -c '
    cd /usr/sbin || exit
    if [ -e policy-rc.d ] && ! grep -q "by kiln" policy-rc.d; then mv policy-rc.d policy-rc.d.kiln; fi
    printf "#!/bin/sh\n# by kiln, while packages are installed\nexit 101\n" >policy-rc.d
    chmod 755 policy-rc.d
    printf "APT::Install-Recommends \"false\";\n" >/etc/apt/apt.conf.d/99kiln'
- "getent group mesosci >/dev/null || groupadd --gid 9001 mesosci"
- "getent passwd robot >/dev/null || useradd --system --create-home --home-dir /var/lib/robot --shell /usr/sbin/nologin --comment '' robot"
groups: ["shared"]
users:
- default
- name: "mesosci"
  uid: 9001
  primary_group: "mesosci"
  groups: ["shared"]
  homedir: /nonexistent
  shell: /usr/sbin/nologin
  system: true
  lock_passwd: true
- name: "robot"
  homedir: /var/lib/robot
  shell: /usr/sbin/nologin
  lock_passwd: true
  ssh_authorized_keys:
  - ssh-ed25519 AAAAC3Nz robot
write_files:
- path: /etc/apt/keyrings/hashicorp.asc
  permissions: "0644"
  content: |
    -----BEGIN PGP PUBLIC KEY BLOCK-----

    mQINBGO9u+MBEADmE9i8rpt8xhRqxbzlBG06z3qe+e1DI+SyjscyVVRcGDrEfo+J
    -----END PGP PUBLIC KEY BLOCK-----
- path: /etc/apt/sources.list.d/hashicorp.sources
  permissions: "0644"
  content: |
    Types: deb
    URIs: https://apt.example.org
    Suites: bookworm
    Components: main
    Signed-By: /etc/apt/keyrings/hashicorp.asc
- path: /etc/default/empty
  permissions: "0644"
  defer: true
  content: ""
- path: /etc/default/grub.d/90-kiln.cfg
  permissions: "0644"
  defer: true
  content: |
    # Added by kiln to the kernel's command line; update-grub puts it into effect.
    GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX quiet systemd.unified_cgroup_hierarchy=0"
- path: /etc/sudoers.d/90-kiln-robot
  permissions: "0440"
  defer: true
  content: |
    robot ALL=(ALL:ALL) NOPASSWD:ALL
- path: /usr/lib/kiln/host-ready
  permissions: "0755"
  defer: true
  content: |
    #!/bin/sh
    exit 0
- path: /usr/local/bin/special
  owner: "root:shared"
  permissions: "2755"
  defer: true
  content: |
    #!/bin/sh
    printf '%s\n' "$${HOME}"
package_update: true
packages:
- "acl"
- "consul"
- "nomad"
runcmd:
- |
  cd /usr/sbin && if [ -e policy-rc.d.kiln ]; then mv policy-rc.d.kiln policy-rc.d; else rm -f policy-rc.d; fi; cd /; rm -f /etc/apt/apt.conf.d/99kiln
- "usermod -a -G consul,shared mesosci"
- install -d -o consul -g consul -m 0750 /build/consul
- "install -d -o root -g root -m 1777 '/build/with space'"
- mkdir -p /etc/systemd/system
- ln -sfnT -- /dev/null /etc/systemd/system/x.service
- chmod 2755 /usr/local/bin/special
- "update-grub"
- systemctl daemon-reload
- systemctl enable kiln-host.service
- systemctl enable consul.service
- systemctl enable nomad.service
- systemctl disable apt-daily.timer
- systemctl mask foo.service
END_OF_USER_DATA

  # Plugins take {{ in any string for the start of a Go template.
  user_data_protected = replace(local.user_data, "{{", "{{ \"{{\" }}")

  wait = <<END_OF_WAIT
# Waits until cloud-init is done with what it was given; fails if it failed.
users=' mesosci robot '
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
END_OF_WAIT

  seal = <<END_OF_SEAL
# Seals this machine's disk as a golden image: nothing may be left that hosts
# would share and mustn't, or that tells of the build. With an argument it
# cleans a tree of files instead.
cd "$${1:-/}"
live=$([ "$PWD" = / ] && echo yes || echo no)
booted=$([ "$live" = yes ] && [ -d /run/systemd/system ] && echo yes || echo no)
keep='
/var/lib/robot/.ssh/authorized_keys
'
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

forget var/lib/systemd/random-seed var/lib/systemd/credential.secret boot/efi/loader/random-seed boot/loader/random-seed
forget var/lib/NetworkManager/secret_key
forget etc/hostname etc/netplan/50-cloud-init.yaml etc/network/interfaces.d/50-cloud-init*
forget etc/systemd/network/10-cloud-init-* etc/NetworkManager/system-connections/cloud-init-*
forget etc/udev/rules.d/70-persistent-net.rules
forget var/lib/dhcp/* var/lib/dhclient/* var/lib/dhcpcd/* var/lib/NetworkManager/*lease* var/lib/NetworkManager/timestamps
forget var/lib/chrony/chrony.drift var/lib/ntpsec/ntp.drift var/lib/systemd/timers/* var/lib/systemd/timesync/*
forget var/lib/cloud/* var/log/journal/* var/log/*.gz var/log/*.[0-9] var/log/*/*.gz var/log/*/*.[0-9]
forget var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/cache/debconf/*-old
forget var/lib/dpkg/*-old var/backups/* var/crash/* tmp/* tmp/.[!.]* var/tmp/* var/tmp/.[!.]*
forget etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid-
forget root/.bash_history root/.lesshst root/.wget-hsts root/.cache root/.ssh/known_hosts
forget etc/.pwd.lock etc/.updated var/.updated etc/*.dpkg-* etc/*.ucf-* var/lib/ucf/*.[0-9]
forget var/log/apt/* var/log/alternatives.log var/log/bootstrap.log var/log/dpkg.log var/log/fontconfig.log var/log/unattended-upgrades/*
forget var/cache/ldconfig/aux-cache var/cache/apt/archives/lock var/cache/apt/archives/partial/*
forget var/lib/dpkg/lock* var/lib/dpkg/triggers/Lock var/lib/apt/periodic/* var/lib/systemd/catalog/database.tmp
forget initrd.img.old vmlinuz.old
later etc/ssh/ssh_host_* etc/ssh/sshd_config.d/50-cloud-init.conf root/.ssh/authorized_keys
# What agents call themselves.
for data in build/consul opt/consul opt/nomad/data var/lib/consul var/lib/nomad; do
	forget "$data"/node-id "$data"/client/client-id "$data"/client/secret-id "$data"/client/state.db* "$data"/server/* "$data"/serf/* "$data"/raft/* "$data"/checks/* "$data"/services/*
done
forget home/"$BUILD_USER"/.bash_history
later home/"$BUILD_USER"/.ssh/authorized_keys
find var/log -xdev -type f -exec truncate -s 0 {} +
if [ -e etc/hosts ]; then
	sed -i '/kiln-build/d' etc/hosts
fi
[ -L etc/resolv.conf ] || : >etc/resolv.conf
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
END_OF_SEAL
}
