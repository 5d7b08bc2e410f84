//go:build integration

package integration

import (
	"strings"
	"testing"
)

// applyProfile is of two services that each have a secret, and wait for their
// host's data.
var applyProfile = map[string]string{
	"site.yaml":  "domain: example.org\nsecrets: {web: env://WEB, db: env://DB}\n",
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
	"profiles/two/host/etc/db/token.tmpl":               "{{ secret \"db\" | line }}\n",
	"profiles/two/host/etc/db/old.conf":                 "old\n",
}

func applyService(name string) string {
	return `[Unit]
Wants=kiln-host.service
After=kiln-host.service
ConditionPathExists=/etc/kiln/host-ready
[Service]
ExecStartPre=/bin/sh -c 'echo started >>/run/` + name + `.starts'
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
`
}

func (h *sshHost) starts(t *testing.T, name string) int {
	t.Helper()
	out, _ := h.try(t, "cat /run/"+name+".starts")
	return strings.Count(out, "started")
}

func TestApply(t *testing.T) {
	h := newSSHHost(t, nil)
	secrets := known{"env://WEB": "web-canary-1", "env://DB": "db-canary-1"}
	h.watch(t, []string{"/etc/web/token", "/etc/db/token"}, "web-canary", "db-canary")
	w := want(t, site(t, applyProfile), secrets)
	c := h.apply(t, w)
	for _, x := range c.List {
		t.Log(x.Kind, x.Name, x.What)
	}
	t.Log(c.Units, c.Notes)
	c = h.apply(t, w)
	if !c.Nothing() {
		t.Errorf("%+v", c)
	}
	t.Log(h.sh(t, "ls -la /etc/web /etc/db /etc/kiln /srv /run/kiln-apply /var/lib/kiln; systemctl status web db kiln-host --no-pager"))
}
