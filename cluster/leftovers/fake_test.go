package leftovers

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/cluster"
)

// token is the one that requests have to show.
const token = "7d3c1f4e-secret"

const leader = "192.0.2.2:8300"

// fake is a cluster that can be made to misbehave: a server of Consul, the agent of
// the node h, and Nomad.
type fake struct {
	mu      sync.Mutex
	catalog []Entry
	agent   []Entry // what h's agent has registered
	nodes   []Node
	serf    string // the state of h's agent, empty where it has none
	self    string // the name of the agent's node
	leads   string // the leader of the agent's cluster
	// answer, where set, answers in place of what is behind a path: METHOD PATH.
	answer map[string]http.HandlerFunc
	// weak has the agent forget what it deregisters, and the catalog keep it.
	weak bool
	// sticky has the catalog's entries come back once they are removed there.
	sticky   bool
	filtered bool
	asked    []string // METHOD PATH of what changes anything

	consul, own, nomad *httptest.Server
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{catalog: []Entry{old, now}, agent: []Entry{old, now}, nodes: []Node{at}, serf: "passing", self: "h", leads: leader, answer: map[string]http.HandlerFunc{}}
	f.consul = f.serve(t, f.consulServer())
	f.own = f.serve(t, f.agentServer())
	f.nomad = f.serve(t, f.nomadServer())
	for i := range f.catalog {
		f.catalog[i].NodeAddress = "127.0.0.1"
	}
	t.Setenv("CONSUL_HTTP_ADDR", f.consul.URL)
	t.Setenv("CONSUL_HTTP_TOKEN", token)
	t.Setenv("NOMAD_ADDR", f.nomad.URL)
	return f
}

func (f *fake) serve(t *testing.T, mux *http.ServeMux) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if req.Method != http.MethodGet {
			f.asked = append(f.asked, req.Method+" "+req.URL.Path)
		}
		if answer := f.answer[req.Method+" "+req.URL.Path]; answer != nil {
			answer(w, req)
			return
		}
		mux.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	return s
}

func reply(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

// fails answers with a status, as Consul does.
func fails(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, status) }
}

func (f *fake) consulServer() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/catalog/service/{name}", func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("X-Consul-Token") != token {
			http.Error(w, "ACL not found", http.StatusForbidden)
			return
		}
		w.Header().Set("X-Consul-LastContact", "0")
		if f.filtered {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
		}
		list := []map[string]any{}
		for _, e := range f.catalog {
			if e.Service == req.PathValue("name") {
				list = append(list, map[string]any{"Node": e.Node, "Address": e.NodeAddress, "ServiceID": e.ID, "ServiceName": e.Service,
					"ServiceAddress": e.Address, "ServicePort": e.Port, "ServiceMeta": map[string]string{"external-source": e.Source}})
			}
		}
		reply(w, list)
	})
	mux.HandleFunc("GET /v1/catalog/nodes", func(w http.ResponseWriter, _ *http.Request) { reply(w, []any{map[string]string{"Node": "h"}}) })
	mux.HandleFunc("GET /v1/health/node/{name}", func(w http.ResponseWriter, _ *http.Request) {
		checks := []map[string]string{}
		if f.serf != "" {
			checks = append(checks, map[string]string{"CheckID": "serfHealth", "Status": f.serf})
		}
		reply(w, checks)
	})
	mux.HandleFunc("GET /v1/agent/self", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"Config": map[string]string{"NodeName": "server1"}})
	})
	mux.HandleFunc("GET /v1/status/leader", func(w http.ResponseWriter, _ *http.Request) { reply(w, leader) })
	mux.HandleFunc("PUT /v1/catalog/deregister", func(w http.ResponseWriter, req *http.Request) {
		var what struct{ Node, ServiceID string }
		if err := json.NewDecoder(req.Body).Decode(&what); err != nil || what.ServiceID == "" {
			http.Error(w, "the whole node", http.StatusTeapot)
			return
		}
		if !f.sticky {
			f.catalog = without(f.catalog, what.ServiceID)
		}
		reply(w, true)
	})
	return mux
}

func without(entries []Entry, id string) []Entry {
	return slices.DeleteFunc(entries, func(e Entry) bool { return e.ID == id })
}

func (f *fake) agentServer() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status/leader", func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("X-Consul-Token") == token {
			http.Error(w, "a token was shown to somebody unknown", http.StatusTeapot)
			return
		}
		reply(w, f.leads)
	})
	mux.HandleFunc("GET /v1/agent/self", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"Config": map[string]string{"NodeName": f.self}})
	})
	mux.HandleFunc("GET /v1/agent/service/{id}", func(w http.ResponseWriter, req *http.Request) {
		for _, e := range f.agent {
			if e.ID == req.PathValue("id") {
				reply(w, map[string]any{"ID": e.ID, "Service": e.Service, "Address": e.Address, "Port": e.Port})
				return
			}
		}
		http.Error(w, "unknown service ID: "+req.PathValue("id"), http.StatusNotFound)
	})
	mux.HandleFunc("PUT /v1/agent/service/deregister/{id}", func(_ http.ResponseWriter, req *http.Request) {
		f.agent = without(f.agent, req.PathValue("id"))
		if !f.weak {
			f.catalog = without(f.catalog, req.PathValue("id"))
		}
	})
	return mux
}

func (f *fake) nomadServer() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/regions", func(w http.ResponseWriter, _ *http.Request) {
		var regions []string
		for _, n := range f.nodes {
			regions = append(regions, n.Region)
		}
		slices.Sort(regions)
		reply(w, slices.Compact(regions))
	})
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, req *http.Request) {
		list := []map[string]string{}
		for i, n := range f.nodes {
			if n.Region != req.URL.Query().Get("region") {
				continue
			}
			host := n.HTTPAddr
			if at, err := netip.ParseAddrPort(host); err == nil {
				host = at.Addr().String()
			}
			list = append(list, map[string]string{"ID": strconv.Itoa(i), "Name": n.Name, "Status": n.Status, "Address": host})
		}
		reply(w, list)
	})
	mux.HandleFunc("GET /v1/node/{id}", func(w http.ResponseWriter, req *http.Request) {
		i, err := strconv.Atoi(req.PathValue("id"))
		if err != nil || i >= len(f.nodes) || f.nodes[i].Region != req.URL.Query().Get("region") {
			http.Error(w, "node not found", http.StatusNotFound)
			return
		}
		n := f.nodes[i]
		reply(w, map[string]string{"ID": strconv.Itoa(i), "Name": n.Name, "Status": n.Status, "HTTPAddr": n.HTTPAddr})
	})
	return mux
}

// source is one that asks the fake, as the environment says.
func source(t *testing.T) *Source {
	t.Helper()
	c, err := cluster.NewConsul("")
	if err != nil {
		t.Fatal(err)
	}
	n, err := cluster.NewNomad("")
	if err != nil {
		t.Fatal(err)
	}
	return &Source{Consul: c, Nomad: n, Timeout: 5 * time.Second}
}

func portOf(t *testing.T, s *httptest.Server) int {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// wants holds an error against what it has to say. Whatever it says, it isn't the
// token.
func wants(t *testing.T, err error, texts ...string) {
	t.Helper()
	said := fmt.Sprint(err)
	for _, text := range texts {
		if !strings.Contains(said, text) {
			t.Errorf("%s\nlacks %q", said, text)
		}
	}
	if strings.Contains(said, token) {
		t.Errorf("%s has the token", said)
	}
}

// quiet is for servers that are spoken to wrongly on purpose.
var quiet = log.New(io.Discard, "", 0)
