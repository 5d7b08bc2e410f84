//go:build integration

package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/lab"
)

// movers are hosts whose Nomad, and maybe Consul, moves to another address. All
// are processes in the network of one cluster.
type movers struct {
	*cluster
	kiln    string
	ssh     string      // the folder of ssh's and sshd's files, and what ssh was called with
	sshd    *lab.Daemon // the second host's
	agent02 string      // the policy of the second host's Consul agent
	// Where kiln is told that Consul and Nomad are, if not where they are.
	consulAt, nomadAt string
}

// mover is one host.
type mover struct {
	name     string
	before   string // address
	after    string
	loopback bool   // whether its Consul's API is on the loopback interface alone
	token    string // of its Consul agent
}

var (
	mover1 = mover{"build01", "10.66.0.11", "10.66.0.21", false, agentToken}
	mover2 = mover{"build02", "10.66.0.12", "10.66.0.22", true, "4c2d7d4e-0000-4000-8000-000000000004"}
	mover3 = mover{"build03", "10.66.0.13", "10.66.0.23", false, agentToken}
)

func (m *mover) api(address string) string {
	if m.loopback {
		return "127.0.0.1"
	}
	return address
}

const (
	readToken  = "4c2d7d4e-0000-4000-8000-000000000005"
	otherCount = 300
)

// TestLeftovers has hosts change their address, and finds and removes what they
// leave in Consul: through the agent that has it, over HTTP and over ssh, and in the
// catalog where the agent is dead.
func TestLeftovers(t *testing.T) {
	m := newMovers(t)
	for _, step := range []struct {
		name string
		f    func(t *testing.T)
	}{
		{"three hosts join, and nothing is left over", m.join},
		{"they move, and each leaves an entry", m.move},
		{"exactly those are found among hundreds", m.find},
		{"a token that sees nothing isn't taken for nothing left", m.blind},
		{"a token that may only read is reported", m.readOnly},
		{"deleted from the catalog alone, one comes back", m.comesBack},
		{"without Nomad nothing is proven, and nothing changed", m.withoutNomad},
		{"fixed through the agents, and in the catalog of a dead one", m.fix},
	} {
		if !t.Run(step.name, step.f) {
			t.Fatalf("%s: what follows builds on it", step.name)
		}
	}
}

func newMovers(t *testing.T) *movers {
	t.Helper()
	var more []netip.Addr
	for _, h := range []mover{mover1, mover2, mover3} {
		more = append(more, netip.MustParseAddr(h.before), netip.MustParseAddr(h.after))
	}
	m := &movers{ssh: t.TempDir()}
	build := make(chan error, 1)
	m.kiln = filepath.Join(t.TempDir(), "kiln")
	go func() {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", m.kiln, "./cmd/kiln")
		cmd.Dir = repository(t)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		build <- err
	}()
	m.cluster = labCluster(t, lab.Config{Region: "alice", Secrets: clusterTokens, NomadACL: true, Names: []string{"server1.example.org"}})
	if err := <-build; err != nil {
		t.Fatal(err)
	}
	for _, a := range more {
		if _, err := m.space.Run(t.Context(), "ip address add "+a.String()+"/24 dev lab0"); err != nil {
			t.Fatal(err)
		}
	}
	m.startSSHD(t, mover2)
	m.agent02 = m.policy(t, "agent02", mover2.token, `node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }`)
	m.policy(t, "reader", readToken, `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`)
	return m
}

func (m *movers) join(t *testing.T) {
	for _, h := range []mover{mover1, mover2, mover3} {
		m.consul(t, h, h.before)
		m.nomad(t, h, h.before, h.before)
	}
	for _, h := range []mover{mover1, mover2, mover3} {
		eventually(t, h.name+" is in Nomad and Consul", func() bool { return m.ready(t, h.name, h.before) && len(m.clients(t, h.name)) == 1 })
	}
	m.others(t)
	eventually(t, "all that isn't Nomad's is in the catalog", func() bool { return m.countOthers(t) == otherCount })
	if _, out := m.leftovers(t, 0, management); len(out.Leftovers) > 0 || out.Entries != otherCount+3 {
		t.Errorf("found %+v", out)
	}
}

