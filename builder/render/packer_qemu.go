package render

import (
	"github.com/zclconf/go-cty/cty"

	"github.com/alisw/kiln/plan"
)

// qemuMachine is what differs between architectures.
type qemuMachine struct{ binary, machine, code, vars, cdrom string }

func qemuMachineOf(architecture string) qemuMachine {
	if architecture == "arm64" {
		return qemuMachine{"qemu-system-aarch64", "virt", "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", "virtio-scsi"}
	}
	return qemuMachine{"qemu-system-x86_64", "q35", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", ""}
}

// qemuSource builds a disk image in a virtual machine on this computer.
func qemuSource() packerSource {
	return packerSource{
		kind:      "qemu",
		plugin:    "github.com/hashicorp/qemu",
		version:   ">= 1.0.9, < 2.0.0",
		variables: qemuVariables,
		source:    qemuBlock,
		disk:      "${var.output_directory}",
	}
}

func qemuVariables(image *plan.Image) []packerVariable {
	m := qemuMachineOf(image.Release.Architecture)
	r := image.Release
	return []packerVariable{
		{
			name: "base_image_url",
			description: "qemu: URL or path of the stock cloud image to start from: " + r.ID + " " + r.Codename + " for " + r.Architecture +
				", qcow2. Of Debian's, the generic one: the kernel of genericcloud can't read a SATA CD, which is what brings user-data.",
			value: cty.StringVal(""),
		},
		{
			name:        "base_image_checksum",
			description: "qemu: what that image must hash to, such as sha512:HASH, or file:URL of the list of hashes beside it.",
			value:       cty.StringVal(""),
			condition:   matchesOrEmpty("base_image_checksum", `^((md5|sha1|sha224|sha256|sha384|sha512):)?[0-9a-fA-F]+$|^file:.`),
			message:     "The base_image_checksum must be a hash behind its kind, or file: and a URL; none isn't taken.",
		},
		{
			name: "disk_size", description: "qemu: size of the image's disk; the stock image grows to it.", value: cty.StringVal("10G"),
			condition: matches("disk_size", `^[0-9]+[MGT]$`), message: "The disk_size must be a number and M, G or T.",
		},
		{
			name: "memory", description: "qemu: memory of the machine, in MiB.", value: cty.NumberIntVal(2048),
			condition: "var.memory >= 512", message: "The memory must be at least 512 MiB.",
		},
		{
			name: "cpus", description: "qemu: processors of the machine.", value: cty.NumberIntVal(2),
			condition: "var.cpus >= 1", message: "The cpus must be at least 1.",
		},
		{
			name: "accelerator", description: "qemu: kvm, hvf, tcg and so on; empty takes kvm where there is one, else tcg.", value: cty.StringVal(""),
			condition: `contains(["", "kvm", "tcg", "hvf", "whpx", "xen", "none"], var.accelerator)`,
			message:   "The accelerator must be kvm, tcg, hvf, whpx, xen, none or empty.",
		},
		{name: "qemu_binary", description: "qemu: the program, or its path.", value: cty.StringVal(m.binary)},
		{name: "machine_type", description: "qemu: the kind of machine.", value: cty.StringVal(m.machine)},
		{name: "cpu_model", description: "qemu: the kind of processor; max is all that this computer can do.", value: cty.StringVal("max")},
		{name: "efi_boot", description: "qemu: start through UEFI.", value: cty.True},
		{name: "efi_firmware_code", description: "qemu: the UEFI firmware (here: where Debian has it).", value: cty.StringVal(m.code)},
		{name: "efi_firmware_vars", description: "qemu: the template of the firmware's variables.", value: cty.StringVal(m.vars)},
		{name: "headless", description: "qemu: show no window.", value: cty.True},
		{name: "output_directory", description: "qemu: where the image goes; it must not exist yet.", value: cty.StringVal("output")},
		{
			name:        "ssh_private_key_file",
			description: "qemu: the key that Packer logs in with; its public half is the file of that name and .pub.",
			value:       cty.StringVal("build_key"),
			condition:   `var.ssh_private_key_file != ""`,
			message:     "The ssh_private_key_file must name a key: make one with ssh-keygen -t ed25519 -N '' -f build_key.",
		},
	}
}

func qemuBlock(b *packerBody, image *plan.Image) {
	b.expr("iso_url", "var.base_image_url")
	b.expr("iso_checksum", "var.base_image_checksum")
	b.set("disk_image", cty.True)
	b.expr("disk_size", "var.disk_size")
	b.set("format", cty.StringVal("qcow2"))
	b.set("disk_compression", cty.True)
	b.set("disk_discard", cty.StringVal("unmap"))
	b.set("disk_detect_zeroes", cty.StringVal("unmap"))
	b.expr("output_directory", "var.output_directory")
	b.expr("vm_name", `"${var.image_name}.qcow2"`)
	b.blank()
	b.expr("qemu_binary", "var.qemu_binary")
	b.expr("machine_type", "var.machine_type")
	b.expr("accelerator", "var.accelerator")
	b.expr("cpu_model", "var.cpu_model")
	b.expr("cpus", "var.cpus")
	b.expr("memory", "var.memory")
	b.expr("headless", "var.headless")
	b.comment("Either firmware path would switch UEFI on by itself.")
	b.expr("efi_boot", "var.efi_boot")
	b.expr("efi_firmware_code", "var.efi_boot ? var.efi_firmware_code : null")
	b.expr("efi_firmware_vars", "var.efi_boot ? var.efi_firmware_vars : null")
	b.blank()
	b.comment("A NoCloud seed. The key goes to the stock image's own user, as a cloud's",
		"metadata service would have it.")
	if m := qemuMachineOf(image.Release.Architecture); m.cdrom != "" {
		b.set("cdrom_interface", cty.StringVal(m.cdrom))
	}
	b.set("cd_label", cty.StringVal("cidata"))
	b.expr("cd_content", `{
    "meta-data" = jsonencode({
      "instance-id"    = "kiln-build"
      "local-hostname" = "kiln-build"
      "public-keys"    = [trimspace(file(pathexpand("${var.ssh_private_key_file}.pub")))]
    })
    "user-data" = `+protectedUserData+`
  }`)
	b.blank()
	b.expr("ssh_username", "var.ssh_username")
	b.expr("ssh_private_key_file", "var.ssh_private_key_file")
	b.expr("ssh_timeout", "var.ssh_timeout")
	b.set("shutdown_command", cty.StringVal("sudo systemctl poweroff"))
	b.set("shutdown_timeout", cty.StringVal("5m"))
}
