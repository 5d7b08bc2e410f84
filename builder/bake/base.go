package bake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// mirrorHooks make the folder of a file:// source visible to what runs in the tree.
// mmdebstrap's own hook for that, file-mirror-automount, can't in a user namespace
// where the folder's file system is mounted nosuid, as homes often are: only more
// such flags may be set there, and none be left out.
func mirrorHooks(folder string) []string {
	at := `"$1"` + quote.Word(folder)
	return []string{
		"--setup-hook=mkdir -p " + at + " && mount --bind " + quote.Word(folder) + " " + at + " && mount -o remount,bind,ro,nosuid,nodev,noexec " + at,
		"--customize-hook=umount " + at,
	}
}

// isolated runs a program as root in namespaces of its own: whatever happens, to
// it or to Kiln, its processes end, and with them all that it has mounted.
func isolated(c run.Command) run.Command {
	c.Args = append([]string{
		"--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--", c.Name,
	}, c.Args...)
	c.Name, c.Install = "setpriv", "the Debian package util-linux has it"
	return c
}

// initramfsHook makes the initramfs, once, when all is installed: the kernel's own
// hook, which would do it at each trigger, is held back. Debian's initramfs-tools
// looks at each module as often as another one depends on it, with several
// processes each time, which takes longer than installing all the packages. So
// each is looked at once, by a copy of its functions that only the build sees; the
// result is the same, and other versions of them are left as they are.
const initramfsHook = `set -eu
[ -e "$1/usr/sbin/update-initramfs" ] || exit 0
functions=$1/usr/share/initramfs-tools/hook-functions
if [ -f "$functions" ] && [ "$(readlink "$1/bin")" = usr/bin ]; then
	sed -e '/\/sbin\/modprobe .*"\$@"; } |$/s/$/ awk "!seen[\\$0]++" |/' -e 's:"$(readlink -f /bin)" = /usr/bin:/usr/bin = /usr/bin:' "$functions" >"$2"
	mount --bind "$2" "$functions"
fi
chroot "$1" update-initramfs -c -k all
if mountpoint -q "$functions"; then umount "$functions"; fi
`

// namesHook looks for the packages' names before the first is installed: apt is
// asked for most of them only after that.
const namesHook = `set -eu
names=$2
shift 2
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache pkgnames >"$names"
missing=
for name; do
	grep -qxF -e "$name" "$names" || {
		echo "E: Unable to locate package $name" >&2
		missing=yes
	}
done
[ -z "$missing" ]
`

