package images

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/plan"
)

const (
	hashA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hashB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	hashC = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
	hashD = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
)

// someManifest is an image of some packages, files and units.
func someManifest() *Manifest {
	m := &Manifest{
		Profile: "plain", Definition: "debian-12", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Release:  plan.Release{ID: "debian", Version: "12", Codename: "bookworm", Architecture: "amd64"},
		Packages: []Package{{Name: "acl", Version: "2.3.1-3", Architecture: "amd64"}, {Name: "libstdc++6", Version: "1:12.2.0-14+deb12u1~x", Architecture: "amd64"}, {Name: "nomad", Version: "1.9.6-1", Architecture: "amd64"}},
		Files: []File{
			{Path: "/", Type: "directory", Mode: "0755"},
			{Path: "/etc/a", Type: "file", Mode: "0644", Size: 3, SHA256: hashA},
			{Path: "/etc/systemd/system/consul.service", Type: "file", Mode: "0644", Size: 9, SHA256: hashA},
			{Path: "/etc/systemd/system/multi-user.target.wants/consul.service", Type: "link", Mode: "0777", Target: "/etc/systemd/system/consul.service"},
			{Path: "/usr/bin/a", Type: "file", Mode: "0755", Size: 3, SHA256: hashA, Attributes: map[string]string{"security.capability": "01"}},
			{Path: "/usr/lib/systemd/system/nomad.service", Type: "file", Mode: "0644", Size: 9, SHA256: hashA},
			{Path: "/usr/lib/systemd/system/tty@.service", Type: "file", Mode: "0644", Size: 9, SHA256: hashA},
		},
		Disk:   &Disk{Size: 8 << 20, BlockSize: BlockSize, Blocks: []string{hashA, hashB}},
		Kernel: "/boot/vmlinuz-6.1.0-1-amd64", Initrd: "/boot/initrd.img-6.1.0-1-amd64", KernelArguments: "quiet",
		Tools: map[string]string{"apt-get": "apt 2.6.1"},
		Steps: []Step{
			{Name: "sources"},
			{Name: "base", Key: hashA, Inputs: []Input{{"recipe", "2"}, {"source debian", "one"}, {"source debian", "two"}, {"release bookworm", hashC}, {"packages", "acl nomad"}}},
			{Name: "tree", Key: hashB, Inputs: []Input{{"recipe", "2"}, {"base", hashA}, {"units", "enable consul\n"}, {"clock", "1"}}},
			{Name: "root", Key: hashC, Inputs: []Input{{"tree", hashB}, {"ids", "1"}, {"clock", "1"}}},
		},
	}
	m.ID = m.ContentID()
	return m
}

// copyOf is a deep copy, changed.
func copyOf(t *testing.T, m *Manifest, change func(m *Manifest)) *Manifest {
	t.Helper()
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var c Manifest
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	change(&c)
	c.ID = c.ContentID()
	return &c
}

func file(m *Manifest, path string) *File {
	i := slices.IndexFunc(m.Files, func(f File) bool { return f.Path == path })
	return &m.Files[i]
}

// brief is a Diff in lines.
func brief(d *Diff) []string {
	var lines []string
	add := func(parts ...string) { lines = append(lines, strings.TrimSpace(strings.Join(parts, " "))) }
	for _, c := range d.About {
		add("about", c.Name, c.Before, c.After)
	}
	for _, c := range d.Packages {
		add("package", c.Change, c.Name)
	}
	for _, c := range d.Files {
		add("file", c.Change, c.Path, strings.Join(c.What, "+"))
	}
	for _, c := range d.Modes {
		add("mode", c.Path, c.Before.String(), "→", c.After.String())
	}
	for _, c := range d.Units {
		add("unit", c.Name, c.Before.String(), "→", c.After.String())
	}
	for _, c := range d.Kernel {
		add("kernel", c.Name, c.Before, "→", c.After)
	}
	if d.Disk != nil {
		add("disk")
	}
	return lines
}

const wants = "/etc/systemd/system/multi-user.target.wants/"

func link(path, target string) File {
	return File{Path: path, Type: "link", Mode: "0777", Target: target}
}

