package apply

import (
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/plan"
)

// wantUnits is a host with these enabled units.
func wantUnits(names ...string) *Want {
	w := &Want{Plan: &plan.Plan{}, Layer: &plan.Layer{}}
	for _, n := range names {
		w.Layer.Units = append(w.Layer.Units, plan.Unit{Name: n, State: plan.UnitEnabled})
	}
	return w
}

// Who reads a file, by its path.
func TestReaders(t *testing.T) {
	w := wantUnits(hostUnit, "dnsmasq.service", "kiln-resolv.service", "kiln-grid.timer", "consul.service", "nomad.service", "vault.service", "web.service", "kiln-grid.path")
	w.Layer.Files = []plan.File{{Path: "/etc/systemd/system/kiln-grid.service"}}
	for path, want := range map[string]string{
		"/etc/nomad.d/nomad.hcl":                               "restart nomad.service",
		"/etc/nomad.d/more/x.json":                             "restart nomad.service",
		"/etc/consul.d/consul.hcl":                             "restart consul.service",
		"/etc/consul.d/consul.env":                             "restart consul.service",
		"/etc/vault.d/vault.hcl":                               "reload vault.service; note",
		"/etc/dnsmasq.d/kiln.conf":                             "restart dnsmasq.service",
		"/etc/dnsmasq.conf":                                    "restart dnsmasq.service",
		"/etc/default/dnsmasq":                                 "restart dnsmasq.service",
		"/etc/web/token":                                       "restart web.service",
		"/etc/web.conf":                                        "restart web.service",
		"/etc/webs/token":                                      "",
		"/etc/other/token":                                     "", // no unit of that name is wanted
		"/etc/kiln/reserve":                                    "restart nomad.service",
		"/etc/kiln/grid.sh":                                    "start kiln-grid.service",
		"/etc/kiln/resolv.conf":                                "start kiln-resolv.service",
		"/etc/kiln/disks":                                      "restart kiln-host.service",
		"/etc/kiln/host.manifest":                              "restart kiln-host.service",
		"/usr/lib/kiln/host-ready":                             "restart kiln-host.service",
		"/usr/lib/kiln/reserve":                                "",
		"/etc/docker/daemon.json":                              "; note",
		"/etc/ssh/sshd_config.d/x.conf":                        "reload ssh.service",
		"/etc/systemd/timesyncd.conf.d/kiln.conf":              "restart systemd-timesyncd.service",
		"/etc/systemd/network/10.network":                      "; note",
		"/etc/systemd/system/web.service":                      "daemon-reload, restart web.service",
		"/etc/systemd/system/web.service.d/10.conf":            "daemon-reload, restart web.service",
		"/usr/lib/systemd/system/other.timer":                  "daemon-reload, restart other.timer",
		"/etc/systemd/system/kiln-grid.path":                   "daemon-reload, restart kiln-grid.path",
		"/etc/systemd/system/build.mount":                      "daemon-reload; note",
		"/etc/systemd/system/x.socket":                         "daemon-reload; note",
		"/etc/systemd/system/x@.service":                       "daemon-reload; note",
		"/etc/systemd/system/x.target":                         "daemon-reload",
		"/etc/systemd/system/multi-user.target.wants/x":        "",
		"/etc/sudoers.d/90-kiln-alice":                         "",
		"/srv/nomad.d/x":                                       "",
		"/etc/apt/sources.list.d/hashicorp.sources":            "",
		"/etc/dhcp/dhclient-enter-hooks.d/kiln-resolv":         "",
		"/etc/systemd/system/nomad.service.d/20-kiln-host.con": "",
	} {
		does, note := w.readers(path, []byte("a = 1\n"), []byte("a = 2\n"))
		var got []string
		for _, a := range does {
			got = append(got, a.String())
		}
		text := strings.Join(got, ", ")
		if note != "" {
			text += "; note"
		}
		if text != want {
			t.Errorf("%s: %q, not %q", path, text, want)
		}
	}
	// A unit that isn't wanted is nobody's to restart.
	if does, _ := wantUnits().readers("/etc/nomad.d/nomad.hcl", nil, []byte("x")); len(does) > 0 {
		t.Errorf("got %v", does)
	}
	if does, note := w.readers("/etc/systemd/system/web.service", []byte("x"), nil); len(does) != 1 || does[0].verb != daemonReload || !strings.Contains(note, "web.service") {
		t.Errorf("a unit's file that goes: %v, %q", does, note)
	}
}