// others registers hundreds of entries under the same service's name, with the
// address of a host that moves: those of servers, and of nobody known, on its own
// agent; those of tasks, which Nomad would reap there, on nodes without one.
func (m *movers) others(t *testing.T) {
	t.Helper()
	meta := map[string]string{"external-source": "nomad"}
	for i := range otherCount {
		kind := []string{"_nomad-task-", "_nomad-server-", "client-"}[i%3]
		id := fmt.Sprintf("%s%03d", kind, i)
		if kind != "_nomad-task-" {
			m.put(t, "http://"+mover1.before+":8500/v1/agent/service/register", map[string]any{"ID": id, "Name": "nomad-client", "Address": mover1.before, "Port": 4646, "Meta": meta})
			continue
		}
		m.put(t, m.ConsulURL("/v1/catalog/register"), map[string]any{"Node": fmt.Sprintf("ext%03d", i), "Address": mover1.before,
			"Service": map[string]any{"ID": id, "Service": "nomad-client", "Address": mover1.before, "Port": 4646, "Meta": meta}})
	}
}

func (m *movers) countOthers(t *testing.T) (n int) {
	t.Helper()
	var list []struct{ ServiceID string }
	if m.get(m.ConsulURL("/v1/catalog/service/nomad-client"), &list) != nil {
		return 0
	}
	for _, l := range list {
		if !strings.HasPrefix(l.ServiceID, "_nomad-client-") {
			n++
		}
	}
	return n
}

func (m *movers) move(t *testing.T) {
	for _, h := range []mover{mover1, mover2, mover3} {
		m.kill(t, "KILL", "nomad", h.name)
	}
	// The first moves as a whole, of the others only Nomad. Its Consul leaves the
	// cluster, and knows its services when it is back.
	m.kill(t, "TERM", "consul", mover1.name)
	m.consul(t, mover1, mover1.after)
	m.nomad(t, mover1, mover1.after, mover1.after)
	m.nomad(t, mover2, mover2.after, mover2.before)
	m.nomad(t, mover3, mover3.after, mover3.before)
	for _, h := range []mover{mover1, mover2, mover3} {
		eventually(t, h.name+" is ready at its new address, and has left an entry", func() bool {
			c := m.clients(t, h.name)
			return m.ready(t, h.name, h.after) && len(c) == 2 && c[h.before] != "" && c[h.after] != ""
		})
	}
}

// leftoversOut is what kiln consul leftovers --json prints.
type leftoversOut struct {
	Entries   int
	Problem   string
	Watched   float64 `json:"watched_seconds"`
	Leftovers []struct {
		Node, ID, Address, Verdict, Why, How, Error string
		Removed                                     bool
		Notes                                       []string
	}
}

// leftovers runs kiln in the cluster's network, with a token for Consul.
func (m *movers) leftovers(t *testing.T, status int, token string, args ...string) (said string, out leftoversOut) {
	t.Helper()
	argv := append([]string{m.kiln, "consul", "leftovers", "--json", "--ssh-config", filepath.Join(m.ssh, "ssh_config")}, args...)
	cmd := m.space.Command(t.Context(), argv...)
	cmd.Env = append(slices.Clone(cmd.Env), "PATH="+m.ssh+":/usr/sbin:/usr/bin:/sbin:/bin", "CONSUL_HTTP_ADDR="+cmp.Or(m.consulAt, m.ConsulURL("")), "CONSUL_HTTP_TOKEN="+token,
		"NOMAD_ADDR="+cmp.Or(m.nomadAt, m.NomadURL("")), "NOMAD_TOKEN="+management, "NOMAD_REGION=alice")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != status {
		t.Fatalf("%v, want exit status %d:\n%s%s", err, status, &stdout, &stderr)
	}
	if stdout.Len() > 0 {
		if err := json.Unmarshal([]byte(stdout.String()), &out); err != nil {
			t.Fatalf("%v: %s", err, &stdout)
		}
	}
	if all := stdout.String() + stderr.String(); token != "" && strings.Contains(all, token) {
		t.Errorf("the token is shown: %s", all)
	}
	return stderr.String(), out
}

