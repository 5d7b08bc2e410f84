package profiles

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-sockaddr/template"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// TestAdvertiseFindsAnAddress has the agents' own library evaluate what a host
// is told to find its address with, on the one interface that every machine has.
func TestAdvertiseFindsAnAddress(t *testing.T) {
	for text, want := range map[string]string{
		"interface: lo":           "127.0.0.1",
		"network: 127.0.0.0/8":    "127.0.0.1",
		"interface: nothing.10":   "",
		"network: 203.0.113.0/24": "",
	} {
		var problems problem.List
		var f AdvertiseFile
		strictyaml.Decode([]byte(text), "site.yaml", 0, &f, &problems)
		a := checkAdvertise(&f, &problems)
		if err := problems.Err(); err != nil || a.literal {
			t.Fatalf("%s: %v, literal %v", text, err, a.literal)
		}
		got, err := template.Parse(a.value)
		if err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s: %s gives %q, want %q (%v)", text, a.value, got, want, err)
		}
	}
}
