package verify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/plan"
)

// found is a report as a line for each finding: its check, its object, what was
// expected and what was found.
func found(r verify.Report) string {
	var lines []string
	for _, f := range r.Findings {
		lines = append(lines, strings.ReplaceAll(fmt.Sprintf("%s %s %s: %s | %s", f.Status, f.Check, f.Object, f.Expected, f.Found), "  ", " "))
	}
	return strings.Join(lines, "\n")
}

func verifyHost(t *testing.T, v *verify.Verifier, p *plan.Plan) verify.Report {
	t.Helper()
	r, err := v.Host(t.Context(), verify.Target{Plan: p, Versions: versions})
	if err != nil {
		t.Fatal(err)
	}
	if r.OK != (len(r.Findings) == 0) || r.Host != p.Host.Name {
		t.Errorf("the report says %s, ok %v, with %d findings", r.Host, r.OK, len(r.Findings))
	}
	for _, f := range r.Findings {
		if f.Fix == "" || f.Expected == "" || f.Found == "" {
			t.Errorf("a finding leaves something unsaid: %+v", f)
		}
	}
	return r
}

func TestAGoodHostHasNoFinding(t *testing.T) {
	r := verifyHost(t, verifier(t, goodState(3)), planOf(t, 2))
	if !r.OK {
		t.Errorf("found:\n%s", found(r))
	}
	want := "[nomad-node nomad-duplicate nomad-eligible nomad-region nomad-datacenter nomad-class nomad-address nomad-meta nomad-volume nomad-driver nomad-version reservation " +
		"consul-node consul-server consul-health consul-address consul-service consul-version]"
	if got := fmt.Sprint(r.Checked); got != want {
		t.Errorf("checked %s,\nnot     %s", got, want)
	}
}

