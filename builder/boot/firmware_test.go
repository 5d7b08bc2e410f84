package boot

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestFirmware(t *testing.T) {
	root := func(paths ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for _, p := range paths {
			m[strings.TrimPrefix(p, "/")] = &fstest.MapFile{}
		}
		return m
	}
	debian := root("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd",
		"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
		"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd")
	fedora := root("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd",
		"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd")
	for _, tt := range []struct {
		name     string
		root     fstest.MapFS
		firmware Firmware
		want     pair
		err      string
	}{
		{"Debian", debian, UEFI, pair{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"}, ""},
		{"Debian, Secure Boot", debian, SecureBoot, pair{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"}, ""},
		{"Fedora", fedora, UEFI, pair{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"}, ""},
		{"Fedora, Secure Boot", fedora, SecureBoot, pair{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"}, ""},
		{"BIOS", root(), BIOS, pair{}, ""},
		{"none", root(), UEFI, pair{}, "the package ovmf has it"},
		{"half", root("/usr/share/OVMF/OVMF_CODE_4M.fd"), UEFI, pair{}, "the package ovmf has it"},
		{"no Secure Boot", root("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"), SecureBoot, pair{}, "Microsoft's keys"},
		{"unknown", debian, "coreboot", pair{}, `no firmware "coreboot"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.firmware.find(tt.root)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}
