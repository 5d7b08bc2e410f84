package check

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/internal/testdisk"
	"github.com/alisw/kiln/plan"
)

func TestMain(m *testing.M) {
	// Where they are, for whoever isn't root.
	_ = os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, name := range []string{"mke2fs", "e2fsck", "debugfs"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Fprintf(os.Stderr, "%v: make setup installs it\n", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// image is a small image while it is made.
type image struct {
	t    *testing.T
	tree string
}

// example is a private key, as somebody's documentation has one: noise, but for
// the words around it.
func example(seed byte) string {
	raw := make([]byte, 96)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(raw) // never fails
	text := base64.StdEncoding.EncodeToString(raw)
	return "-----BEGIN " + "PRIVATE KEY-----\n" + text[:64] + "\n" + text[64:] + "\n-----END PRIVATE KEY-----\n"
}

func gzipped(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write([]byte(text))
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// goodUnit has what a unit can have, and would start.
const goodUnit = `[Unit]
ConditionPathExists=!/nowhere

[Service]
User=good
ExecStartPre=-/usr/bin/nowhere
ExecStart=@/bin/good good --flag \
	value
Environment=NO=thing
`

// newImage has each kind of thing that checks look at, and nothing that they mind.
func newImage(t *testing.T) *image {
	t.Helper()
	i := &image{t, filepath.Join(t.TempDir(), "tree")}
	for _, files := range []map[string]string{testdisk.Boot, goodFiles(t)} {
		for name, content := range files {
			i.file(name, content, 0o644)
		}
	}
	i.do(os.MkdirAll(filepath.Join(i.tree, "var/lib/dhcp"), 0o755))
	i.do(os.MkdirAll(filepath.Join(i.tree, "var/lib/cloud/seed/nocloud"), 0o755))
	i.link("etc/systemd/system/multi-user.target.wants/good.service", "/lib/systemd/system/good.service")
	i.link("etc/systemd/system/multi-user.target.wants/later.service", "/lib/systemd/system/later.service")
	i.link("etc/systemd/system/timers.target.wants/good.timer", "/usr/lib/systemd/system/good.timer")
	i.link("etc/systemd/system/timers.target.wants/masked.timer", "/usr/lib/systemd/system/masked.timer")
	i.link("etc/systemd/system/getty.target.wants/tty@tty1.service", "/usr/lib/systemd/system/tty@.service")
	i.link("etc/systemd/system/masked.timer", "/dev/null")
	i.link("bin", "usr/bin")
	i.link("lib", "usr/lib")
	i.link("var/lib/dbus/machine-id", "/etc/machine-id")
	for name, mode := range map[string]fs.FileMode{
		"usr/bin/good": 0o755, "usr/bin/su": 0o755 | fs.ModeSetuid, "usr/bin/overridden": 0o755 | fs.ModeSetgid, "etc/shadow": 0o640, "etc/machine-id": 0o444,
	} {
		i.mode(name, mode)
	}
	i.do(os.MkdirAll(filepath.Join(i.tree, "tmp"), 0o755))
	i.mode("tmp", 0o777|fs.ModeSticky)
	return i
}

// goodFiles are the files of an image that no check minds.
func goodFiles(t *testing.T) map[string]string {
	documented, changes := example(1), gzipped(t, "no change, and "+example(3))
	return map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/bash\ngood:x:999:999::/:/usr/sbin/nologin\n",
		"etc/shadow":  "root:*:19000:0:99999:7:::\ngood:!:19000::::::\nlocked:!$6$salt$hash:19000::::::\n",
		"etc/gshadow": "root:*::\ngood:!::\nmail:::\n",
		"etc/hosts":   "127.0.0.1 localhost\n::1 localhost ip6-localhost\n", "etc/machine-id": "", "etc/resolv.conf": "", "etc/fstab": "",
		"etc/environment": "# http_proxy=http://proxy.example.org\nLANG=C.UTF-8\n", "etc/apt/apt.conf.d/10good": "// Acquire::http::Proxy \"http://proxy\";\nAcquire::http::Proxy \"DIRECT\";\n",
		"etc/good.conf":     "[good]\ntoken = {{ a placeholder }}\n",
		"etc/ssh/moduli":    "# none\n",
		"usr/share/good.py": "KEY = '''" + documented + "'''\n", "usr/share/__pycache__/good.cpython-311.pyc": "\xa7\x0d\x0d\x0a" + documented + "\x00",
		"usr/share/doc/good/key.pem": documented, "usr/share/doc/good/changelog.gz": changes,
		"usr/bin/good": "-----BEGIN " + "PRIVATE KEY-----\x00AKIA\x00ghp_\x00hvs.\x00SecretID\x00", "usr/bin/su": "su", "usr/bin/overridden": "program", "usr/lib/systemd/systemd": "systemd",
		"usr/lib/systemd/system/good.service": goodUnit, "usr/lib/systemd/system/good.timer": "[Timer]\nOnBootSec=1\n",
		"usr/lib/systemd/system/later.service": "[Unit]\nConditionPathExists=/nowhere\n[Service]\nExecStart=/usr/bin/nowhere\n",
		"usr/lib/systemd/system/tty@.service":  "[Service]\nExecStart=/usr/bin/good %I\n",
		"usr/lib/systemd/system/masked.timer":  "[Timer]\n",
		"var/lib/dpkg/status":                  fmt.Sprintf("Package: good\nConffiles:\n /etc/good.conf %x\nStatus: install ok installed\n", md5.Sum([]byte("[good]\ntoken = {{ a placeholder }}\n"))),
		"var/lib/dpkg/statoverride":            "root root 2755 /bin/overridden\n",
		"var/lib/dpkg/info/good.list":          "/.\n/bin\n/bin/su\n/usr/bin/good\n",
		"var/lib/dpkg/info/good.md5sums": fmt.Sprintf("%x  usr/share/doc/good/key.pem\n%x  usr/share/doc/good/changelog.gz\n%x  usr/share/good.py\n",
			md5.Sum([]byte(documented)), md5.Sum([]byte(changes)), md5.Sum([]byte("KEY = '''"+documented+"'''\n"))),
		"var/log/wtmp": "",
	}
}

func (i *image) do(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *image) file(name, content string, mode fs.FileMode) {
	i.t.Helper()
	to := filepath.Join(i.tree, name)
	i.do(os.MkdirAll(filepath.Dir(to), 0o755))
	i.do(os.WriteFile(to, []byte(content), mode))
	i.do(os.Chmod(to, mode))
}

func (i *image) add(name, more string) {
	i.t.Helper()
	b, err := os.ReadFile(filepath.Join(i.tree, name))
	i.do(err)
	i.do(os.WriteFile(filepath.Join(i.tree, name), append(b, more...), 0o644))
}

func (i *image) link(name, target string) {
	i.t.Helper()
	i.do(os.MkdirAll(filepath.Dir(filepath.Join(i.tree, name)), 0o755))
	i.do(os.Symlink(target, filepath.Join(i.tree, name)))
}

func (i *image) mode(name string, mode fs.FileMode) {
	i.t.Helper()
	i.do(os.Chmod(filepath.Join(i.tree, name), mode))
}

const espSize = 40 << 20

// rootAt is where the root begins on the disk, in bytes.
const rootAt = disk.Block + espSize

// disk makes the finished disk as builds do.
func (i *image) disk() string {
	i.t.Helper()
	dir := i.t.TempDir()
	root, out := filepath.Join(dir, "root"), filepath.Join(dir, "image.raw")
	ids, at := disk.NewIDs("test"), time.Unix(1_700_000_000, 0)
	i.do(disk.Root(i.t.Context(), i.tree, root, disk.RootOptions{IDs: ids, Label: "root", Time: at, Free: 16 << 20}))
	i.do(disk.Write(i.t.Context(), disk.Spec{Tree: i.tree, Root: root, Distribution: "debian", IDs: ids, Time: at, ESPSize: espSize, Runner: testdisk.Mkimage}, out))
	i.do(os.Remove(root))
	return out
}

// debugfs changes the finished disk's root, and reads what debugfs has to say:
// it exits as if nothing was wrong.
func debugfs(t *testing.T, file, command string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-w", "-R", command, fmt.Sprintf("%s?offset=%d", file, rootAt)).CombinedOutput()
	said := strings.Join(strings.Split(string(out), "\n")[1:], "\n")
	if err != nil || strings.Contains(said, "not found") || strings.Contains(said, ": No") {
		t.Fatalf("debugfs %s: %v\n%s", command, err, out)
	}
	return said
}

// findingsOf is what Disk finds.
func findingsOf(t *testing.T, file string, o Options) []Finding {
	t.Helper()
	findings, err := Disk(t.Context(), file, o)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// only has no findings but ones of that check and path.
func only(t *testing.T, findings []Finding, name, path string) {
	t.Helper()
	if len(findings) == 0 {
		t.Errorf("nothing was found, and %s should be, by %s", path, name)
	}
	for _, f := range findings {
		if f.Check != name || !strings.HasPrefix(f.Path, path) || f.What == "" || f.Remedy == "" {
			t.Errorf("found %s, and should have only %s by %s", f.String(), path, name)
		}
	}
}

func secret(name, value string) Canary { return Canary{name, plan.NewSecret(value)} }

func (i *image) remove(name string) {
	i.t.Helper()
	i.do(os.Remove(filepath.Join(i.tree, name)))
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }
