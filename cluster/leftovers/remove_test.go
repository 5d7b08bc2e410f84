package leftovers

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/internal/run"
)

const (
	onAgent   = "PUT /v1/agent/service/deregister/_nomad-client-192.0.2.11-4646"
	inCatalog = "PUT /v1/catalog/deregister"
	getEntry  = "GET /v1/agent/service/_nomad-client-192.0.2.11-4646"
)

// stale is the finding that the fake has.
func stale() Finding {
	return Finding{Entry: with(old, func(e *Entry) { e.NodeAddress = "127.0.0.1" }), Verdict: Stale}
}

func remover(t *testing.T, f *fake) *Remover {
	t.Helper()
	return &Remover{Source: source(t), Route: Route{Via: ViaHTTP, Port: portOf(t, f.own)}, Settle: 100 * time.Millisecond, Poll: 20 * time.Millisecond}
}

// TestRemove: through whom an entry is removed, and that nobody else is asked.
func TestRemove(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(f *fake)
		asked []string
		how   string
		notes []string
	}{
		{"its agent lives", func(*fake) {}, []string{onAgent}, "the agent at http://127.0.0.1:", nil},
		{"its agent doesn't list it", func(f *fake) { f.agent = []Entry{now} }, []string{inCatalog}, "the catalog", []string{"the agent of h doesn't list it"}},
		{"its agent is gone", func(f *fake) { f.serf = "critical"; f.own.Close() }, []string{inCatalog}, "the catalog", []string{"the Consul agent of h is gone, as the others see it, and isn't reached", "connection refused", "if it comes back with its old data_dir"}},
		{"the others take its agent for dead", func(f *fake) { f.serf = "critical" }, []string{onAgent}, "the agent at http://127.0.0.1:", nil},
		{"another cluster has the address of its agent, which is gone", func(f *fake) { f.serf, f.leads = "critical", "192.0.2.99:8300" }, []string{inCatalog}, "the catalog",
			[]string{"isn't of this cluster: its leader is \"192.0.2.99:8300\", not 192.0.2.2:8300"}},
		{"another node has the address of its agent, which is gone", func(f *fake) { f.serf, f.agent, f.self = "critical", nil, "i" }, []string{inCatalog}, "the catalog",
			[]string{"is that of the node i, not of h"}},
		{"there is no agent", func(f *fake) { f.serf = ""; f.own.Close() }, []string{inCatalog}, "the catalog", []string{"no Consul agent stands behind the node"}},
		{"somebody was faster", func(f *fake) {
			f.answer[onAgent] = func(w http.ResponseWriter, _ *http.Request) {
				f.agent, f.catalog = []Entry{now}, []Entry{now}
				http.Error(w, "Unknown service ID", http.StatusNotFound)
			}
		}, []string{onAgent}, "the agent at", nil},
		{"the agent's own token is too weak", func(f *fake) { f.weak = true }, []string{onAgent, inCatalog}, "then the catalog",
			[]string{"without effect on the catalog: the agent's own token (acl.tokens.agent) lacks", `node "h" { policy = "write" }`, "Service deregistration blocked by ACLs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			r := remover(t, f)
			tt.spoil(f)
			o := r.Remove(t.Context(), stale())
			if o.Err != nil || !o.Removed || !strings.Contains(o.How, tt.how) {
				t.Fatalf("got %+v", o)
			}
			if diff := gocmp.Diff(tt.asked, f.asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
			if len(tt.notes) == 0 && len(o.Notes) > 0 {
				t.Errorf("notes: %q", o.Notes)
			}
			wants(t, errors.New(strings.Join(o.Notes, "\n")), tt.notes...)
			if len(f.catalog) != 1 || f.catalog[0].ID != now.ID {
				t.Errorf("the catalog has %+v", f.catalog)
			}
		})
	}
}

