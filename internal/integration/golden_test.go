//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/lab"
)

// These tests take one site, as a user writes it, through the built kiln: it
// bakes the images of both profiles, once, and what is booted are those images
// with seeds that kiln made. The lab's servers are the site's.
//
// The images stay in the tests' cache, under kiln's own keys: they are made anew
// when kiln, the profiles or the distribution's archive have changed what goes
// into them.

const goldenHosts = `
# Containers: their interfaces have no MAC of their own, which netplan asks for.
- name: tree01
  profile: alissandra
  interfaces: {lan: {addresses: [10.66.0.21/24], gateways: [10.66.0.1], dns: [10.66.0.53], mtu: 1400}}
- name: tree02
  profile: alissandra
  interfaces: {lan: {addresses: [10.66.0.22/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
- name: tree03
  profile: plain
  interfaces: {lan: {addresses: [10.66.0.23/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
# Machines.
- name: build01
  profile: alissandra
  interfaces: {lan: {mac: "52:54:00:66:00:11", addresses: [10.66.0.11/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
  disks: [{mount: /build, disk: {serial: S3X1}, filesystem: ext4, options: noatime}]
- name: build02
  profile: alissandra
  interfaces: {lan: {mac: "52:54:00:66:00:12", addresses: [10.66.0.12/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
- name: build03
  profile: plain
  interfaces: {lan: {mac: "52:54:00:66:00:13", addresses: [10.66.0.13/24], gateways: [10.66.0.1], dns: [10.66.0.53]}}
  disks: [{mount: /build, disk: {min_size: 3GiB, max_size: 4GiB}, filesystem: xfs}]
`

// goldenSite is a site.yaml; its blanks are the repository with Nomad and
// Consul, and the fingerprint of that one's key.
const goldenSite = `
domain: example.org
datacenter: ci
region: alice
servers: {join: [server1.example.org], nomad: 1.10.5, consul: 1.22.2}
dns: {consul: ["10.66.0.2#8600"], upstream: [10.66.0.53]}
time_servers: [10.66.0.53]
tls: {directory: /etc/grid-security, ca: ca.pem}
admins:
  - {name: alice, sudo: true, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvQqGZ8p1Hfb1mQ8Tq0lJ0oTqf2u3yq9Xr8o1tq0d5a alice@example.org"]}
apt:
  sources:
    hashicorp: {uris: ["file://%s"], fingerprint: "%s"}
secrets:
  consul_encrypt: env://KILN_TEST_GOSSIP
  consul_agent_token: env://KILN_TEST_AGENT
  nomad_consul_token: env://KILN_TEST_NOMAD
vars: {nomad_acl: true, raw_exec: true, docker: false}
`

// goldenUnits are those that a host of the site has to run, once it has its
// certificate.
var goldenUnits = []string{"dnsmasq.service", "consul.service", "nomad.service", "ssh.service", "kiln-host.service", "kiln-grid.path"}

// golden is the site's images.
type golden struct {
	kiln  string // the program
	site  string
	cache string
	image map[string]*images.Manifest // by profile
}

// goldenImages are what kiln build has made in this run of the tests, by
// profile: even finding that all is there takes it a while.
var goldenImages struct {
	sync.Mutex
	image map[string]*images.Manifest
}

