package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
)

// answers are those of a cluster with one host, build01, by path.
func answers() map[string]string {
	return map[string]string{
		"/v1/agent/members": `{"ServerRegion": "global", "Members": [{"Name": "server1.global", "Status": "alive", "Tags": {"region": "global", "build": "1.10.5"}}]}`,
		"/v1/nodes":         `[{"ID": "aaaaaaaa-1", "Name": "build01.example.org", "Status": "ready", "Address": "192.0.2.11"}]`,
		"/v1/node/aaaaaaaa-1": `{"ID": "aaaaaaaa-1", "Name": "build01.example.org", "Status": "ready", "SchedulingEligibility": "eligible", "Datacenter": "dc1",
			"HTTPAddr": "192.0.2.11:4646", "Attributes": {"nomad.version": "1.10.5"}, "Meta": {"allow_compilation": "true"},
			"NodeResources": {}, "ReservedResources": {}}`,
		"/v1/catalog/nodes":          `[{"Node": "build01.example.org", "Address": "192.0.2.11", "Datacenter": "dc1", "Meta": {"consul-version": "1.22.2"}}]`,
		"/v1/health/state/any":       `[{"Node": "build01.example.org", "Name": "Serf Health Status", "Status": "passing"}]`,
		"/v1/catalog/service/consul": `[{"Node": "server1", "ServiceMeta": {"version": "1.22.2"}}]`,
		"/v1/catalog/service/nomad-client": `[{"Node": "build01.example.org", "ServiceID": "_nomad-client-1", "ServiceAddress": "192.0.2.11", "ServicePort": 4646},
			{"Node": "build01.example.org", "ServiceID": "_nomad-client-2", "ServiceAddress": "192.0.2.99", "ServicePort": 4646}]`,
	}
}

// TestVerifyShowsFindings as a table, with what to do, and as JSON.
func TestVerifyShowsFindings(t *testing.T) {
	said := answers()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(said[r.URL.Path]))
	}))
	t.Cleanup(server.Close)
	for _, name := range []string{"NOMAD_TOKEN", "NOMAD_CACERT", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_SSL", "CONSUL_CACERT", "KILN_SITE"} {
		t.Setenv(name, "")
	}
	t.Setenv("NOMAD_ADDR", server.URL)
	t.Setenv("CONSUL_HTTP_ADDR", server.URL)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"site.yaml":  "domain: example.org\nservers: {join: [server1.example.org]}\ndns: {upstream: [192.0.2.53]}\nvars: {docker: false}\n",
		"hosts.yaml": "- {name: build01, profile: plain, advertise: 192.0.2.11}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kiln := func(want int, args ...string) string {
		t.Helper()
		var out, problems strings.Builder
		if got := call(append([]string{"verify", "--site", dir}, args...), &ui.UI{Out: &out, Err: &problems}); got != want || problems.Len() > 0 {
			t.Fatalf("exit status %d, not %d: %s", got, want, problems.String())
		}
		return out.String()
	}
	const table = `HOST                 CHECK                        EXPECTED         FOUND
build01.example.org  consul-service nomad-client  registered once  registered 2 times

build01.example.org, consul-service nomad-client: kiln consul leftovers tells which of them is stale, and removes it
    _nomad-client-1 at 192.0.2.11, port 4646
    _nomad-client-2 at 192.0.2.99, port 4646: not where Nomad says that it is

1 host: 0 as in the site, 1 finding on the others
`
	if got := kiln(exitFailed, "build01", "build01.example.org"); got != table {
		t.Errorf("got:\n%s\nnot:\n%s", got, table)
	}
	var result verifyHostsResult
	if err := json.Unmarshal([]byte(kiln(exitFailed, "--all", "--json")), &result); err != nil || result.OK || result.Findings != 1 || len(result.Hosts) != 1 {
		t.Errorf("got %+v, %v", result, err)
	}
	if got, want := kiln(exitOK, "--all", "--skip", "consul-service"), "1 host: as in the site\n"; got != want {
		t.Errorf("got %q, not %q", got, want)
	}
	// What the cluster says is shown as it can be on a terminal.
	said["/v1/catalog/nodes"] = strings.Replace(said["/v1/catalog/nodes"], `"dc1"`, `"\u001b[2Jdc2"`, 1)
	if got := kiln(exitFailed, "build01"); strings.Contains(got, "\x1b") || !strings.Contains(got, "�[2Jdc2") {
		t.Errorf("got:\n%s", got)
	}
}

// TestFilesToCompare are the plan's and Kiln's own, with references in the places
// of secrets; without what differs by nature.
func TestFilesToCompare(t *testing.T) {
	p := testplan.New()
	p.Image.AptSources = append(p.Image.AptSources,
		plan.AptSource{Name: "keyless", URIs: []string{"https://apt.example.org"}, Suites: []string{"x"}},
		plan.AptSource{Name: "folder", URIs: []string{"file:///srv/apt"}, Suites: []string{"x"}, Key: p.Image.AptSources[0].Key})
	files, err := filesOf(p)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]verify.File{}
	for _, f := range files {
		got[f.Path] = f
	}
	for path, want := range map[string]bool{
		"/etc/nomad.d/nomad.hcl": true, "/etc/default/empty": true, "/build/consul": true, "/etc/systemd/system/x.service": true, "/etc/kiln/disks": true,
		"/etc/apt/sources.list.d/hashicorp.sources": true, "/etc/apt/keyrings/folder.asc": true, "/etc/apt/sources.list.d/folder.sources": false,
		"/etc/apt/sources.list.d/keyless.sources": false, "/etc/kiln/host.manifest": false,
	} {
		if _, ok := got[path]; ok != want {
			t.Errorf("%s is compared: %v", path, ok)
		}
	}
	if refs := got["/etc/nomad.d/nomad.hcl"].Content.Unresolved(); len(refs) != 1 || !got["/build/consul"].Dir || got["/etc/systemd/system/x.service"].Target != "/dev/null" {
		t.Errorf("got %+v", got)
	}
}
