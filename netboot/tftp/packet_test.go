package tftp

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// packets as real clients send them.
var captured = map[string]string{
	"iPXE":       "\x00\x01ipxe.efi\x00octet\x00blksize\x001432\x00tsize\x000\x00",
	"EDK2":       "\x00\x01snponly.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00",
	"shim":       "\x00\x01grubx64.efi\x00octet\x00blksize\x00512\x00",
	"tftp-hpa":   "\x00\x01/undionly.kpxe\x00netascii\x00",
	"padded":     "\x00\x01a\x00octet\x00\x00\x00\x00\x00\x00",
	"unfinished": "\x00\x01a\x00OcTeT",
	"write":      "\x00\x02a\x00octet\x00",
	"no mode":    "\x00\x01a\x00",
	"no name":    "\x00\x01\x00octet\x00",
	"data":       "\x00\x03\x00\x01abc",
	"empty":      "",
}

func TestParseRequest(t *testing.T) {
	for name, want := range map[string]*request{
		"iPXE":       {Name: "ipxe.efi", Mode: "octet", Options: []option{{"blksize", "1432"}, {"tsize", "0"}}},
		"EDK2":       {Name: "snponly.efi", Mode: "octet", Options: []option{{"tsize", "0"}, {"blksize", "1468"}, {"windowsize", "4"}}},
		"shim":       {Name: "grubx64.efi", Mode: "octet", Options: []option{{"blksize", "512"}}},
		"tftp-hpa":   {Name: "/undionly.kpxe", Mode: "netascii"},
		"padded":     {Name: "a", Mode: "octet"},
		"unfinished": {Name: "a", Mode: "octet"},
		"write":      {Name: "a", Mode: "octet", Write: true},
		"no mode":    nil, "no name": nil, "data": nil, "empty": nil,
	} {
		got, err := parseRequest([]byte(captured[name]))
		if (err == nil) != (want != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" && want != nil {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for options, want := range map[string]terms{
		"":                             {Block: 512, Window: 1},
		"blksize 7":                    {Block: 512, Window: 1},
		"blksize 8":                    {Block: 8, Window: 1, Accepted: []option{{"blksize", "8"}}},
		"blksize 9000":                 {Block: 1468, Window: 1, Accepted: []option{{"blksize", "1468"}}},
		"blksize 99999999999999999999": {Block: 512, Window: 1},
		"blksize x windowsize -3":      {Block: 512, Window: 1},
		"windowsize 0":                 {Block: 512, Window: 1},
		"windowsize 65535":             {Block: 512, Window: 64, Accepted: []option{{"windowsize", "64"}}},
		"timeout 0 multicast ":         {Block: 512, Window: 1},
		"timeout 3 tsize 0": {
			Block: 512, Window: 1, Timeout: 3 * time.Second, Size: true,
			Accepted: []option{{"timeout", "3"}, {"tsize", "123"}},
		},
	} {
		r := &request{}
		for f := strings.Split(options, " "); len(f) > 1; f = f[2:] {
			r.Options = append(r.Options, option{f[0], f[1]})
		}
		got := negotiate(r, 123, (&Server{}).blockLimit(netip.MustParseAddr("10.0.0.1")), 64)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", options, diff)
		}
	}
	if n := (&Server{}).blockLimit(netip.MustParseAddr("2001:db8::1")); n != 1448 {
		t.Errorf("blocks to IPv6 have %d bytes", n)
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"ipxe.efi": "ipxe.efi", "/ipxe.efi": "ipxe.efi", "//boot//ipxe.efi": "boot/ipxe.efi", `\boot\ipxe.efi`: "boot/ipxe.efi",
		"ipxe.efi\xff": "ipxe.efi", "./a": "a", "a/./b": "a/b", "a..b": "a..b",
		"..": "", "/../a": "", `..\a`: "", "a/../b": "", "": "", "/": "", "\xff": "", "a\nb": "", "a\x7f": "", "a\xfeb": "",
	} {
		got, err := CleanName(name)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("CleanName(%q) = %q, %v", name, got, err)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("CleanName(%q): %v isn't fs.ErrNotExist", name, err)
		}
	}
}

func TestNetASCII(t *testing.T) {
	if got := string(netASCII([]byte("a\nb\rc\r\n"))); got != "a\r\nb\r\x00c\r\x00\r\n" {
		t.Errorf("%q", got)
	}
}

func FuzzRequest(f *testing.F) {
	for _, p := range captured {
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := parseRequest(p)
		if err != nil {
			return
		}
		if r.Name == "" || r.Mode == "" || len(r.Options) > maxOptions {
			t.Fatalf("%+v", r)
		}
		if name, err := CleanName(r.Name); err == nil && (!fs.ValidPath(name) || name == "." || strings.Contains(name, `\`)) {
			t.Fatalf("%q is clean as %q", r.Name, name)
		}
		terms := negotiate(r, 1<<20, 1468, 64)
		if terms.Block < minBlock || terms.Block > 1468 || terms.Window < 1 || terms.Window > 64 {
			t.Fatalf("%+v", terms)
		}
		if p := optAckPacket(terms.Accepted); binary.BigEndian.Uint16(p) != opOptAck || len(p) > 2048 {
			t.Fatalf("%q", p)
		}
	})
}
