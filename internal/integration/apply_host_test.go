//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// sshPackages are what the tree of a host that is reached over ssh is made of.
const sshPackages = "acl,dbus,iproute2,netplan.io,openssh-server,procps,sudo,systemd,systemd-sysv"

// sshHost is a host with systemd and sshd in a container. Its network is its
// space's, whose loopback it listens on.
type sshHost struct {
	*space
	around *space
	dialer *remote.Dialer
	config string // of ssh's
	root   string // where its root is seen from outside
}

// makeSSHKey makes a key, and its public half beside it.
func makeSSHKey(t *testing.T, file string) {
	t.Helper()
	if out, err := exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
}

// newSSHHost boots one. files are texts on it beside those of its packages.
func newSSHHost(t *testing.T, files map[string]string) *sshHost {
	t.Helper()
	program(t, "ssh")
	around := newSpace(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	makeSSHKey(t, key)
	layer := filepath.Join(dir, "layer")
	place(t, filepath.Join(layer, "etc/ssh/sshd_config.d/test.conf"), "Port 2222\nListenAddress 127.0.0.1\nUseDNS no\n")
	place(t, filepath.Join(layer, "etc/hostname"), "build01\n")
	place(t, filepath.Join(layer, "root/authorized_keys"), read(t, key+".pub"))
	for name, text := range files {
		place(t, filepath.Join(layer, name), text)
	}
	h := &sshHost{around: around, config: filepath.Join(dir, "ssh_config")}
	place(t, h.config, fmt.Sprintf("Host *\nHostName 127.0.0.1\nPort 2222\nUser root\nIdentityFile %s\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile %s\nLogLevel ERROR\n",
		key, filepath.Join(dir, "known_hosts")))
	leader := bootTree(t, around, dir, debianTree(t, "sshhost", sshPackages), "build01", `: >root/etc/machine-id
mkdir -p -m 700 root/root/.ssh
mv root/root/authorized_keys root/root/.ssh/authorized_keys
chroot root ssh-keygen -A >/dev/null`)
	h.space = &space{lab.SpaceOf(leader)}
	h.root = fmt.Sprintf("/proc/%d/root", leader)
	h.dialer = &remote.Dialer{Config: h.config, Runner: func(ctx context.Context, c run.Command) ([]byte, error) {
		// Only its network is another one.
		c.Args = append([]string{"--target", strconv.Itoa(around.PID()), "--net", "--", c.Name}, c.Args...)
		c.Name = "nsenter"
		return c.Output(ctx)
	}}
	eventually(t, "the host lets one log in", func() bool {
		conn := h.dial(t)
		defer conn.Close()
		_, err := conn.Run(t.Context(), nil, "systemctl", "is-system-running", "--wait")
		return err == nil || !remote.Unreachable(err)
	})
	return h
}

func (h *sshHost) dial(t *testing.T) *remote.Host {
	t.Helper()
	conn, err := h.dialer.Dial("build01")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// want is what a host of a site is to be.
func want(t *testing.T, s *profiles.Site, secrets known) *apply.Want {
	t.Helper()
	p, err := hostPlan(t, s, "build01").WithSecrets(t.Context(), secrets)
	if err != nil {
		t.Fatal(err)
	}
	return wantOf(t, p)
}

func wantOf(t *testing.T, p *plan.Plan) *apply.Want {
	t.Helper()
	layer, err := render.OnHost(p)
	if err != nil {
		t.Fatal(err)
	}
	return &apply.Want{Plan: p, Layer: layer}
}

// plan looks at the host, and says what is to be changed.
func (h *sshHost) changes(t *testing.T, conn apply.Conn, w *apply.Want) *apply.Changes {
	t.Helper()
	s, err := apply.Gather(t.Context(), conn, w)
	if err != nil {
		t.Fatal(err)
	}
	c, err := apply.Plan(w, s, apply.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// apply brings the host to w, which has to succeed, and gives what was changed.
func (h *sshHost) apply(t *testing.T, w *apply.Want) *apply.Changes {
	t.Helper()
	conn := h.dial(t)
	defer conn.Close()
	c := h.changes(t, conn, w)
	if err := c.Run(t.Context(), conn, nil, func(string, bool) {}); err != nil {
		t.Fatal(err)
	}
	return c
}

// watch looks for secrets where they mustn't be, until the test ends: in the
// arguments of all processes, and in files that others can read.
func (h *sshHost) watch(t *testing.T, files []string, secrets ...string) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	looks, seen := 0, 0
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			looks++
			if looks%10 == 0 {
				lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
				for _, name := range lines {
					line, _ := os.ReadFile(name)
					for _, s := range secrets {
						if strings.Contains(string(line), s) {
							t.Errorf("a secret is in the arguments of a process: %q", line)
						}
					}
				}
			}
			for _, name := range files {
				for _, path := range []string{name, filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".kiln-new")} {
					if info, err := os.Stat(h.root + path); err == nil {
						seen++
						if info.Mode().Perm()&0o007 != 0 {
							t.Errorf("%s has the mode %s", path, info.Mode())
						}
					}
				}
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
		if looks == 0 || seen == 0 {
			t.Errorf("nobody looked: %d times, %d files", looks, seen)
		}
	})
}
