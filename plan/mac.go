package plan

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MAC is a hardware address as the kernel writes it: six pairs of lower-case
// hexadecimal digits with colons between.
type MAC string

// ParseMAC reads a MAC in any of the usual spellings: pairs with colons or
// dashes, in either case, three groups with dots, or bare digits.
func ParseMAC(s string) (MAC, error) {
	digits := s
	switch {
	case len(s) == 17 && (evenly(s, ':', 3) || evenly(s, '-', 3)):
		digits = s[0:2] + s[3:5] + s[6:8] + s[9:11] + s[12:14] + s[15:17]
	case len(s) == 14 && evenly(s, '.', 5):
		digits = strings.ReplaceAll(s, ".", "")
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != 6 {
		return "", fmt.Errorf("%q is no MAC address: write six pairs of hexadecimal digits, such as 52:54:00:12:34:56", s)
	}
	if b[0]&1 != 0 {
		return "", fmt.Errorf("%q is a group's address: an interface's own has an even first byte", s)
	}
	if [6]byte(b) == [6]byte{} {
		return "", fmt.Errorf("%q is the null address, which no interface has", s)
	}
	return MAC(fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])), nil
}

// evenly tells whether each nth byte of s, and no other, is sep.
func evenly(s string, sep byte, n int) bool {
	for i := range len(s) {
		if (s[i] == sep) != (i%n == n-1) {
			return false
		}
	}
	return true
}
