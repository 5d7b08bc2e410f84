package render

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// userData is user-data as another parser than the one tested reads it.
type userData struct {
	Users      []any    `yaml:"users"`
	Bootcmd    []string `yaml:"bootcmd"`
	Runcmd     []string `yaml:"runcmd"`
	WriteFiles []struct {
		Path        string `yaml:"path"`
		Owner       string `yaml:"owner"`
		Permissions string `yaml:"permissions"`
		Encoding    string `yaml:"encoding"`
		Content     string `yaml:"content"`
		Defer       bool   `yaml:"defer"`
	} `yaml:"write_files"`
}

func parse(t *testing.T, text []byte) userData {
	t.Helper()
	var c userData
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return c
}

// files is what write_files would write.
func (c userData) files(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, f := range c.WriteFiles {
		content := []byte(f.Content)
		if f.Encoding != "" {
			var err error
			if content, err = base64.StdEncoding.DecodeString(f.Content); err != nil {
				t.Fatal(err)
			}
		}
		files[f.Path] = string(content)
	}
	return files
}

func TestCloudInitGoldens(t *testing.T) {
	for _, target := range []Target{Golden, Stock, imageOnly} {
		t.Run(target.String(), func(t *testing.T) {
			got, err := CloudInit(testplan.New(), Options{Target: target})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "cloudinit/"+target.String()+".yaml", got)
			again, err := CloudInit(testplan.New(), Options{Target: target})
			if err != nil || !bytes.Equal(got, again) {
				t.Error("the same plan gave other bytes")
			}
			c := parse(t, got)
			if last := c.WriteFiles[len(c.WriteFiles)-1]; target.hasHost() && (last.Path != ManifestPath || !last.Defer) {
				t.Errorf("the last file is %s (deferred: %t), not the manifest", last.Path, last.Defer)
			}
			for _, f := range c.WriteFiles {
				if apt := target.hasImage() && strings.HasPrefix(f.Path, "/etc/apt/"); f.Defer == apt {
					t.Errorf("%s of %q: deferred: %t", f.Path, f.Owner, f.Defer)
				}
			}
		})
	}
}

func TestHostileContent(t *testing.T) {
	p := testplan.New()
	want := map[string]string{}
	for name, content := range testplan.Hostile() {
		f := testplan.File("/x/"+name, "root", "root", 0o644, content)
		p.Host.Files = append(p.Host.Files, f)
		want[f.Path] = content
	}
	text, err := CloudInit(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if looksLikeMIME(text) {
		t.Error("cloud-init would take this for a mail message")
	}
	got := parse(t, text).files(t)
	for path, content := range want {
		if got[path] != content {
			t.Errorf("%s: %.200q arrived as %.200q", path, content, got[path])
		}
	}
}

func TestMIMEInFirstFile(t *testing.T) {
	p := testplan.New()
	p.Host.Files = []plan.File{testplan.File("/a", "root", "root", 0o644, "x: 1\nmime-VERSION: 1.0\n")}
	text, err := CloudInit(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if looksLikeMIME(text) || parse(t, text).files(t)["/a"] != "x: 1\nmime-VERSION: 1.0\n" {
		t.Errorf("the file doesn't arrive:\n%s", text)
	}
	for text, want := range map[string]bool{"": false, "a:\nMime-Version: 1": true, "ime-version:": false, strings.Repeat("x", 4096) + "mime-version:": false} {
		if looksLikeMIME([]byte(text)) != want {
			t.Errorf("looksLikeMIME(%.20q) isn't %t", text, want)
		}
	}
}

func FuzzLiteral(f *testing.F) {
	for _, content := range testplan.Hostile() {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content string) {
		y := yamlText{literals: true}
		y.line("write_files:")
		y.entry("", "- path", "/x")
		y.content([]byte(content))
		y.line("- path: /y")
		c := parse(t, y.b)
		if got := c.files(t)["/x"]; got != content || len(c.WriteFiles) != 2 {
			t.Fatalf("%q arrived as %q in\n%s", content, got, y.b)
		}
	})
}

func FuzzScalar(f *testing.F) {
	for _, s := range []string{"", "no", "1e3", "a b", "/x", "~", "a: b", "a #b", "y", "0644", "\u2028", "é", "systemctl enable x", "/a ", "a "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var y yamlText
		y.entry("", "k", s)
		if y.err != nil {
			return
		}
		var got map[string]any
		if err := yaml.Unmarshal(y.b, &got); err != nil || got["k"] != s {
			t.Fatalf("%q arrived as %#v (%v) in %s", s, got["k"], err, y.b)
		}
	})
}