// deviations are what can be wrong with a host, build02, as the cluster sees it.
var deviations = []struct {
	name   string
	change func(s *state, n *nomad.Node)
	want   string
}{
	{"no node", func(s *state, n *nomad.Node) { s.nodes = s.nodes[:1] }, "differs nomad-node : a node called build02.example.org | none"},
	{"down", func(s *state, n *nomad.Node) { n.Status = "down"; n.StatusUpdatedAt = 1e9 }, "differs nomad-node status: ready | down since 2001-09-09 01:46:40"},
	{"short name", func(s *state, n *nomad.Node) { n.Name = "build02" }, "differs nomad-node name: build02.example.org | build02"},
	{"ineligible", func(s *state, n *nomad.Node) { n.SchedulingEligibility = "ineligible" }, "differs nomad-eligible : eligible | ineligible"},
	{"draining", func(s *state, n *nomad.Node) { n.SchedulingEligibility, n.Drain = "ineligible", true }, "differs nomad-eligible : eligible | draining"},
	{"datacenter", func(s *state, n *nomad.Node) { n.Datacenter = "dc1" }, "differs nomad-datacenter : ci | dc1"},
	{"node pool", func(s *state, n *nomad.Node) { n.NodePool = "gpu" }, "differs nomad-class node_pool: default | gpu"},
	{"node class", func(s *state, n *nomad.Node) { n.NodeClass = "big" }, "differs nomad-class node_class: none | big"},
	{"address in Nomad", func(s *state, n *nomad.Node) {
		n.HTTPAddr = "10.0.0.9:4646"
		s.services["nomad-client"][1].ServiceAddress = "10.0.0.9"
	}, "differs nomad-address : 192.0.2.3 | 10.0.0.9"},
	{"address in Consul", func(s *state, n *nomad.Node) { s.catalog[1].Address = "10.0.0.9" }, "differs consul-address : 192.0.2.3 | 10.0.0.9"},
	{"no meta", func(s *state, n *nomad.Node) { delete(n.Meta, "rack") }, "differs nomad-meta rack: b12 | none"},
	{"other meta", func(s *state, n *nomad.Node) { n.Meta["allow_compilation"] = "false" }, "differs nomad-meta allow_compilation: true | false"},
	{"no volume", func(s *state, n *nomad.Node) { n.HostVolumes = nil }, "differs nomad-volume grid: /etc/grid-security, read-only | none"},
	{"volume is writable", func(s *state, n *nomad.Node) { n.HostVolumes["grid"].ReadOnly = false }, "differs nomad-volume grid: /etc/grid-security, read-only | /etc/grid-security"},
	{"no driver", func(s *state, n *nomad.Node) { n.Drivers["raw_exec"].Detected = false }, "differs nomad-driver raw_exec: detected and healthy | not detected"},
	{"unhealthy driver", func(s *state, n *nomad.Node) {
		n.Drivers["raw_exec"] = &nomad.DriverInfo{Detected: true, HealthDescription: "it hangs"}
	}, "differs nomad-driver raw_exec: detected and healthy | unhealthy: it hangs"},
	{"older than the lock", func(s *state, n *nomad.Node) { n.Attributes["nomad.version"] = "1.9.7" }, "differs nomad-version lock: 1.10.5 | 1.9.7"},
	{"newer than a server", func(s *state, n *nomad.Node) { s.members[1].Tags["build"] = "1.10.4" }, "differs nomad-version servers: no newer than the servers, 1.10.4 | 1.10.5"},
	{"newer than Consul's server", func(s *state, n *nomad.Node) { s.services["consul"][0].ServiceMeta["version"] = "1.21.9" },
		"differs consul-version servers: no newer than the servers, 1.21.9 | 1.22.2"},
	{"no version", func(s *state, n *nomad.Node) { s.catalog[1].Meta = nil }, "unknown consul-version : a version | none is known"},
	{"MHz", func(s *state, n *nomad.Node) { n.ReservedResources.Cpu.CpuShares = 0 }, "differs reservation cpu: 20801 MHz, 50% of 41601 MHz | 0 MHz"},
	{"memory", func(s *state, n *nomad.Node) { n.ReservedResources.Memory.MemoryMB = 32000 }, "differs reservation memory: 32059 MiB, 50% of 64117 MiB | 32000 MiB"},
	{"disk", func(s *state, n *nomad.Node) { n.ReservedResources.Disk.DiskMB = 0 },
		"differs reservation disk: jobs get 512000 MiB of 1024000 MiB, of which 921600 MiB were free | they get 921600 MiB"},
	{"no node in Consul", func(s *state, n *nomad.Node) { s.catalog[1].Node = "other.example.org" },
		"differs consul-node : a node called build02.example.org | other.example.org has its address 192.0.2.3"},
	{"datacenter of Consul", func(s *state, n *nomad.Node) { s.catalog[1].Datacenter = "dc1" }, "differs consul-node datacenter: ci | dc1"},
	{"a server of Consul", func(s *state, n *nomad.Node) {
		s.services["consul"] = append(s.services["consul"], &consul.CatalogService{Node: hostName(2), ServiceMeta: map[string]string{"version": "1.22.2"}})
	}, "differs consul-server : a client | a server"},
	{"failing", func(s *state, n *nomad.Node) { s.checks[2].Status = "critical" }, "differs consul-health Serf Health Status: passing | critical"},
	{"not registered", func(s *state, n *nomad.Node) { s.services["nomad-client"] = s.services["nomad-client"][:1] }, "differs consul-service nomad-client: registered once | not registered"},
	{"registered twice", func(s *state, n *nomad.Node) {
		s.services["nomad-client"] = append(s.services["nomad-client"], &consul.CatalogService{Node: hostName(2), ServiceID: "_nomad-client-old", ServiceAddress: "10.0.0.9"})
	}, "differs consul-service nomad-client: registered once | registered 2 times"},
	{"registered elsewhere", func(s *state, n *nomad.Node) { s.services["nomad-client"][1].ServiceAddress = "10.0.0.9" },
		"differs consul-service nomad-client: at 192.0.2.3, as Nomad says | at 10.0.0.9"},
	{"an old entry", func(s *state, n *nomad.Node) {
		s.nodes = append(s.nodes, &nomad.Node{ID: "99999999-0", Name: hostName(2), Status: "down", HTTPAddr: "10.0.0.9:4646", ModifyIndex: 999})
	}, "differs nomad-duplicate 99999999: one node of this name, 00000002 | also 99999999 at 10.0.0.9, down"},
	{"two of a name", func(s *state, n *nomad.Node) {
		s.nodes = append(s.nodes, &nomad.Node{ID: "99999999-0", Name: hostName(2), Status: "ready", HTTPAddr: "10.0.0.9:4646"})
	}, "differs nomad-duplicate 99999999: one node of this name, 00000002 | also 99999999 at 10.0.0.9, ready"},
}

