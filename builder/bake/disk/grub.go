package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

const (
	// Console is what the kernel is told in each image: a screen and a serial line
	// both show how it starts, and the serial one how its services do.
	Console = "console=tty0 console=ttyS0,115200"

	// GrubConfigPath is the configuration that every GRUB of the disk ends in.
	GrubConfigPath = "/boot/grub/grub.cfg"
	// updateGrub is what a kernel's package runs on a host.
	updateGrub = "usr/sbin/update-grub"
	// GrubDefaultsPath comes before render.ImageFiles' own file there, which adds
	// the plan's kernel arguments.
	GrubDefaultsPath = "/etc/default/grub.d/50-kiln-console.cfg"
)

// GrubDefaults makes update-grub write what GrubConfig does.
const GrubDefaults = `# Made by kiln: the menu and the kernel are on the screen and on the serial line.
GRUB_DISTRIBUTOR=$(. /etc/os-release && echo "${NAME%% *}")
GRUB_TIMEOUT=2
GRUB_CMDLINE_LINUX="` + Console + `"
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
`

// GrubConfig is GRUB's menu of a fresh image: its one kernel, with that version
// and those arguments, and the same for a person who repairs. On a host,
// update-grub replaces it, at each change of kernels.
func GrubConfig(kernelVersion, commandLine string, root UUID) string {
	entry := func(title, more string) string {
		return fmt.Sprintf(`menuentry '%s' {
	linux /boot/vmlinuz-%s root=UUID=%s ro %s
	initrd /boot/initrd.img-%[2]s
}
`, title, kernelVersion, root, strings.TrimSpace(commandLine+more))
	}
	return fmt.Sprintf(`# Made by kiln. On a running host, update-grub replaces it.
set default=0
set timeout=2
if serial --unit=0 --speed=115200; then
	terminal_input console serial
	terminal_output console serial
fi
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root %s
`, root) + entry("Linux "+kernelVersion, "") + entry("Linux "+kernelVersion+" (recovery)", " single")
}

// Fstab is an image's /etc/fstab. The ESP is there for who wants to see it: no
// host needs it once it runs.
func Fstab(ids IDs) string {
	return fmt.Sprintf(`# Made by kiln.
UUID=%s / ext4 errors=remount-ro 0 1
UUID=%s /boot/efi vfat noauto,umask=0077 0 0
`, ids.Root, ids.ESPUUID())
}

// Install writes into an image's tree what starts it from a disk: GRUB's menu for
// the tree's newest kernel, what update-grub makes the next one from, the
// modules for machines with a BIOS, and /etc/fstab, unless that one has entries
// already. The kernel's arguments come after Console.
func Install(tree string, arguments []string, ids IDs) error {
	err := within(tree, func(root *os.Root) error {
		if err := configure(root, arguments, ids); err != nil {
			return err
		}
		return install(root, ids)
	})
	if err != nil {
		return fmt.Errorf("preparing %s to boot: %w", tree, err)
	}
	return nil
}

// Configure gives the kernel of a tree that Install has prepared other arguments.
func Configure(tree string, arguments []string, ids IDs) error {
	if err := within(tree, func(root *os.Root) error { return configure(root, arguments, ids) }); err != nil {
		return fmt.Errorf("preparing %s to boot: %w", tree, err)
	}
	return nil
}

func within(dir string, do func(tree *os.Root) error) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	return do(tree)
}

// configure writes GRUB's menu.
func configure(tree *os.Root, arguments []string, ids IDs) error {
	version, err := kernel(tree)
	if err != nil {
		return err
	}
	commandLine := strings.Join(append([]string{Console}, arguments...), " ")
	if strings.ContainsAny(commandLine, "\n'\"\\$;{}") {
		return fmt.Errorf("the kernel arguments %q: GRUB would take some of it for its own language", commandLine)
	}
	return put(tree, GrubConfigPath[1:], []byte(GrubConfig(version, commandLine, ids.Root)))
}

func install(tree *os.Root, ids IDs) error {
	if _, err := tree.Stat(updateGrub); err != nil {
		return fmt.Errorf("the image has no /%s, so that its hosts would never boot a newer kernel: install the package grub2-common in it", updateGrub)
	}
	files := map[string][]byte{GrubDefaultsPath: []byte(GrubDefaults)}
	switch table, err := readFile(tree, "etc/fstab"); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case !hasEntry(string(table)):
		files["/etc/fstab"] = []byte(Fstab(ids))
	}
	if err := makeFolders(tree, "boot/efi/"); err != nil {
		return err
	}
	// Copies, as grub-install makes them: a later package's modules don't fit to
	// the core image that is on the disk.
	modules, err := fs.ReadDir(tree.FS(), biosModules)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the image has no /%s: install the package grub-pc-bin in it", biosModules)
	} else if err != nil {
		return err
	}
	for _, m := range modules {
		if ext := path.Ext(m.Name()); ext != ".mod" && ext != ".lst" {
			continue
		}
		if files["/boot/grub/i386-pc/"+m.Name()], err = readFile(tree, path.Join(biosModules, m.Name())); err != nil {
			return err
		}
	}
	for _, name := range sorted(files) {
		if err := put(tree, name[1:], files[name]); err != nil {
			return err
		}
	}
	return nil
}

// hasEntry tells whether a table like fstab has more than comments.
func hasEntry(table string) bool {
	for line := range strings.Lines(table) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return true
		}
	}
	return false
}

// makeFolders makes those above a file, whatever the umask.
func makeFolders(tree *os.Root, name string) error {
	for i, c := range name {
		if c != '/' {
			continue
		}
		err := tree.Mkdir(name[:i], 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = tree.Chmod(name[:i], 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes a file, and makes the folders above it.
func put(tree *os.Root, name string, content []byte) error {
	if err := makeFolders(tree, name); err != nil {
		return err
	}
	// Not into what another name of the file shares.
	if err := tree.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := tree.WriteFile(name, content, 0o644); err != nil {
		return err
	}
	return tree.Chmod(name, 0o644)
}

// kernel is the version of the newest kernel in the tree.
func kernel(tree *os.Root) (string, error) {
	found, err := fs.Glob(tree.FS(), "boot/vmlinuz-*")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errors.New("there is no kernel in /boot: install a package like linux-image-amd64 in the image")
	}
	version := strings.TrimPrefix(slices.MaxFunc(found, compareVersions), "boot/vmlinuz-")
	if _, err := tree.Lstat("boot/initrd.img-" + version); err != nil {
		return "", fmt.Errorf("the kernel %s has no initrd: install initramfs-tools in the image before the kernel: %w", version, err)
	}
	return version, nil
}

// compareVersions orders names by their numbers, as in 6.9 before 6.12.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		x, y := number(a), number(b)
		if x > 0 && y > 0 {
			m, n := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
			if len(m) != len(n) {
				return len(m) - len(n)
			}
			if c := strings.Compare(m, n); c != 0 {
				return c
			}
			a, b = a[x:], b[y:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// number is how many digits s starts with.
func number(s string) int {
	return len(s) - len(strings.TrimLeft(s, "0123456789"))
}
