//go:build integration

package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/plan"
)

// hostPackages are what a host's tree is made of for these tests: what the
// profiles install from the distribution, and what its cloud images have.
const hostPackages = "acl,ca-certificates,dbus,dnsmasq,e2fsprogs,iproute2,libnss-resolve,openssl,procps," +
	"systemd,systemd-resolved,systemd-sysv,systemd-timesyncd,udev,xfsprogs"

// hostTree is a Debian tree with systemd, made once and kept in the cache. It
// must not be written to.
func hostTree(t *testing.T) string { return debianTree(t, "host", hostPackages) }

// debianTree is a Debian tree with those packages, made once and kept in the
// cache. It must not be written to.
func debianTree(t *testing.T, name, packages string) string {
	t.Helper()
	needRoot(t)
	program(t, "mmdebstrap")
	const release = "bookworm"
	key := sha256.Sum256([]byte(release + " " + packages + " 1"))
	tree := filepath.Join(testCache(t), fmt.Sprintf("%s-%x", name, key[:6]))
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	if err := os.MkdirAll(filepath.Dir(tree), 0o755); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.MkdirTemp(filepath.Dir(tree), "new")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(fresh)
	t.Logf("making a Debian tree in %s: once, some minutes", tree)
	// This machine's own sources, where they are this release's.
	argv := []string{"--variant=apt", "--format=directory", "--include=" + packages, release, filepath.Join(fresh, "tree")}
	sources, _ := filepath.Glob("/etc/apt/sources.list.d/debian.sources")
	if b, err := os.ReadFile("/etc/os-release"); err == nil && bytes.Contains(b, []byte("VERSION_CODENAME="+release+"\n")) {
		argv = append(argv, sources...)
	}
	if out, err := exec.Command("mmdebstrap", argv...).CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, tail(out, 4000))
	}
	if err := os.Rename(filepath.Join(fresh, "tree"), tree); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return tree
}

