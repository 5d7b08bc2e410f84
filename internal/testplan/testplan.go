// Package testplan has a plan for the tests of whatever works on plans.
package testplan

import (
	"net/netip"
	"os"
	"strings"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

func at(file string, line int) plan.Origin {
	return plan.Origin{Position: problem.Position{File: file, Line: line, Column: 1}}
}

// File is a file with a literal content.
func File(path, owner, group string, mode os.FileMode, content string) plan.File {
	return plan.File{Path: path, Owner: owner, Group: group, Mode: mode, Content: plan.Literal([]byte(content)), Origin: at("profile.yaml", 9)}
}

func ptr[T any](v T) *T { return &v }

// New is a plan with one of everything that the types can say. Each call makes
// another, to be changed at will.
func New() *plan.Plan {
	var nomad plan.Content
	nomad.AppendText([]byte("name = \"build01.example.org\"\nconsul {\n  token = "))
	nomad.AppendSecret("teigi://alibuild/consul_token", quote.FormatHCL, at("nomad.hcl.tmpl", 4))
	nomad.AppendText([]byte("\n}\n"))
	return &plan.Plan{
		Image: plan.Image{
			Profile: "plain", Definition: "debian-12",
			Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
			AptSources: []plan.AptSource{{
				Name: "hashicorp", URIs: []string{"https://apt.example.org"}, Suites: []string{"bookworm"}, Components: []string{"main"},
				Fingerprint: "798AEC654E5C15428C8E42EEAA16FCBCA621E701",
				Key:         []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBGO9u+MBEADmE9i8rpt8xhRqxbzlBG06z3qe+e1DI+SyjscyVVRcGDrEfo+J\n-----END PGP PUBLIC KEY BLOCK-----\n"),
				Origin:      at("profile.yaml", 3),
			}},
			Packages:        []plan.Package{{Name: "acl"}, {Name: "consul"}, {Name: "nomad"}},
			KernelArguments: []plan.Text{{Value: "quiet"}, {Value: "systemd.unified_cgroup_hierarchy=0"}},
			Layer: plan.Layer{
				Groups: []plan.Group{{Name: "mesosci", GID: ptr(9001)}, {Name: "shared"}},
				Users: []plan.User{
					{Name: "mesosci", UID: ptr(9001), Groups: []string{"consul", "shared"}, System: true},
					{Name: "robot", System: true, Home: "/var/lib/robot", SSHKeys: []string{"ssh-ed25519 AAAAC3Nz robot"}, Sudo: true},
				},
				Directories: []plan.Directory{
					{Path: "/build/consul", Owner: "consul", Group: "consul", Mode: 0o750},
					{Path: "/build/with space", Owner: "root", Group: "root", Mode: 0o1777},
				},
				Files: []plan.File{
					File("/etc/default/empty", "root", "root", 0o644, ""),
					File("/usr/lib/kiln/host-ready", "root", "root", 0o755, "#!/bin/sh\nexit 0\n"),
					File("/usr/local/bin/special", "root", "shared", 0o2755, "#!/bin/sh\nprintf '%s\\n' \"${HOME}\"\n"),
					{Path: "/etc/systemd/system/x.service", Owner: "root", Group: "root", Mode: 0o777, Target: "/dev/null"},
				},
				Units: []plan.Unit{
					{Name: "kiln-host.service", State: plan.UnitEnabled},
					{Name: "consul.service", State: plan.UnitEnabled},
					{Name: "nomad.service", State: plan.UnitEnabled},
					{Name: "apt-daily.timer", State: plan.UnitDisabled},
					{Name: "foo.service", State: plan.UnitMasked},
				},
			},
		},
		Host: plan.Host{
			Name: "build01.example.org", Hostname: "build01", Platform: plan.PlatformMetal, Origin: at("hosts.yaml", 1),
			Network: network(),
			Disks: []plan.DataDisk{{
				Mount: "/build", Filesystem: "ext4", Options: "noatime", Origin: at("hosts.yaml", 8),
				Disk: plan.DiskRule{Serial: "S3X-1", MinSize: 1e12},
			}},
			Layer: plan.Layer{
				Users: []plan.User{{
					Name: "alice", Comment: "Alice é", Groups: []string{"sudo"}, Sudo: true,
					SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA alice"},
				}},
				Directories: []plan.Directory{{Path: "/build/nomad", Owner: "root", Group: "root", Mode: 0o755}},
				Files: []plan.File{
					File("/etc/consul.d/consul.hcl", "root", "consul", 0o640, "advertise_addr = \"{{ GetInterfaceIP \\\"eno1\\\" }}\"\n\n---\nservers = 1\n"),
					{Path: "/etc/nomad.d/nomad.hcl", Owner: "root", Group: "root", Mode: 0o600, Content: nomad, Origin: at("profile.yaml", 12)},
				},
			},
		},
	}
}

func network() plan.Network {
	return plan.Network{Interfaces: []plan.Interface{
		{
			Name: "eno1", MAC: "52:54:00:12:34:56", MTU: 9000, AcceptRA: ptr(false),
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.11/24"), netip.MustParsePrefix("2001:db8::11/64")},
			Gateways:  []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			Routes:    []plan.Route{{To: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.2")}},
			DNS:       []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"example.org"},
		},
		{Name: "eno2", MAC: "52:54:00:12:34:57"},
		{Name: "bond0", Bond: &plan.Bond{Members: []string{"eno2", "eno3"}, Mode: "802.3ad"}, DHCP4: true},
		{Name: "vlan10", VLAN: &plan.VLAN{ID: 10, Link: "bond0"}, DHCP6: true, MTU: 1400},
	}}
}

// Hostile are contents that some step on their way to a host could change.
func Hostile() map[string]string {
	return map[string]string{
		"empty": "", "newline": "\n", "newlines": "\n\n", "no newline": "a", "two newlines": "a\n\n", "blank first": "\na\n",
		"template": "{{ secret }} ${HOME} %{if} $(id) `id` <%= @x %>\n", "jinja": "## template: jinja\n{{ v1.local_hostname }}\n",
		"crlf": "a\r\nb\r\n", "cr": "a\rb\n", "tab first": "\ta\n", "tabs": "a\tb\t\n\t\n\tc\n", "leading": "  a\nb\n", "trailing": "a  \nb \n",
		"space line": "a\n   \nb\n", "space end": "a\n  \n", "document": "---\na: b\n...\n--- x\n", "comment": "# a\n#cloud-config\n", "directive": "%YAML 1.1\n",
		"nul": "a\x00b\n", "invalid": "a\xff\xfe\n", "separators": "a\u2028b\u2029c\u0085d\n", "bom": "\ufeffa\n", "unicode": "é 漢 🙂 ~\n",
		"control": "\x1b[31m\x7f\n", "c1": "a\u009bb\n", "nonchar": "a\ufffe\uffff\n", "nbsp": "\u00a0a\u00a0\n", "quotes": "\"'\\\n",
		"mime": "MIME-Version: 1.0\nContent-Type: multipart/mixed\n", "include": "#include http://192.0.2.1/\n", "indented later": "a:\n    b\n  c\n",
		"indicators": "|\n>\n- x\n? y\n: z\n& * ! @\n", "long": strings.Repeat("x", 100000) + "\n", "replacement": "\ufffd\n",
	}
}
