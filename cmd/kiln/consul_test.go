package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/alisw/kiln/internal/ui"
)

// movedHost is a cluster with a host h that has moved from .11 to .12, and one, i,
// that Nomad calls otherwise.
type movedHost struct {
	mu       sync.Mutex
	removed  bool
	noNomad  bool
	filtered bool
	refused  bool
	returns  bool
	calm     bool // nothing is left over
	// onRemoved, where set, is called once it is seen that the entry is gone.
	onRemoved func()
	looks     int
	more      bool // another entry is left over
}

const leftID = "_nomad-client-old"

func (m *movedHost) consul(w http.ResponseWriter, req *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Header().Set("X-Consul-LastContact", "0")
	switch req.Method + " " + req.URL.Path {
	case "GET /v1/catalog/service/nomad-client":
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", fmt.Sprint(m.filtered))
		entries := []string{m.entry("h", "_nomad-client-new", "192.0.2.12")}
		if !m.calm {
			entries = append(entries, m.entry("i", "_nomad-client-i", "192.0.2.21"))
		}
		if !m.removed && !m.calm {
			entries = append(entries, m.entry("h", leftID, "192.0.2.11"))
		}
		if m.more {
			entries = append(entries, m.entry("h", "_nomad-client-third", "192.0.2.13"))
		}
		if m.removed && m.returns {
			m.removed = false
		}
		if m.removed && m.onRemoved != nil {
			// The first to look is who reads back; the next one watches.
			if m.looks++; m.looks > 1 {
				m.onRemoved()
			}
		}
		fmt.Fprintf(w, "[%s]", strings.Join(entries, ","))
	case "GET /v1/catalog/nodes":
		fmt.Fprint(w, `[{"Node":"h"}]`)
	case "GET /v1/health/node/h":
		fmt.Fprint(w, `[{"CheckID":"serfHealth","Status":"passing"}]`)
	case "GET /v1/status/leader":
		fmt.Fprint(w, `"192.0.2.2:8300"`)
	case "GET /v1/agent/self":
		fmt.Fprint(w, `{"Config":{"NodeName":"h"}}`)
	case "GET /v1/agent/service/" + leftID:
		if m.removed {
			http.Error(w, "unknown service ID", http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"ID":"`+leftID+`","Address":"192.0.2.11","Port":4646}`)
	case "PUT /v1/agent/service/deregister/" + leftID:
		if m.refused {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		m.removed = true
	default:
		http.NotFound(w, req)
	}
}

func (m *movedHost) entry(node, id, address string) string {
	return fmt.Sprintf(`{"Node":%q,"Address":%q,"ServiceID":%q,"ServiceName":"nomad-client","ServiceAddress":%[2]q,"ServicePort":4646,"ServiceMeta":{"external-source":"nomad"}}`, node, address, id)
}

func (m *movedHost) nomad(w http.ResponseWriter, req *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.noNomad:
		http.Error(w, "Permission denied", http.StatusForbidden)
	case req.URL.Path == "/v1/regions":
		fmt.Fprint(w, `["global"]`)
	case req.URL.Path == "/v1/nodes":
		fmt.Fprint(w, `[{"ID":"1","Name":"h","Status":"ready","Address":"192.0.2.12"}]`)
	case req.URL.Path == "/v1/node/1":
		fmt.Fprint(w, `{"ID":"1","Name":"h","Status":"ready","HTTPAddr":"192.0.2.12:4646"}`)
	default:
		http.NotFound(w, req)
	}
}

// TestConsulLeftovers: what is printed, the exit status, and what was changed.
func TestConsulLeftovers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(*movedHost)
		args   string
		status int
		out    []string
		err    []string
		change bool
	}{
		{"found", func(*movedHost) {}, "", exitFailed, []string{
			"NODE  ADDRESS          SERVICE ID         VERDICT       WHY\n",
			"h     192.0.2.11:4646  _nomad-client-old  stale         Nomad's node h is ready at 192.0.2.12:4646, and Consul's node has an entry for that, too\n",
			"i     192.0.2.21:4646  _nomad-client-i    cannot prove  Nomad has no node i\n",
		}, []string{"nothing was changed: kiln consul leftovers --fix removes what is stale\n"}, false},
		{"nothing", func(m *movedHost) { m.calm = true }, "", exitOK, []string{"of 1 entry of Nomad clients in Consul, none is left over\n"}, nil, false},
		{"nothing to fix", func(m *movedHost) { m.calm = true }, "--fix", exitOK, []string{"none is left over"}, nil, false},
		{"no Nomad", func(m *movedHost) { m.noNomad = true }, "", exitUsage, []string{"cannot prove", "Nomad can't be asked"}, []string{"nothing is proven: asking Nomad", "403", "NOMAD_TOKEN"}, false},
		{"no Nomad, and fix", func(m *movedHost) { m.noNomad = true }, "--fix --yes", exitUsage, []string{"cannot prove"}, []string{"nothing is proven"}, false},
		{"a token that sees a part", func(m *movedHost) { m.filtered = true }, "", exitUsage, []string{"stale"}, []string{"there may be more than what was found", "its token may not see all"}, false},
		{"nobody to ask", func(*movedHost) {}, "--fix", exitUsage, []string{"stale"}, []string{"there is no terminal to ask on", "--yes"}, false},
		{"fixed", func(*movedHost) {}, "--fix --yes --wait 10ms", exitFailed, []string{
			"removed, and stayed away for", "the agent at http://127.0.0.1:", "left alone: cannot prove",
		}, []string{"_nomad-client-i on i: cannot prove that it is left over: Nomad has no node i"}, true},
		{"fixed, not watched", func(*movedHost) {}, "--fix --yes --wait 0", exitFailed, []string{"removed; not watched"}, nil, true},
		{"refused", func(m *movedHost) { m.refused = true }, "--fix --yes", exitFailed, []string{"NOT removed"}, []string{"_nomad-client-old on h: ", "403", "CONSUL_HTTP_TOKEN"}, false},
		{"comes back", func(m *movedHost) { m.returns = true }, "--fix --yes", exitFailed, []string{"NOT removed"}, []string{"and came back"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &movedHost{}
			tt.spoil(m)
			status, out, said := m.call(t, tt.args)
			if status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			for _, want := range tt.out {
				if !strings.Contains(out, want) {
					t.Errorf("lacks %q:\n%s", want, out)
				}
			}
			for _, want := range tt.err {
				if !strings.Contains(said, want) {
					t.Errorf("doesn't say %q:\n%s", want, said)
				}
			}
			if m.removed != tt.change {
				t.Errorf("removed: %t", m.removed)
			}
		})
	}
}

// call runs the verb against the cluster.
func (m *movedHost) call(t *testing.T, args string) (status int, out, said string) {
	t.Helper()
	consul, nomad := httptest.NewServer(http.HandlerFunc(m.consul)), httptest.NewServer(http.HandlerFunc(m.nomad))
	t.Cleanup(consul.Close)
	t.Cleanup(nomad.Close)
	t.Setenv("CONSUL_HTTP_ADDR", consul.URL)
	t.Setenv("CONSUL_HTTP_TOKEN", "secret-token")
	t.Setenv("NOMAD_ADDR", nomad.URL)
	// Whoever runs the tests isn't to be asked.
	nobody, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdin
	os.Stdin = nobody
	defer func() {
		os.Stdin = before
		nobody.Close()
	}()
	var stdout, stderr bytes.Buffer
	status = call(append([]string{"consul", "leftovers"}, strings.Fields(args)...), &ui.UI{Out: &stdout, Err: &stderr})
	if strings.Contains(stdout.String()+stderr.String(), "secret-token") {
		t.Errorf("the token is shown:\n%s%s", &stdout, &stderr)
	}
	return status, stdout.String(), stderr.String()
}

func TestConsulLeftoversJSON(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--json", `{"consul":"C","nomad":"N","entries":3,"leftovers":[
			{"node":"h","id":"_nomad-client-old","service":"nomad-client","address":"192.0.2.11:4646","nomad_address":"192.0.2.12:4646","verdict":"stale","why":"W"},
			{"node":"i","id":"_nomad-client-i","service":"nomad-client","address":"192.0.2.21:4646","verdict":"cannot prove","why":"W"}]}`},
		{"--json --fix --yes --wait 0", `{"consul":"C","nomad":"N","entries":3,"leftovers":[
			{"node":"h","id":"_nomad-client-old","service":"nomad-client","address":"192.0.2.11:4646","nomad_address":"192.0.2.12:4646","verdict":"stale","why":"W","removed":true,"how":"the agent at C"},
			{"node":"i","id":"_nomad-client-i","service":"nomad-client","address":"192.0.2.21:4646","verdict":"cannot prove","why":"W"}]}`},
	} {
		status, out, said := new(movedHost).call(t, tt.args)
		var got, want map[string]any
		if err := json.Unmarshal([]byte(out), &got); err != nil || status != exitFailed {
			t.Fatalf("%v, exit status %d:\n%s%s", err, status, out, said)
		}
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		consul, _ := got["consul"].(string)
		got["consul"], got["nomad"] = "C", "N"
		for _, l := range got["leftovers"].([]any) {
			l := l.(map[string]any)
			if l["why"] == "" {
				t.Errorf("no reason: %v", l)
			}
			l["why"] = "W"
			if how, ok := l["how"].(string); ok {
				l["how"] = strings.ReplaceAll(how, consul, "C")
			}
		}
		gotText, _ := json.Marshal(got)
		wantText, _ := json.Marshal(want)
		if !bytes.Equal(gotText, wantText) {
			t.Errorf("got  %s\nwant %s", gotText, wantText)
		}
	}
}
