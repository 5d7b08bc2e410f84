package packer

import (
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/zclconf/go-cty/cty"
)

// execute is what a data source gives, which must be of the types that it says.
func execute(t *testing.T, d packersdk.Datasource, options map[string]any) map[string]cty.Value {
	t.Helper()
	if err := d.Configure(options); err != nil {
		t.Fatal(err)
	}
	v, err := d.Execute()
	if err != nil {
		t.Fatal(err)
	}
	out := v.AsValueMap()
	for name := range d.OutputSpec() {
		if out[name].IsNull() {
			t.Errorf("it gives no %s", name)
		}
	}
	return out
}

func text(v cty.Value) string { return v.AsString() }

func TestHostData(t *testing.T) {
	s := newSite()
	out := execute(t, &HostData{sites: s}, map[string]any{"host": "build01", "site": "my site"})
	if got := s.asked[0]; got != "host my site build01" {
		t.Errorf("asked for %q", got)
	}
	for name, part := range map[string]string{
		"user_data": "#cloud-config\n# The host half of build01.example.org, for a golden image", "meta_data": `instance-id: "kiln-`,
		"network_config": "192.0.2.11/24", "profile": "plain", "image": "debian-12",
	} {
		if !strings.Contains(text(out[name]), part) {
			t.Errorf("%s lacks %q:\n%s", name, part, text(out[name]))
		}
	}
	files := out["files"].AsValueMap()
	if !strings.Contains(text(files["/etc/nomad.d/nomad.hcl"]), "kiln-secret:teigi://alibuild/consul_token") {
		t.Errorf("nomad.hcl is %v", files["/etc/nomad.d/nomad.hcl"])
	}
	if _, ok := files["/usr/lib/kiln/host-ready"]; ok {
		t.Error("the image half's files are there")
	}
	stock := execute(t, &HostData{sites: s}, map[string]any{"host": "build01", "target": "stock"})
	if _, ok := stock["files"].AsValueMap()["/usr/lib/kiln/host-ready"]; !ok || !strings.Contains(text(stock["user_data"]), "packages:") {
		t.Error("a stock host lacks the image half")
	}
}

func TestProfileData(t *testing.T) {
	s := newSite()
	out := execute(t, &ProfileData{sites: s}, map[string]any{"profile": "plain"})
	for name, part := range map[string]string{"user_data": "packages:", "meta_data": `local-hostname: "kiln-build"`, "image": "debian-12"} {
		if !strings.Contains(text(out[name]), part) {
			t.Errorf("%s lacks %q:\n%s", name, part, text(out[name]))
		}
	}
	var packages []string
	for _, p := range out["packages"].AsValueSlice() {
		packages = append(packages, text(p))
	}
	if got := strings.Join(packages, " "); got != "acl consul nomad" {
		t.Errorf("the packages are %s", got)
	}
	if files := out["files"].AsValueMap(); text(files["/usr/lib/kiln/host-ready"]) != "#!/bin/sh\nexit 0\n" {
		t.Error("a file of the profile's isn't there")
	}
}

func TestDataOptions(t *testing.T) {
	for _, test := range []struct {
		data    packersdk.Datasource
		options map[string]any
		want    string
	}{
		{new(HostData), map[string]any{}, "host must be set"},
		{new(HostData), map[string]any{"host": "x", "target": "other"}, `no target is called "other"`},
		{new(ProfileData), map[string]any{"site": "."}, "profile must be set"},
		{new(ProfileData), map[string]any{"profil": "x"}, "profil"},
	} {
		if err := test.data.Configure(test.options); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, and it should have %q", test.options, err, test.want)
		}
	}
	d := &ProfileData{sites: newSite()}
	if err := d.Configure(map[string]any{"profile": "other"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Execute(); err == nil || !strings.Contains(err.Error(), "no profile other") {
		t.Errorf("with another profile: %v", err)
	}
}
