# Packer template of the golden image of the profile "plain", on debian 12 (amd64).
# Made by kiln: change the profile, not this file.
#
# It starts a stock cloud image, where cloud-init lets Packer in and nothing
# more; Kiln's own provisioner takes the image half of the profile from the site
# (the variable site), applies it over SSH, and seals the result. It holds no
# secret and nothing of any one host.
#
#     packer plugins install --path PATH/packer-plugin-kiln github.com/alisw/kiln
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
    kiln = {
      source  = "github.com/alisw/kiln"
      version = ">= 0.1.0"
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

variable "site" {
  description = "The folder of Kiln's site that has the profile."
  type        = string
  default     = "."

  validation {
    condition     = var.site != ""
    error_message = "The site must be a folder: . is the one that Packer is run in."
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

  provisioner "kiln" {
    site    = var.site
    profile = "plain"
    image   = "debian-12"
  }

  post-processor "kiln-check" {
    only    = ["qemu.golden"]
    site    = var.site
    profile = "plain"
    image   = "debian-12"
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

# --- What the machine starts with.

locals {
  user_data = <<END_OF_USER_DATA
#cloud-config
# cloud-init lets Packer in. What the image gets comes from the kiln provisioner.
package_update: false
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
}
