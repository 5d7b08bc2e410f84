package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/run"
)

const nspawnInstall = "the package systemd-container has it"

// Tree is a root file system, to be booted in a container with its own systemd.
// Only Root has to be set. It needs root. The kernel is this machine's.
type Tree struct {
	// Root is the tree. What the guest writes goes into memory, and is gone with
	// it.
	Root string
	// Name is the container's, and its host name until cloud-init gives it one;
	// empty is kiln-boot.
	Name string

	// Seed has the files of the host's NoCloud seed, for the seed directory; none
	// are a seed without host data. Units are those whose states the report has.
	Seed  []render.NamedFile
	Units []string
	// NoSeed leaves the guest without any seed. Then it doesn't report, either.
	NoSeed bool

	// Namespace is the network namespace that becomes the guest's, the path of a
	// file such as /run/netns/NAME: the interfaces in it are the guest's from the
	// start. Empty is a network of its own, with nothing but lo.
	Namespace string
	// Binds are files and directories of this machine that the guest sees
	// read-only, each FROM:TO.
	Binds []string

	// Console gets what the guest writes to its console, and Line gets it line by
	// line, without what moves a terminal's cursor.
	Console io.Writer
	Line    func(string)
}

var containerName = lazyregexp.New(`^[0-9a-z][0-9a-z-]{0,62}$`)

