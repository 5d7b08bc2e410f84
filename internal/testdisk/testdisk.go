// Package testdisk is what tests give to those who write disks, in the place of
// what Debian's boot packages bring. What the real ones do is for firmware to say,
// in the integration tests.
package testdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"

	"github.com/alisw/kiln/internal/run"
)

// Boot are the files that a disk is made to boot with, by path in its tree.
var Boot = map[string]string{
	"usr/lib/shim/shimx64.efi.signed": "shim", "usr/lib/shim/mmx64.efi.signed": "manager", "usr/lib/shim/BOOTX64.CSV": "csv",
	"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "grub", "usr/lib/grub/i386-pc/boot.img": strings.Repeat("B", 512),
	"usr/lib/grub/i386-pc/normal.mod": "module", "usr/lib/grub/i386-pc/fs.lst": "list", "usr/bin/grub-mkimage": "",
	"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": "",
}

// Core is a GRUB core image of three sectors and a bit, with the list of sectors
// that grub-mkimage leaves in its first one (include/grub/i386/pc/boot.h).
func Core() []byte {
	core := bytes.Repeat([]byte("GRUB"), 400)
	const list, segment = 0x1f4, 0x820
	copy(core[list:], make([]byte, 12))
	binary.LittleEndian.PutUint16(core[list+8:], 3)
	binary.LittleEndian.PutUint16(core[list+10:], segment)
	return core
}

// Mkimage is a run.Runner that stands for a tree's grub-mkimage.
func Mkimage(_ context.Context, c run.Command) ([]byte, error) {
	for _, a := range c.Args {
		if to, ok := strings.CutPrefix(a, "--output="); ok {
			return nil, os.WriteFile(to, Core(), 0o600)
		}
	}
	return nil, errors.New("grub-mkimage isn't told where to")
}
