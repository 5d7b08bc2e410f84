//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/cluster/remote"
)

// applySite is of two services that each have a secret, and wait for their host's
// data.
var applySite = map[string]string{
	"site.yaml":  "domain: example.org\nsecrets: {web: file://web, db: file://db}\n",
	"hosts.yaml": "- {name: build01, profile: two}\n",
	"profiles/two/profile.yaml": `description: two services
extends: [base]
image:
  groups: {web: {gid: 9100, system: true}}
  users: {web: {uid: 9100, group: web, system: true}}
  directories: {/srv/web: {owner: web, group: web, mode: "0750"}}
  units: {web.service: enabled, db.service: enabled}
host:
  files:
    /etc/web/token: {owner: web, group: web, mode: "0640"}
    /etc/db/token: {mode: "0600"}
`,
	"profiles/two/image/etc/systemd/system/web.service": applyService("web"),
	"profiles/two/image/etc/systemd/system/db.service":  applyService("db"),
	"profiles/two/host/etc/web/token.tmpl":              "name = web\ntoken = {{ secret \"web\" | line }}\n",
	"profiles/two/host/etc/web/web.conf":                "size = 1\n",
	"profiles/two/host/etc/web/old.conf":                "old\n",
	"profiles/two/host/etc/db/token.tmpl":               "{{ secret \"db\" | line }}\n",
	"web":                                               "web-canary-1\n", "db": "db-canary-1\n",
}

// applySite2 is what it becomes, with one change of each kind.
func applySite2() map[string]string {
	s := maps.Clone(applySite)
	s["profiles/two/profile.yaml"] = `description: two services, and a third
extends: [base]
image:
  groups: {web: {gid: 9100, system: true}, ops: {gid: 9200}}
  users:
    web: {uid: 9100, group: web, system: true, groups: [ops]}
    ops: {uid: 9200, group: ops, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl ops"]}
  directories: {/srv/web: {owner: web, group: web, mode: "0700"}, /srv/web/data: {owner: web, group: ops, mode: "2770"}}
  units: {web.service: enabled, db.service: enabled}
host:
  files:
    /etc/web/token: {owner: web, group: web, mode: "0600"}
    /etc/web/web.conf: {group: web, mode: "0640"}
    /etc/db/token: {mode: "0600"}
  units: {third.service: enabled}
`
	s["profiles/two/host/etc/web/web.conf"] = "size = 2\n"
	s["profiles/two/host/etc/systemd/system/third.service"] = applyService("third")
	s["profiles/two/host/etc/systemd/system/web.service.d/20-more.conf"] = "[Service]\nNice=1\n"
	delete(s, "profiles/two/host/etc/web/old.conf")
	s["web"] = "web-canary-2\n"
	return s
}

func applyService(name string) string {
	return `[Unit]
Wants=kiln-host.service
After=kiln-host.service
ConditionPathExists=/etc/kiln/host-ready
StartLimitIntervalSec=0
[Service]
ExecStartPre=/bin/sh -c 'echo started >>/run/` + name + `.starts'
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
`
}

// secretsOf are those in a site's files.
func secretsOf(files map[string]string) known {
	return known{"file://web": strings.TrimSpace(files["web"]), "file://db": strings.TrimSpace(files["db"])}
}

// starts is how often a service has been started.
func (h *sshHost) starts(t *testing.T, name string) int {
	t.Helper()
	out, _ := h.try(t, "cat /run/"+name+".starts")
	return strings.Count(out, "started")
}

// snapshot is all that an apply could have changed, and whether services run.
func (h *sshHost) snapshot(t *testing.T) string {
	t.Helper()
	return h.sh(t, `set -e
find /etc /srv /home /usr/lib/kiln /var/lib/kiln /run/kiln-apply -xdev ! -name '*-' ! -name holder ! -path '/etc/.*' -printf '%p %y %m %u:%g %l\n' | sort
find /etc/web /etc/db /etc/kiln /etc/systemd/system /home /usr/lib/kiln /etc/passwd /etc/group -xdev -type f | sort | xargs sha256sum
getfacl -p /etc/web/token /etc/web/web.conf
systemctl is-enabled web db third kiln-host 2>&1 || :
systemctl show -p Id -p ActiveState -p NeedDaemonReload -p Nice web db third kiln-host`)
}

