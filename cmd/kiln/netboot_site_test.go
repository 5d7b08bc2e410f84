package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

// TestBootableHosts: a host that isn't sound is left out, and an inventory that isn't
// is no inventory, since nobody knows which hosts are hidden in the rest of it.
func TestBootableHosts(t *testing.T) {
	const good = "- {name: build01, profile: tiny, interfaces: {lan: {mac: \"52:54:00:00:00:01\"}}}\n"
	for _, tt := range []struct{ name, hosts, problem, err string }{
		{"sound", good, "", ""},
		{"without a MAC", good + "- {name: build02, profile: tiny}\n", "", ""},
		{"one that isn't", good + "- {name: build02, profile: nowhere, interfaces: {lan: {mac: \"52:54:00:00:00:02\"}}}\n", "nowhere", ""},
		{"cut off by a line", good + "surprise\n- {name: build03, profile: tiny, interfaces: {lan: {mac: \"52:54:00:00:00:03\"}}}\n", "", "this line is no part of a list of hosts"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFiles(t, dir, map[string]string{"site.yaml": "domain: example.org\n", "hosts.yaml": tt.hosts, "profiles/tiny/profile.yaml": "image: {}\n"})
			site, problems, err := profiles.Open(dir)
			if err != nil || problems.Err() != nil {
				t.Fatal(err, problems)
			}
			hosts, problems, err := bootableHosts(t.Context(), site)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("the error is %v", err)
			}
			if err == nil && (len(hosts) != 1 || hosts[0].Name != "build01.example.org") {
				t.Errorf("the hosts are %v", hosts)
			}
			if (len(problems) == 0) != (tt.problem == "") || len(problems) > 0 && !strings.Contains(problems.Error(), tt.problem) {
				t.Errorf("the problems are %v", problems)
			}
		})
	}
}

// TestInstalledSeed: the host tells the server of its first boot, by a way that takes
// the place of nothing in its user-data.
func TestInstalledSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	if err := runInit(t.Context(), []string{dir}, &ui.UI{}); err != nil {
		t.Fatal(err)
	}
	site, _, err := profiles.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := baking.HostPlan(t.Context(), site, "build01")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := installedSeed(p, "")
	if err != nil {
		t.Fatal(err)
	}
	seed, err := installedSeed(p, "http://192.0.2.5:8080/first-boot/0123456789abcdef")
	if err != nil || len(seed) != len(plain)+1 {
		t.Fatalf("%v: %d files, and %d without the hook", err, len(seed), len(plain))
	}
	hook := seed[len(seed)-1]
	if hook.Name != "vendor-data" || !strings.HasPrefix(string(hook.Data), "#cloud-boothook\n") || !strings.Contains(string(hook.Data), `urlopen("http://192.0.2.5:8080/first-boot/0123456789abcdef"`) {
		t.Errorf("%s is\n%s", hook.Name, hook.Data)
	}
	if _, err := installedSeed(p, "first-boot/1"); err == nil {
		t.Error("a hook that leads nowhere is made")
	}
}