// TestRemoveFails: what is in the way is said, and isn't taken for success.
func TestRemoveFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, f *fake, r *Remover)
		asked []string
		want  []string
	}{
		{"it is gone meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.catalog = f.catalog[1:] },
			nil, []string{"it isn't left over any more"}},
		{"the host has moved back meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.nodes[0].HTTPAddr = "192.0.2.11:4646" },
			nil, []string{"it isn't left over any more"}},
		{"the host is down meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.nodes[0].Status = "down" },
			nil, []string{"it isn't proven any more", "is down"}},
		{"its ID is another entry's meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.catalog[0].Port = 5646 },
			nil, []string{"another entry by now, for 192.0.2.11:5646"}},
		{"Nomad is gone meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.nomad.Close() },
			nil, []string{"it isn't proven any more", "asking Nomad", "nobody answers there"}},
		{"Consul is gone meanwhile", func(_ *testing.T, f *fake, _ *Remover) { f.consul.Close() },
			nil, []string{"asking Consul", "nobody answers there", "CONSUL_HTTP_ADDR"}},
		{"a token that may not see the entry", func(_ *testing.T, f *fake, _ *Remover) { f.answer[getEntry] = fails(403, "Permission denied") },
			nil, []string{"403", "CONSUL_HTTP_TOKEN", `service "nomad-client" { policy = "write" }`}},
		{"the same, of an agent that the others take for dead", func(_ *testing.T, f *fake, _ *Remover) {
			f.serf, f.answer[getEntry] = "critical", fails(403, "Permission denied")
		}, nil, []string{"403", "CONSUL_HTTP_TOKEN", "has to be deregistered on the agent of h"}},
		{"another cluster's agent", func(_ *testing.T, f *fake, _ *Remover) { f.leads = "192.0.2.99:8300" },
			nil, []string{"isn't of this cluster"}},
		{"no leader", func(_ *testing.T, f *fake, _ *Remover) {
			f.answer["GET /v1/status/leader"] = func(w http.ResponseWriter, _ *http.Request) { reply(w, "") }
		}, nil, []string{"asking Consul at", "there is no leader"}},
		{"a token that may not write services", func(_ *testing.T, f *fake, _ *Remover) { f.answer[onAgent] = fails(403, "Permission denied") },
			[]string{onAgent}, []string{"403", "CONSUL_HTTP_TOKEN", `service "nomad-client" { policy = "write" }`}},
		{"a token that may not write the catalog", func(_ *testing.T, f *fake, _ *Remover) {
			f.serf, f.answer[inCatalog] = "", fails(403, "Permission denied")
		}, []string{inCatalog}, []string{"403", `node "h" { policy = "write" }`}},
		{"both tokens are too weak", func(_ *testing.T, f *fake, _ *Remover) {
			f.weak, f.answer[inCatalog] = true, fails(403, "Permission denied")
		}, []string{onAgent, inCatalog}, []string{"without effect on the catalog", "; and the catalog: ", "403"}},
		{"a token that may not ask the agent's name", func(_ *testing.T, f *fake, _ *Remover) {
			f.agent, f.answer["GET /v1/agent/self"] = nil, fails(403, "Permission denied")
		}, nil, []string{"doesn't say whose agent it is", `agent "h" { policy = "read" }`}},
		{"another node's agent", func(_ *testing.T, f *fake, _ *Remover) { f.agent, f.self = nil, "i" },
			nil, []string{"is that of the node i, not of h", "from the catalog alone it would come back"}},
		{"a service of the ID, but elsewhere", func(_ *testing.T, f *fake, _ *Remover) { f.agent[0].Port = 1 },
			nil, []string{"lists _nomad-client-192.0.2.11-4646 for 192.0.2.11:1, and not for 192.0.2.11:4646"}},
		{"the agent isn't reached", func(_ *testing.T, f *fake, _ *Remover) { f.own.Close() },
			nil, []string{"deregistered on the agent of h", "connection refused"}},
		{"the agent is slow", func(t *testing.T, f *fake, r *Remover) {
			r.Source.Timeout = 100 * time.Millisecond
			slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() }))
			t.Cleanup(slow.Close)
			r.Route.Port = portOf(t, slow)
		}, nil, []string{"took too long"}},
		{"the agent speaks no HTTP that is known", func(t *testing.T, f *fake, r *Remover) { r.Route.Port = portOf(t, tlsServer(t)) },
			nil, []string{"https:// in CONSUL_HTTP_ADDR"}},
		{"the agent has a problem", func(_ *testing.T, f *fake, _ *Remover) { f.answer[onAgent] = fails(500, "disk full") },
			[]string{onAgent}, []string{"500", "disk full"}},
		{"the agent keeps it", func(_ *testing.T, f *fake, _ *Remover) {
			f.answer[onAgent] = func(http.ResponseWriter, *http.Request) {}
		}, []string{onAgent}, []string{"still lists it", "a Nomad that advertises 192.0.2.11:4646"}},
		{"the catalog keeps it", func(_ *testing.T, f *fake, _ *Remover) { f.serf, f.sticky = "", true },
			[]string{inCatalog}, []string{"and is there again: an agent of h lives"}},
		{"the state of the agent can't be seen", func(_ *testing.T, f *fake, _ *Remover) {
			f.serf = ""
			f.answer["GET /v1/health/node/h"] = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Consul-LastContact", "0")
				w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
				reply(w, []any{})
			}
		}, nil, []string{"whether the agent of h lives can't be seen"}},
		{"the state of the agent isn't told", func(_ *testing.T, f *fake, _ *Remover) { f.answer["GET /v1/health/node/h"] = fails(500, "rpc error") },
			nil, []string{"500"}},
		{"it can't be read back", func(_ *testing.T, f *fake, _ *Remover) {
			f.answer[onAgent] = func(w http.ResponseWriter, req *http.Request) {
				f.agentServer().ServeHTTP(w, req)
				f.answer["GET /v1/catalog/service/nomad-client"] = fails(500, "No cluster leader")
			}
		}, []string{onAgent}, []string{"it was deregistered, but whether that worked can't be seen", "No cluster leader"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			r := remover(t, f)
			tt.spoil(t, f, r)
			o := r.Remove(t.Context(), stale())
			if o.Err == nil || o.Removed {
				t.Fatalf("got %+v", o)
			}
			wants(t, o.Err, tt.want...)
			if diff := gocmp.Diff(tt.asked, f.asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRemoveRefuses: what isn't a proven entry of a client is never removed,
// whoever asks.
func TestRemoveRefuses(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	for _, change := range []func(*Finding){
		func(f *Finding) { f.Verdict = Unproven },
		func(f *Finding) { f.Verdict = Current },
		func(f *Finding) { f.ID = "" },
		func(f *Finding) { f.Node = "" },
		func(f *Finding) { f.ID = "_nomad-server-abc" },
		func(f *Finding) { f.Source = "" },
	} {
		finding := stale()
		change(&finding)
		o := r.Remove(t.Context(), finding)
		wants(t, o.Err, "isn't proven to be left over, and stays")
	}
	if len(f.asked) > 0 {
		t.Errorf("asked for %q", f.asked)
	}
}

// TestRemoveOnOwnAgent: where kiln asks the very agent of the node, there is no
// other way to look for.
func TestRemoveOnOwnAgent(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	f.answer["GET /v1/agent/self"] = func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"Config": map[string]string{"NodeName": "h"}})
	}
	// The server is the agent, too.
	agents := f.agentServer()
	for _, path := range []string{onAgent, getEntry} {
		f.answer[path] = agents.ServeHTTP
	}
	f.own.Close()
	o := r.Remove(t.Context(), stale())
	if o.Err != nil || o.How != "the agent at "+f.consul.URL {
		t.Errorf("got %+v", o)
	}
}