// packaged is the folder of what HashiCorp's own package of a program brings:
// its unit, its stock configuration.
func packaged(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(repository(t), "scripts/hashicorp", name)
	find := func(argv ...string) string {
		cmd := exec.Command("go", argv...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	module := find("list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/hashicorp/"+name)
	if module == "" {
		// The program was found in PATH, so that its source isn't here yet.
		version := find("list", "-mod=readonly", "-m", "-f", "{{.Version}}", "github.com/hashicorp/"+name)
		var download struct{ Dir string }
		_ = json.Unmarshal([]byte(find("mod", "download", "-json", "github.com/hashicorp/"+name+"@"+version)), &download)
		module = download.Dir
	}
	folder := filepath.Join(module, ".release/linux/package")
	if _, err := os.Stat(folder); err != nil {
		t.Fatalf("what %s's package brings: %v: run make setup", name, err)
	}
	return folder
}

// bake lays a plan's Image half, and what the packages would bring, into dir,
// together with a script for the tree's own programs to run in it.
func bake(t *testing.T, p *plan.Plan, dir string) (setup string) {
	t.Helper()
	layOut(t, dir, p.Image.Files)
	script := "set -e\n"
	for _, name := range []string{"consul", "nomad", "vault"} {
		if !slices.ContainsFunc(p.Image.Packages, func(p plan.Package) bool { return p.Name == name }) {
			continue
		}
		from := packaged(t, name)
		brings := []string{"usr/lib/systemd/system/" + name + ".service", "etc/" + name + ".d/" + name + ".hcl"}
		if name == "vault" {
			brings = append(brings, "etc/vault.d/vault.env")
		}
		for _, path := range brings {
			b, err := os.ReadFile(filepath.Join(from, path))
			if err != nil {
				t.Fatal(err)
			}
			place(t, filepath.Join(dir, path), string(b))
		}
		place(t, filepath.Join(dir, "usr/bin", name), "")
		script += fmt.Sprintf("useradd --system --user-group --shell /bin/false %s\nchown -R %[1]s:%[1]s /etc/%[1]s.d\n", name)
	}
	for _, g := range p.Image.Groups {
		script += fmt.Sprintf("groupadd --system --gid %d %s\n", *g.GID, g.Name)
	}
	for _, u := range p.Image.Users {
		script += fmt.Sprintf("useradd --system --uid %d --gid %s --home-dir %s --shell %s %s\n", *u.UID, u.Group, u.Home, u.Shell, u.Name)
	}
	for _, u := range p.Image.Units {
		script += "systemctl --quiet " + strings.TrimSuffix(string(u.State), "d") + " " + u.Name + "\n"
	}
	return script + ": >/etc/machine-id\n"
}

// place writes a file, and makes the folders above it.
func place(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bootTree boots a tree in a space, with its own systemd, and gives the process of
// that. The tree stays as it is: what is written lies in dir, and so does the folder
// layer, which is laid over the tree before. Setup is a script that then runs in dir,
// with the tree at root.
func bootTree(t *testing.T, around *space, dir, tree, name, setup string, options ...string) (leader int) {
	t.Helper()
	program(t, "systemd-nspawn")
	cmd := around.daemon(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", fmt.Sprintf(`set -e
cd %[1]s
mkdir up work root
mount -t overlay -o lowerdir=%[2]s,upperdir=up,workdir=work overlay root
cp -a layer/. root/
# Fully unified, as the tree's systemd wants it.
[ "$(stat -f -c %%T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
%[3]s
exec systemd-nspawn --quiet --register=no --keep-unit --boot --machine=%[4]s --directory=root --console=pipe %[5]s </dev/null`,
		dir, tree, setup, name, strings.Join(options, " ")))
	eventually(t, name+" has an init", func() bool {
		leader = descendant(cmd.PID(), "systemd")
		return leader != 0
	})
	return leader
}

// container is a host of a plan: its image, booted with its own systemd.
type container struct {
	*space
	plan *plan.Plan
}

// boot starts a host in a space: the space's interface of that name becomes the
// host's. binds are files of this machine that it sees, FROM:TO.
func boot(t *testing.T, around *space, p *plan.Plan, nic string, binds ...string) *container {
	t.Helper()
	dir := t.TempDir()
	setup := bake(t, p, filepath.Join(dir, "layer"))
	place(t, filepath.Join(dir, "layer/setup.sh"), setup)
	options := []string{"--private-network", "--capability=CAP_IPC_LOCK"}
	for _, b := range binds {
		options = append(options, "--bind-ro="+b)
	}
	leader := bootTree(t, around, dir, hostTree(t), p.Host.Hostname, "chroot root sh /setup.sh\nrm root/setup.sh", options...)
	// Not nspawn's own option: that asks udev, which may not be there.
	move := exec.Command("nsenter", "--target", strconv.Itoa(around.PID()), "--net", "ip", "link", "set", nic, "netns", strconv.Itoa(leader))
	if out, err := move.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", move, err, out)
	}
	c := &container{&space{lab.SpaceOf(leader)}, p}
	eventually(t, "the host has booted", func() bool {
		out, _ := c.try(t, "systemctl is-system-running")
		out = strings.TrimSpace(out)
		return out == "running" || out == "degraded"
	})
	t.Cleanup(func() {
		if t.Failed() {
			cmd := exec.Command("nsenter", "--target", strconv.Itoa(leader), "--all", "--", "sh", "-c",
				"systemctl --no-pager --failed; journalctl --no-pager --lines 250 --output short-monotonic; ls -la /etc/kiln /build")
			out, _ := cmd.CombinedOutput()
			t.Logf("the host's journal:\n%s", tail(out, 20000))
		}
	})
	return c
}

// descendant is the process of that name below pid, or 0.
func descendant(pid int, name string) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, field := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); string(bytes.TrimSpace(comm)) == name {
			return child
		}
		if found := descendant(child, name); found != 0 {
			return found
		}
	}
	return 0
}

// extract gives the host its Host half's files, as rendered for a golden image,
// and nothing else.
func (c *container) extract(t *testing.T, p *plan.Plan) {
	t.Helper()
	tree, err := render.Files(p, render.Options{Target: render.Golden})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tree.WriteTar(&archive); err != nil {
		t.Fatal(err)
	}
	cmd := c.Command(t.Context(), "tar", "--extract", "--preserve-permissions", "--unlink-first", "--directory=/")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("delivering: %v\n%s", err, out)
	}
}

// deliver gives the host its Host half, and does what cloud-init does at the
// end.
func (c *container) deliver(t *testing.T, p *plan.Plan) (status int) {
	t.Helper()
	c.extract(t, p)
	c.sh(t, "systemctl daemon-reload && rm -f /etc/kiln/host-ready")
	_, status = c.try(t, "systemctl restart kiln-host.service")
	var units []string
	for _, u := range append(p.Image.Units[:len(p.Image.Units):len(p.Image.Units)], p.Host.Units...) {
		if u.State == plan.UnitEnabled && u.Name != "kiln-host.service" {
			units = append(units, u.Name)
		}
	}
	all := strings.Join(units, " ")
	c.sh(t, "systemctl --quiet enable "+all+" && systemctl restart --no-block "+all)
	return status
}

// put places a file on the host as a renewal does: written beside, then renamed.
func (c *container) put(t *testing.T, path string, content []byte, mode string) {
	t.Helper()
	cmd := c.Command(t.Context(), "sh", "-c", `umask 077 && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"`, "sh", path, mode)
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

// journal is what a unit said, and what systemd said of it.
func (c *container) journal(t *testing.T, unit string) string {
	t.Helper()
	// What a unit said last may still be on its way when the unit is over.
	return c.sh(t, "journalctl --sync && journalctl --no-pager --output cat --unit "+unit)
}
