//go:build integration

package integration

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// ignitionProgram is where Debian's package has it: it runs in an initramfs,
// and is in nobody's PATH.
const ignitionProgram = "/usr/lib/dracut/modules.d/30ignition/ignition"

// ignitionPlans are the plans that Ignition applies, each rendered for the
// targets that it can be rendered for.
func ignitionPlans() map[string]struct {
	plan *plan.Plan
	o    render.Options
} {
	hostile := testplan.New()
	for name, text := range testplan.Hostile() {
		hostile.Host.Files = append(hostile.Host.Files, testplan.File("/etc/hostile/"+name, "root", "consul", 0o640, text))
	}
	// For a stock image, what only apt and a writable /usr could bring goes.
	stock := testplan.New()
	stock.Image.AptSources, stock.Image.Packages = nil, nil
	stock.Image.Files = slices.DeleteFunc(stock.Image.Files, func(f plan.File) bool { return strings.HasPrefix(f.Path, "/usr/") })
	stock.Image.Groups = append(stock.Image.Groups, plan.Group{Name: "consul", System: true})
	stock.Image.Users = append(stock.Image.Users, plan.User{Name: "consul", System: true})
	units := testplan.New()
	units.Host.Units = []plan.Unit{
		{Name: "first.service", State: plan.UnitEnabled}, {Name: "second.socket", State: plan.UnitEnabled},
		{Name: "third.timer", State: plan.UnitDisabled}, {Name: "fourth.service", State: plan.UnitMasked},
	}
	type one = struct {
		plan *plan.Plan
		o    render.Options
	}
	return map[string]one{
		"golden":       {testplan.New(), render.Options{}},
		"golden fcos":  {testplan.New(), render.Options{Variant: render.FCOS}},
		"hostile":      {hostile, render.Options{}},
		"units":        {units, render.Options{}},
		"stock":        {stock, render.Options{Target: render.Stock}},
		"stock fcos":   {stock, render.Options{Target: render.Stock, Variant: render.FCOS}},
		"hostile fcos": {hostile, render.Options{Variant: render.FCOS}},
	}
}

func TestIgnitionApplies(t *testing.T) {
	for name, test := range ignitionPlans() {
		t.Run(name, func(t *testing.T) { checkIgnition(t, test.plan, test.o) })
	}
}

// shippedProfiles are those that a host can have without a profile of its
// site's.
var shippedProfiles = []string{"plain", "alissandra", "server"}

// shippedHost is a host of a shipped profile.
func shippedHost(t *testing.T, profile string) *plan.Plan {
	t.Helper()
	s := site(t, map[string]string{
		"site.yaml": `domain: example.org
datacenter: ci
region: global
servers: {join: [nomad1.example.org], nomad: 1.10.5, consul: 1.22.2, vault: 1.19.0}
vault_address: https://vault.service.consul:8200
dns: {consul: [137.138.62.94], upstream: [192.0.2.53]}
admins:
  - {name: alice, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1U9fZ9upr1VCw84D/Nk3rMBCCwiytaPFLhNwhr9etq alice"], sudo: true}
secrets: {consul_encrypt: "teigi://alibuild/consul_encrypt"}
`,
		"hosts.yaml": `- name: build01
  profile: ` + profile + `
  interfaces:
    eno1: {mac: "52:54:00:12:34:56", addresses: [192.0.2.11/24, "2001:db8::11/64"], gateways: [192.0.2.1], dns: [192.0.2.53]}
  disks:
    - {mount: /build, disk: {serial: S3X}, filesystem: ext4, options: noatime}
`,
	})
	return hostPlan(t, s, "build01")
}

// TestIgnitionOfHost has Ignition apply what a host of a site of its own gets
// on a golden image.
func TestIgnitionOfHost(t *testing.T) {
	for _, profile := range shippedProfiles {
		for _, variant := range []render.Variant{render.Flatcar, render.FCOS} {
			t.Run(profile+" "+string(variant), func(t *testing.T) {
				checkIgnition(t, shippedHost(t, profile), render.Options{Variant: variant})
			})
		}
	}
}