// newGolden builds kiln, writes the site, and has kiln build its images where
// they aren't there yet.
func newGolden(t *testing.T) *golden {
	t.Helper()
	needRoot(t)
	goldenImages.Lock()
	defer goldenImages.Unlock()
	dir := t.TempDir()
	g := &golden{kiln: filepath.Join(dir, "kiln"), site: filepath.Join(dir, "site"), cache: filepath.Join(testCache(t), "golden"), image: map[string]*images.Manifest{}}
	build := exec.Command("go", "build", "-o", g.kiln, "./cmd/kiln")
	build.Dir = repository(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	repo := hashicorpRepository(t)
	place(t, filepath.Join(g.site, "site.yaml"), fmt.Sprintf(goldenSite, repo, strings.TrimSpace(read(t, repo, "fingerprint"))))
	place(t, filepath.Join(g.site, "hosts.yaml"), goldenHosts)
	place(t, filepath.Join(g.site, "keys/hashicorp.asc"), read(t, repo, "key.asc"))
	if goldenImages.image != nil {
		g.image = goldenImages.image
		return g
	}
	began := time.Now()
	g.lock(t)
	out := g.run(t, "build", "plain", "alissandra", "--format", "tar")
	store := &images.Store{Dir: filepath.Join(g.cache, "images")}
	for line := range strings.Lines(out) {
		id, _, _ := strings.Cut(line, " ")
		m, err := store.Find(id)
		if err != nil {
			t.Fatal(err)
		}
		g.image[m.Profile] = m
	}
	if len(g.image) != 2 {
		t.Fatalf("kiln build made %d images:\n%s", len(g.image), out)
	}
	t.Logf("kiln build: %s", time.Since(began).Round(time.Second))
	g.forget(t)
	goldenImages.image = g.image
	return g
}

// lock locks the site's packages: those that it had the last time, so that the
// archive's news don't have all made anew.
func (g *golden) lock(t *testing.T) {
	t.Helper()
	kept, at := filepath.Join(g.cache, images.LockFile), filepath.Join(g.site, images.LockFile)
	if data, err := os.ReadFile(kept); err == nil {
		place(t, at, string(data))
	}
	g.run(t, "lock")
	place(t, kept, read(t, g.site, images.LockFile))
}

// testCache is the folder of what the tests keep.
func testCache(t *testing.T) string {
	t.Helper()
	dir, err := images.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "test")
}

// hashicorpRepository is the folder of the apt repository with Nomad and Consul
// that make packages makes.
func hashicorpRepository(t *testing.T) string {
	t.Helper()
	cache, err := images.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(cache, "hashicorp/apt")
	cmd := exec.Command("sh", filepath.Join(repository(t), "scripts/hashicorp/packages.sh"), "--output", repo)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the packages of Nomad and Consul: %v: run make setup\n%s", err, out)
	}
	return repo
}

// run runs kiln in the site. The cluster's secrets are in its environment.
func (g *golden) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), g.kiln, args...)
	cmd.Dir = g.site
	cmd.Env = append(os.Environ(), "KILN_CACHE="+g.cache, "KILN_TEST_GOSSIP="+gossipKey, "KILN_TEST_AGENT="+agentToken, "KILN_TEST_NOMAD="+nomadToken)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kiln %s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// forget removes what is in the cache for no image of the site: each new release
