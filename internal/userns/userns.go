// Package userns runs Kiln as root of a user namespace of its own: a normal user
// gets the numbers of owners that the files of an image have out of his range of
// subordinate IDs (/etc/subuid, /etc/subgid), and may mount and chroot there. On
// the disk, what is root's in the namespace is the user's.
//
// Kernels, AppArmor and containers can forbid it. Each has a setting of its own,
// and the error names the one that it is.
package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Streams are those of what RunWith runs.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Machine is what decides whether a user can have a namespace of his own. The
// zero value has nothing that allows it.
type Machine struct {
	User string
	UID  int
	// Clone, Most and AppArmor are the contents of these files below /proc/sys,
	// empty where there are none: kernel/unprivileged_userns_clone,
	// user/max_user_namespaces, kernel/apparmor_restrict_unprivileged_userns.
	Clone    string
	Most     string
	AppArmor string
	// SubUID and SubGID are the contents of /etc/subuid and /etc/subgid.
	SubUID string
	SubGID string
	// NewUIDMap and NewGIDMap set the IDs of a namespace.
	NewUIDMap Helper
	NewGIDMap Helper
	// NoNewPrivileges is that no program can have more privileges than this one.
	NoNewPrivileges bool
	// Container is what this runs in: docker, podman …; empty where it's none.
	Container string
	// Program is the path of this one.
	Program string
}

// Helper is a program that runs with more privileges than its caller.
type Helper struct {
	Path  string // empty where it isn't there
	Able  bool   // it is root's and setuid, or has the capability
	NoSet bool   // its file system is mounted nosuid
}

// Needed is how many subordinate IDs of each kind an image takes: with the user's
// own, which is root's, they are all of 16 bits.
const Needed = 65536

// Problem finds what is known to be in the way before anything is tried: what it
// is, and what allows it. It is nil where nothing is.
func (m *Machine) Problem() error {
	switch {
	case strings.TrimSpace(m.Clone) == "0":
		return errors.New("this kernel lets nobody but root make user namespaces (kernel.unprivileged_userns_clone is 0): " +
			"sudo sysctl -w kernel.unprivileged_userns_clone=1 allows it, and the same setting in a file of /etc/sysctl.d from the next boot on")
	case strings.TrimSpace(m.Most) == "0":
		return fullError("user.max_user_namespaces is 0")
	}
	for _, h := range []struct {
		name string
		Helper
	}{{"newuidmap", m.NewUIDMap}, {"newgidmap", m.NewGIDMap}} {
		if err := h.problem(h.name); err != nil {
			return err
		}
	}
	if m.NoNewPrivileges {
		return errors.New("this process can't gain privileges (no_new_privs is set), so that newuidmap has none: " +
			"start it without NoNewPrivileges= (a service), or without --security-opt no-new-privileges (a container)")
	}
	return errors.Join(m.idProblem("uid", m.SubUID), m.idProblem("gid", m.SubGID))
}

func fullError(why string) error {
	return fmt.Errorf("no more user namespaces can be made (%s): "+
		"sudo sysctl -w user.max_user_namespaces=15000 allows them, and the same setting in a file of /etc/sysctl.d from the next boot on", why)
}

func (h Helper) problem(name string) error {
	switch {
	case h.Path == "":
		return fmt.Errorf("the program %s isn't there: apt-get install uidmap", name)
	case !h.Able:
		return fmt.Errorf("%s has lost its setuid bit, or isn't root's: sudo apt-get install --reinstall uidmap", h.Path)
	case h.NoSet:
		return fmt.Errorf("the file system of %s is mounted nosuid, so that it has no privileges: mount it without", h.Path)
	}
	return nil
}

// idProblem is what is wrong with the user's subordinate IDs of a kind.
func (m *Machine) idProblem(kind, text string) error {
	ranges := m.ranges(text)
	var n int64
	for _, r := range ranges {
		n += r.count
	}
	if n >= Needed {
		return nil
	}
	free := freeRange(text)
	remedy := fmt.Sprintf("sudo usermod --add-sub%ss %d-%d %s", kind, free, free+Needed-1, m.User)
	if n == 0 {
		return fmt.Errorf("the user %s has no subordinate %ss (no line of /etc/sub%s): %s", m.User, strings.ToUpper(kind), kind, remedy)
	}
	return fmt.Errorf("the user %s has %d subordinate %ss (/etc/sub%s), and an image takes %d: %s", m.User, n, strings.ToUpper(kind), kind, Needed, remedy)
}

// Stage is how far making a namespace got.
type Stage int

const (
	Make Stage = iota // making it
	Map               // giving it its IDs
	Use               // mounting something in it
)