// remember keeps the host as it is now, and gives it an administrator's access
// control lists before.
func (h *sshHost) remember(t *testing.T) {
	t.Helper()
	h.sh(t, "setfacl -m u:daemon:r /etc/web/token && setfacl -m u:daemon:rw,g:mail:r /etc/web/web.conf && tar --acls -cf /root/first.tar -C / etc/web etc/db etc/kiln etc/systemd etc/passwd etc/group etc/shadow etc/gshadow etc/subuid etc/subgid srv")
}

// again has the host be as it was when it was remembered.
func (h *sshHost) again(t *testing.T) {
	t.Helper()
	h.sh(t, `set -e
rm -rf /etc/web /etc/db /etc/kiln /etc/systemd /srv /home/ops /var/mail/ops /var/lib/kiln
tar --acls -xpf /root/first.tar -C /
systemctl daemon-reload
systemctl stop third.service 2>/dev/null || :
systemctl restart web.service`)
}

// dying is a connection whose host dies in a step, or right behind it.
type dying struct {
	*remote.Host
	t    *testing.T
	step int
}

func (d dying) Stream(ctx context.Context, stdin io.Reader, line func(string), argv ...string) error {
	return d.Host.Stream(ctx, rewritten(d.t, stdin, func(script string) string {
		step, done := fmt.Sprintf("step %d\n", d.step), fmt.Sprintf("done_with %d\n", d.step)
		if !strings.Contains(script, step) || !strings.Contains(script, done) {
			d.t.Errorf("the script has no step %d", d.step)
		}
		// No trap runs, nothing is cleaned up: as if the power had failed.
		script = strings.Replace(script, step, step+"mv() { kill -9 $$; }\n", 1)
		return strings.Replace(script, done, "kill -9 $$\n", 1)
	}), line, argv...)
}