func TestGzip(t *testing.T) {
	plain, err := CloudInit(testplan.New(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := CloudInit(testplan.New(), Options{Gzip: true})
	if err != nil {
		t.Fatal(err)
	}
	again, _ := CloudInit(testplan.New(), Options{Gzip: true})
	if !bytes.Equal(packed, again) || len(packed) >= len(plain) {
		t.Error("compressing differs between runs, or doesn't compress")
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("unpacked it is something else (%v)", err)
	}
}

func TestLimit(t *testing.T) {
	noise := make([]byte, 40000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	p := testplan.New()
	p.Host.Files = append(p.Host.Files, testplan.File("/noise", "root", "root", 0o644, string(noise)))
	for _, c := range []struct {
		platform plan.Platform
		options  Options
		limit    int // 0: it fits
		way      string
	}{
		{plan.PlatformMetal, Options{}, 0, ""},
		{plan.PlatformEC2, Options{}, 16384, "--gzip"},
		{plan.PlatformEC2, Options{Gzip: true}, 16384, "--format seed"},
		{plan.PlatformEC2, Options{Gzip: true, Target: Stock}, 16384, "--for golden"},
		{plan.PlatformOpenStack, Options{}, 49149, "--gzip"},
		{plan.PlatformOpenStack, Options{Gzip: true}, 0, ""},
	} {
		p.Host.Platform = c.platform
		_, err := CloudInit(p, c.options)
		var tooLarge *TooLargeError
		switch {
		case c.limit == 0 && err != nil:
			t.Errorf("%s %+v: %v", c.platform, c.options, err)
		case c.limit != 0 && (!errors.As(err, &tooLarge) || tooLarge.Limit != c.limit || tooLarge.Size <= c.limit || !strings.Contains(err.Error(), c.way)):
			t.Errorf("%s %+v: %v", c.platform, c.options, err)
		}
		if _, err := Seed(p, c.options); err != nil {
			t.Errorf("a seed has no limit, and got %v", err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*plan.Plan)
		want   string
	}{
		"source without key":  {func(p *plan.Plan) { p.Image.AptSources[0].Key = nil }, "profile.yaml:3:1: the apt source hashicorp has no key: the one with fingerprint 798AEC654E5C15428C8E42EEAA16FCBCA621E701 is needed; fetch and check it with: kiln keys fetch"},
		"source of two lines": {func(p *plan.Plan) { p.Image.AptSources[0].URIs = []string{"https://x\nTrusted: yes"} }, "no white space"},
		"kernel argument":     {func(p *plan.Plan) { p.Image.KernelArguments[0].Value = "a$(id)" }, "kernel argument"},
		"host name":           {func(p *plan.Plan) { p.Host.Name = "a\"b" }, "no host name"},
		"host name of dash":   {func(p *plan.Plan) { p.Host.Hostname = "-a" }, "no host name"},
		"owner":               {func(p *plan.Plan) { p.Host.Files[0].Owner = "a b" }, "no name of a user"},
		"no owner":            {func(p *plan.Plan) { p.Host.Files[0].Owner = "" }, "missing"},
		"path":                {func(p *plan.Plan) { p.Host.Files[0].Path = "/a\nb" }, "control characters"},
		"manifest":            {func(p *plan.Plan) { p.Host.Files[0].Path = ManifestPath }, "Kiln makes"},
		"disks":               {func(p *plan.Plan) { p.Host.Files[0].Path = DisksPath }, "Kiln makes"},
		"disk rule":           {func(p *plan.Plan) { p.Host.Disks[0].Disk.Serial = "a b" }, "white space"},
		"disks unmounted":     {func(p *plan.Plan) { p.Image.Units = p.Image.Units[1:] }, "extend the profile base"},
		"directory":           {func(p *plan.Plan) { p.Host.Directories[0].Path = "a" }, "absolute"},
		"directory's owner":   {func(p *plan.Plan) { p.Host.Directories[0].Owner = "-x" }, "no name of a user"},
		"unit":                {func(p *plan.Plan) { p.Image.Units[1].Name = "--now" }, "no name of a unit"},
		"package":             {func(p *plan.Plan) { p.Image.Packages[0].Name = "-o=x" }, "no name of a package"},
		"comment":             {func(p *plan.Plan) { p.Host.Users[0].Comment = "a:b" }, "colon"},
		"key":                 {func(p *plan.Plan) { p.Host.Users[0].SSHKeys = []string{"a\nb"} }, "more than one line"},
		"keys without home":   {func(p *plan.Plan) { p.Image.Users[1].Home = "" }, "set home"},
		"late group":          {func(p *plan.Plan) { p.Image.Users[0].Group = "consul" }, "declare it under groups"},
		"group":               {func(p *plan.Plan) { p.Image.Groups[0].Name = "a;b" }, "no name of a user or group"},
		"link":                {func(p *plan.Plan) { p.Image.Files[3].Target = "a\nb" }, "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			p := testplan.New()
			c.change(p)
			if text, err := CloudInit(p, Options{Target: Stock}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got the error %v, and not %q\n%s", err, c.want, text)
			}
		})
	}
}

func TestDefaultUser(t *testing.T) {
	has := func(p *plan.Plan, target Target) bool {
		text, err := CloudInit(p, Options{Target: target})
		if err != nil {
			t.Fatal(err)
		}
		users := parse(t, text).Users
		return len(users) > 0 && users[0] == "default"
	}
	p := testplan.New()
	if has(p, Golden) || has(p, Stock) {
		t.Error("the image's default user is there beside ours")
	}
	if !has(p, imageOnly) {
		t.Error("Packer can't log in")
	}
	p.Host.Users[0].SSHKeys = nil
	if !has(p, Golden) {
		t.Error("nobody could log in")
	}
}

func TestManifest(t *testing.T) {
	for name, path := range map[string]string{"manifest": ManifestPath, "disks": DisksPath, "tmpfiles.conf": TmpfilesPath, "image.list": ImageListPath} {
		golden(t, "host/"+name, []byte(contentAt(t, testplan.New(), path)))
	}
}

// TestNestedDisks: what is mounted below another disk comes after it.
func TestNestedDisks(t *testing.T) {
	p := testplan.New()
	p.Host.Disks = nil
	for _, mount := range []string{"/build/cache/a", "/srv", "/build", "/build-2", "/build/cache"} {
		p.Host.Disks = append(p.Host.Disks, plan.DataDisk{Mount: mount, Filesystem: "xfs"})
	}
	var got []string
	for line := range strings.Lines(contentAt(t, p, DisksPath)) {
		if mount, _, _ := strings.Cut(line, "\t"); mount[0] == '/' {
			got = append(got, mount)
		}
	}
	if want := []string{"/build", "/build-2", "/build/cache", "/build/cache/a", "/srv"}; !slices.Equal(got, want) {
		t.Errorf("mounted in the order %q", got)
	}
	if p.Host.Disks[0].Mount != "/build/cache/a" {
		t.Error("the plan was changed")
	}
}

// TestDirectoriesPath: systemd mustn't make directories before disks are there.
func TestDirectoriesPath(t *testing.T) {
	p := testplan.New()
	if text := contentAt(t, p, TmpfilesPath); strings.HasPrefix(TmpfilesPath, "/etc/tmpfiles.d/") || !strings.Contains(text, "d /build/consul ") {
		t.Errorf("%s: %s", TmpfilesPath, text)
	}
	// Without the profile base nothing else would make them at a boot.
	p.Image.Units, p.Host.Disks = p.Image.Units[1:], nil
	if text := contentAt(t, p, "/etc/tmpfiles.d/kiln.conf"); !strings.Contains(text, "d /build/consul ") {
		t.Errorf("without kiln-host.service: %s", text)
	}
	text, err := CloudInit(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if run := parse(t, text).Runcmd; !slices.Contains(run, "systemd-tmpfiles --create /etc/tmpfiles.d/kiln.conf") {
		t.Errorf("runcmd is %q", run)
	}
}

// contentAt is what the Host half has at path.
func contentAt(t *testing.T, p *plan.Plan, path string) string {
	t.Helper()
	files, err := hostFiles(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Path == path {
			b, err := f.Content.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	t.Fatalf("no %s among the host's files", path)
	return ""
}

// TestGroupsOfSystemUsers: a user whom bootcmd makes isn't given groups by
// cloud-init, nor is one whom the image has already.
func TestGroupsOfSystemUsers(t *testing.T) {
	p := testplan.New()
	p.Image.Users[1].Groups = []string{"adm", "mesosci", "shared", "consul"}
	p.Host.Users = append(p.Host.Users, plan.User{Name: "runner", System: true, Home: "/srv/runner", SSHKeys: []string{"ssh-ed25519 AAAA r"}, Groups: []string{"adm", "docker"}})
	for _, c := range []struct {
		target    Target
		boot, run string
	}{
		{Stock, "useradd --system --create-home --groups adm,mesosci --home-dir /var/lib/robot ", "usermod -a -G adm,mesosci,shared,consul robot"},
		{Golden, "useradd --system --create-home --groups adm --home-dir /srv/runner ", "usermod -a -G adm,docker runner"},
		{Golden, "", "usermod -a -G sudo alice"},
	} {
		text, err := CloudInit(p, Options{Target: c.target})
		if err != nil {
			t.Fatal(err)
		}
		user := parse(t, text)
		if !slices.ContainsFunc(user.Bootcmd, func(s string) bool { return strings.Contains(s, c.boot) }) && c.boot != "" {
			t.Errorf("%s: no %q in %q", c.target, c.boot, user.Bootcmd)
		}
		if !slices.Contains(user.Runcmd, c.run) {
			t.Errorf("%s: no %q in %q", c.target, c.run, user.Runcmd)
		}
	}
}

func TestMetaData(t *testing.T) {
	meta := func(change func(*plan.Plan)) string {
		p := testplan.New()
		change(p)
		b, err := MetaData(p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := meta(func(*plan.Plan) {})
	golden(t, "cloudinit/meta-data", []byte(first))
	if first != meta(func(p *plan.Plan) { p.Host.Origin.Line = 99 }) {
		t.Error("another instance-id for the same data")
	}
	for name, change := range map[string]func(*plan.Plan){
		"file":    func(p *plan.Plan) { p.Host.Files[0].Mode = 0o644 },
		"network": func(p *plan.Plan) { p.Host.Network.Interfaces[0].MTU = 1500 },
	} {
		if first == meta(change) {
			t.Errorf("the same instance-id though the %s changed", name)
		}
	}
}

func TestNetworkConfig(t *testing.T) {
	for version, name := range map[string]string{"12": "network-config-debian12", "13": "network-config"} {
		p := testplan.New()
		p.Image.Release.Version = version
		got, err := NetworkConfig(p)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "cloudinit/"+name, got)
		var parsed map[string]any
		if err := yaml.Unmarshal(got, &parsed); err != nil {
			t.Error(err)
		}
	}
	p := testplan.New()
	p.Host.Network = plan.Network{}
	if got, err := NetworkConfig(p); got != nil || err != nil {
		t.Errorf("a network of nothing gave %q (%v)", got, err)
	}
	p = testplan.New()
	want, _ := NetworkConfig(p)
	n := &p.Host.Network.Interfaces[0]
	n.Gateways, n.Routes = n.Gateways[:1], append(n.Routes, plan.Route{To: netip.MustParsePrefix("::/0"), Via: n.Gateways[1]})
	if got, err := NetworkConfig(p); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a default route isn't a gateway (%v):\n%s", err, got)
	}
	p = testplan.New()
	p.Host.Network.Interfaces[0].Gateways = append(p.Host.Network.Interfaces[0].Gateways, p.Host.Network.Interfaces[0].Gateways[0])
	if _, err := NetworkConfig(p); err == nil {
		t.Error("two gateways of one family passed")
	}
}

// BenchmarkCloudInitGolden renders one host's user-data for a golden image, of
// about the files that a host of the profile plain has.
func BenchmarkCloudInitGolden(b *testing.B) {
	p := testplan.New()
	p.Host.Files = p.Host.Files[:1]
	for i := range 4 {
		p.Host.Files = append(p.Host.Files, testplan.File(fmt.Sprintf("/etc/nomad.d/%d.hcl", i), "root", "root", 0o600, strings.Repeat("client { enabled = true }\n", 40)))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CloudInit(p, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
