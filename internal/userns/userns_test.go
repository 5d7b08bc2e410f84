package userns

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// able is a machine on which nothing is in the way.
func able() *Machine {
	ids := "# of users\nbob:100000:65536\nalice:165536:65536\n"
	helper := Helper{Path: "/usr/bin/newuidmap", Able: true}
	return &Machine{User: "alice", UID: 1000, Most: "96365\n", SubUID: ids, SubGID: ids, NewUIDMap: helper, NewGIDMap: helper, Program: "/usr/bin/kiln"}
}

// TestProblem has one thing after the other in the way: each is named, with what
// allows it.
func TestProblem(t *testing.T) {
	if err := able().Problem(); err != nil {
		t.Errorf("nothing is in the way: %v", err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Machine)
		want   []string // nil is that it's no problem
	}{
		{"Debian's setting", func(m *Machine) { m.Clone = "0\n" }, []string{"kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"}},
		{"Debian's setting, on", func(m *Machine) { m.Clone = "1\n" }, nil},
		{"no namespaces", func(m *Machine) { m.Most = "0\n" }, []string{"user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces="}},
		{"AppArmor, with a profile", func(m *Machine) { m.AppArmor = "1\n" }, nil},
		{"no newuidmap", func(m *Machine) { m.NewUIDMap = Helper{} }, []string{"newuidmap isn't there", "apt-get install uidmap"}},
		{"no newgidmap", func(m *Machine) { m.NewGIDMap = Helper{} }, []string{"newgidmap isn't there", "apt-get install uidmap"}},
		{"no setuid bit", func(m *Machine) { m.NewUIDMap.Able = false }, []string{"/usr/bin/newuidmap has lost its setuid bit", "apt-get install --reinstall uidmap"}},
		{"nosuid", func(m *Machine) { m.NewGIDMap.NoSet = true }, []string{"mounted nosuid"}},
		{"no new privileges", func(m *Machine) { m.NoNewPrivileges = true }, []string{"no_new_privs", "NoNewPrivileges=", "--security-opt no-new-privileges"}},
		{"no IDs", func(m *Machine) { m.SubUID, m.SubGID = "bob:100000:65536\n", "" }, []string{
			"the user alice has no subordinate UIDs (no line of /etc/subuid): sudo usermod --add-subuids 165536-231071 alice",
			"the user alice has no subordinate GIDs (no line of /etc/subgid): sudo usermod --add-subgids 100000-165535 alice",
		}},
		{"no groups", func(m *Machine) { m.SubGID = "" }, []string{"no subordinate GIDs"}},
		{"few IDs", func(m *Machine) { m.SubUID = "alice:100000:65535\n" }, []string{"alice has 65535 subordinate UIDs (/etc/subuid), and an image takes 65536: sudo usermod --add-subuids 165535-231070 alice"}},
		{"by number", func(m *Machine) { m.SubUID = "1000:100000:65536\n" }, nil},
		{"in pieces", func(m *Machine) { m.SubUID = "alice:100000:65000\nalice:300000:1000\n" }, nil},
		{"the same twice", func(m *Machine) { m.SubUID = "alice:100000:40000\nalice:100000:40000\n" }, []string{"has 40000"}},
		{"another's name", func(m *Machine) { m.SubUID = "alice2:100000:65536\n" }, []string{"no subordinate UIDs"}},
		{"no numbers", func(m *Machine) { m.SubUID = "alice:x:65536\nalice:1\nalice:1:-5\nalice:9:0" }, []string{"no subordinate UIDs"}},
	} {
		m := able()
		tt.change(m)
		mentions(t, tt.name, m.Problem(), tt.want)
	}
}