// checkIgnition has the real Ignition apply a plan to a tree, and compares the
// tree with the plan.
func checkIgnition(t *testing.T, p *plan.Plan, o render.Options) {
	t.Helper()
	needRoot(t)
	config, err := render.Ignition(p, o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.ign")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program(t, "ignition-validate"), path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("ignition-validate: %v\n%s", err, out)
	}
	root := ignitionTree(t, p, o)
	applyIgnition(t, root, path)
	layers := []*plan.Layer{&p.Host.Layer}
	if o.Target == render.Stock {
		layers = append(layers, &p.Image.Layer)
	}
	names := idsOf(t, root)
	seen := map[string]bool{}
	for _, l := range layers {
		for _, f := range l.Files {
			if !seen[f.Path] {
				seen[f.Path] = true
				checkTreeFile(t, root, names, &f)
			}
		}
		for _, d := range l.Directories {
			if !seen[d.Path] && !onDataDisk(p, d.Path) {
				seen[d.Path] = true
				checkTreeNode(t, root, names, d.Path, d.Owner, d.Group, d.Mode&0o777)
			}
		}
		for _, u := range l.Users {
			checkTreeUser(t, root, &u)
		}
		checkTreeUnits(t, root, l.Units)
	}
	hostname, err := os.ReadFile(filepath.Join(root, "etc/hostname"))
	if err != nil || string(hostname) != p.Host.Hostname+"\n" {
		t.Errorf("/etc/hostname is %q (%v)", hostname, err)
	}
	checkTreeManifest(t, root)
}

// ignitionTree is the root of a system, as far as Ignition needs it: what a
// golden image has of users, groups and units.
func ignitionTree(t *testing.T, p *plan.Plan, o render.Options) string {
	t.Helper()
	root := t.TempDir()
	// Ignition writes a user's keys as that user, who has to get there.
	for _, dir := range []string{root, filepath.Dir(root)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	passwd, group := "root:x:0:0:root:/root:/bin/bash\n", "root:x:0:\nsudo:x:27:\n"
	if o.Target == render.Golden {
		for i, name := range imageAccounts(p) {
			passwd += fmt.Sprintf("%s:x:%d:%d::/:/bin/false\n", name, 800+i, 800+i)
			group += fmt.Sprintf("%s:x:%d:\n", name, 800+i)
		}
	}
	files := map[string]string{
		"etc/passwd": passwd, "etc/group": group, "etc/shadow": "", "etc/gshadow": "",
		"etc/login.defs":     "USERGROUPS_ENAB yes\nUID_MIN 1000\nGID_MIN 1000\n",
		"etc/selinux/config": "SELINUXTYPE=none\n",
		"etc/hostname":       "an image's own name\n",
	}
	for _, l := range []*plan.Layer{&p.Host.Layer, &p.Image.Layer} {
		for _, u := range l.Units {
			files["usr/lib/systemd/system/"+u.Name] = "[Unit]\n[Service]\nExecStart=/bin/true\n[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=multi-user.target\n"
		}
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, text)
	}
	return root
}

// imageAccounts are the users and groups that a golden image has of a plan's
// Image half, its packages included.
func imageAccounts(p *plan.Plan) []string {
	var names []string
	for _, f := range p.Host.Files {
		names = append(names, f.Owner, f.Group)
	}
	for _, d := range p.Host.Directories {
		names = append(names, d.Owner, d.Group)
	}
	for _, u := range p.Host.Users {
		names = append(append(names, u.Groups...), u.Group)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		own := func(u plan.User) bool { return u.Name == name }
		group := func(g plan.Group) bool { return g.Name == name }
		return name == "" || name == "root" || name == "sudo" ||
			slices.ContainsFunc(p.Host.Users, own) || slices.ContainsFunc(p.Host.Groups, group)
	})
}

