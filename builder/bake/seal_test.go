package bake

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// grow makes a tree of files with the given contents.
func grow(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestSealTree(t *testing.T) {
	stays := []string{"/root/.bashrc", "/root/.profile", "/root/.vimrc", "/tmp/of-the-plan/x", "/etc/resolv.conf", "/etc/machine-id", "/var/lib/dpkg/status", "/etc/hostname"}
	goes := []string{
		"/etc/.resolv.conf.systemd-resolved.bak", "/etc/.pwd.lock", "/usr/sbin/policy-rc.d", "/var/lib/apt/lists/x_Packages", "/var/cache/apt/archives/lock",
		"/var/log/apt/term.log", "/tmp/x", "/tmp/.x", "/run/.x/y", "/dev/null", "/tmp/of-the-plan/y", "/var/lib/dbus/machine-id", "/root/.bash_history",
		"/opt/vault/tls/tls.key",
	}
	files := map[string]string{}
	for _, f := range append(append([]string{}, stays...), goes...) {
		files[f] = "x"
	}
	files["/etc/resolv.conf"], files["/etc/machine-id"] = "", ""
	root := grow(t, files)
	if err := sealTree(root, map[string]bool{"/tmp/of-the-plan/x": true, "/root/.vimrc": true, "/etc/hostname": true}); err != nil {
		t.Fatal(err)
	}
	for _, f := range stays {
		if _, err := os.Lstat(root + f); err != nil {
			t.Error(err)
		}
	}
	for _, f := range goes {
		if _, err := os.Lstat(root + f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
	if info, err := os.Stat(root + "/etc/machine-id"); err != nil || info.Mode().Perm() != machineIDMode {
		t.Errorf("machine-id: %v, %v", info, err)
	}
}

func TestSealTreeRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"/etc/machine-id": "0123456789abcdef0123456789abcdef\n", "/etc/ssh/ssh_host_ed25519_key": "key", "/etc/hostname": "builder\n",
		"/var/lib/systemd/random-seed": "seed", "/var/lib/cloud/instance/x": "x", "/etc/shadow-": "root",
	} {
		if err := sealTree(grow(t, map[string]string{name: text}), nil); err == nil || !strings.Contains(err.Error(), "sealing has left") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