// rewritten is an archive with another script.
func rewritten(t *testing.T, archive io.Reader, change func(string) string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	r, w := tar.NewReader(archive), tar.NewWriter(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "run.sh" {
			content = []byte(change(string(content)))
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// noSecret sees that nothing of what people are shown has one.
func noSecret(t *testing.T, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(b), fmt.Sprintf("%+v", v), fmt.Sprint(v)} {
		if strings.Contains(text, "canary") {
			t.Errorf("a secret shows in %s", text)
		}
	}
}

// TestApply changes a host over ssh: from nothing to a plan, from that to
// another, and interrupted at each step on the way.
func TestApply(t *testing.T) {
	t.Parallel()
	kiln := bakersKiln(t)
	h := newSSHHost(t, nil)
	h.watch(t, []string{"/etc/web/token", "/etc/db/token"}, "web-canary", "db-canary")
	first, second := want(t, site(t, applySite), secretsOf(applySite)), want(t, site(t, applySite2()), secretsOf(applySite2()))

	c := h.apply(t, first)
	noSecret(t, c.List)
	if len(c.List) < 10 {
		t.Errorf("a bare host needs only %d changes?", len(c.List))
	}
	if c = h.apply(t, first); !c.Nothing() {
		t.Fatalf("a second run isn't nothing: %+v", c)
	}
	t.Run("rotated", func(t *testing.T) { h.rotated(t) })
	h.apply(t, first)
	h.remember(t)
	c = h.apply(t, second)
	noSecret(t, c.List)
	steps := kinds(c)
	after := h.snapshot(t)
	for _, want := range []string{
		"/etc/web/token f 640 web:web", "user:daemon:r--", "/etc/web/web.conf f 660 root:web", "user:daemon:rw-", "group:mail:r--",
		"/srv/web d 700 web:web", "/srv/web/data d 2770 web:ops", "/home/ops/.ssh/authorized_keys f 600 ops:ops", "/home/ops/.ssh d 700 ops:ops",
		"Id=third.service\nActiveState=active", "Nice=1",
	} {
		if !strings.Contains(after, want) {
			t.Errorf("afterwards there is no %s:\n%s", want, after)
		}
	}
	if strings.Contains(after, "old.conf") {
		t.Error("what is no longer delivered is still there")
	}
	if c = h.apply(t, second); !c.Nothing() {
		t.Fatalf("a second run isn't nothing: %+v", c)
	}
	began := time.Now()
	for _, step := range steps {
		t.Run(fmt.Sprintf("dies in step %d", step), func(t *testing.T) { h.dies(t, step, second, after) })
	}
	t.Logf("%d steps, each interrupted, took %s", len(steps), time.Since(began))
	t.Run("program", func(t *testing.T) { h.program(t, kiln, second, after) })
}

// kinds are the numbers of the steps to die in: one of each kind, and of the
// files the last one, too, which is the manifest.
func kinds(c *apply.Changes) []int {
	steps := []int{0} // the mark is taken away
	last, file := "", 0
	for i := range c.List {
		if c.List[i].Kind == "file" {
			file = i + 1
		}
		if c.List[i].Kind != last {
			last = c.List[i].Kind
			steps = append(steps, i+1)
		}
	}
	steps = append(steps, file)
	for i := range c.Units {
		steps = append(steps, len(c.List)+1+i)
	}
	return steps
}

// rotated changes a secret: only what reads it is restarted.
func (h *sshHost) rotated(t *testing.T) {
	files := maps.Clone(applySite)
	files["db"] = "db-canary-2\n"
	web, db := h.starts(t, "web"), h.starts(t, "db")
	c := h.apply(t, want(t, site(t, files), secretsOf(files)))
	if got := h.sh(t, "cat /etc/db/token"); got != "db-canary-2\n" {
		t.Errorf("the token is %q", got)
	}
	if h.starts(t, "web") != web || h.starts(t, "db") != db+1 {
		t.Errorf("web was started %d times, then %d; db %d, then %d", web, h.starts(t, "web"), db, h.starts(t, "db"))
	}
	noSecret(t, c.List)
	if got := strings.Join(c.Units, ", "); got != "restart kiln-host.service, restart db.service" {
		t.Errorf("it did: %s", got)
	}
}

// dies interrupts a run in a step, and has another one finish it.
func (h *sshHost) dies(t *testing.T, step int, second *apply.Want, after string) {
	h.again(t)
	web, db := h.starts(t, "web"), h.starts(t, "db")
	conn := h.dial(t)
	defer conn.Close()
	c := h.changes(t, conn, second)
	err := c.Run(t.Context(), dying{conn, t, step}, nil, func(string, bool) {})
	partial, ok := errors.AsType[*apply.PartialError](err)
	if !ok || len(partial.Done) != step || len(partial.Left) == 0 {
		t.Fatalf("got %v", err)
	}
	noSecret(t, err)
	c = h.changes(t, conn, second)
	if c.Nothing() || len(c.Pending) == 0 {
		t.Errorf("nothing is left to do after %v", err)
	}
	if err := c.Run(t.Context(), conn, nil, func(string, bool) {}); err != nil {
		t.Fatal(err)
	}
	if got := h.snapshot(t); got != after {
		t.Errorf("after %v\nit isn't what an uninterrupted run makes:\n%s", err, difference(after, got))
	}
	if h.starts(t, "web") == web {
		t.Error("web wasn't restarted")
	}
	if h.starts(t, "db") != db {
		t.Error("db was restarted, and nothing of it has changed")
	}
}

// difference has the lines that are in only one of two texts.
func difference(a, b string) string {
	var out strings.Builder
	for _, side := range [][3]string{{"- ", a, b}, {"+ ", b, a}} {
		for line := range strings.Lines(side[1]) {
			if !strings.Contains(side[2], line) {
				out.WriteString(side[0] + line)
			}
		}
	}
	return out.String()
}