// TestEachDeviation has one thing wrong at a time: it is found, and nothing else.
func TestEachDeviation(t *testing.T) {
	p := planOf(t, 2)
	for _, tt := range deviations {
		t.Run(tt.name, func(t *testing.T) {
			s := goodState(2)
			tt.change(s, s.nodes[1])
			if got := found(verifyHost(t, verifier(t, s), p)); got != tt.want {
				t.Errorf("found:\n%s\nnot:\n%s", got, tt.want)
			}
		})
	}
}

// TestServers have no node at Nomad's, but are members.
func TestServers(t *testing.T) {
	p := planOf(t, 1)
	p.Host.Files = append(p.Host.Files,
		plan.File{Path: "/etc/nomad.d/zz.hcl", Content: plan.Literal([]byte("server { enabled = true }\nclient { enabled = false }\n"))},
		plan.File{Path: "/etc/consul.d/zz.hcl", Content: plan.Literal([]byte("server = true\n"))})
	good := func() *state {
		s := goodState(1)
		s.nodes, s.services["nomad-client"] = nil, nil
		s.members = append(s.members, &nomad.AgentMember{
			Name: hostName(1) + ".alice", Addr: hostAddress(1), Status: "alive", Tags: map[string]string{"region": "alice", "build": "1.10.5"},
		})
		s.services["consul"] = append(s.services["consul"], &consul.CatalogService{Node: hostName(1), ServiceMeta: map[string]string{"version": "1.22.2"}})
		return s
	}
	for _, tt := range []struct {
		name   string
		change func(s *state)
		want   string
	}{
		{"good", func(*state) {}, ""},
		{"no member", func(s *state) { s.members = s.members[:2] }, "differs nomad-server : a server called build01.example.org | none"},
		{"of another region", func(s *state) { s.members[2].Tags["region"] = "bob" }, "differs nomad-server : a server called build01.example.org | none"},
		{"failed", func(s *state) { s.members[2].Status = "failed" }, "differs nomad-server status: alive | failed"},
		{"address", func(s *state) { s.members[2].Addr = "10.0.0.9" }, "differs nomad-server address: 192.0.2.2 | 10.0.0.9"},
		{"version", func(s *state) { s.members[2].Tags["build"] = "1.9.7" }, "differs nomad-version lock: 1.10.5 | 1.9.7"},
		{"no server of Consul", func(s *state) { s.services["consul"] = s.services["consul"][:1] }, "differs consul-server : a server | a client"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := good()
			tt.change(s)
			if got := found(verifyHost(t, verifier(t, s), p)); got != tt.want {
				t.Errorf("found:\n%s\nnot:\n%s", got, tt.want)
			}
		})
	}
}

// TestAgreement: where only the host knows its address, its agents have to agree.
func TestAgreement(t *testing.T) {
	p := planOf(t, 1)
	replace(t, p, `"192.0.2.2"`, `"{{ GetInterfaceIP \"eno1\" }}"`)
	s := goodState(1)
	s.catalog[0].Address = "10.0.0.9"
	const want = "differs consul-address : Nomad's, 192.0.2.2 | 10.0.0.9"
	if got := found(verifyHost(t, verifier(t, s), p)); got != want {
		t.Errorf("found:\n%s\nnot:\n%s", got, want)
	}
	if r := verifyHost(t, verifier(t, goodState(1)), p); !r.OK {
		t.Errorf("found:\n%s", found(r))
	}
}

// replace changes the text of the plan's own files.
func replace(t *testing.T, p *plan.Plan, old, with string) {
	t.Helper()
	changed := 0
	for i, f := range p.Host.Files {
		text, err := f.Content.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if after := strings.ReplaceAll(string(text), old, with); after != string(text) {
			p.Host.Files[i].Content = plan.Literal([]byte(after))
			changed++
		}
	}
	if changed == 0 {
		t.Fatalf("no file has %s", old)
	}
}

