package render

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// TestAreGraphic: one byte that isn't printable is found wherever it stands.
func TestAreGraphic(t *testing.T) {
	for c := range 256 {
		for at := range 8 {
			for _, rest := range []byte{' ', 'a', '~'} {
				eight := bytes.Repeat([]byte{rest}, 8)
				eight[at] = byte(c)
				if got, want := areGraphic(binary.LittleEndian.Uint64(eight)), c >= ' ' && c < 0x7f; got != want {
					t.Fatalf("%q: %t", eight, got)
				}
			}
		}
	}
}