var comparisons = map[string]struct {
	change func(m *Manifest)
	want   []string
}{
	"nothing":    {func(*Manifest) {}, nil},
	"when":       {func(m *Manifest) { m.Created, m.Tools, m.Steps = time.Now(), nil, nil }, nil},
	"profile":    {func(m *Manifest) { m.Profile = "other" }, []string{"about profile plain other"}},
	"definition": {func(m *Manifest) { m.Definition = "debian-13" }, []string{"about definition debian-12 debian-13"}},
	"a package more, one less, one newer": {func(m *Manifest) {
		m.Packages = []Package{{Name: "htop", Version: "3", Architecture: "amd64"}, m.Packages[1], {Name: "nomad", Version: "1.9.7-1", Architecture: "amd64"}}
	}, []string{"package removed acl", "package added htop", "package changed nomad"}},
	"a package's architecture":           {func(m *Manifest) { m.Packages[0].Architecture = "all" }, []string{"package changed acl"}},
	"a package's hash, of one alone":     {func(m *Manifest) { m.Packages[0].SHA256 = hashA }, nil},
	"a package for another architecture": {func(m *Manifest) { m.Packages = append(m.Packages, Package{"acl", "2.3.1-3", "i386", "", ""}) }, []string{"package added acl:i386"}},
	"files": {func(m *Manifest) {
		file(m, "/etc/a").SHA256 = hashB
		file(m, "/usr/bin/a").Path = "/usr/bin/b"
	}, []string{"file changed /etc/a content", "file removed /usr/bin/a", "file added /usr/bin/b"}},
	"attributes":       {func(m *Manifest) { file(m, "/usr/bin/a").Attributes = nil }, []string{"file changed /usr/bin/a attributes"}},
	"a link's target":  {func(m *Manifest) { file(m, wants+"consul.service").Target = "../x" }, []string{"file changed " + wants + "consul.service target"}},
	"a file to a link": {func(m *Manifest) { *file(m, "/etc/a") = link("/etc/a", "b") }, []string{"file changed /etc/a type+content+target", "mode /etc/a 0644 0:0 → 0777 0:0"}},
	"mode and owner":   {func(m *Manifest) { f := file(m, "/etc/a"); f.Mode, f.GID = "0640", 7 }, []string{"mode /etc/a 0644 0:0 → 0640 0:7"}},
	"a unit disabled": {func(m *Manifest) {
		m.Files = slices.DeleteFunc(m.Files, func(f File) bool { return f.Path == wants+"consul.service" })
	},
		[]string{"file removed " + wants + "consul.service", "unit consul.service enabled (multi-user.target) → disabled"}},
	"a unit enabled by one more": {func(m *Manifest) {
		m.Files = append(m.Files, link("/etc/systemd/system/net.target.requires/consul.service", "../consul.service"))
	},
		[]string{"file added /etc/systemd/system/net.target.requires/consul.service", "unit consul.service enabled (multi-user.target) → enabled (multi-user.target, net.target)"}},
	"units masked": {func(m *Manifest) {
		m.Files = append(m.Files, link("/etc/systemd/system/nomad.service", "/dev/null"), link("/etc/systemd/system/sshd.service", "../../../dev/null"), File{Path: "/etc/systemd/system/x.timer", Type: "file", Mode: "0644"})
	}, []string{"file added /etc/systemd/system/nomad.service", "file added /etc/systemd/system/sshd.service", "file added /etc/systemd/system/x.timer",
		"unit nomad.service disabled → masked", "unit sshd.service absent → masked", "unit x.timer absent → masked"}},
	"an instance": {func(m *Manifest) {
		m.Files = append(m.Files, link("/etc/systemd/system/getty.target.wants/tty@1.service", "/lib/systemd/system/tty@.service"))
	}, []string{"file added /etc/systemd/system/getty.target.wants/tty@1.service", "unit tty@1.service disabled → enabled (getty.target)"}},
	"kernel": {func(m *Manifest) { m.Kernel, m.KernelArguments = "/boot/vmlinuz-7", "quiet splash" },
		[]string{"kernel kernel /boot/vmlinuz-6.1.0-1-amd64 → /boot/vmlinuz-7", "kernel command line quiet → quiet splash"}},
	"a block":       {func(m *Manifest) { m.Disk.Blocks[1] = hashC }, []string{"disk"}},
	"a larger disk": {func(m *Manifest) { m.Disk.Size++ }, []string{"disk"}},
	"no disk":       {func(m *Manifest) { m.Disk = nil }, []string{"disk"}},
}

func TestCompare(t *testing.T) {
	for name, c := range comparisons {
		t.Run(name, func(t *testing.T) {
			a := someManifest()
			b := copyOf(t, a, c.change)
			d := Compare(a, b)
			if diff := cmp.Diff(c.want, brief(d)); diff != "" {
				t.Errorf("got, other than wanted:\n%s", diff)
			}
			if d.Same != (c.want == nil) {
				t.Errorf("Same is %v", d.Same)
			}
			// The other way round it's as much.
			if back := Compare(b, a); len(brief(back)) != len(c.want) || back.Same != d.Same {
				t.Errorf("back it's %q", brief(back))
			}
		})
	}
}

// TestSameIsTheSameID: whatever part of an ID's content is changed, Compare sees it.
func TestSameIsTheSameID(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	a := someManifest()
	for range 500 {
		b := copyOf(t, a, func(m *Manifest) {
			f := &m.Files[random.IntN(len(m.Files))]
			switch random.IntN(12) {
			case 0:
				f.Path += "x"
			case 1:
				f.Type = "other"
			case 2:
				f.Mode = "4755"
			case 3:
				f.UID++
			case 4:
				f.GID++
			case 5:
				f.Size++
			case 6:
				f.SHA256 = hashD
			case 7:
				f.Target += "x"
			case 8:
				f.Attributes = map[string]string{"user.x": ""}
			case 9:
				m.Disk.BlockSize++
			case 10:
				m.Disk.Blocks = m.Disk.Blocks[:1]
			}
		})
		if d := Compare(a, b); d.Same != (a.ID == b.ID) {
			t.Fatalf("Same is %v, and the IDs %s, %s: %q", d.Same, a.ID, b.ID, brief(d))
		}
	}
}