// TestWrittenReservation: a configuration of a profile of one's own, without any
// share.
func TestWrittenReservation(t *testing.T) {
	p := planOf(t, 1)
	p.Host.Reserved = plan.Reservation{}
	p.Host.Files = append(p.Host.Files, plan.File{Path: "/etc/nomad.d/zz.json", Content: plan.Literal([]byte(
		`{"client": {"reserved": {"cores": "0-7", "memory": 32059, "disk": 409600, "reserved_ports": "22,9100-9102"}}}`))})
	s := goodState(1)
	kept := s.nodes[0].ReservedResources
	kept.Networks.ReservedHostPorts = "22,9100,9101,9102"
	if r := verifyHost(t, verifier(t, s), p); !r.OK {
		t.Errorf("found:\n%s", found(r))
	}
	kept.Networks.ReservedHostPorts = "22"
	kept.Memory.MemoryMB, kept.Disk.DiskMB = 0, 1
	s.nodes[0].NodeResources.Cpu.ReservableCpuCores = []uint16{7, 8}
	const want = "differs reservation cores: 8 processors kept from jobs | jobs get the processors [7 8]\n" +
		"differs reservation disk: 409600 MiB | 1 MiB\ndiffers reservation memory: 32059 MiB | 0 MiB\ndiffers reservation ports: 22,9100-9102 | 22"
	if got := found(verifyHost(t, verifier(t, s), p)); got != want {
		t.Errorf("found:\n%s\nnot:\n%s", got, want)
	}
}

func TestSkip(t *testing.T) {
	s := goodState(1)
	s.nodes[0].Datacenter, s.nodes[0].Status = "dc1", "down"
	v := verifier(t, s)
	v.Skip = append(v.Skip, verify.CheckNomadDatacenter)
	r := verifyHost(t, v, planOf(t, 1))
	if got := found(r); got != "differs nomad-node status: ready | down" {
		t.Errorf("found:\n%s", got)
	}
	for _, c := range r.Checked {
		if c == verify.CheckNomadDatacenter || c == verify.CheckCertificate {
			t.Errorf("%s counts as checked", c)
		}
	}
}

// TestAClusterThatCannotBeAsked: an error that says what to do, and no report.
func TestAClusterThatCannotBeAsked(t *testing.T) {
	p := planOf(t, 1)
	good := goodState(1)
	status := func(path string, code int, text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, path) {
				http.Error(w, text, code)
			}
			return strings.HasPrefix(r.URL.Path, path)
		}
	}
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request) bool
		wants  []string
	}{
		{"403 of Nomad", status("/v1/nodes", 403, "Permission denied"), []string{"asking Nomad at http://", "Permission denied", "NOMAD_TOKEN"}},
		{"403 of a node", status("/v1/node/", 403, "Permission denied"), []string{"the node of build01.example.org", "NOMAD_TOKEN"}},
		{"403 of Consul", status("/v1/catalog/nodes", 403, "ACL not found"), []string{"asking Consul at ", "ACL not found", "CONSUL_HTTP_TOKEN"}},
		{"500 of Nomad", status("/v1/agent/members", 500, "No cluster leader"), []string{"No cluster leader", "is there a leader?"}},
		{"500 of Consul", status("/v1/health", 500, "No cluster leader"), []string{"asking Consul", "is there a leader?"}},
		{"a token of Consul's that sees little", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			return false
		}, []string{"asking Consul", "its answer isn't whole", "CONSUL_HTTP_TOKEN"}},
		{"no JSON", func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write([]byte("<html>"))
			return true
		}, []string{"invalid character"}},
		{"slow Nomad", slow("/v1/nodes"), []string{"asking Nomad", "took too long"}},
		{"slow node", slow("/v1/node/"), []string{"the node of build01", "took too long"}},
		{"slow Consul", slow("/v1/health"), []string{"asking Consul", "took too long"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := *good
			s.answer = tt.answer
			v := verifier(t, &s)
			if strings.HasPrefix(tt.name, "slow") {
				v.Timeout = 500 * time.Millisecond
			}
			refused(t, v, p, tt.wants...)
		})
	}
}