func TestConsulReloads(t *testing.T) {
	const before = `node_name = "a"
acl {
  enabled = true
  tokens { agent = "one" }
}
service { name = "x" }
`
	for name, c := range map[string]struct {
		before, after string
		want          bool
	}{
		"nothing":        {before, before, true},
		"comment":        {before, "# new\n" + before, true},
		"token":          {before, strings.Replace(before, "one", "two", 1), true},
		"new tokens":     {"node_name = \"a\"\nacl {\n  enabled = true\n}\n", "node_name = \"a\"\nacl {\n  enabled = true\n  tokens { agent = \"one\" }\n}\n", true},
		"service":        {before, strings.Replace(before, `"x"`, `"y"`, 1), true},
		"service gone":   {before, strings.Replace(before, "service { name = \"x\" }\n", "", 1), true},
		"JSON service":   {`{"service": {"name": "x"}}`, `{"service": {"name": "y"}}`, true},
		"JSON name":      {`{"node_name": "x"}`, `{"node_name": "y"}`, false},
		"new file":       {"", `checks { id = "a" }`, true},
		"new, of others": {"", `encrypt = "a"`, false},
		"acl":            {before, strings.Replace(before, "enabled = true", "enabled = false", 1), false},
		"name":           {before, strings.Replace(before, `"a"`, `"b"`, 1), false},
		"more":           {before, before + "encrypt = \"x\"\n", false},
		"less":           {before + "encrypt = \"x\"\n", before, false},
		"broken":         {before, "x = {", false},
		"was broken":     {"x = {", before, false},
	} {
		if got := consulReloads([]byte(c.before), []byte(c.after)); got != c.want {
			t.Errorf("%s: reload is enough: %v", name, got)
		}
	}
}

func TestOrder(t *testing.T) {
	w := wantUnits("dnsmasq.service", "consul.service", "nomad.service")
	got := w.order([]action{
		{restart, "zzz.service"}, {restart, nomadUnit}, {reload, "consul.service"}, {verb: network}, {restart, hostUnit}, {restart, "aaa.service"},
		{verb: daemonReload}, {restart, "consul.service"}, {reload, "consul.service"}, {restart, "dnsmasq.service"}, {verb: daemonReload}, {start, nomadUnit}, {restart, nomadUnit},
	})
	var text []string
	for _, a := range got {
		text = append(text, a.String())
		if again, ok := parseAction(a.String()); !ok || again != a {
			t.Errorf("%s is read as %v, %v", a, again, ok)
		}
	}
	want := "daemon-reload, network, restart kiln-host.service, restart dnsmasq.service, restart consul.service, start nomad.service, restart aaa.service, restart zzz.service"
	if strings.Join(text, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(text, ", "), want)
	}
	for _, line := range []string{"", "restart", "daemon-reload x", "explode x.service", "drained abc"} {
		if a, ok := parseAction(line); ok {
			t.Errorf("%q is read as %v", line, a)
		}
	}
}

// Both packages must mean the same files.
func TestPathsAreThoseThatRenderWrites(t *testing.T) {
	if manifestPath != render.ManifestPath || imageList != render.ImageListPath {
		t.Error("the paths differ from render's")
	}
	for _, p := range []string{render.TmpfilesPath, render.DisksPath} {
		if does, _ := wantUnits(hostUnit).readers(p, nil, []byte{}); !slices.Contains(does, action{restart, hostUnit}) {
			t.Errorf("%s: %v", p, does)
		}
	}
	if does, _ := wantUnits().readers(render.BootTmpfilesPath, nil, []byte{}); !slices.Contains(does, action{verb: directories}) {
		t.Errorf("%s: %v", render.BootTmpfilesPath, does)
	}
}