// Explain says what is in the way, after making a namespace has failed with err.
func (m *Machine) Explain(at Stage, err error) error {
	forbidden := errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
	switch {
	case at == Make && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS)):
		return fmt.Errorf("this kernel has no user namespaces (CONFIG_USER_NS): %w", err)
	case at == Make && errors.Is(err, syscall.ENOSPC):
		return fullError("user.max_user_namespaces is " + strings.TrimSpace(m.Most))
	case at == Map:
		return fmt.Errorf("giving a user namespace its IDs: %w: do the lines of %s in /etc/subuid and /etc/subgid overlap, or go beyond what this machine has?%s", err, m.User, m.inContainer())
	case forbidden && strings.TrimSpace(m.AppArmor) == "1" && m.Container == "":
		return m.apparmor()
	case at == Make:
		return fmt.Errorf("the kernel forbids this process to make a user namespace (%w): a chroot does that, a seccomp filter, or a security module%s", err, m.inContainer())
	}
	return fmt.Errorf("the kernel forbids to mount anything in a user namespace (%w): a seccomp filter does that, or a security module%s", err, m.inContainer())
}

func (m *Machine) apparmor() error {
	return fmt.Errorf(`AppArmor keeps programs from user namespaces that it has no profile for (kernel.apparmor_restrict_unprivileged_userns is 1). This as /etc/apparmor.d/kiln allows it to this one, after sudo apparmor_parser -r /etc/apparmor.d/kiln:
    abi <abi/4.0>,
    include <tunables/global>
    profile kiln %s flags=(unconfined) {
      userns,
    }
sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 allows it to all programs`, quoted(m.Program))
}

// quoted is a path as AppArmor reads it: without patterns.
func quoted(path string) string {
	var b strings.Builder
	for _, r := range path {
		if strings.ContainsRune(`*?[]{}^"\@`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return `"` + b.String() + `"`
}

// inContainer is what is to be added where this runs in one.
func (m *Machine) inContainer() string {
	if m.Container == "" {
		return ""
	}
	return fmt.Sprintf(" (this is in a container, %s: that has to be started with --security-opt seccomp=unconfined --security-opt apparmor=unconfined, and with all of the IDs; or build outside of it)", m.Container)
}

// idRange is a range of IDs.
type idRange struct{ first, count int64 }

// ranges are the user's in a file such as /etc/subuid, in its order. What overlaps
// an earlier one isn't taken.
func (m *Machine) ranges(text string) []idRange {
	var list []idRange
	for name, r := range eachRange(text) {
		if name != m.User && name != strconv.Itoa(m.UID) {
			continue
		}
		clashes := false
		for _, other := range list {
			clashes = clashes || r.first < other.first+other.count && other.first < r.first+r.count
		}
		if !clashes {
			list = append(list, r)
		}
	}
	return list
}

// eachRange goes through the lines of such a file.
func eachRange(text string) func(yield func(string, idRange) bool) {
	return func(yield func(string, idRange) bool) {
		for line := range strings.Lines(text) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) != 3 {
				continue
			}
			first, err := strconv.ParseUint(fields[1], 10, 32)
			count, errCount := strconv.ParseUint(fields[2], 10, 32)
			if err != nil || errCount != nil || count == 0 {
				continue
			}
			if !yield(fields[0], idRange{int64(first), int64(count)}) {
				return
			}
		}
	}
}

// freeRange begins after all that the file gives to anybody.
func freeRange(text string) int64 {
	free := int64(100000)
	for _, r := range eachRange(text) {
		free = max(free, r.first+r.count)
	}
	return free
}

// mapping are newuidmap's arguments: own is 0 in the namespace, and the ranges
// follow it.
func mapping(own int, ranges []idRange) []string {
	args := []string{"0", strconv.Itoa(own), "1"}
	next := int64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatInt(next, 10), strconv.FormatInt(r.first, 10), strconv.FormatInt(r.count, 10))
		next += r.count
	}
	return args
}

// IDs are what this process's numbers of users and groups are outside of its namespace.
// It is "0 0 4294967295" for both kinds where it is in none, and empty where the
// system has no such thing.
func IDs() string {
	uids, _ := os.ReadFile("/proc/self/uid_map")
	gids, _ := os.ReadFile("/proc/self/gid_map")
	return describe(string(uids), string(gids))
}

func describe(uids, gids string) string {
	plain := func(text string) string {
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, ", ")
	}
	if uids == "" && gids == "" {
		return ""
	}
	return "uid " + plain(uids) + "; gid " + plain(gids)
}

// Mapped tells whether this process is in a user namespace in which numbers are
// others than outside.
func Mapped() bool {
	ids := IDs()
	return ids != "" && ids != describe(all, all)
}

const all = "0 0 4294967295"

// Has tells whether the namespace of this process has a number of both kinds.
func Has(id int) bool {
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		if text, err := os.ReadFile(file); err == nil && !has(string(text), int64(id)) {
			return false
		}
	}
	return true
}

func has(text string, id int64) bool {
	for line := range strings.Lines(text) {
		var first, outside, count int64
		if n, _ := fmt.Sscan(line, &first, &outside, &count); n == 3 && id >= first && id < first+count {
			return true
		}
	}
	return false
}
