package packer

import (
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hcldec"
)

// TestDocumented has each option and output in the documentation of its component.
func TestDocumented(t *testing.T) {
	for file, specs := range map[string][]hcldec.ObjectSpec{
		"builder/kiln":         {new(Builder).ConfigSpec()},
		"provisioner/kiln":     {new(Provisioner).ConfigSpec()},
		"data-source/host":     {new(HostData).ConfigSpec(), new(HostData).OutputSpec()},
		"data-source/profile":  {new(ProfileData).ConfigSpec(), new(ProfileData).OutputSpec()},
		"post-processor/check": {new(Check).ConfigSpec()},
	} {
		b, err := os.ReadFile("../../.web-docs/components/" + file + "/README.md")
		if err != nil {
			t.Fatal(err)
		}
		options := 0
		for _, spec := range specs {
			for name := range spec {
				if strings.HasPrefix(name, "packer_") {
					continue
				}
				options++
				if !strings.Contains(string(b), "\n- `"+name+"` (") {
					t.Errorf("%s lacks %s", file, name)
				}
			}
		}
		if got := strings.Count(string(b), "\n- `"); got != options {
			t.Errorf("%s has %d options, and there are %d", file, got, options)
		}
	}
}