// mmdebstrap makes dir/tree. The packages in held stay as they are on the host.
func (b *builder) mmdebstrap(ctx context.Context, dir string, sources []source, packages, firmware, held []string) (err error) {
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	tree, hook, names := filepath.Join(dir, "tree"), filepath.Join(work, "initramfs"), filepath.Join(work, "names")
	files, err := b.buildSources(work, sources)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(hook, []byte(initramfsHook), 0o644), os.WriteFile(names, []byte(namesHook), 0o644), b.aptSettings(ctx, filepath.Join(work, "apt.conf"))); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=apt", "--format=directory", "--verbose",
		"--architectures=" + b.definition.Release.Architecture,
		"--include=" + strings.Join(packages, ","),
		"--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold", "--aptopt=" + filepath.Join(work, "apt.conf"),
		`--extract-hook=sh ` + quote.Word(names) + ` "$1" ` + quote.Word(names+".all") + " " + strings.Join(packages, " "),
		`--customize-hook=sh ` + quote.Word(hook) + ` "$1" ` + quote.Word(hook+"-functions"),
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`,
	}
	if len(held) > 0 {
		args = append(args, `--customize-hook=chroot "$1" apt-mark hold `+strings.Join(held, " "))
	}
	for _, f := range firmware {
		args = append(args, "--include=?exact-name("+f+")")
	}
	for i := range sources {
		if folder, ok := strings.CutPrefix(sources[i].uri, "file://"); ok {
			args = append(args, mirrorHooks(folder)...)
		}
	}
	args = append(args, b.definition.Release.Codename, tree)
	args = append(args, files...)
	p := &aptProgress{tell: b.cache.tell}
	err = b.run.Run(ctx, isolated(run.Command{
		Name: "mmdebstrap", Args: args,
		// The same clock for all that the packages' scripts write.
		Env:     []string{"TMPDIR=" + work, "INITRD=No", "LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.epoch, 10), "DEBIAN_FRONTEND=noninteractive"},
		Without: []string{"LANG", "LANGUAGE", "DEBIAN_PRIORITY"},
		Stdout:  p.line, Stderr: p.line, Grace: 20 * time.Second,
	}))
	if err != nil {
		return b.explain(p, tree, sources, err)
	}
	for i := range sources {
		if path, ok := strings.CutPrefix(sources[i].uri, "file://"); ok {
			forgetMountPoint(tree, path)
		}
	}
	return os.RemoveAll(work)
}

// sealBase takes out of the tree of packages what mmdebstrap and they have left,
// and describes what stays.
func (b *builder) sealBase(ctx context.Context, dir string) error {
	tree := filepath.Join(dir, "tree")
	script, err := baseSeal()
	if err != nil {
		return err
	}
	if err := b.sourcesAway(tree); err != nil {
		return err
	}
	if err := b.sealing(ctx, tree, script, nil); err != nil {
		return err
	}
	return describeTree(ctx, tree, filepath.Join(dir, contentsName))
}

// baseSeal is the sealing of what no plan has put anything into.
func baseSeal() (string, error) { return render.SealScript(&plan.Image{}) }

// aptSettings writes what apt is told while the tree is made: how this machine's
// own apt gets through to mirrors, since the tree's has no settings yet.
func (b *builder) aptSettings(ctx context.Context, to string) error {
	out, err := b.run.Output(ctx, run.Command{Name: "apt-config", Args: []string{"dump", "--no-empty", "Acquire::http", "Acquire::https"}, Install: "the Debian package apt has it"})
	if err != nil {
		return fmt.Errorf("reading this machine's apt settings: %w", err)
	}
	text := `APT::Sandbox::User "root";
Acquire::Retries "2";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
`
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "::Proxy") && !strings.Contains(line, "Auto-Detect") {
			text += line
		}
	}
	return os.WriteFile(to, []byte(text), 0o600) // a proxy may have a password
}

// buildSources writes the sources as files for mmdebstrap. Their keys are read
// outside of the tree, so they stand beside them.
func (b *builder) buildSources(work string, sources []source) ([]string, error) {
	var files []string
	for i := range sources {
		s := &sources[i]
		if s.local {
			name := filepath.Join(work, s.name+".sources")
			if err := os.WriteFile(name, []byte(localSource(strings.TrimPrefix(s.uri, "file://"))), 0o644); err != nil {
				return nil, err
			}
			files = append(files, name)
			continue
		}
		ext := keyExtension(s.key)
		name := filepath.Join(work, fmt.Sprintf("kiln-%02d-%s", i, s.name))
		if err := errors.Join(os.WriteFile(name+ext, s.key, 0o644), os.WriteFile(name+".sources", []byte(s.deb822(name+ext)), 0o644)); err != nil {
			return nil, err
		}
		files = append(files, name+".sources")
	}
	return files, nil
}

// forgetMountPoint removes the directories that a file:// source was mounted on,
// up to the first that is a package's, or at the top.
func forgetMountPoint(tree, path string) {
	for path = filepath.Clean("/" + path); strings.Count(path, "/") > 1; path = filepath.Dir(path) {
		if packaged(tree, path) || os.Remove(filepath.Join(tree, path)) != nil {
			return
		}
	}
}

// packaged tells whether a package of the tree has the path.
func packaged(tree, path string) bool {
	lists, _ := filepath.Glob(filepath.Join(tree, "var/lib/dpkg/info/*.list"))
	for _, l := range lists {
		if text, err := os.ReadFile(l); err != nil || bytes.Contains(text, []byte(path+"\n")) {
			return true
		}
	}
	return false
}
