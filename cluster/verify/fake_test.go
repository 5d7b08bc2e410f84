package verify_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// site has hosts whose half is reserved, with certificates and a volume of them.
const site = `
domain: example.org
datacenter: ci
region: alice
servers: {join: [server1.example.org], nomad: 1.10.5, consul: 1.22.2}
dns: {consul: [192.0.2.62], upstream: [192.0.2.53]}
tls: {}
secrets: {consul_encrypt: "env://KILN_TEST_GOSSIP", nomad_consul_token: "env://KILN_TEST_NOMAD"}
vars: {raw_exec: true, docker: false, nomad_meta: {rack: b12}}
`

// planOf resolves the host number n of a site, whose address is 192.0.2.n (or in
// the networks behind it).
func planOf(t testing.TB, n int) *plan.Plan {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"site.yaml":  site,
		"hosts.yaml": fmt.Sprintf("- {name: %s, profile: alissandra, advertise: %s}\n", hostName(n), hostAddress(n)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, problems, err := profiles.Open(dir)
	if err != nil || problems.Err() != nil {
		t.Fatal(err, problems)
	}
	p, problems, err := s.Host(t.Context(), hostName(n))
	if err != nil || problems.Err() != nil {
		t.Fatal(err, problems)
	}
	return p
}

func hostName(n int) string    { return fmt.Sprintf("build%02d.example.org", n) }
func hostAddress(n int) string { return fmt.Sprintf("192.0.%d.%d", 2+n/200, 1+n%200) }

// versions are those of a lock, as Debian writes them.
var versions = verify.Versions{Nomad: "1.10.5-1", Consul: "1.22.2-1"}

// state is what the servers of a cluster say.
type state struct {
	members  []*nomad.AgentMember
	nodes    []*nomad.Node
	catalog  []*consul.Node
	services map[string][]*consul.CatalogService
	checks   consul.HealthChecks

	answer func(w http.ResponseWriter, r *http.Request) (done bool)
}

// goodState is a cluster in which so many hosts are just as they should be, from
// number 1 on.
func goodState(hosts int) *state {
	server := func(name string) *nomad.AgentMember {
		return &nomad.AgentMember{Name: name + ".alice", Status: "alive", Tags: map[string]string{"region": "alice", "build": "1.10.5"}}
	}
	s := &state{members: []*nomad.AgentMember{server("server1"), server("server2")}, services: map[string][]*consul.CatalogService{
		"consul": {{Node: "server1", ServiceName: "consul", ServiceMeta: map[string]string{"version": "1.22.2"}}},
	}}
	for n := 1; n <= hosts; n++ {
		s.addHost(n)
	}
	return s
}

func (s *state) addHost(n int) {
	name, address := hostName(n), hostAddress(n)
	s.nodes = append(s.nodes, &nomad.Node{
		ID: fmt.Sprintf("%08d-1111-2222-3333-444444444444", n), Name: name, Datacenter: "ci", NodePool: "default", HTTPAddr: address + ":4646",
		Status: "ready", SchedulingEligibility: "eligible", ModifyIndex: uint64(100 + n),
		Attributes: map[string]string{"nomad.version": "1.10.5", "unique.storage.bytestotal": fmt.Sprint(int64(1000) << 30)},
		Meta:       map[string]string{"allow_compilation": "true", "rack": "b12", "connect.sidecar_image": "x"},
		HostVolumes: map[string]*nomad.HostVolumeInfo{
			"grid": {Path: "/etc/grid-security", ReadOnly: true},
		},
		Drivers: map[string]*nomad.DriverInfo{"raw_exec": {Detected: true, Healthy: true}, "docker": {}},
		NodeResources: &nomad.NodeResources{
			Cpu:    nomad.NodeCpuResources{CpuShares: 41601, TotalCpuCores: 16, ReservableCpuCores: []uint16{8, 9, 10, 11, 12, 13, 14, 15}},
			Memory: nomad.NodeMemoryResources{MemoryMB: 64117}, Disk: nomad.NodeDiskResources{DiskMB: 900 << 10},
		},
		ReservedResources: &nomad.NodeReservedResources{
			Cpu:    nomad.NodeReservedCpuResources{CpuShares: 20801},
			Memory: nomad.NodeReservedMemoryResources{MemoryMB: 32059}, Disk: nomad.NodeReservedDiskResources{DiskMB: 400 << 10},
		},
	})
	s.catalog = append(s.catalog, &consul.Node{Node: name, Address: address, Datacenter: "ci", Meta: map[string]string{"consul-version": "1.22.2"}})
	s.services["nomad-client"] = append(s.services["nomad-client"], &consul.CatalogService{
		Node: name, Address: address, ServiceID: "_nomad-client-" + fmt.Sprint(n), ServiceName: "nomad-client", ServiceAddress: address, ServicePort: 4646,
	})
	s.checks = append(s.checks,
		&consul.HealthCheck{Node: name, CheckID: "serfHealth", Name: "Serf Health Status", Status: "passing"},
		&consul.HealthCheck{Node: name, Name: "somebody's job", ServiceID: "_nomad-task-1", Status: "critical"})
}

func (s *state) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.answer != nil && s.answer(w, r) {
		return
	}
	var answer any
	switch path := r.URL.Path; {
	case r.Method != http.MethodGet:
		http.Error(w, "verify never writes", http.StatusTeapot)
		return
	case path == "/v1/agent/members":
		answer = nomad.ServerMembers{ServerRegion: "alice", Members: s.members}
	case path == "/v1/nodes":
		list := []*nomad.NodeListStub{}
		for _, n := range s.nodes {
			list = append(list, &nomad.NodeListStub{ID: n.ID, Name: n.Name, Status: n.Status, ModifyIndex: n.ModifyIndex, Address: strings.TrimSuffix(n.HTTPAddr, ":4646")})
		}
		answer = list
	case strings.HasPrefix(path, "/v1/node/"):
		id := strings.TrimPrefix(path, "/v1/node/")
		i := slices.IndexFunc(s.nodes, func(n *nomad.Node) bool { return n.ID == id })
		if i < 0 {
			http.Error(w, "node not found", http.StatusNotFound)
			return
		}
		answer = s.nodes[i]
	case path == "/v1/catalog/nodes":
		answer = s.catalog
	case path == "/v1/health/state/any":
		answer = s.checks
	case strings.HasPrefix(path, "/v1/catalog/service/"):
		answer = s.services[strings.TrimPrefix(path, "/v1/catalog/service/")]
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Consul-LastContact", "0") // Consul's client reads no other header without it
	_ = json.NewEncoder(w).Encode(answer)
}

// now is when the tests take place.
var now = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// verifier asks a cluster in that state. Certificates have tests of their own.
func verifier(t testing.TB, handler http.Handler) *verify.Verifier {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return verifierAt(t, server.URL)
}

func verifierAt(t testing.TB, url string) *verify.Verifier {
	t.Helper()
	for _, name := range []string{
		"NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_REGION", "NOMAD_NAMESPACE", "NOMAD_CACERT", "NOMAD_CLIENT_CERT",
		"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_HTTP_SSL", "CONSUL_CACERT", "CONSUL_CLIENT_CERT",
	} {
		t.Setenv(name, "")
	}
	n, err := cluster.NewNomad(url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.NewConsul(url)
	if err != nil {
		t.Fatal(err)
	}
	return &verify.Verifier{Nomad: n, Consul: c, Skip: []verify.Check{verify.CheckCertificate}, Now: func() time.Time { return now }}
}
