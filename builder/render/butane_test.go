package render

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/butane/config"
	"github.com/coreos/butane/config/common"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// butaneFile is a file of a Butane config, as another parser reads it.
type butaneFile struct {
	Path, Target string
	Mode         int
	User, Group  struct{ Name string }
	Overwrite    *bool
	Contents     struct{ Inline, Source *string }
}

// butaneProgram is what the butane program does: it goes by the variant and the
// version that stand in the config.
func butaneProgram(t *testing.T, bu []byte) []byte {
	t.Helper()
	ign, report, err := config.TranslateBytes(bu, common.TranslateBytesOptions{})
	if err != nil || len(report.Entries) > 0 {
		t.Errorf("butane: %v: %s", err, report)
	}
	return ign
}

func butaneFiles(t testing.TB, bu []byte) map[string]butaneFile {
	t.Helper()
	var c struct {
		Storage struct{ Files, Links []butaneFile }
	}
	if err := yaml.Unmarshal(bu, &c); err != nil {
		t.Fatalf("%v in\n%s", err, bu)
	}
	files := map[string]butaneFile{}
	for _, f := range append(c.Storage.Files, c.Storage.Links...) {
		files[f.Path] = f
	}
	return files
}

// content is what the file would hold.
func (f butaneFile) content(t testing.TB) string {
	t.Helper()
	if f.Contents.Inline != nil {
		return *f.Contents.Inline
	}
	if f.Contents.Source == nil {
		t.Fatalf("%s has no contents", f.Path)
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(*f.Contents.Source, "data:;base64,"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ignitionPlan is one that Ignition can say all of.
func ignitionPlan() *plan.Plan {
	p := testplan.New()
	p.Image.AptSources, p.Image.Packages = nil, nil
	p.Image.Files = []plan.File{
		testplan.File("/etc/default/empty", "root", "root", 0o644, ""),
		testplan.File("/opt/kiln/run", "root", "shared", 0o750, "#!/bin/sh\nprintf '%s\\n' \"${HOME}\"\n"),
		p.Image.Files[3],
	}
	p.Image.Users[0].Groups = []string{"shared"}
	p.Image.Groups = append(p.Image.Groups, plan.Group{Name: "consul", System: true})
	p.Image.Users = append(p.Image.Users, plan.User{Name: "consul", System: true})
	return p
}

func TestButaneGoldens(t *testing.T) {
	for _, test := range []struct {
		name string
		o    Options
	}{
		{"golden-flatcar", Options{}},
		{"golden-fcos", Options{Variant: FCOS}},
		{"stock-flatcar", Options{Target: Stock, Variant: Flatcar}},
		{"stock-fcos", Options{Target: Stock, Variant: FCOS}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bu, err := Butane(ignitionPlan(), test.o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Butane(ignitionPlan(), test.o)
			if err != nil || !bytes.Equal(bu, again) {
				t.Error("the same plan gave other bytes")
			}
			ign, err := Ignition(ignitionPlan(), test.o)
			if err != nil {
				t.Error(err)
			}
			if whole := butaneProgram(t, bu); !bytes.Equal(whole, bytes.TrimSuffix(ign, []byte("\n"))) {
				t.Errorf("butane makes of it\n%s\nand not\n%s", whole, ign)
			}
			golden(t, "ignition/"+test.name+".bu", bu)
		})
	}
}

// TestButaneHalves looks for each half's things where the other's must not be.
func TestButaneHalves(t *testing.T) {
	golden, err := Butane(ignitionPlan(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	stock, err := Butane(ignitionPlan(), Options{Target: Stock})
	if err != nil {
		t.Fatal(err)
	}
	// The list of the Image half's paths has nothing but their names.
	names, err := imageList(&ignitionPlan().Image).Content.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(names) {
		golden = bytes.ReplaceAll(golden, slices.Concat([]byte("          "), line), nil)
	}
	for _, image := range []string{"/opt/kiln/run", "should_exist", "9001", "apt-daily.timer", "90-kiln-robot"} {
		if bytes.Contains(golden, []byte(image)) {
			t.Errorf("for a golden image, the config has %s of the image half", image)
		}
		if !bytes.Contains(stock, []byte(image)) {
			t.Errorf("for a stock image, the config lacks %s", image)
		}
	}
	for _, host := range []string{"/etc/nomad.d/nomad.hcl", "/etc/hostname", ManifestPath, DisksPath, "kiln-secret:teigi://alibuild/consul_token", "alice"} {
		for name, bu := range map[string][]byte{"golden": golden, "stock": stock} {
			if !bytes.Contains(bu, []byte(host)) {
				t.Errorf("for a %s image, the config lacks %s", name, host)
			}
		}
	}
	if bytes.Contains(stock, []byte("partitions")) || bytes.Contains(stock, []byte("filesystems")) {
		t.Error("Ignition would format a disk")
	}
}

// TestButaneManifest compares the manifest with the files it lists, as the
// host will.
func TestButaneManifest(t *testing.T) {
	p := ignitionPlan()
	bu, err := Butane(p, Options{Target: Stock})
	if err != nil {
		t.Fatal(err)
	}
	files := butaneFiles(t, bu)
	var listed []plan.File
	for line := range strings.Lines(files[ManifestPath].content(t)) {
		path := strings.SplitN(strings.TrimSpace(line), " ", 6)[5]
		f, ok := files[path]
		if !ok {
			t.Fatalf("the manifest lists %s, which the config doesn't have", path)
		}
		owner, group := f.User.Name, f.Group.Name
		if owner == "" {
			owner = "root"
		}
		if group == "" {
			group = "root"
		}
		listed = append(listed, testplan.File(path, owner, group, 0, f.content(t)))
		listed[len(listed)-1].Mode = fs.FileMode(f.Mode)
	}
	again, err := Manifest(listed)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != files[ManifestPath].content(t) {
		t.Errorf("the files give the manifest\n%sand the config has\n%s", again, files[ManifestPath].content(t))
	}
}

func TestButaneHostileContents(t *testing.T) {
	for _, variant := range []Variant{Flatcar, FCOS} {
		p := ignitionPlan()
		want := map[string]string{}
		for name, text := range testplan.Hostile() {
			path := "/etc/hostile/" + name
			want[path] = text
			p.Host.Files = append(p.Host.Files, testplan.File(path, "root", "root", 0o644, text))
		}
		bu, err := Butane(p, Options{Variant: variant})
		if err != nil {
			t.Fatal(err)
		}
		files := butaneFiles(t, bu)
		ign, err := translateButane(bu, variant)
		if err != nil {
			t.Fatal(err)
		}
		inIgnition := ignitionFiles(t, ign)
		for path, text := range want {
			if got := files[path].content(t); got != text {
				t.Errorf("%s: Butane has %q, wanted %q", path, got, text)
			}
			if got := inIgnition[path]; got != text {
				t.Errorf("%s: Ignition has %q, wanted %q", path, got, text)
			}
		}
	}
}

func TestButaneCannot(t *testing.T) {
	p := testplan.New()
	_, err := Butane(p, Options{Target: Stock})
	var problems problem.List
	if !errors.As(err, &problems) {
		t.Fatalf("no list of problems: %v", err)
	}
	text := err.Error()
	for _, want := range []string{
		"profile.yaml:3:1: Ignition can't add the apt source hashicorp", "Ignition can't install the package acl", "the package consul", "the package nomad",
		"profile.yaml:9:1: Ignition can't write the file /usr/lib/kiln/host-ready: /usr is read-only on flatcar",
		"profile.yaml:9:1: the file /usr/local/bin/special has mode 2755", "--for golden",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing says %q in\n%s", want, text)
		}
	}
	if _, err := Butane(p, Options{}); err != nil {
		t.Errorf("for a golden image, packages are no trouble: %v", err)
	}
	if _, err := Butane(p, Options{Variant: "coreos"}); err == nil || !strings.Contains(err.Error(), "flatcar or fcos") {
		t.Errorf("an unknown variant: %v", err)
	}
}

func TestButaneRefuses(t *testing.T) {
	addr := netip.MustParseAddr
	for _, test := range []struct {
		name   string
		change func(*plan.Plan)
		want   string
		o      Options
	}{
		{"host name", func(p *plan.Plan) { p.Host.Hostname = "a\nb" }, "no host name", Options{}},
		{"mode", func(p *plan.Plan) { p.Host.Files[0].Mode = 0o4755 }, "has mode 4755", Options{}},
		{"file on a data disk", func(p *plan.Plan) { p.Host.Files[0].Path = "/build/x" }, "the file /build/x lies on the data disk at /build", Options{}},
		{"owner", func(p *plan.Plan) { p.Host.Files[0].Owner = "a b" }, `"a b" is no name`, Options{}},
		{"path", func(p *plan.Plan) { p.Host.Files[0].Path = "/etc/a\nb" }, "control characters", Options{}},
		{"interface", func(p *plan.Plan) { p.Host.Network.Interfaces[0].Name = "a/b" }, "a name has up to 15", Options{}},
		{"search", func(p *plan.Plan) { p.Host.Network.Interfaces[0].Search = []string{"a b"} }, "no domain to search", Options{}},
		{"gateways", func(p *plan.Plan) {
			p.Host.Network.Interfaces[0].Gateways = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}
		}, "two gateways of one family", Options{}},
		{"DNS in a family without addresses", func(p *plan.Plan) {
			p.Host.Network.Interfaces[3].DNS = []netip.Addr{addr("192.0.2.53")}
		}, "is ipv4, but it gets no such address", Options{Variant: FCOS}},
		{"kernel argument", func(p *plan.Plan) { p.Image.KernelArguments[0].Value = "a b" }, `the kernel argument "a b"`, Options{Target: Stock}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := ignitionPlan()
			test.change(p)
			if _, err := Butane(p, test.o); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("wanted an error with %q, got %v", test.want, err)
			}
		})
	}
}

// TestNetworkManagerMethods checks how each way to an address is said.
func TestNetworkManagerMethods(t *testing.T) {
	yes, no := true, false
	v4, v6 := netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::9/64")
	for _, test := range []struct {
		in         plan.Interface
		ipv4, ipv6 string
	}{
		{plan.Interface{}, "disabled", "auto"},
		{plan.Interface{DHCP4: true}, "auto", "auto"},
		{plan.Interface{DHCP4: true, AcceptRA: &no}, "auto", "link-local"},
		{plan.Interface{DHCP6: true, AcceptRA: &no}, "disabled", "dhcp"},
		{plan.Interface{DHCP6: true, AcceptRA: &yes}, "disabled", "auto"},
		{plan.Interface{Addresses: []netip.Prefix{v4}}, "manual", "auto"},
		{plan.Interface{Addresses: []netip.Prefix{v4, v6}, AcceptRA: &no}, "manual", "manual"},
		{plan.Interface{Addresses: []netip.Prefix{v6}}, "disabled", "auto"},
	} {
		test.in.Name = "eth0"
		files, err := ignitionNetwork(&plan.Network{Interfaces: []plan.Interface{test.in}}, FCOS)
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		text, _ := files[0].Content.Bytes()
		if want := "[ipv4]\nmethod=" + test.ipv4 + "\n"; !strings.Contains(string(text), want) {
			t.Errorf("%+v: no %q in\n%s", test.in, want, text)
		}
		if want := "[ipv6]\nmethod=" + test.ipv6 + "\n"; !strings.Contains(string(text), want) {
			t.Errorf("%+v: no %q in\n%s", test.in, want, text)
		}
		if files[0].Mode != 0o600 {
			t.Errorf("the keyfile has mode %04o: NetworkManager would ignore it", files[0].Mode)
		}
	}
}

// FuzzButaneContent holds Butane to what it promises: contents come out of the
// YAML as they went in.
func FuzzButaneContent(f *testing.F) {
	for _, text := range testplan.Hostile() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		file := mapping("path", "/x")
		add(file, "contents", contentsNode(content))
		list := sequence()
		push(list, file)
		text, err := encodeYAML("# x\n", mapping("storage", mapping("files", list)))
		if err != nil {
			t.Fatal(err)
		}
		if got := butaneFiles(t, text)["/x"].content(t); got != string(content) {
			t.Errorf("%q came out as %q of\n%s", content, got, text)
		}
	})
}