// TestExplain is what the kernel's refusals come to.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Machine)
		at     Stage
		err    error
		want   []string
	}{
		{"AppArmor", func(m *Machine) { m.AppArmor = "1\n" }, Use, syscall.EPERM, []string{
			"kernel.apparmor_restrict_unprivileged_userns is 1", "/etc/apparmor.d/kiln", `profile kiln "/usr/bin/kiln" flags=(unconfined)`, "userns,",
			"sudo apparmor_parser -r /etc/apparmor.d/kiln", "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
		}},
		{"AppArmor at once", func(m *Machine) { m.AppArmor = "1\n" }, Make, syscall.EACCES, []string{"kernel.apparmor_restrict_unprivileged_userns is 1"}},
		{"AppArmor and a strange path", func(m *Machine) { m.AppArmor, m.Program = "1\n", "/a b/[x]*/kiln" }, Use, syscall.EACCES, []string{`profile kiln "/a b/\[x\]\*/kiln"`}},
		{"docker", func(m *Machine) { m.AppArmor, m.Container = "1\n", "docker" }, Make, syscall.EPERM, []string{"forbids this process to make a user namespace", "in a container, docker", "--security-opt seccomp=unconfined", "build outside of it"}},
		{"docker's mounts", func(m *Machine) { m.Container = "docker" }, Use, syscall.EPERM, []string{"forbids to mount", "in a container, docker"}},
		{"podman's IDs", func(m *Machine) { m.Container = "podman" }, Map, syscall.EPERM, []string{"giving a user namespace its IDs", "operation not permitted", "in a container, podman"}},
		{"all are taken", func(*Machine) {}, Make, syscall.ENOSPC, []string{"no more user namespaces can be made (user.max_user_namespaces is 96365)"}},
		{"no such kernel", func(*Machine) {}, Make, syscall.EINVAL, []string{"CONFIG_USER_NS"}},
		{"a chroot", func(*Machine) {}, Make, syscall.EPERM, []string{"operation not permitted", "chroot", "seccomp"}},
		{"a module", func(*Machine) {}, Use, syscall.EPERM, []string{"mount", "security module"}},
		{"wrong IDs", func(*Machine) {}, Map, syscall.EINVAL, []string{"the lines of alice in /etc/subuid and /etc/subgid"}},
	} {
		m := able()
		tt.change(m)
		mentions(t, tt.name, m.Explain(tt.at, fmt.Errorf("fork/exec /bin/sh: %w", tt.err)), tt.want)
	}
}

func mentions(t *testing.T, name string, err error, want []string) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Errorf("%s: got %v, want none", name, err)
		}
		return
	}
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%s: it doesn't say %q: %v", name, w, err)
		}
	}
}

// TestMapping: all of the user's IDs are mapped, from 1 on, and root is himself.
func TestMapping(t *testing.T) {
	m := &Machine{User: "alice", UID: 1000}
	got := mapping(1000, m.ranges("alice:100000:65536\nbob:1:1\n1000:300000:10\n"))
	if want := strings.Fields("0 1000 1 1 100000 65536 65537 300000 10"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIDs(t *testing.T) {
	const whole = "         0          0 4294967295\n"
	if got := describe(whole, whole); got != describe(all, all) {
		t.Errorf("root's are %q", got)
	}
	const some = "         0       1000          1\n         1     100000      65536\n"
	if got, want := describe(some, whole), "uid 0 1000 1, 1 100000 65536; gid 0 0 4294967295"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for id, want := range map[int64]bool{0: true, 1: true, 65536: true, 65537: false, 100000: false, -1: false} {
		if has(some, id) != want {
			t.Errorf("%d is there: %t", id, !want)
		}
	}
}

// FuzzRanges: whatever is in /etc/subuid, ranges are such as newuidmap takes.
func FuzzRanges(f *testing.F) {
	f.Add("alice:100000:65536\n1000:165536:1\n")
	f.Add("alice:4294967295:4294967295\n")
	f.Fuzz(func(t *testing.T, text string) {
		m := &Machine{User: "alice", UID: 1000}
		list := m.ranges(text)
		for i, a := range list {
			if a.first < 0 || a.count <= 0 {
				t.Errorf("%+v", a)
			}
			for _, b := range list[:i] {
				if a.first < b.first+b.count && b.first < a.first+a.count {
					t.Errorf("%+v and %+v overlap", a, b)
				}
			}
		}
	})
}
