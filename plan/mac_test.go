package plan_test

import (
	"net"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

func TestParseMAC(t *testing.T) {
	for _, s := range []string{"52:54:00:ab:cd:ef", "52:54:00:AB:CD:EF", "52-54-00-ab-cd-EF", "5254.00ab.cdef", "525400abcdef", "525400ABCDEF"} {
		if got, err := plan.ParseMAC(s); err != nil || got != "52:54:00:ab:cd:ef" {
			t.Errorf("%s: got %s, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"":                            "is no MAC address",
		"52:54:00:ab:cd":              "is no MAC address",
		"52:54:00:ab:cd:ef:01":        "is no MAC address",
		"52:54:00:ab:cd:eg":           "is no MAC address",
		"52:54-00:ab:cd:ef":           "is no MAC address",
		"5:254:00:ab:cd:ef":           "is no MAC address",
		"52540.0ab.cdef":              "is no MAC address",
		"525400abcde":                 "is no MAC address",
		" 52:54:00:ab:cd:ef":          "is no MAC address",
		"52:54:00:ab:cd:é":            "is no MAC address",
		"01:00:5e:00:00:01":           "is a group's address",
		"ff:ff:ff:ff:ff:ff":           "is a group's address",
		"00:00:00:00:00:00":           "is the null address",
		"0000.0000.0000":              "is the null address",
		"52:54:00:ab:cd:ef%enp1s0 \n": "is no MAC address",
	} {
		if got, err := plan.ParseMAC(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %s, %v; want an error with %q", s, got, err, want)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:ab:cd:ef", "52-54-00-AB-CD-EF", "5254.00ab.cdef", "525400abcdef", "", "01:00:5e:00:00:01", "52:54:00:ab:cd", "::::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		mac, err := plan.ParseMAC(s)
		if err != nil {
			if mac != "" {
				t.Errorf("%q: %q beside an error", s, mac)
			}
			return
		}
		if again, err := plan.ParseMAC(string(mac)); err != nil || again != mac {
			t.Errorf("%q is read as %q, and that as %q, %v", s, mac, again, err)
		}
		// Whatever Go's own parser reads, it reads the same.
		if hw, err := net.ParseMAC(s); err == nil && hw.String() != string(mac) {
			t.Errorf("%q is read as %q, by net as %q", s, mac, hw)
		}
	})
}