func (m *movers) find(t *testing.T) {
	_, out := m.leftovers(t, 1, management)
	if len(out.Leftovers) != 3 || out.Problem != "" {
		t.Fatalf("found %+v", out)
	}
	for i, h := range []mover{mover1, mover2, mover3} {
		l := out.Leftovers[i]
		if l.Node != h.name || l.ID != m.clients(t, h.name)[h.before] || l.Address != h.before+":4646" || l.Verdict != "stale" || !strings.Contains(l.Why, "is ready at "+h.after+":4646") {
			t.Errorf("%s: %+v", h.name, l)
		}
	}
}

func (m *movers) blind(t *testing.T) {
	// The server has a token of its own for those who show none; a client has not.
	m.consulAt = "http://" + mover1.after + ":8500"
	_, out := m.leftovers(t, 2, "")
	m.consulAt = ""
	if !strings.Contains(out.Problem, "there is no service nomad-client, while Nomad has ready nodes") {
		t.Errorf("got %+v", out)
	}
	// A token that Consul knows, and that sees a part.
	const some = "4c2d7d4e-0000-4000-8000-000000000006"
	m.policy(t, "some", some, `node "`+mover1.name+`" { policy = "read" } service_prefix "" { policy = "read" }`)
	_, out = m.leftovers(t, 2, some)
	if len(out.Leftovers) != 1 || !strings.Contains(out.Problem, "its token may not see all") {
		t.Errorf("got %+v", out)
	}
	said, _ := m.leftovers(t, 2, "4c2d7d4e-0000-4000-8000-00000000000f")
	if !strings.Contains(said, "403") || !strings.Contains(said, "CONSUL_HTTP_TOKEN") {
		t.Errorf("an unknown token: %s", said)
	}
}

func (m *movers) readOnly(t *testing.T) {
	_, out := m.leftovers(t, 1, readToken, "--fix", "--yes", "--wait", "0")
	if len(out.Leftovers) != 3 {
		t.Fatalf("found %+v", out)
	}
	for _, l := range out.Leftovers {
		if l.Removed || !strings.Contains(l.Error, "403") || !strings.Contains(l.Error, `it needs service "nomad-client" { policy = "write" }`) {
			t.Errorf("got %+v", l)
		}
	}
	for _, h := range []mover{mover1, mover2, mover3} {
		if len(m.clients(t, h.name)) != 2 {
			t.Errorf("%s has %v", h.name, m.clients(t, h.name))
		}
	}
}

// comesBack is why the catalog isn't where an entry is removed whose agent lives.
func (m *movers) comesBack(t *testing.T) {
	id := m.clients(t, mover1.name)[mover1.before]
	created := func() (index uint64) {
		var list []struct {
			ServiceID   string
			CreateIndex uint64
		}
		if m.get(m.ConsulURL("/v1/catalog/service/nomad-client"), &list) != nil {
			return 0
		}
		for _, l := range list {
			if l.ServiceID == id {
				index = l.CreateIndex
			}
		}
		return index
	}
	before := created()
	m.put(t, m.ConsulURL("/v1/catalog/deregister"), map[string]string{"Node": mover1.name, "ServiceID": id})
	m.synchronise(t, mover1)
	eventually(t, "its agent has registered it again", func() bool { return created() > before })
}

// synchronise has a host's Consul agent tell the servers all that it knows, as it
// does every minute or two: it does so when it starts, too. That it has is seen by an
// entry of the agent's that the catalog lacks meanwhile.
func (m *movers) synchronise(t *testing.T, h mover) {
	t.Helper()
	const marker = "_nomad-server-001"
	there := func() bool {
		var list []struct{ ServiceID string }
		return m.get(m.ConsulURL("/v1/catalog/service/nomad-client"), &list) == nil && slices.ContainsFunc(list, func(l struct{ ServiceID string }) bool { return l.ServiceID == marker })
	}
	m.kill(t, "KILL", "consul", h.name)
	m.put(t, m.ConsulURL("/v1/catalog/deregister"), map[string]string{"Node": h.name, "ServiceID": marker})
	if there() {
		t.Fatalf("%s has no entry %s of its own", h.name, marker)
	}
	m.consul(t, h, h.after)
	eventually(t, h.name+" has told all that it knows", there)
}