func (t *Tree) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if t.Name != "" && !containerName().MatchString(t.Name) {
		bad("%q can't be a container's name", t.Name)
	}
	// Mount's options have no way to quote all of these.
	if strings.ContainsAny(t.Root, `:,\`) {
		bad("a tree whose path has a colon, a comma or a backslash can't be booted: move it")
	}
	for _, b := range t.Binds {
		if from, to, ok := strings.Cut(b, ":"); !ok || !filepath.IsAbs(from) || !filepath.IsAbs(to) {
			bad("the bind %q isn't FROM:TO, with absolute paths", b)
		}
	}
	return errors.Join(errs...)
}

// Start boots the tree. The guest lives until ctx ends, Stop is called, or it
// switches itself off.
func (t *Tree) Start(ctx context.Context) (*Running, error) {
	name := "booting the tree " + t.Root
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	root, err := filepath.Abs(t.Root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := os.Stat(filepath.Join(root, "etc")); err != nil {
		return nil, fmt.Errorf("%s: that isn't a root file system: %w", name, err)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%s: only root can start a container: run this as root, or boot an image in QEMU", name)
	}
	if _, err := lookPath("systemd-nspawn", nspawnInstall); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r, err := newRunning(ctx, t.Console, t.Line)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := t.prepare(r); err != nil {
		r.abandon()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r.start(t.command(root, r.dir, func(line string) { _, _ = r.console.Write([]byte(line + "\n")) }))
	return r, nil
}

// The entries of a tree's own directory. Only the first two are seen by the
// guest.
const (
	treeAgent = "agent" // has the agent's socket
	treeSeed  = "seed"
	treeMount = "mount" // memory, for what the guest writes
	treePID   = "pid"   // has nspawn's number
)

func (t *Tree) prepare(r *Running) error {
	for _, name := range []string{treeAgent, treeSeed, treeMount} {
		if err := os.Mkdir(filepath.Join(r.dir, name), 0o700); err != nil {
			return err
		}
	}
	if err := r.listen(filepath.Join(treeAgent, agentSocket), func(conn net.Conn) { r.channel.serve(conn) }); err != nil {
		return err
	}
	if t.NoSeed {
		return nil
	}
	seed, err := reporting(t.Seed, t.Units)
	if err != nil {
		return err
	}
	for _, f := range seed {
		if f.Name != filepath.Base(f.Name) {
			return fmt.Errorf("a seed can't have the file %q", f.Name)
		}
		if err := os.WriteFile(filepath.Join(r.dir, treeSeed, f.Name), f.Data, 0o600); err != nil {
			return fmt.Errorf("writing the seed: %w", err)
		}
	}
	return nil
}

// treeScript lays memory over the tree and starts the container, in a mount
// namespace of its own: whatever ends it takes all mounts along. Its arguments
// are the guest's directory, the tree, and nspawn's options.
//
// The container has a control group of its own. Without one, those that run at the
// same time share theirs, unit by unit: a systemd that finds another one's processes
// in a unit's fails to start it, now and then.
const treeScript = `set -e
cd "$1"
root=$2
shift 2
mount -t tmpfs -o mode=0755 tmpfs mount
mkdir mount/up mount/work mount/root
mount -t overlay -o "lowerdir=$root,upperdir=mount/up,workdir=mount/work" overlay mount/root
# An image's names the partitions of its disk, which isn't here.
[ ! -e mount/root/etc/fstab ] || : >mount/root/etc/fstab
# Fully unified, as today's systemd wants it.
[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/kiln-boot-$$
if mkdir "$group" 2>/dev/null && ! echo $$ >"$group/cgroup.procs"; then
	rmdir "$group"
fi
# nspawn is told to end by what ends this.
trap : TERM INT HUP
status=0
sh -c 'echo $$ >pid; exec systemd-nspawn --directory=mount/root "$@"' sh "$@" || status=$?
if [ -d "$group" ]; then
	echo $$ >/sys/fs/cgroup/cgroup.procs
	find "$group" -depth -type d -exec rmdir {} +
fi
exit $status
`

// command is the container's.
func (t *Tree) command(root, dir string, line func(string)) run.Command {
	name := t.Name
	if name == "" {
		name = "kiln-boot"
	}
	options := []string{
		"--quiet", "--register=no", "--keep-unit", "--boot", "--console=read-only", "--machine=" + name,
		// The tree is booted as it is, and nothing of it is seen from outside.
		"--link-journal=no", "--resolv-conf=off", "--timezone=off",
		"--bind=" + colon(filepath.Join(dir, treeAgent)) + ":/run/kiln-boot",
	}
	if t.Namespace == "" {
		options = append(options, "--private-network")
	} else {
		options = append(options, "--network-namespace-path="+t.Namespace, "--capability=CAP_NET_ADMIN")
	}
	if !t.NoSeed {
		options = append(options, "--bind-ro="+colon(filepath.Join(dir, treeSeed))+":/var/lib/cloud/seed/nocloud")
	}
	for _, b := range t.Binds {
		options = append(options, "--bind-ro="+b)
	}
	c := run.Command{
		Name:    "unshare",
		Args:    append([]string{"--mount", "--propagation", "private", "sh", "-c", treeScript, "kiln-boot", dir, root}, options...),
		Stdout:  line,
		Install: "the package util-linux has it",
	}
	if t.Namespace != "" {
		// All of it runs there. What nspawn mounts as /sys has the interfaces of
		// nspawn's own network, and cloud-init looks for the host's in it.
		c.Name, c.Args = "nsenter", append([]string{"--net=" + t.Namespace, "--", c.Name}, c.Args...)
	}
	return c
}

// colon writes a path in nspawn's binds.
func colon(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(path)
}

// nspawn is the number of the container's process out here.
func (r *Running) nspawn() (int, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, treePID))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// askNspawn has the guest's init shut down.
func (r *Running) askNspawn() error {
	pid, err := r.nspawn()
	if err != nil {
		return fmt.Errorf("the guest hadn't come up: %w", err)
	}
	return syscall.Kill(pid, syscall.SIGTERM)
}

// Init is the process number, out here, of a tree's init: nsenter goes into the
// guest by it. There is none before the container is set up, and none in a
// Machine.
func (r *Running) Init() (int, error) {
	pid, err := r.nspawn()
	if err != nil {
		return 0, fmt.Errorf("the guest has no init out here: %w", err)
	}
	if found := initBelow(pid); found != 0 {
		return found, nil
	}
	return 0, errors.New("the guest has no init yet")
}

// initBelow is the process below pid that is the first of its namespace, or 0.
func initBelow(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	for _, field := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child))
		for line := range strings.Lines(string(status)) {
			numbers := strings.Fields(line)
			if len(numbers) > 2 && numbers[0] == "NSpid:" && slices.Index(numbers, "1") == len(numbers)-1 {
				return child
			}
		}
		if found := initBelow(child); found != 0 {
			return found
		}
	}
	return 0
}