func TestCauses(t *testing.T) {
	steps := func(change func(base, tree, root *Step)) func(m *Manifest) {
		return func(m *Manifest) { change(&m.Steps[1], &m.Steps[2], &m.Steps[3]) }
	}
	const hashE, hashF = "e" + hashA + "e", "f" + hashA + "f"
	again := func(tree, root *Step) {
		tree.Key, root.Key = hashD, hashE
		root.Inputs[0].Value = hashD
	}
	for name, c := range map[string]struct {
		change func(m *Manifest)
		want   []Cause
		remade string
	}{
		"nothing": {func(*Manifest) {}, nil, ""},
		"a step's own input": {steps(func(_, tree, root *Step) {
			tree.Inputs[2].Value = "mask consul\n"
			again(tree, root)
		}), []Cause{{[]string{"tree"}, "units", Changed, "enable consul\n", "mask consul\n"}}, "tree root"},
		"an input of the first step": {steps(func(base, tree, root *Step) {
			base.Key, base.Inputs[3].Value = hashF, hashD
			tree.Inputs[1].Value, tree.Inputs[3].Value = hashF, "2"
			again(tree, root)
			root.Inputs[1].Value, root.Inputs[2].Value = "2", "2"
		}), []Cause{{[]string{"base"}, "release bookworm", Changed, hashC, hashD}}, "base tree root"},
		"one of two of a name, and another more": {steps(func(base, _, _ *Step) {
			base.Key = hashF
			base.Inputs = append(slices.Delete(base.Inputs, 1, 2), Input{"source x", "new"})
		}), []Cause{{[]string{"base"}, "source debian", Removed, "one", ""}, {[]string{"base"}, "source x", Added, "", "new"}}, "base"},
		"an input that is what a step has made": {steps(func(_, tree, root *Step) {
			tree.Inputs[2].Value, tree.Key, root.Key = "mask consul\n", hashD, hashE
			root.Inputs[0].Value = "a hash of the tree"
		}), []Cause{{[]string{"tree"}, "units", Changed, "enable consul\n", "mask consul\n"}}, "tree root"},
		"a tree that is another, made of the same": {steps(func(_, _, root *Step) {
			root.Key, root.Inputs[0].Value = hashE, "another hash"
		}), []Cause{{[]string{"root"}, "tree", Changed, hashB, "another hash"}}, "root"},
		"packages that a step has found": {func(m *Manifest) {
			m.Steps[0].Key, m.Steps[0].Inputs[0].Value = hashE, "newer"
			m.Steps[1].Key, m.Steps[1].Inputs[4].Value = hashF, "2"
		}, []Cause{{[]string{"resolve"}, "release", Changed, "older", "newer"}}, "resolve base"},
		"the clock alone": {steps(func(_, tree, root *Step) {
			tree.Inputs[3].Value, root.Inputs[2].Value = "2", "2"
			again(tree, root)
		}), []Cause{{[]string{"tree", "root"}, "clock", Changed, "1", "2"}}, "tree root"},
		"without steps": {func(m *Manifest) {
			m.Steps, m.Inputs = nil, []Input{{"packages", "acl"}, {"tree", hashB}}
		}, []Cause{{nil, "packages", Changed, "acl nomad", "acl"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := someManifest()
			a.Inputs = []Input{{"packages", "acl nomad"}, {"tree", hashB}}
			if strings.Contains(name, "found") {
				a.Steps[0] = Step{Name: "resolve", Key: hashD, Inputs: []Input{{"release", "older"}}}
				a.Steps[1].Inputs[4] = Input{"package nomad", "1"}
			}
			d := Compare(a, copyOf(t, a, c.change))
			if diff := cmp.Diff(c.want, d.Causes); diff != "" {
				t.Errorf("got, other than wanted:\n%s", diff)
			}
			if got := strings.Join(d.Remade, " "); got != c.remade {
				t.Errorf("remade %q, want %q", got, c.remade)
			}
		})
	}
}

// TestCompareAnything: manifests from elsewhere can have anything in them.
func TestCompareAnything(t *testing.T) {
	odd := &Manifest{
		Files:    []File{{Path: "/b"}, {Path: "/a"}, {Path: "/a"}, {}, {Path: "/etc/systemd/system/.wants/", Type: "link"}},
		Packages: []Package{{}, {Name: "a"}, {Name: "a"}}, Disk: &Disk{}, Steps: []Step{{}, {Key: "x"}, {Name: "base", Key: "y", Inputs: []Input{{}, {}}}},
	}
	for _, m := range []*Manifest{odd, {}, someManifest()} {
		if d := Compare(m, m); !d.Same || len(d.Causes)+len(d.Tools) > 0 {
			t.Errorf("the same manifest differs from itself: %q", brief(d))
		}
		if d := Compare(m, someManifest()); d.Same != (m.Profile != "") {
			t.Errorf("got %v", d)
		}
	}
}
