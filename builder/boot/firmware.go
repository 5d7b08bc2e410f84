package boot

import (
	"fmt"
	"io/fs"
	"strings"
)

// Firmware is what starts a machine.
type Firmware string

// The kinds of firmware.
const (
	UEFI       Firmware = "uefi"
	SecureBoot Firmware = "secureboot" // UEFI that starts only what Microsoft's keys vouch for
	BIOS       Firmware = "bios"
)

// Firmwares are all kinds, for a help's text.
var Firmwares = []Firmware{UEFI, SecureBoot, BIOS}

// pair is UEFI's program, and the variables that a machine begins with.
type pair struct{ code, vars string }

// Where distributions keep OVMF: Debian and Ubuntu, Fedora, Arch. 4M is the
// size of flash that has room for today's lists of revoked keys.
var ovmf = map[Firmware][]pair{
	UEFI: {
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
	},
	SecureBoot: {
		{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"},
		{"/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"},
	},
}

// find looks for a firmware's files below root, "/" of the machine. The BIOS is
// QEMU's own.
func (f Firmware) find(root fs.FS) (pair, error) {
	switch f {
	case BIOS:
		return pair{}, nil
	case UEFI, SecureBoot:
	default:
		return pair{}, fmt.Errorf("there is no firmware %q: it's %s, %s or %s", f, UEFI, SecureBoot, BIOS)
	}
	is := func(path string) bool {
		_, err := fs.Stat(root, strings.TrimPrefix(path, "/"))
		return err == nil
	}
	for _, p := range ovmf[f] {
		if is(p.code) && is(p.vars) {
			return p, nil
		}
	}
	what := "UEFI's firmware"
	if f == SecureBoot {
		what = "UEFI's firmware with Secure Boot and Microsoft's keys"
	}
	return pair{}, fmt.Errorf("%s for virtual machines isn't there: the package ovmf has it (Fedora: edk2-ovmf); --firmware bios needs none", what)
}
