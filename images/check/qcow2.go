package check

import (
	"context"
	"strings"

	"github.com/alisw/kiln/internal/run"
)

// QCOW2Magic is what a qcow2 begins with.
const QCOW2Magic = "QFI\xfb"

// IsQCOW2 tells whether a file that begins so is one.
func IsQCOW2(head []byte) bool { return strings.HasPrefix(string(head), QCOW2Magic) }

// Unpack writes a qcow2's disk into a file, raw, as Disk and Describe read it.
func Unpack(ctx context.Context, r run.Runner, qcow2, raw string) error {
	return r.Run(ctx, run.Command{
		Name: "qemu-img", Args: []string{"convert", "-f", "qcow2", "-O", "raw", "--", qcow2, raw}, Install: "the Debian package qemu-utils has it",
	})
}
