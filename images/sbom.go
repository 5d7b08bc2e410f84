package images

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const (
	noAssertion = "NOASSERTION" // SPDX's: nothing is said of it
	sbomImage   = "Image"       // the identifier of the image itself
)

// SBOM lists what is in the image as an SPDX 2.3 document in JSON. It follows from
// the manifest alone: the same manifest has the same SBOM.
func (m *Manifest) SBOM() ([]byte, error) {
	doc := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      m.Profile + "-" + m.Definition + "-" + m.Short(),
		DocumentNamespace: "https://spdx.org/spdxdocs/kiln-image-" + m.ID,
		CreationInfo:      &v2_3.CreationInfo{Creators: []common.Creator{{CreatorType: "Tool", Creator: "kiln"}}, Created: m.Created.UTC().Format(time.RFC3339)},
		Packages:          []*v2_3.Package{m.sbomImage()},
		Relationships:     []*v2_3.Relationship{relation("DOCUMENT", common.TypeRelationshipDescribe, sbomImage)},
	}
	packages := slices.Clone(m.Packages)
	slices.SortStableFunc(packages, func(a, b Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Architecture, b.Architecture))
	})
	for i := range packages {
		p := m.sbomPackage(&packages[i])
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, relation(sbomImage, common.TypeRelationshipContains, p.PackageSPDXIdentifier))
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("the SBOM of the image %s: %w", m.Short(), err)
	}
	return b.Bytes(), nil
}

func relation(from common.ElementID, how string, to common.ElementID) *v2_3.Relationship {
	return &v2_3.Relationship{RefA: common.DocElementID{ElementRefID: from}, RefB: common.DocElementID{ElementRefID: to}, Relationship: how}
}

// sbomImage is the image as the package that the document is about.
func (m *Manifest) sbomImage() *v2_3.Package {
	p := &v2_3.Package{
		PackageName: m.Profile, PackageSPDXIdentifier: sbomImage, PackageVersion: m.ID, PackageDownloadLocation: noAssertion,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		PrimaryPackagePurpose: "OPERATING-SYSTEM", BuiltDate: m.Created.UTC().Format(time.RFC3339),
		PackageSummary: fmt.Sprintf("A golden image of the profile %s on %s (%s).", m.Profile, m.Definition, release(m)),
	}
	for _, a := range m.Artifacts {
		// A netboot set is hundreds of files; SPDX has room for one.
		if a.Format == FormatRaw || a.Format == FormatTar && p.PackageFileName == "" {
			p.PackageFileName, p.PackageChecksums = a.Name, nil
			// The raw disk has the hashes of its blocks, which the ID is made of.
			if a.SHA256 != "" {
				p.PackageChecksums = checksum(a.SHA256)
			}
		}
	}
	return p
}

func (m *Manifest) sbomPackage(p *Package) *v2_3.Package {
	s := &v2_3.Package{
		PackageName: p.Name, PackageSPDXIdentifier: common.ElementID("Package-" + sbomID(p.Name) + "-" + sbomID(p.Architecture)),
		PackageVersion: p.Version, PackageDownloadLocation: noAssertion,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		PackageExternalReferences: []*v2_3.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: m.purl(p)}},
	}
	if p.SHA256 != "" {
		s.PackageChecksums = checksum(p.SHA256)
	}
	if p.Source != "" {
		s.PackageSourceInfo = "from the apt source " + p.Source + ", as " + LockFile + " has it"
	}
	return s
}

func checksum(sha256 string) []common.Checksum {
	return []common.Checksum{{Algorithm: common.SHA256, Value: sha256}}
}

// purl is the package URL. Its namespace is who made the package: a source of
// packages that isn't the distribution's speaks for itself, so that nobody takes
// its nomad for Debian's.
func (m *Manifest) purl(p *Package) string {
	vendor := m.Release.ID
	if p.Source != "" && p.Source != vendor && p.Source != vendor+"-security" {
		vendor = p.Source
	}
	return fmt.Sprintf("pkg:deb/%s/%s@%s?arch=%s&distro=%s", escape(vendor, purlPlain, "%%%02X"), escape(p.Name, purlPlain, "%%%02X"),
		escape(p.Version, purlPlain, "%%%02X"), escape(p.Architecture, purlPlain, "%%%02X"), escape(m.Release.ID+"-"+m.Release.Version, purlPlain, "%%%02X"))
}

const (
	sbomPlain = ".-"
	purlPlain = ".-_~:"
)

// sbomID makes part of an SPDX identifier, which has letters, digits, dots and
// hyphens: no two names of packages give the same.
func sbomID(s string) string { return escape(s, sbomPlain, ".%02X") }

// escape replaces what is neither an ASCII letter or digit nor in plain.
func escape(s, plain, format string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(plain, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, format, c)
		}
	}
	return b.String()
}
