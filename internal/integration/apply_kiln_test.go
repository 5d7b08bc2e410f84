//go:build integration

package integration

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	clients "github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/cluster/remote"
)

// command is a call of the program kiln, in the host's network.
func (h *sshHost) command(t *testing.T, kiln, site string, args ...string) *exec.Cmd {
	t.Helper()
	argv := append([]string{"--target", strconv.Itoa(h.around.PID()), "--net", "--", kiln, "apply", "build01", "--ssh-config", h.config, "--site", site}, args...)
	return exec.CommandContext(t.Context(), "nsenter", argv...)
}

// kiln runs it to its end: all that it printed, and its exit status.
func (h *sshHost) kiln(t *testing.T, kiln, site string, args ...string) (string, int) {
	t.Helper()
	out, err := h.command(t, kiln, site, args...).CombinedOutput()
	noSecret(t, string(out))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// program is what operators call, and what may go wrong around it.
func (h *sshHost) program(t *testing.T, kiln string, second *apply.Want, after string) {
	site := site(t, applySite2()).Dir
	t.Run("dry run", func(t *testing.T) {
		h.again(t)
		before := h.snapshot(t)
		out, status := h.kiln(t, kiln, site)
		for _, want := range []string{"changed, mode 0640 → 0600", "-token = [hidden]", "+token = [secret file://web]", "-size = [hidden]", "+size = 2", "no longer delivered: removed", "kiln apply build01.example.org --yes does it"} {
			if !strings.Contains(out, want) {
				t.Errorf("there is no %q", want)
			}
		}
		if got := h.snapshot(t); status != 0 || got != before {
			t.Errorf("status %d, and it changed the host:\n%s\n%s", status, difference(before, got), out)
		}
	})
	for name, kill := range map[string]func(*os.Process) error{
		"killed":      func(p *os.Process) error { return p.Kill() },
		"interrupted": func(p *os.Process) error { return p.Signal(os.Interrupt) },
	} {
		t.Run(name, func(t *testing.T) { h.killed(t, kiln, site, after, kill) })
	}
	t.Run("two at once", func(t *testing.T) {
		h.again(t)
		before := h.snapshot(t)
		h.sh(t, "echo bob >/run/kiln-apply/holder; flock /run/kiln-apply/lock sleep 60 >/dev/null 2>&1 & sleep 0.2")
		out, status := h.kiln(t, kiln, site, "--yes")
		if status != 1 || !strings.Contains(out, "another apply is at work on this host: bob") || !strings.Contains(out, "somebody is changing this host right now") {
			t.Errorf("status %d: %s", status, out)
		}
		h.sh(t, "pkill -x -f 'sleep 60'; flock -w 30 /run/kiln-apply/lock true")
		if got := h.snapshot(t); got != before {
			t.Errorf("it changed the host:\n%s", difference(before, got))
		}
	})
	t.Run("changed meanwhile", func(t *testing.T) {
		conn := h.dial(t)
		defer conn.Close()
		c := h.changes(t, conn, second)
		h.sh(t, "echo by hand >/etc/web/web.conf")
		before := h.snapshot(t)
		if err := c.Run(t.Context(), conn, nil, func(string, bool) {}); err == nil || !strings.Contains(err.Error(), "/etc/web/web.conf has changed since it was looked at, and nothing was done") {
			t.Errorf("got %v", err)
		}
		if got := h.snapshot(t); got != before {
			t.Errorf("it changed the host:\n%s", difference(before, got))
		}
	})
	t.Run("a step fails", func(t *testing.T) { h.fails(t, kiln, site, after) })
	t.Run("network", func(t *testing.T) { h.network(t, second) })
	t.Run("who may", func(t *testing.T) { h.who(t, second) })
}

// killed ends kiln while it changes the host, and has another one finish.
func (h *sshHost) killed(t *testing.T, kiln, site, after string, kill func(*os.Process) error) {
	h.again(t)
	web := h.starts(t, "web")
	// A step that takes as long as it is held up.
	h.sh(t, "mkdir -p /run/systemd/system/kiln-host.service.d && printf '[Service]\\nExecStartPre=/bin/sh -c \"while [ -e /run/hold ]; do sleep 0.1; done\"\\n' >/run/systemd/system/kiln-host.service.d/hold.conf && touch /run/hold && systemctl daemon-reload")
	cmd := h.command(t, kiln, site, "--yes")
	var said bytes.Buffer
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(io.TeeReader(out, &said))
	for lines.Scan() && !strings.Contains(lines.Text(), "restart kiln-host.service") {
	}
	// nsenter has become kiln.
	if err := kill(cmd.Process); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err == nil {
		t.Fatalf("it ended well: %s", &said)
	}
	noSecret(t, said.String())
	h.sh(t, "rm -r /run/hold /run/systemd/system/kiln-host.service.d && systemctl daemon-reload")
	// What runs on the host ends at its next step.
	h.sh(t, "flock -w 60 /run/kiln-apply/lock true")
	if h.starts(t, "web") != web {
		t.Error("the host went on, and nobody listens")
	}
	text, status := h.kiln(t, kiln, site, "--yes")
	if status != 0 || !strings.Contains(text, "left by an earlier run: restart web.service") {
		t.Errorf("the next run: status %d: %s", status, text)
	}
	if got := h.snapshot(t); got != after {
		t.Errorf("it isn't what an uninterrupted run makes:\n%s", difference(after, got))
	}
	if h.starts(t, "web") != web+1 {
		t.Errorf("web was started %d times", h.starts(t, "web")-web)
	}
	if text, status := h.kiln(t, kiln, site); status != 0 || !strings.HasPrefix(text, "build01.example.org is as it is to be\n") {
		t.Errorf("afterwards: status %d: %s", status, text)
	}
}

// fails has a service not come up; once what is in the way is gone, the next run
// restarts it.
func (h *sshHost) fails(t *testing.T, kiln, site, after string) {
	h.again(t)
	h.sh(t, "mkdir -p /run/systemd/system/web.service.d && printf '[Service]\\nExecStartPre=/bin/false\\n' >/run/systemd/system/web.service.d/fail.conf")
	out, status := h.kiln(t, kiln, site, "--yes")
	if status != 1 || !strings.Contains(out, "Job for web.service failed") || !strings.Contains(out, "  not done: restart web.service") || !strings.Contains(out, "  done: ") {
		t.Errorf("status %d: %s", status, out)
	}
	h.sh(t, "rm -r /run/systemd/system/web.service.d && systemctl daemon-reload")
	if out, status = h.kiln(t, kiln, site, "--yes", "--json"); status != 0 || !strings.Contains(out, `"applied": true`) {
		t.Errorf("the next run: status %d: %s", status, out)
	}
	if got := h.snapshot(t); got != after {
		t.Errorf("it isn't what an undisturbed run makes:\n%s", difference(after, got))
	}
}

// network is written if netplan takes it, and left alone otherwise.
func (h *sshHost) network(t *testing.T, second *apply.Want) {
	h.apply(t, second)
	h.sh(t, "printf 'network:\n  version: 2\n  ethernets: {lan9: {addresses: [192.0.2.1/24]}}\n' >/etc/netplan/50-cloud-init.yaml")
	conn := h.dial(t)
	defer conn.Close()
	w := *second
	w.Network = []byte("version: 2\nethernets:\n  lan9:\n    addresses: [not an address]\n")
	c := h.changes(t, conn, &w)
	if err := c.Run(t.Context(), conn, nil, func(string, bool) {}); err == nil || !strings.Contains(err.Error(), "netplan doesn't take the network of the plan") {
		t.Errorf("got %v", err)
	}
	if got := h.sh(t, "cat /etc/netplan/50-cloud-init.yaml"); !strings.Contains(got, "192.0.2.1/24") {
		t.Errorf("what netplan doesn't take was written: %s", got)
	}
	w.Network = []byte("version: 2\nethernets:\n  lan9:\n    addresses: [192.0.2.2/24]\n")
	if c = h.apply(t, &w); len(c.List) != 1 || len(c.Units) != 0 || !strings.Contains(c.List[0].Diff, "+      addresses: [192.0.2.2/24]") {
		t.Errorf("got %+v", c)
	}
	if c = h.apply(t, &w); !c.Nothing() {
		t.Errorf("a second run isn't nothing: %+v", c)
	}
	h.sh(t, "netplan get network.ethernets.lan9.addresses | grep -q 192.0.2.2 && rm /etc/netplan/50-cloud-init.yaml")
}

// who logs in as somebody else, and as one who may not.
func (h *sshHost) who(t *testing.T, second *apply.Want) {
	h.apply(t, second)
	h.sh(t, `set -e
for name in admin guest; do
	useradd --create-home --shell /bin/sh $name
	install -d -m 700 -o $name /home/$name/.ssh
	install -m 600 -o $name /root/.ssh/authorized_keys /home/$name/.ssh/authorized_keys
done
echo 'admin ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/admin`)
	as := func(user string) *remote.Host {
		d := *h.dialer
		d.User = user
		conn, err := d.Dial("build01")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	if c := h.changes(t, as("admin"), second); !c.Nothing() {
		t.Errorf("seen by another user, there is something to change: %+v", c)
	}
	if _, err := apply.Gather(t.Context(), as("guest"), second); err == nil || !strings.Contains(err.Error(), "become root by sudo without a password") {
		t.Errorf("got %v", err)
	}
	if _, err := apply.Gather(t.Context(), as("nobody-here"), second); err == nil || !remote.Unreachable(err) || !strings.Contains(err.Error(), "doesn't take your keys") {
		t.Errorf("got %v", err)
	}
	h.sh(t, "hostname build02")
	s, err := apply.Gather(t.Context(), as("root"), second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apply.Plan(second, s, apply.Options{}); err == nil || !strings.Contains(err.Error(), "calls itself build02") {
		t.Errorf("got %v", err)
	}
	h.sh(t, "hostname build01")
}

// TestRemote is of ssh itself: arguments, input, output, connections.
func TestRemote(t *testing.T) {
	t.Parallel()
	h := newSSHHost(t, nil)
	conn := h.dial(t)
	input := bytes.Repeat([]byte("\x00\xff 'a' $b\n"), 1<<17)
	out, err := conn.Run(t.Context(), bytes.NewReader(input), "cat")
	if err != nil || !bytes.Equal(out, input) {
		t.Fatalf("%d of %d bytes came back: %v", len(out), len(input), err)
	}
	args := []string{"", " ", "a'b", "$HOME", "`id`", "two\nlines", "*", `\`, "é", "-n", "~", "a;b"}
	out, err = conn.Run(t.Context(), nil, append([]string{"printf", `%s\0`}, args...)...)
	if want := strings.Join(args, "\x00") + "\x00"; err != nil || string(out) != want {
		t.Errorf("got %q, %v", out, err)
	}
	var lines []string
	if err := conn.Stream(t.Context(), strings.NewReader("one\ntwo\n"), func(l string) { lines = append(lines, l) }, "cat"); err != nil || strings.Join(lines, ",") != "one,two" {
		t.Errorf("got %q, %v", lines, err)
	}
	if _, err := conn.Run(t.Context(), nil, "sh", "-c", "echo no >&2; exit 3"); err == nil || remote.Unreachable(err) || !strings.Contains(err.Error(), "exit status 3: no") {
		t.Errorf("got %v", err)
	}
	// All of that was one connection.
	if got := h.sh(t, "journalctl --sync; journalctl -u ssh --output cat | grep -c 'Accepted publickey'"); strings.TrimSpace(got) != "2" { // and one to see that it's up
		t.Errorf("there were %s connections", got)
	}
	// What is stopped is stopped there, too, once it notices.
	ctx, stop := context.WithCancel(t.Context())
	err = conn.Stream(ctx, nil, func(string) { stop() }, "sh", "-c", "trap '' HUP PIPE; while echo tick; do sleep 0.1; done; touch /run/noticed")
	if err == nil || ctx.Err() == nil {
		t.Errorf("got %v", err)
	}
	eventually(t, "a command notices that nobody listens", func() bool {
		_, status := h.try(t, "test -e /run/noticed")
		return status == 0
	})
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	// A host whose key is another one than before.
	h.sh(t, "rm /etc/ssh/ssh_host_* && ssh-keygen -q -A && systemctl restart ssh")
	d := *h.dialer
	d.Args = []string{"-o", "StrictHostKeyChecking=yes"}
	other, err := d.Dial("build01")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Run(t.Context(), nil, "true"); err == nil || !remote.Unreachable(err) || !strings.Contains(err.Error(), "ssh-keygen -R") {
		t.Errorf("got %v", err)
	}
}

// TestApplyDrains takes a job off a real Nomad's node before the host is
// changed, and lets jobs come back.
func TestApplyDrains(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	config := filepath.Join(t.TempDir(), "nomad.hcl")
	place(t, config, "name = \"build01.example.org\"\nplugin \"raw_exec\" { config { enabled = true } }\nclient { options = { \"fingerprint.denylist\" = \"env_aws,env_gce,env_azure,env_digitalocean\" } }\n")
	s.daemon(t, hashicorp(t, "nomad"), "agent", "-dev", "-bind", "127.0.0.1", "-config", config)
	api, err := nomad.NewClient(&nomad.Config{Address: "http://127.0.0.1:4646", HttpClient: &http.Client{Transport: &http.Transport{DialContext: s.Dial}}})
	if err != nil {
		t.Fatal(err)
	}
	running := func() int {
		allocs, _, err := api.Jobs().Allocations("sleep", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, a := range allocs {
			if a.ClientStatus == nomad.AllocClientStatusRunning {
				n++
			}
		}
		return n
	}
	eventually(t, "Nomad's node is ready", func() bool {
		nodes, _, err := api.Nodes().List(nil)
		return err == nil && len(nodes) == 1 && nodes[0].Status == nomad.NodeStatusReady && nodes[0].Drivers["raw_exec"] != nil
	})
	job := nomad.NewServiceJob("sleep", "sleep", "global", 50).AddDatacenter("dc1").AddTaskGroup(
		nomad.NewTaskGroup("sleep", 1).AddTask(nomad.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"1000"})))
	if _, _, err := api.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job runs", func() bool { return running() == 1 })

	w := wantOf(t, hostPlan(t, site(t, map[string]string{
		"site.yaml": "domain: example.org\n", "hosts.yaml": "- {name: build01, profile: n}\n",
		"profiles/n/profile.yaml": "description: n\nimage: {units: {nomad.service: enabled}}\nhost: {files: {/etc/nomad.d/x.hcl: {}}}\n", "profiles/n/host/etc/nomad.d/x.hcl": "x = 1\n",
	}), "build01"))
	host := &drainedHost{during: func() {
		if n := running(); n != 0 {
			t.Errorf("%d jobs run while the host is changed", n)
		}
		nodes, _, err := api.Nodes().List(nil)
		if err != nil || nodes[0].SchedulingEligibility != nomad.NodeSchedulingIneligible {
			t.Errorf("the node is %v, %v", nodes, err)
		}
	}}
	c, err := apply.Plan(w, host.state(t, w), apply.Options{})
	if err != nil || !c.Restarts() {
		t.Fatalf("got %+v, %v", c, err)
	}
	d := &apply.Drainer{Nomad: &clients.Nomad{Client: api}, Drain: true, Deadline: time.Minute, Poll: 100 * time.Millisecond}
	if err := c.Run(t.Context(), host, d, func(string, bool) {}); err != nil {
		t.Fatal(err)
	}
	if host.calls != 4 { // looked at, told, changed, told
		t.Errorf("the host was called %d times", host.calls)
	}
	eventually(t, "the job has come back", func() bool { return running() == 1 })
}

// drainedHost is a host without anything on it, whose changes take no time.
type drainedHost struct {
	calls  int
	answer []byte
	during func()
}

func (d *drainedHost) state(t *testing.T, w *apply.Want) *apply.State {
	t.Helper()
	var b bytes.Buffer
	const facts = "hostname build01\nsystemd yes\nos ID=debian\npasswd root:x:0:0::/root:/bin/sh\nmember root root\ngroup root:x:0:\nunit nomad.service enabled\n"
	archive := tar.NewWriter(&b)
	if err := archive.WriteHeader(&tar.Header{Name: "facts", Size: int64(len(facts))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(archive, facts); err != nil {
		t.Fatal(err)
	}
	d.answer = b.Bytes()
	s, err := apply.Gather(t.Context(), d, w)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *drainedHost) Run(context.Context, io.Reader, ...string) ([]byte, error) {
	d.calls++
	return d.answer, nil
}

func (d *drainedHost) Stream(_ context.Context, _ io.Reader, line func(string), _ ...string) error {
	d.calls++
	d.during()
	line("finished")
	return nil
}
