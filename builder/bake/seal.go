package bake

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// leftovers are what mmdebstrap and packages' scripts leave in a tree, besides
// what render's sealing knows of every machine, as patterns below the root.
var leftovers = []string{
	"usr/sbin/policy-rc.d", "usr/sbin/policy-rc.d.kiln", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
	// systemd-resolved's copy of what mmdebstrap has copied: the building
	// machine's resolvers.
	"etc/.resolv.conf.systemd-resolved.bak",
	"etc/.pwd.lock", "etc/.updated", "var/.updated", "etc/*.dpkg-*", "etc/*.ucf-*",
	"var/log/apt/*", "var/log/alternatives.log", "var/log/bootstrap.log", "var/log/dpkg.log", "var/log/fontconfig.log", "var/log/unattended-upgrades/*",
	"var/cache/ldconfig/aux-cache", "var/cache/apt/*.bin", "var/cache/apt/archives/lock", "var/cache/apt/archives/partial/*",
	"var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock", "var/lib/apt/lists/*", "var/lib/apt/periodic/*", "var/lib/systemd/catalog/database.tmp",
	"var/lib/dbus/machine-id", "var/lib/ucf/*.[0-9]",
	"run/*", "dev/*", "tmp/*", "var/tmp/*", "initrd.img.old", "vmlinuz.old",
	// Vault's package makes a key for whoever has none.
	"opt/vault/tls/*",
	"root/.gnupg", "root/.wget-hsts", "root/.lesshst", "root/.bash_history", "root/.cache",
}

// alien is what no golden image may have, whatever made it.
var alien = []string{
	"etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "etc/hostname", "var/lib/cloud/*", "var/lib/dhcp/*",
	"etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
}

// machineIDMode is systemd's own.
const machineIDMode = 0o444

// sealTree takes away what a golden image mustn't have, after render's sealing,
// and sees that nothing is left that would make two hosts the same one. The
// files of keep, paths in the image, stay: the plan has put them there.
func sealTree(root string, keep map[string]bool) error {
	for _, pattern := range leftovers {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return fmt.Errorf("the pattern %s: %w", pattern, err)
		}
		for _, f := range found {
			if err := forget(root, f, keep); err != nil {
				return err
			}
		}
	}
	for _, pattern := range alien {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return fmt.Errorf("the pattern %s: %w", pattern, err)
		}
		for _, f := range found {
			if path := strings.TrimPrefix(f, root); !keep[path] && !aboveKept(path, keep) {
				return fmt.Errorf("sealing has left %s, which each host makes for itself", path)
			}
		}
	}
	// mmdebstrap's copy of the building machine's has whatever mode that had.
	resolver := filepath.Join(root, "etc/resolv.conf")
	if info, err := os.Lstat(resolver); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		if err := os.Chmod(resolver, 0o644); err != nil {
			return err
		}
	}
	return sealMachineID(root)
}

// sealMachineID sees that the machine-id is there and empty, so that each host
// gets one of its own at its first boot. It isn't "uninitialized": then systemd
// takes that boot for the first one of all, enables each unit that some package's
// preset wants, those that the plan has disabled among them, and may ask at the
// console for a time zone and root's password.
func sealMachineID(root string) error {
	id := filepath.Join(root, "etc/machine-id")
	switch info, err := os.Lstat(id); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() > 0:
		return errors.New("sealing has left a machine-id")
	}
	return os.Chmod(id, machineIDMode)
}

// forget removes what is at name, but for the files to keep.
func forget(root, name string, keep map[string]bool) error {
	path := strings.TrimPrefix(name, root)
	if keep[path] {
		return nil
	}
	if !aboveKept(path, keep) {
		return os.RemoveAll(name)
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := forget(root, filepath.Join(name, e.Name()), keep); err != nil {
			return err
		}
	}
	return nil
}

// aboveKept tells whether one of the files to keep is below path.
func aboveKept(path string, keep map[string]bool) bool {
	for k := range keep {
		if strings.HasPrefix(k, path+"/") {
			return true
		}
	}
	return false
}
