//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// hostilePlan has what could break on its way, in each place that takes text.
func hostilePlan() *plan.Plan {
	p := testplan.New()
	for name, content := range testplan.Hostile() {
		p.Host.Files = append(p.Host.Files, testplan.File("/x/"+name, "root", "root", 0o644, content))
	}
	p.Host.Files = append(p.Host.Files,
		testplan.File("/x/späce 'quote\" $(id)", "consul", "consul", 0o4750, "x\n"),
		plan.File{Path: "/x/link 'q $(id)", Owner: "consul", Group: "consul", Target: "-n/a b'c"})
	p.Host.Users[0].Comment = `{{ x }} "A" 'l' $(id) #é`
	p.Host.Users[0].SSHKeys = append(p.Host.Users[0].SSHKeys, `command="echo \"a b\"",no-pty ssh-ed25519 AAAA ã # c`)
	return p
}

// eachSeed tries a plan with one of everything, and one with hostile texts, for
// both targets, plain and compressed.
func eachSeed(t *testing.T, f func(t *testing.T, p *plan.Plan, o render.Options)) {
	for name, p := range map[string]*plan.Plan{"all": testplan.New(), "hostile": hostilePlan()} {
		for _, target := range []render.Target{render.Golden, render.Stock} {
			for _, zip := range []bool{false, true} {
				run := name + "/" + target.String()
				if zip {
					run += "/gzip"
				}
				t.Run(run, func(t *testing.T) { f(t, p, render.Options{Target: target, Gzip: zip}) })
			}
		}
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return string(out)
}

func TestCloudInitSchema(t *testing.T) {
	plans := map[string]*plan.Plan{"all": testplan.New(), "hostile": hostilePlan()}
	for _, profile := range shippedProfiles {
		p := shippedHost(t, profile)
		for i := range p.Image.AptSources {
			p.Image.AptSources[i].Key = testplan.New().Image.AptSources[0].Key
		}
		plans[profile] = p
	}
	for name, p := range plans {
		for _, target := range []render.Target{render.Golden, render.Stock} {
			t.Run(name+"/"+target.String(), func(t *testing.T) {
				text, err := render.CloudInit(p, render.Options{Target: target})
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(t.TempDir(), "user-data")
				if err := os.WriteFile(file, text, 0o600); err != nil {
					t.Fatal(err)
				}
				out := output(t, "cloud-init", "schema", "--config-file", file)
				if !strings.Contains(out, "Valid cloud-config") || strings.Contains(strings.ToLower(out), "deprecated") {
					t.Errorf("cloud-init says: %s", out)
				}
			})
		}
	}
}

// applied is what cloudinit_apply.py prints.
type applied struct {
	Metadata map[string]any
	Network  any
	Order    []string
	Early    int
	Owners   map[string]string
	Programs [][]string
	Keys     map[string][]string
	Bootcmd  string
	Runcmd   string
	Packages []string
	Hostname []string
}

func TestCloudInitApplies(t *testing.T) {
	eachSeed(t, func(t *testing.T, p *plan.Plan, o render.Options) {
		dir, root := filepath.Join(t.TempDir(), "seed"), t.TempDir()
		files, err := render.Seed(p, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := render.WriteSeed(dir, files); err != nil {
			t.Fatal(err)
		}
		var got applied
		if err := json.Unmarshal([]byte(output(t, "/usr/bin/python3", "cloudinit_apply.py", dir, root)), &got); err != nil {
			t.Fatal(err)
		}
		if id, _ := got.Metadata["instance-id"].(string); !strings.HasPrefix(id, "kiln-") {
			t.Errorf("the meta-data is %v", got.Metadata)
		}
		if got.Network != float64(5) {
			t.Errorf("the network has %v interfaces, not eno1, eno2, eno3, bond0 and vlan10", got.Network)
		}
		if !slices.Equal(got.Hostname, []string{"build01", "build01.example.org"}) {
			t.Errorf("the host is called %v", got.Hostname)
		}
		checkFiles(t, p, o, got, filepath.Join(root, "files"))
		checkAccounts(t, p, o, got)
		checkScripts(t, got)
	})
}

// checkFiles compares what cloud-init wrote with the plan's tree.
func checkFiles(t *testing.T, p *plan.Plan, o render.Options, got applied, root string) {
	t.Helper()
	tree, err := render.Files(p, o)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range tree.Entries {
		if e.Dir || e.Target != "" {
			continue
		}
		n++
		content, err := os.ReadFile(filepath.Join(root, e.Path))
		if err != nil || !bytes.Equal(content, e.Content) {
			t.Errorf("%s: %.200q arrived as %.200q (%v)", e.Path, e.Content, content, err)
			continue
		}
		info, err := os.Stat(filepath.Join(root, e.Path))
		if err != nil {
			t.Fatal(err)
		}
		if uint32(info.Mode().Perm()) != uint32(e.Mode)&0o777 || got.Owners[e.Path] != e.Owner+":"+e.Group {
			t.Errorf("%s arrived as %v %s, and not %o %s:%s", e.Path, info.Mode(), got.Owners[e.Path], e.Mode, e.Owner, e.Group)
		}
		if early := slices.Index(got.Order, e.Path) < got.Early; early && (o.Target == render.Golden || !strings.HasPrefix(e.Path, "/etc/apt/")) {
			t.Errorf("%s of %s:%s is written before users and packages are there", e.Path, e.Owner, e.Group)
		}
	}
	if n != len(got.Order) {
		t.Errorf("%d files were written, and the plan has %d", len(got.Order), n)
	}
	if got.Order[len(got.Order)-1] != render.ManifestPath {
		t.Errorf("the last file is %s, not the manifest", got.Order[len(got.Order)-1])
	}
}

// checkAccounts looks at the programs that cloud-init runs for users.
func checkAccounts(t *testing.T, p *plan.Plan, o render.Options, got applied) {
	t.Helper()
	run := func(args ...string) {
		t.Helper()
		if !slices.ContainsFunc(got.Programs, func(p []string) bool { return slices.Equal(p, args) }) {
			t.Errorf("cloud-init doesn't run %q, but\n%q", args, got.Programs)
		}
	}
	alice := p.Host.Users[0]
	run("useradd", "alice", "--comment", alice.Comment, "--groups", "sudo", "--home", "/home/alice", "--shell", "/bin/bash", "-m")
	keys := slices.Clone(alice.SSHKeys)
	slices.Sort(keys)
	if !slices.Equal(got.Keys["alice"], keys) {
		t.Errorf("alice's keys are %q, and not %q", got.Keys["alice"], keys)
	}
	if o.Target == render.Stock {
		run("groupadd", "shared")
		run("useradd", "mesosci", "--groups", "shared", "--home", "/nonexistent", "--gid", "mesosci", "--shell", "/usr/sbin/nologin", "--system", "--uid", "9001", "-M")
		if !slices.Equal(got.Packages, []string{"acl", "consul", "nomad"}) {
			t.Errorf("the packages are %v", got.Packages)
		}
	}
	for _, args := range got.Programs {
		if args[0] == "groupadd" && args[1] != "shared" {
			t.Errorf("cloud-init makes a group that a package brings: %q", args)
		}
	}
}

// checkScripts has a shell read what cloud-init makes of bootcmd and runcmd.
func checkScripts(t *testing.T, got applied) {
	t.Helper()
	for name, script := range map[string]string{"bootcmd": got.Bootcmd, "runcmd": got.Runcmd} {
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s in\n%s", name, err, out, script)
		}
	}
}

// TestCloudInitLinks runs the commands for links and special modes.
func TestCloudInitLinks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path := dir + "/späce '\" $(id)/link"
	p := testplan.New()
	p.Host.Files = append(p.Host.Files, plan.File{Path: path, Owner: "daemon", Group: "daemon", Target: "-n/a b'c $(id)"})
	out := filepath.Join(t.TempDir(), "seed")
	files, err := render.Seed(p, render.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := render.WriteSeed(out, files); err != nil {
		t.Fatal(err)
	}
	var got applied
	if err := json.Unmarshal([]byte(output(t, "/usr/bin/python3", "cloudinit_apply.py", out, t.TempDir())), &got); err != nil {
		t.Fatal(err)
	}
	var script []string
	for _, line := range strings.Split(got.Runcmd, "\n") {
		if strings.Contains(line, "link") {
			script = append(script, line)
		}
	}
	for range 2 {
		if out, err := exec.Command("sh", "-ec", "mkdir -p '"+strings.ReplaceAll(filepath.Dir(path), "'", `'\''`)+"'\n"+strings.Join(script, "\n")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if target, err := os.Readlink(path); target != "-n/a b'c $(id)" {
		t.Errorf("the link points to %q (%v)", target, err)
	}
}

// TestNetworkConfigConverts has cloud-init write each network manager's
// configuration, and finds the default routes in it.
func TestNetworkConfigConverts(t *testing.T) {
	for manager, want := range map[string][]string{
		"eni": {"address 192.0.2.11/24", "gateway 192.0.2.1\n", "address 2001:db8::11/64", "gateway 2001:db8::1\n", "mtu 9000", "bond-mode 802.3ad", "bond-miimon 100",
			"vlan-raw-device bond0", "iface bond0 inet dhcp", "dns-nameservers 192.0.2.53", "dns-search example.org", "iface vlan10 inet6 dhcp"},
		"networkd": {"Address=192.0.2.11/24", "Gateway=192.0.2.1\n", "Gateway=2001:db8::1\n", "MACAddress=52:54:00:12:34:56", "MTUBytes=9000", "DNS=192.0.2.53",
			"Destination=198.51.100.0/24", "Domains=example.org"},
		"netplan": {"macaddress: '52:54:00:12:34:56'", "set-name: eno1", "gateway4: 192.0.2.1", "gateway6: 2001:db8::1", "mode: 802.3ad", "id: 10", "accept-ra: false", "eno3: {}"},
	} {
		t.Run(manager, func(t *testing.T) {
			config, err := render.NetworkConfig(testplan.New())
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "network-config")
			if err := os.WriteFile(file, config, 0o600); err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(dir, "out")
			output(t, "cloud-init", "devel", "net-convert", "-k", "yaml", "-p", file, "-O", manager, "-D", "debian", "-d", out)
			var all strings.Builder
			err = filepath.WalkDir(out, func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(path)
				all.Write(b)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				if !strings.Contains(all.String(), w) {
					t.Errorf("no %q in\n%s", w, all.String())
				}
			}
		})
	}
}

// TestSeedVolume reads a seed's volume with programs that know vfat.
func TestSeedVolume(t *testing.T) {
	big := testplan.New()
	big.Host.Files = append(big.Host.Files, testplan.File("/big", "root", "root", 0o644, strings.Repeat("0123456789abcde\n", 300000)))
	for name, p := range map[string]*plan.Plan{"small": testplan.New(), "hostile": hostilePlan(), "big": big} {
		t.Run(name, func(t *testing.T) {
			files, err := render.Seed(p, render.Options{Target: render.Stock})
			if err != nil {
				t.Fatal(err)
			}
			volume, err := render.SeedVolume(files)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "seed.img")
			if err := os.WriteFile(path, volume, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := output(t, "blkid", "-p", "-o", "export", path); !strings.Contains(out, "TYPE=vfat\n") || !strings.Contains(out, "LABEL=cidata\n") {
				t.Errorf("blkid says %s", out)
			}
			output(t, "fsck.vfat", "-n", path)
			if list := output(t, "mdir", "-b", "-i", path, "::"); strings.Count(list, "\n") != len(files) {
				t.Errorf("mdir says %s", list)
			}
			for _, f := range files {
				if got := output(t, "mtype", "-i", path, "::"+f.Name); got != string(f.Data) {
					t.Errorf("%s has %d bytes in the volume, and %d in the seed", f.Name, len(got), len(f.Data))
				}
			}
		})
	}
}

// TestTmpfiles has systemd make the directories below another root.
func TestTmpfiles(t *testing.T) {
	needRoot(t)
	want := []plan.Directory{
		{Path: "/srv/a b", Owner: "root", Group: "root", Mode: 0o1777},
		{Path: "/srv/per%cent %h", Owner: "root", Group: "root", Mode: 0o700},
		{Path: `/srv/quo"te'\n`, Owner: "root", Group: "root", Mode: 0o2755},
		{Path: "/srv/é", Owner: "root", Group: "root", Mode: 0o755},
	}
	p := testplan.New()
	p.Image.Directories, p.Host.Directories = want[:2], want[2:]
	tree, err := render.Files(p, render.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, e := range tree.Entries {
		if e.Path == render.TmpfilesPath {
			if err := os.WriteFile(filepath.Join(root, "kiln.conf"), e.Content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	output(t, "systemd-tmpfiles", "--root="+root, "--create", filepath.Join(root, "kiln.conf"))
	for _, d := range want {
		out := output(t, "stat", "-c", "%a %U %G", filepath.Join(root, d.Path))
		if mode := strings.Fields(out)[0]; mode != strings.TrimLeft(modeText(d), "0") {
			t.Errorf("%s has mode %s, and not %s", d.Path, mode, modeText(d))
		}
	}
}

func modeText(d plan.Directory) string {
	m := uint32(d.Mode)
	return string([]byte{'0' + byte(m>>9&7), '0' + byte(m>>6&7), '0' + byte(m>>3&7), '0' + byte(m&7)})
}