// file of the archive would leave a tree behind.
func (g *golden) forget(t *testing.T) {
	t.Helper()
	var keep []string
	for _, m := range g.image {
		keep = append(keep, m.ID)
		keep = append(keep, stepsOf(m)...)
	}
	if data, err := os.ReadFile(filepath.Join(g.cache, keptNames)); err == nil {
		keep = append(keep, strings.Fields(string(data))...)
	}
	for _, dir := range []string{"images", "trees", "build/steps"} {
		entries, err := os.ReadDir(filepath.Join(g.cache, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(keep, e.Name()) {
				if err := os.RemoveAll(filepath.Join(g.cache, dir, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// keptNames lists what images of other sites have in the cache, which forget keeps.
const keptNames = "kept"

// stepsOf are the folders of the steps that made an image.
func stepsOf(m *images.Manifest) []string {
	var names []string
	for _, s := range m.Steps {
		if s.Key != "" {
			names = append(names, s.Name+"-"+s.Key[:32])
		}
	}
	return names
}

// tree is a profile's image as a tree of files: the tar that kiln made of it,
// unpacked, and kept as long as the image.
func (g *golden) tree(t *testing.T, profile string) string {
	t.Helper()
	m := g.image[profile]
	dir := filepath.Join(g.cache, "trees", m.ID)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	fresh := dir + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		t.Fatal(err)
	}
	unpack := exec.CommandContext(t.Context(), "tar", "--extract", "--file", filepath.Join(g.cache, "images", m.ID, "root.tar.zst"), "--zstd",
		"--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*", "--acls", "--directory", fresh)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// disk is the raw disk of a profile's image.
func (g *golden) disk(profile string) string {
	return filepath.Join(g.cache, "images", g.image[profile].ID, "image.raw")
}

// seed is a host's, with its secrets.
func (g *golden) seed(t *testing.T, host string) []render.NamedFile {
	t.Helper()
	dir := filepath.Join(t.TempDir(), host)
	g.run(t, "render", host, "--format", "seed", "--with-secrets", "-o", dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []render.NamedFile
	for _, e := range entries {
		files = append(files, render.NamedFile{Name: e.Name(), Data: []byte(read(t, dir, e.Name()))})
	}
	return files
}

// goldenCluster is the site's servers.
func goldenCluster(t *testing.T) *cluster {
	t.Helper()
	return labCluster(t, lab.Config{
		Datacenter: "ci", Region: "alice", Secrets: clusterTokens, NomadACL: true, TLS: newAuthority(t), Names: []string{"server1.example.org"},
		Records: map[string]netip.Addr{"www.example.com": netip.MustParseAddr("10.66.0.80")},
	})
}

// guest is a host of the site that has booted.
type guest struct {
	*cluster
	name    string // without the domain
	address string
	time    time.Duration // that it has for whatever it does
	exec    func(ctx context.Context, script string) (output string, status int, err error)
}

// try runs a shell script on the host.
func (g *guest) try(t *testing.T, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), g.time)
	defer cancel()
	out, status, err := g.exec(ctx, script)
	if err != nil {
		t.Fatalf("%s: %s: %v", g.name, script, err)
	}
	return out, status
}

// sh runs a shell script on the host that has to succeed.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	out, status := g.try(t, script)
	if status != 0 {
		t.Fatalf("%s: %s: exit status %d\n%s", g.name, script, status, out)
	}
	return out
}

// until waits for something, longer than other tests do: machines run in
// software.
func (g *guest) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), g.time)
	defer cancel()
	if err := lab.Wait(ctx, g.name+": "+what, func() (bool, error) { return ok(), nil }); err != nil {
		t.Fatalf("%v\n%s", err, g.journal(t))
	}
}

// journal is the end of the host's.
func (g *guest) journal(t *testing.T) string {
	t.Helper()
	out, _ := g.try(t, lastWords)
	return out
}

// nothingFailed holds the host's units against what they should be.
func (g *guest) nothingFailed(t *testing.T, active ...string) {
	t.Helper()
	if failed := strings.TrimSpace(g.sh(t, "systemctl --failed --no-legend --plain")); failed != "" {
		t.Errorf("%s: failed units:\n%s\n%s", g.name, failed, g.journal(t))
	}
	for _, unit := range active {
		if out, status := g.try(t, "systemctl is-active "+unit); status != 0 {
			t.Errorf("%s: %s is %s", g.name, unit, out)
		}
	}
}

// is wants a command to print something.
func (g *guest) is(t *testing.T, command, want string) {
	t.Helper()
	if got, status := g.try(t, command); strings.TrimSpace(got) != want || status != 0 {
		t.Errorf("%s: %s: exit status %d, %q, not %q", g.name, command, status, strings.TrimSpace(got), want)
	}
}

// checkHost holds the host against what its seed says.
func (g *guest) checkHost(t *testing.T) {
	t.Helper()
	g.is(t, "hostname --fqdn", g.name+".example.org")
	g.is(t, "ip -4 -oneline address show dev lan scope global | awk '{print $4}'", g.address+"/24")
	g.is(t, "ip route show default | awk '{print $3, $5}'", "10.66.0.1 lan")
	g.is(t, "id -u mesosci mesosdaq", "9001\n9002")
	g.is(t, "id -un alice", "alice")
	g.is(t, "sudo -l -U alice | grep -c 'NOPASSWD: ALL'", "1")
	g.is(t, "grep -c alice@example.org ~alice/.ssh/authorized_keys", "1")
	g.is(t, "stat -c '%U:%G %a' /etc/nomad.d/nomad.hcl /etc/consul.d/consul.hcl", "root:root 600\nroot:consul 640")
	g.is(t, "cat /etc/kiln/host-ready", strings.Fields(g.sh(t, "sha256sum /etc/kiln/host.manifest"))[0])
	g.is(t, "ls /etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key")
	g.is(t, "grep -rl kiln-secret: /etc || :", "")
}

// checkNames resolves names on the host.
func (g *guest) checkNames(t *testing.T) {
	t.Helper()
	g.until(t, "names are asked of dnsmasq", func() bool {
		_, status := g.try(t, "cmp -s /etc/kiln/resolv.conf /etc/resolv.conf")
		return status == 0
	})
	for _, c := range []struct{ command, address string }{
		{"getent hosts vault.service.consul", "10.66.0.1"},
		{"getent hosts server1.example.org", "10.66.0.2"},
		{"getent hosts www.example.com", "10.66.0.80"},
		{"getent --service=dns ahostsv4 vault.service.consul", "10.66.0.1"},
	} {
		if out, status := g.try(t, c.command); status != 0 || !strings.Contains(out, c.address) {
			t.Errorf("%s: %s: exit status %d, %s", g.name, c.command, status, out)
		}
	}
	// It is dnsmasq that answers, at the address that programs ask.
	g.is(t, "ss -Hlun 'sport = :53 and src 127.0.0.1' | wc -l", "1")
	g.is(t, "ss -Hlunp 'sport = :53 and src 127.0.0.1' | grep -c dnsmasq", "1")
}

// certify brings the host its Grid certificate, as renewals do, for which its
// agents wait.
func (g *guest) certify(t *testing.T) {
	t.Helper()
	for _, agent := range []string{"consul", "nomad"} {
		if _, status := g.try(t, "systemctl is-active --quiet "+agent); status == 0 {
			t.Errorf("%s: %s runs without a certificate", g.name, agent)
		}
	}
	g.bring(t, issued(t, g.Config.TLS, g.name+".example.org"))
}

// bring has the host get a certificate.
func (g *guest) bring(t *testing.T, own *lab.Certificate) {
	t.Helper()
	file := func(name, mode string, content []byte) string {
		return fmt.Sprintf("cat >%s.new <<'END'\n%sEND\nchmod %s %[1]s.new\nmv %[1]s.new %[1]s\n", name, content, mode)
	}
	g.sh(t, "set -e\numask 077\nmkdir -m 0755 -p /etc/grid-security\ncd /etc/grid-security\n"+
		file("ca.pem", "0444", g.Config.TLS.PEM)+file("hostcert.pem", "0444", own.Cert)+file("hostkey.pem", "0400", own.Key))
}

// joins waits until the cluster's servers have the host, at its address.
func (g *guest) joins(t *testing.T) *lab.Node {
	t.Helper()
	var node *lab.Node
	name := g.name + ".example.org"
	g.until(t, "Consul and Nomad have the host at its address", func() bool {
		nodes, err := g.Nodes(t.Context())
		if err != nil {
			return false
		}
		node = nodes[name]
		if node == nil || node.Status != "ready" || node.HTTPAddr != g.address+":4646" || node.Attributes["driver.raw_exec"] != "1" {
			return false
		}
		services, err := g.Services(t.Context(), "nomad-client")
		return err == nil && slices.Contains(services, lab.Service{Node: name, Address: g.address, ServiceAddress: g.address})
	})
	return node
}

// checkReaders holds who can read the Grid key against who should.
func (g *guest) checkReaders(t *testing.T) {
	t.Helper()
	for user, may := range map[string]bool{"mesosci": true, "mesosdaq": true, "consul": true, "alice": false, "dnsmasq": false, "nobody": false} {
		out, status := g.try(t, "setpriv --reuid "+user+" --regid $(id -g "+user+") --init-groups cat /etc/grid-security/hostkey.pem")
		if read := status == 0 && strings.Contains(out, "PRIVATE KEY"); read != may {
			t.Errorf("%s: %s can read the key: %t", g.name, user, read)
		}
	}
}

// identity is what makes a host another than its clone.
type identity struct{ machine, ssh, nomad, consul string }

func (g *guest) identity(t *testing.T, node *lab.Node) identity {
	t.Helper()
	i := identity{
		machine: strings.TrimSpace(g.sh(t, "cat /etc/machine-id")),
		ssh:     strings.TrimSpace(g.sh(t, "cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub")),
		nomad:   node.ID,
		consul:  strings.TrimSpace(g.sh(t, "cat /build/consul/node-id")),
	}
	if len(i.machine) != 32 || len(i.ssh) < 32 || len(i.nomad) != 36 || len(i.consul) != 36 {
		t.Errorf("%s: %+v", g.name, i)
	}
	return i
}

// differ wants two hosts to be two.
func differ(t *testing.T, a, b identity) {
	t.Helper()
	if a.machine == b.machine || a.ssh == b.ssh || a.nomad == b.nomad || a.consul == b.consul {
		t.Errorf("two hosts are alike: %+v, %+v", a, b)
	}
}
