package driver

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

var anIndex = fstest.MapFS{
	"modules.dep": {Data: []byte(`kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko: kernel/drivers/ptp/ptp.ko kernel/drivers/pps/pps_core.ko
kernel/drivers/ptp/ptp.ko: kernel/drivers/pps/pps_core.ko
kernel/drivers/pps/pps_core.ko:
kernel/drivers/nvme/host/nvme.ko.zst: kernel/drivers/nvme/host/nvme-core.ko.zst
kernel/drivers/nvme/host/nvme-core.ko.zst:
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/crypto/crc32c_generic.ko:
kernel/drivers/a.ko: kernel/drivers/gone.ko
kernel/drivers/r8169.ko:
kernel/drivers/realtek.ko: kernel/drivers/r8169.ko
`)},
	"modules.alias": {Data: []byte(`# Aliases extracted from modules themselves.
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v*d*sv*sd*bc01sc08i0[3-5]* other
alias acpi*:PNP0501:* serial
alias fs-ext4 ext4
alias crypto-crc32c crc32c_generic
alias crypto-crc32c crc32c-intel
`)},
	"modules.builtin": {Data: []byte("kernel/drivers/ata/libata.ko\n")},
	"modules.softdep": {Data: []byte("# Soft dependencies\nsoftdep ext4 pre: crypto-crc32c\nsoftdep cifs gcm\nsoftdep r8169 pre: realtek post: gone\n")},
}

func TestIndex(t *testing.T) {
	x, err := ReadIndex(anIndex)
	if err != nil {
		t.Fatal(err)
	}
	for alias, want := range map[string]string{
		"pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00": "e1000e",
		"pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02": "nvme",
		"pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i04": "other",
		"pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i06": "",
		"acpi:PNP0501:PNP0500:":                                 "serial",
		"":                                                      "",
	} {
		if got := strings.Join(x.Match(alias), " "); got != want {
			t.Errorf("%s: %q, not %q", alias, got, want)
		}
	}
	for name, want := range map[string][]string{
		"e1000e":    {"kernel/drivers/pps/pps_core.ko", "kernel/drivers/ptp/ptp.ko", "kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko"},
		"nvme":      {"kernel/drivers/nvme/host/nvme-core.ko.zst", "kernel/drivers/nvme/host/nvme.ko.zst"},
		"nvme-core": {"kernel/drivers/nvme/host/nvme-core.ko.zst"},
		"ext4":      {"kernel/crypto/crc32c_generic.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/ext4/ext4.ko"},
		"libata":    nil,
		"r8169":     {"kernel/drivers/realtek.ko", "kernel/drivers/r8169.ko"},
	} {
		got, err := x.Order(name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	for name, want := range map[string]string{"none": "there is no module none", "a": "the module a needs another: there is no module gone"} {
		if _, err := x.Order(name); err == nil || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !x.Has("libata") || !x.Has("nvme-core") || x.Has("none") {
		t.Error("Has is wrong")
	}
	if _, err := ReadIndex(fstest.MapFS{}); err == nil {
		t.Error("an index that isn't there is read")
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"a*", "abc", true}, {"a*c", "abcbc", true}, {"a*c", "abcb", false}, {"**", "x", true},
		{"?", "", false}, {"a?c", "abc", true}, {"[a-c]", "b", true}, {"[!a-c]", "b", false}, {"[^a-c]", "d", true}, {"[]a]", "]", true},
		{"[a", "a", false}, {`\*`, "*", true}, {`\*`, "x", false}, {`a\`, "a", false}, {"[a-]", "-", true}, {"*[0-9]", "x9", true}, {"ab", "a", false},
		{strings.Repeat("*a", 200), strings.Repeat("a", 5000) + "b", false},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%.20q, %.20q) = %v", c.pattern, c.s, got)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add(string(anIndex["modules.dep"].Data), string(anIndex["modules.alias"].Data), string(anIndex["modules.softdep"].Data), "pci:v1d2")
	f.Fuzz(func(t *testing.T, dep, alias, soft, device string) {
		x, err := ReadIndex(fstest.MapFS{"modules.dep": {Data: []byte(dep)}, "modules.alias": {Data: []byte(alias)}, "modules.softdep": {Data: []byte(soft)}})
		if err != nil {
			return
		}
		for _, m := range x.Match(device) {
			if files, err := x.Order(m); err == nil && len(files) > len(x.modules) {
				t.Errorf("%s: %q", m, files)
			}
		}
	})
}