// applyIgnition runs the stages that matter on a tree. It labels files for
// SELinux at the end, which needs no more than a program of that name.
func applyIgnition(t *testing.T, root, config string) {
	t.Helper()
	if _, err := os.Stat(ignitionProgram); err != nil {
		t.Fatalf("Debian's package ignition isn't installed (%v): run make setup", err)
	}
	work := t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "setfiles"), []byte("#!/bin/sh\ncat >/dev/null\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"fetch", "files"} {
		cmd := exec.Command(ignitionProgram, "-platform", "file", "-stage", stage, "-root", root, "-log-to-stdout",
			"-config-cache", filepath.Join(work, "config"), "-state-file", filepath.Join(work, "state"), "-neednet", filepath.Join(work, "neednet"))
		cmd.Env = append(os.Environ(), "IGNITION_CONFIG_FILE="+config, "PATH="+work+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			// Its log ends in the whole config.
			before, _, _ := strings.Cut(string(out), "Full config:")
			t.Fatalf("ignition -stage %s: %v\n%s", stage, err, tail([]byte(before), 2000))
		}
	}
}

// ids are the numbers of a tree's users and groups.
type ids struct{ users, groups map[string]int }

func idsOf(t *testing.T, root string) ids {
	t.Helper()
	read := func(name string) map[string]int {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]int{}
		for line := range strings.Lines(string(text)) {
			fields := strings.Split(line, ":")
			if m[fields[0]], err = strconv.Atoi(fields[2]); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}
	return ids{read("etc/passwd"), read("etc/group")}
}

func checkTreeFile(t *testing.T, root string, names ids, f *plan.File) {
	t.Helper()
	if f.Target != "" {
		if target, err := os.Readlink(filepath.Join(root, f.Path)); err != nil || target != f.Target {
			t.Errorf("%s leads to %q (%v), wanted %q", f.Path, target, err, f.Target)
		}
		return
	}
	want, err := f.Content.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, f.Path)); err != nil || string(got) != string(want) {
		t.Errorf("%s is %q (%v), wanted %q", f.Path, got, err, want)
	}
	checkTreeNode(t, root, names, f.Path, f.Owner, f.Group, f.Mode)
}

func checkTreeNode(t *testing.T, root string, names ids, path, owner, group string, mode fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(filepath.Join(root, path))
	if err != nil {
		t.Error(err)
		return
	}
	st := info.Sys().(*syscall.Stat_t)
	if got := fs.FileMode(st.Mode & 0o7777); got != mode {
		t.Errorf("%s has mode %04o, wanted %04o", path, got, mode)
	}
	if int(st.Uid) != names.users[owner] || int(st.Gid) != names.groups[group] {
		t.Errorf("%s is %d:%d's, wanted %s:%s (%d:%d)", path, st.Uid, st.Gid, owner, group, names.users[owner], names.groups[group])
	}
}

func checkTreeUser(t *testing.T, root string, u *plan.User) {
	t.Helper()
	passwd := treeLine(t, root, "etc/passwd", u.Name)
	if passwd == nil {
		t.Errorf("there is no user %s", u.Name)
		return
	}
	if u.UID != nil && passwd[2] != strconv.Itoa(*u.UID) {
		t.Errorf("the user %s has UID %s, wanted %d", u.Name, passwd[2], *u.UID)
	}
	if passwd[4] != u.Comment || u.Home != "" && passwd[5] != u.Home || u.Shell != "" && passwd[6] != u.Shell {
		t.Errorf("the user %s came out as %q", u.Name, passwd)
	}
	for _, g := range u.Groups {
		line := treeLine(t, root, "etc/group", g)
		if line == nil || !slices.Contains(strings.Split(line[3], ","), u.Name) {
			t.Errorf("the user %s isn't in the group %s: %q", u.Name, g, line)
		}
	}
	if shadow := treeLine(t, root, "etc/shadow", u.Name); shadow == nil || shadow[1] != "*" {
		t.Errorf("the user %s isn't without a password: %q", u.Name, shadow)
	}
	if len(u.SSHKeys) == 0 {
		return
	}
	keys, err := os.ReadFile(filepath.Join(root, passwd[5], ".ssh/authorized_keys.d/ignition"))
	if err != nil || string(keys) != strings.Join(u.SSHKeys, "\n")+"\n" {
		t.Errorf("the keys of %s are %q (%v)", u.Name, keys, err)
	}
}

// treeLine is the fields of an entry in passwd(5) and its like.
func treeLine(t *testing.T, root, file, name string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), ":"); fields[0] == name {
			return fields
		}
	}
	return nil
}