// onThisMachine has the command that ssh would run on the host run here.
func onThisMachine(t *testing.T, seen *[]string) run.Runner {
	return func(ctx context.Context, c run.Command) ([]byte, error) {
		*seen = append(*seen, c.String())
		c.Name, c.Args = "sh", []string{"-c", c.Args[len(c.Args)-1]}
		return c.Output(ctx)
	}
}

func TestRemoveOverSSH(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	var seen []string
	r.Route = Route{Via: ViaSSH, Port: portOf(t, f.own), SSH: &remote.Dialer{User: "root", Runner: onThisMachine(t, &seen)}}
	authorized := true
	f.answer[getEntry] = func(w http.ResponseWriter, req *http.Request) {
		authorized = authorized && req.Header.Get("X-Consul-Token") == token
		f.agentServer().ServeHTTP(w, req)
	}
	o := r.Remove(t.Context(), stale())
	if o.Err != nil || !o.Removed || !strings.HasSuffix(o.How, " on h, over ssh") {
		t.Fatalf("got %+v", o)
	}
	if diff := gocmp.Diff([]string{onAgent}, f.asked); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	if !authorized || len(seen) == 0 {
		t.Errorf("the token wasn't shown in %d requests", len(seen))
	}
	for _, command := range seen {
		if strings.Contains(command, token) || !strings.Contains(command, "-l root") || !strings.Contains(command, "-- h ") {
			t.Errorf("ran %s", command)
		}
	}
}

