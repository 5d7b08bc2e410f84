package leftovers

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

func TestGather(t *testing.T) {
	f := newFake(t)
	f.nodes = []Node{at, node("h", "192.0.2.11:4646", "down"), {Name: "i", Region: "other", Status: "ready", HTTPAddr: "[2001:db8::1]:4646"}}
	f.catalog = append(f.catalog, with(entry("i", "2001:db8::1", 4646), func(e *Entry) { e.Service = "other" }))
	s := source(t)
	s.Services = []string{"nomad-client", "other"}
	state, err := s.Gather(t.Context())
	if err != nil || state.Nomad != nil || state.Filtered {
		t.Fatalf("got %+v, %v", state, err)
	}
	if diff := gocmp.Diff(f.catalog, state.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(f.nodes, state.Nodes); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if found := Judge(state); len(found) != 1 || found[0].Verdict != Stale || found[0].ID != old.ID {
		t.Errorf("found %+v", found)
	}
	if err := s.Blind(state); err != nil {
		t.Errorf("blind: %v", err)
	}
}

// TestGatherWithoutConsul: each way in which Consul can fail is an error that says
// what to do.
func TestGatherWithoutConsul(t *testing.T) {
	const path = "GET /v1/catalog/service/nomad-client"
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, f *fake)
		want  []string
	}{
		{"nobody answers", func(_ *testing.T, f *fake) { f.consul.Close() }, []string{"asking Consul at http://127.0.0.1", "nobody answers there", "CONSUL_HTTP_ADDR"}},
		{"no such host", func(t *testing.T, _ *fake) { t.Setenv("CONSUL_HTTP_ADDR", "consul.invalid:8500") }, []string{"consul.invalid"}},
		{"an unknown CA", func(t *testing.T, f *fake) { t.Setenv("CONSUL_HTTP_ADDR", tlsServer(t).URL) }, []string{"CONSUL_CACERT"}},
		{"TLS where there is none", func(t *testing.T, f *fake) {
			t.Setenv("CONSUL_HTTP_ADDR", strings.Replace(f.consul.URL, "http", "https", 1))
		}, []string{"nobody speaks TLS there"}},
		{"no TLS where there is", func(t *testing.T, f *fake) {
			t.Setenv("CONSUL_HTTP_ADDR", strings.TrimPrefix(tlsServer(t).URL, "https://"))
		}, []string{"https:// in CONSUL_HTTP_ADDR"}},
		{"a wrong token", func(t *testing.T, _ *fake) { t.Setenv("CONSUL_HTTP_TOKEN", "other") }, []string{"403", "the token in CONSUL_HTTP_TOKEN"}},
		{"no leader", func(_ *testing.T, f *fake) { f.answer[path] = fails(500, "No cluster leader") }, []string{"500", "No cluster leader", "its log says more"}},
		{"not JSON", func(_ *testing.T, f *fake) { f.answer[path] = fails(200, "<html>") }, []string{"asking Consul at http://127.0.0.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			tt.spoil(t, f)
			state, err := source(t).Gather(t.Context())
			if err == nil {
				t.Fatalf("got %+v", state)
			}
			wants(t, err, tt.want...)
		})
	}
}

func tlsServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = quiet
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// TestGatherWithoutNomad: what is wrong with Nomad is said, and proves nothing.
func TestGatherWithoutNomad(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, f *fake)
		want  []string
	}{
		{"nobody answers", func(_ *testing.T, f *fake) { f.nomad.Close() }, []string{"asking Nomad at http://127.0.0.1", "nobody answers there"}},
		{"an unknown CA", func(t *testing.T, _ *fake) { t.Setenv("NOMAD_ADDR", tlsServer(t).URL) }, []string{"NOMAD_CACERT"}},
		{"a token that may not list nodes", func(_ *testing.T, f *fake) { f.answer["GET /v1/nodes"] = fails(403, "Permission denied") }, []string{"403", "NOMAD_TOKEN"}},
		{"a token that may not read a node", func(_ *testing.T, f *fake) { f.answer["GET /v1/node/0"] = fails(403, "Permission denied") }, []string{"403", "NOMAD_TOKEN"}},
		{"no leader", func(_ *testing.T, f *fake) { f.answer["GET /v1/nodes"] = fails(500, "No cluster leader") }, []string{"500", "its log says more"}},
		{"one region of two", func(_ *testing.T, f *fake) {
			f.nodes = append(f.nodes, Node{Name: "x", Region: "other"})
			f.answer["GET /v1/nodes"] = func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Query().Get("region") == "other" {
					http.Error(w, "No path to region", http.StatusInternalServerError)
					return
				}
				reply(w, []any{})
			}
		}, []string{"the region other", "No path to region"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			tt.spoil(t, f)
			state, err := source(t).Gather(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wants(t, state.Nomad, tt.want...)
			for _, found := range Judge(state) {
				if found.Verdict != Unproven {
					t.Errorf("%+v", found)
				}
			}
		})
	}
}

func TestGatherNodeIsRemovedMeanwhile(t *testing.T) {
	f := newFake(t)
	f.answer["GET /v1/node/0"] = fails(404, "node not found")
	state, err := source(t).Gather(t.Context())
	if err != nil || state.Nomad != nil {
		t.Fatal(state, err)
	}
	if found := Judge(state); len(found) != 2 || found[0].Verdict != Unproven {
		t.Errorf("%+v", found)
	}
}

// TestGatherSlow: who accepts, and says nothing, is given up in time.
func TestGatherSlow(t *testing.T) {
	for _, variable := range []string{"CONSUL_HTTP_ADDR", "NOMAD_ADDR"} {
		t.Run(variable, func(t *testing.T) {
			newFake(t)
			mute, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer mute.Close()
			t.Setenv(variable, "http://"+mute.Addr().String())
			s := source(t)
			s.Timeout = 100 * time.Millisecond
			start := time.Now()
			state, err := s.Gather(t.Context())
			if variable == "NOMAD_ADDR" {
				if err != nil {
					t.Fatal(err)
				}
				err = state.Nomad
			}
			wants(t, err, "took too long", variable)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestGatherInterrupted(t *testing.T) {
	newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if state, err := source(t).Gather(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %+v, %v", state, err)
	}
}

func TestBlind(t *testing.T) {
	f := newFake(t)
	f.filtered = true
	s := source(t)
	state, err := s.Gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Blind(state); !errors.Is(err, ErrHidden) {
		t.Errorf("got %v", err)
	}
	f.filtered, f.catalog = false, nil
	if state, err = s.Gather(t.Context()); err != nil {
		t.Fatal(err)
	}
	wants(t, s.Blind(state), "there is no service nomad-client", "ready nodes", "CONSUL_HTTP_TOKEN", "client_service_name")
	state.Nodes[0].Status = "down"
	if err := s.Blind(state); err != nil {
		t.Errorf("an empty cluster: %v", err)
	}
	if !slices.Contains(s.services(), "nomad-client") {
		t.Error(s.services())
	}
}