// checkTreeUnits has systemd put the presets into effect, as it does at a
// first boot, and asks what became of the units.
func checkTreeUnits(t *testing.T, root string, units []plan.Unit) {
	t.Helper()
	for _, u := range units {
		if u.State != plan.UnitMasked {
			if out, err := exec.Command(program(t, "systemctl"), "--root", root, "preset", u.Name).CombinedOutput(); err != nil {
				t.Errorf("systemctl preset %s: %v\n%s", u.Name, err, out)
			}
		}
		// It exits with 1 for all but enabled.
		out, _ := exec.Command(program(t, "systemctl"), "--root", root, "is-enabled", u.Name).CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != string(u.State) {
			t.Errorf("%s is %s, wanted %s", u.Name, got, u.State)
		}
	}
}

// checkTreeManifest has sha256sum look at what the manifest lists.
func checkTreeManifest(t *testing.T, root string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, render.ManifestPath))
	if err != nil {
		t.Fatal(err)
	}
	var sums strings.Builder
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 6)
		fmt.Fprintf(&sums, "%s  %s\n", fields[0], filepath.Join(root, fields[5]))
	}
	cmd := exec.Command(program(t, "sha256sum"), "--check", "--strict", "--quiet")
	cmd.Stdin = strings.NewReader(sums.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the manifest: %v\n%s", err, out)
	}
}

func onDataDisk(p *plan.Plan, path string) bool {
	return slices.ContainsFunc(p.Host.Disks, func(d plan.DataDisk) bool { return strings.HasPrefix(path, d.Mount+"/") })
}

// TestIgnitionKeyfiles has NetworkManager's own parser read the keyfiles.
func TestIgnitionKeyfiles(t *testing.T) {
	nmcli := program(t, "nmcli")
	config, err := render.Ignition(testplan.New(), render.Options{Variant: render.FCOS})
	if err != nil {
		t.Fatal(err)
	}
	root := ignitionTree(t, testplan.New(), render.Options{})
	path := filepath.Join(t.TempDir(), "config.ign")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	applyIgnition(t, root, path)
	folder := filepath.Join(root, "etc/NetworkManager/system-connections")
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 5 {
		t.Fatalf("%d keyfiles (%v), wanted 5", len(entries), err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(nmcli, "--offline", "connection", "modify", "connection.autoconnect", "yes")
		cmd.Stdin = strings.NewReader(string(text))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", e.Name(), err, out)
		}
		// What it doesn't know, it leaves out.
		for line := range strings.Lines(string(text)) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			if ok && !strings.Contains(string(out), value) && key != "slave-type" {
				t.Errorf("%s: NetworkManager doesn't keep %s=%s:\n%s", e.Name(), key, value, out)
			}
		}
	}
}

// TestIgnitionNetworkd has systemd-networkd read its files, with one more that
// shows that it would have complained.
func TestIgnitionNetworkd(t *testing.T) {
	config, err := render.Ignition(testplan.New(), render.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root := ignitionTree(t, testplan.New(), render.Options{})
	path := filepath.Join(t.TempDir(), "config.ign")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	applyIgnition(t, root, path)
	write(t, filepath.Join(root, "etc/systemd/network/99-wrong.network"), "[Match]\nName=nothing\n[Network]\nNoSuchKey=1\n")
	log := newSpace(t).sh(t, `
		mkdir -p /etc/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
		chown -R systemd-network: /run/systemd/netif
		cp -p '`+root+`'/etc/systemd/network/* /etc/systemd/network/
		export SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console
		timeout 60 /lib/systemd/systemd-networkd >/run/log 2>&1 &
		for i in $(seq 300); do
			if grep -q "Enumeration completed" /run/log; then break; fi
			sleep 0.1
		done
		kill $!; wait
		cat /run/log`)
	for _, want := range []string{`bond0: loaded "bond"`, `vlan10: loaded "vlan"`, "99-wrong.network:4: Unknown key 'NoSuchKey'"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "10-kiln-") {
			t.Errorf("systemd-networkd complains: %s", line)
		}
	}
}