// TestRemoveOverSSHFails: what ssh or the host says is told, and without the token.
func TestRemoveOverSSHFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		ssh  func(t *testing.T, f *fake) run.Runner
		want []string
	}{
		{"no such host", func(*testing.T, *fake) run.Runner {
			return func(ctx context.Context, c run.Command) ([]byte, error) {
				c.Name, c.Args = "sh", []string{"-c", "echo 'ssh: Could not resolve hostname h: Name or service not known' >&2; exit 255"}
				return c.Output(ctx)
			}
		}, []string{"on h:", "Could not resolve hostname", "its name isn't known here"}},
		{"no agent on the host", func(t *testing.T, f *fake) run.Runner {
			f.own.Close()
			return onThisMachine(t, new([]string))
		}, []string{"on h:", "exit status 1", "refused"}},
		{"something else answers", func(t *testing.T, f *fake) run.Runner {
			return func(_ context.Context, c run.Command) ([]byte, error) {
				_, err := io.Copy(io.Discard, c.Stdin)
				return []byte("Welcome to h!\n"), err
			}
		}, []string{"isn't HTTP"}},
		{"a token that is too weak", func(t *testing.T, f *fake) run.Runner {
			f.answer[onAgent] = fails(403, "Permission denied")
			return onThisMachine(t, new([]string))
		}, []string{"on h, over ssh", "403", `service "nomad-client" { policy = "write" }`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			r := remover(t, f)
			r.Route.Via, r.Route.SSH = ViaSSH, &remote.Dialer{Runner: tt.ssh(t, f)}
			o := r.Remove(t.Context(), stale())
			if o.Removed {
				t.Errorf("got %+v", o)
			}
			wants(t, o.Err, tt.want...)
		})
	}
}

// TestRoute: HTTP first, then ssh, unless that would show the token to the network.
func TestRoute(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	var seen []string
	r.Route.Via, r.Route.SSH = "", &remote.Dialer{Runner: onThisMachine(t, &seen)}
	if o := r.Remove(t.Context(), stale()); o.Err != nil || len(seen) > 0 || !strings.HasPrefix(o.How, "the agent at http://127.0.0.1:") {
		t.Errorf("HTTP: %+v, and %q", o, seen)
	}
	f.catalog, f.agent = append(f.catalog, stale().Entry), append(f.agent, old)
	finding := stale()
	finding.NodeAddress = "192.0.2.1" // nobody's
	if o := r.Remove(t.Context(), finding); o.Err != nil || len(seen) == 0 || !strings.Contains(o.How, "over ssh") {
		t.Errorf("ssh: %+v, and %q", o, seen)
	}
	_, err := r.overHTTP(&Outcome{Finding: finding})
	wants(t, err, "192.0.2.1:", "isn't asked: the token would go through the network in clear text")
	for _, name := range []string{"-oProxyCommand=x", "root@h", "h;x", "ssh://h", ""} {
		finding.Node = name
		_, err := r.overSSH(&Outcome{Finding: finding})
		wants(t, err, "can't be the name of a host for ssh")
	}
}