// TestAClusterOutOfReach likewise.
func TestAClusterOutOfReach(t *testing.T) {
	p, good := planOf(t, 1), goodState(1)
	t.Run("nobody there", func(t *testing.T) {
		server := httptest.NewServer(good)
		server.Close()
		refused(t, verifierAt(t, server.URL), p, "nobody answers there")
	})
	t.Run("of an unknown CA", func(t *testing.T) {
		server := httptest.NewUnstartedServer(good)
		server.Config.ErrorLog = log.New(io.Discard, "", 0) // what it says of our refusal
		server.StartTLS()
		t.Cleanup(server.Close)
		refused(t, verifierAt(t, server.URL), p, "name the CA that its certificate is of in NOMAD_CACERT", "in CONSUL_CACERT")
		refused(t, verifierAt(t, strings.Replace(server.URL, "https:", "http:", 1)), p, "write https:// in NOMAD_ADDR", "write https:// in CONSUL_HTTP_ADDR")
	})
	t.Run("without TLS", func(t *testing.T) {
		server := httptest.NewServer(good)
		t.Cleanup(server.Close)
		refused(t, verifierAt(t, strings.Replace(server.URL, "http:", "https:", 1)), p, "write http:// in NOMAD_ADDR", "write http:// in CONSUL_HTTP_ADDR")
	})
	t.Run("stopped", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := *good
		s.answer = func(_ http.ResponseWriter, r *http.Request) bool {
			cancel()
			<-r.Context().Done()
			return true
		}
		_, err := verifier(t, &s).Host(ctx, verify.Target{Plan: p})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// slow doesn't answer at a path as long as somebody waits.
func slow(path string) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, path) {
			return false
		}
		<-r.Context().Done()
		return true
	}
}

func refused(t *testing.T, v *verify.Verifier, p *plan.Plan, wants ...string) {
	t.Helper()
	r, err := v.Host(t.Context(), verify.Target{Plan: p, Versions: versions})
	if err == nil || r.OK {
		t.Fatalf("got ok %v, %v", r.OK, err)
	}
	for _, w := range wants {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q isn't in: %v", w, err)
		}
	}
}

func TestAPlanThatIsNoHCL(t *testing.T) {
	p := planOf(t, 1)
	p.Host.Files = append(p.Host.Files, plan.File{Path: "/etc/nomad.d/zz.hcl", Content: plan.Literal([]byte("client {"))})
	if _, err := verifier(t, goodState(1)).Host(t.Context(), verify.Target{Plan: p}); err == nil || !strings.Contains(err.Error(), "/etc/nomad.d/zz.hcl as it is rendered is no HCL") {
		t.Errorf("got %v", err)
	}
}

// BenchmarkHosts verifies 500 hosts against servers that answer over HTTP, each
// answer a round trip of 5 ms away.
func BenchmarkHosts(b *testing.B) {
	const hosts = 500
	s := goodState(hosts)
	s.answer = func(http.ResponseWriter, *http.Request) bool {
		time.Sleep(5 * time.Millisecond)
		return false
	}
	v := verifier(b, s)
	p := planOf(b, 1)
	targets := make([]verify.Target, hosts)
	for i := range targets {
		own := *p
		own.Host.Name = hostName(i + 1)
		own.Host.Files = nil
		for _, f := range p.Host.Files {
			text, _ := f.Content.Bytes()
			f.Content = plan.Literal([]byte(strings.NewReplacer(hostName(1), hostName(i+1), hostAddress(1), hostAddress(i+1)).Replace(string(text))))
			own.Host.Files = append(own.Host.Files, f)
		}
		targets[i] = verify.Target{Plan: &own, Versions: versions}
	}
	for b.Loop() {
		n := 0
		err := v.Hosts(b.Context(), targets, func(r verify.Report) {
			if n++; !r.OK || r.Host != hostName(n) {
				b.Errorf("%s:\n%s", r.Host, found(r))
			}
		})
		if err != nil || n != hosts {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(hosts/(b.Elapsed().Seconds()/float64(b.N)), "hosts/s")
}
