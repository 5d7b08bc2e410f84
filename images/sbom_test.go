package images

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
)

var update = flag.Bool("update", false, "write the golden files, and fail")

func TestSBOM(t *testing.T) {
	m := someManifest()
	m.Packages[2].SHA256, m.Packages[2].Source = hashB, "hashicorp"
	m.Packages[0].SHA256, m.Packages[0].Source = hashC, "debian-security"
	m.Artifacts = []Artifact{{Name: "root.tar.zst", Format: FormatTar, Size: 1, SHA256: hashC}, {Name: "image.raw", Format: FormatRaw, Size: 8 << 20, SHA256: hashD}}
	data, err := m.SBOM()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.SBOM(); err != nil || !bytes.Equal(again, data) {
		t.Errorf("the second time it's another, %v", err)
	}
	golden := filepath.Join("testdata", "sbom.spdx.json")
	want, err := os.ReadFile(golden)
	if *update {
		if err := os.WriteFile(golden, data, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatal("the golden file was written: look at what has changed, and run again without -update")
	}
	if err != nil || !bytes.Equal(data, want) {
		t.Errorf("%s, %v: it isn't what is wanted:\n%s", golden, err, data)
	}

	// Others read it so.
	doc, err := json.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(described) != 1 || described[0] != sbomImage {
		t.Errorf("it describes %v, %v", described, err)
	}
	locators := map[string]string{}
	ids := map[common.ElementID]bool{}
	for _, p := range doc.Packages {
		if ids[p.PackageSPDXIdentifier] {
			t.Errorf("two packages are %s", p.PackageSPDXIdentifier)
		}
		ids[p.PackageSPDXIdentifier] = true
		for _, r := range p.PackageExternalReferences {
			locators[p.PackageName] = r.Locator
		}
	}
	for name, want := range map[string]string{
		"acl":        "pkg:deb/debian/acl@2.3.1-3?arch=amd64&distro=debian-12",
		"nomad":      "pkg:deb/hashicorp/nomad@1.9.6-1?arch=amd64&distro=debian-12",
		"libstdc++6": "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1~x?arch=amd64&distro=debian-12",
	} {
		if locators[name] != want {
			t.Errorf("%s is %s, want %s", name, locators[name], want)
		}
	}
}

func TestSBOMIdentifiers(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"g++", "g--", "g.2B.2B", "g..", "g", "x_y", "x.y", "é"} {
		id := sbomID(name)
		if other, ok := seen[id]; ok && other != name {
			// Only what no package can be called has an upper-case letter.
			if name != "g.2B.2B" {
				t.Errorf("%s and %s are both %s", name, other, id)
			}
		}
		seen[id] = name
		for _, c := range id {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' {
				t.Errorf("%s: %q can't be in an identifier", name, c)
			}
		}
	}
}