func TestExposes(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", token)
	for _, tt := range []struct {
		own, agent string
		want       bool
	}{
		{"http://127.0.0.1:8500", "http://192.0.2.1:8500", true},
		{"http://localhost:8500", "http://192.0.2.1:8500", true},
		{"http://[::1]:8500", "http://[2001:db8::1]:8500", true},
		{"unix:///run/consul.sock", "http://192.0.2.1:8500", true},
		{"https://consul.example.org", "http://192.0.2.1:8500", true},
		{"https://consul.example.org", "https://192.0.2.1:8501", false},
		{"http://192.0.2.9:8500", "http://192.0.2.1:8500", false},
		{"http://consul.example.org", "http://192.0.2.1:8500", false},
		{"http://127.0.0.1:8500", "http://127.0.0.2:8500", false},
	} {
		if got := exposes(tt.own, tt.agent); got != tt.want {
			t.Errorf("from %s to %s: %t", tt.own, tt.agent, got)
		}
	}
	t.Setenv("CONSUL_HTTP_TOKEN", "")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "")
	if exposes("http://127.0.0.1:8500", "http://192.0.2.1:8500") {
		t.Error("without a token there is nothing to show")
	}
}

// TestRemoveInterrupted: whatever was asked for by then is said.
func TestRemoveInterrupted(t *testing.T) {
	f := newFake(t)
	f.weak = true
	r := remover(t, f)
	r.Settle = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	f.answer[onAgent] = func(w http.ResponseWriter, req *http.Request) {
		f.agentServer().ServeHTTP(w, req)
		time.AfterFunc(50*time.Millisecond, cancel)
	}
	o := r.Remove(ctx, stale())
	if o.Removed || !errors.Is(o.Err, context.Canceled) {
		t.Errorf("got %+v", o)
	}
	wants(t, o.Err, "it was deregistered, but whether that worked")
}

func TestWatch(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	outcomes := []*Outcome{r.Remove(t.Context(), stale()), {Finding: Finding{Entry: now}, Err: errors.New("stays")}}
	looks := 0
	if err := r.Watch(t.Context(), outcomes, 100*time.Millisecond, func(time.Duration) { looks++ }); err != nil || !outcomes[0].Removed || looks < 2 {
		t.Errorf("%v after %d looks: %+v", err, looks, outcomes[0])
	}
	// One failure on the way is none.
	broken := 0
	f.answer["GET /v1/catalog/service/nomad-client"] = func(w http.ResponseWriter, req *http.Request) {
		if broken++; broken == 1 {
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return
		}
		f.consulServer().ServeHTTP(w, req)
	}
	if err := r.Watch(t.Context(), outcomes, 100*time.Millisecond, nil); err != nil || broken < 2 || !outcomes[0].Removed {
		t.Errorf("%v after %d looks: %+v", err, broken, outcomes[0])
	}
	f.answer["GET /v1/catalog/service/nomad-client"] = fails(500, "No cluster leader")
	wants(t, r.Watch(t.Context(), outcomes, 50*time.Millisecond, nil), "whether they stay away can't be seen", "No cluster leader")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Watch(ctx, outcomes, time.Minute, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWatchComesBack(t *testing.T) {
	f := newFake(t)
	r := remover(t, f)
	o := r.Remove(t.Context(), stale())
	f.catalog = append(f.catalog, stale().Entry)
	start := time.Now()
	if err := r.Watch(t.Context(), []*Outcome{o}, time.Minute, nil); err != nil || o.Removed {
		t.Errorf("%v: %+v", err, o)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s, though nothing was left to watch", took)
	}
	wants(t, o.Err, "it was removed (the agent at", "and came back", "advertises 192.0.2.11:4646")
}

func TestRound(t *testing.T) {
	for nodes, want := range map[int]time.Duration{0: 2 * time.Minute, 1: 2 * time.Minute, 128: 2 * time.Minute, 129: 3 * time.Minute, 256: 3 * time.Minute, 257: 4 * time.Minute, 8192: 8 * time.Minute} {
		if got := Round(nodes); got != want {
			t.Errorf("%d nodes: %s, want %s", nodes, got, want)
		}
	}
	f := newFake(t)
	s := source(t)
	if got, err := s.Round(t.Context()); err != nil || got != 2*time.Minute {
		t.Error(got, err)
	}
	f.answer["GET /v1/catalog/nodes"] = fails(500, "No cluster leader")
	if _, err := s.Round(t.Context()); err == nil || !slices.Contains(strings.Fields(err.Error()), "Consul") {
		t.Error(err)
	}
}