func (m *movers) fix(t *testing.T) {
	m.kill(t, "KILL", "consul", mover3.name)
	eventually(t, "Consul has seen that the agent is dead", func() bool {
		var checks []struct{ CheckID, Status string }
		return m.get(m.ConsulURL("/v1/health/node/"+mover3.name), &checks) == nil && slices.ContainsFunc(checks, func(c struct{ CheckID, Status string }) bool {
			return c.CheckID == "serfHealth" && c.Status == "critical"
		})
	})
	// The agent of the second can't delete any more, and says so in its log alone.
	m.put(t, m.ConsulURL("/v1/acl/policy/"+m.agent02), map[string]any{"Name": "agent02", "Rules": `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }`})
	_, out := m.leftovers(t, 0, management, "--fix", "--yes", "--wait", "3s")
	if len(out.Leftovers) != 3 || out.Watched < 3 {
		t.Fatalf("found %+v", out)
	}
	for i, want := range []struct {
		host      mover
		how, note string
	}{
		{mover1, "the agent at http://10.66.0.21:8500", ""},
		{mover2, "the agent at 127.0.0.1:8500 on build02, over ssh, then the catalog", "the agent's own token (acl.tokens.agent) lacks"},
		{mover3, "the catalog", "the Consul agent of build03 is gone"},
	} {
		l := out.Leftovers[i]
		if l.Node != want.host.name || !l.Removed || l.Error != "" || l.How != want.how || !strings.Contains(strings.Join(l.Notes, "\n"), want.note) {
			t.Errorf("%s: %+v", want.host.name, l)
		}
		if c := m.clients(t, want.host.name); len(c) != 1 || c[want.host.after] == "" {
			t.Errorf("%s has the entries %v", want.host.name, c)
		}
	}
	if n := m.countOthers(t); n != otherCount {
		t.Errorf("of %d other entries %d are left", otherCount, n)
	}
	m.checkSSH(t)
	m.synchronise(t, mover1)
	if _, out := m.leftovers(t, 0, management); len(out.Leftovers) > 0 {
		t.Errorf("a second look finds %+v", out)
	}
}

// checkSSH holds what ssh was called with against what it may be, and wants sshd to
// have let it in.
func (m *movers) checkSSH(t *testing.T) {
	t.Helper()
	calls, err := os.ReadFile(filepath.Join(m.ssh, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	for call := range strings.Lines(string(calls)) {
		call = strings.TrimSpace(call) + " "
		if !strings.Contains(call, " -- "+mover2.name+" ") && !strings.Contains(call, " -- "+mover3.name+" ") || strings.Contains(call, management) || strings.Contains(call, readToken) {
			t.Errorf("called ssh %s", call)
		}
	}
	if log := m.sshd.Log(); !strings.Contains(log, "Accepted publickey for root") {
		t.Errorf("nobody has logged in to %s:\n%s", mover2.name, log)
	}
}

func (m *movers) withoutNomad(t *testing.T) {
	m.nomadAt = "http://10.66.0.1:4646"
	defer func() { m.nomadAt = "" }()
	said, out := m.leftovers(t, 2, management, "--fix", "--yes")
	if len(out.Leftovers) != 6 || !strings.Contains(said, "nothing is proven: asking Nomad at http://10.66.0.1:4646") {
		t.Errorf("%s: %+v", said, out)
	}
	for _, l := range out.Leftovers {
		if l.Verdict != "cannot prove" || l.Removed || len(m.clients(t, l.Node)) != 2 {
			t.Errorf("got %+v", l)
		}
	}
}
