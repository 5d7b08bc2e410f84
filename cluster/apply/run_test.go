package apply

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/internal/run"
)

// fakeConn is a host that answers with these lines, and remembers what it got.
type fakeConn struct {
	lines   []string
	err     error
	scripts []string
	files   map[string]string
	argv    []string
}

func (f *fakeConn) take(stdin io.Reader, argv []string) {
	f.argv, f.files = append(f.argv, argv...), map[string]string{}
	r := tar.NewReader(stdin)
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		b, _ := io.ReadAll(r)
		f.files[h.Name] = string(b)
		if h.Name == "run.sh" {
			f.scripts = append(f.scripts, string(b))
		} else if len(f.files) > 1 && f.files["run.sh"] != "" {
			f.files["too late"] = h.Name
		}
		if h.Mode != 0o600 {
			f.files["mode"] = h.Name
		}
	}
}

func (f *fakeConn) Run(_ context.Context, stdin io.Reader, argv ...string) ([]byte, error) {
	f.take(stdin, argv)
	return []byte(strings.Join(f.lines, "\n")), f.err
}

func (f *fakeConn) Stream(_ context.Context, stdin io.Reader, line func(string), argv ...string) error {
	f.take(stdin, argv)
	for _, l := range f.lines {
		line(l)
	}
	return f.err
}

// twoChanges are of a host whose token and directory differ.
func twoChanges(t *testing.T) *Changes {
	t.Helper()
	w := testWant(t)
	s := as(t, w)
	s.files["/etc/web/token"].content = []byte("old")
	s.files["/srv/web"].mode = 0
	s.Pending = []string{"stale /etc/web/.x.kiln-new", "reload consul.service"}
	c, err := Plan(w, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRun(t *testing.T) {
	c := twoChanges(t)
	f := &fakeConn{lines: []string{"begin 0", "done 0", "begin 1", "done 1", "begin 2", "done 2", "begin 3", "done 3", "noise", "begin 99", "finished"}}
	var steps []string
	if err := c.Run(t.Context(), f, nil, func(step string, done bool) {
		if done {
			steps = append(steps, step)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"directory /srv/web", "file /etc/web/token", "restart web.service", "reload consul.service"}; !slices.Equal(steps, want) {
		t.Errorf("the steps were %q", steps)
	}
	// All that goes over is in the archive, and its script the last of it.
	if strings.Contains(strings.Join(f.argv, " "), canary) || strings.Contains(f.scripts[0], canary) || len(strings.Join(f.argv, " ")) > 400 {
		t.Errorf("the arguments are %q", f.argv)
	}
	if !strings.Contains(f.files["files/1"], canary) || f.files["too late"] != "" || f.files["mode"] != "" {
		t.Errorf("the archive is %v", f.files)
	}
	if want := "restart web.service\nreload consul.service\nstale /etc/web/.token.kiln-new\nstale /etc/web/.x.kiln-new\n"; f.files["pending"] != want {
		t.Errorf("pending is %q", f.files["pending"])
	}
	if want := PendingPath + "\tnone\n/etc/web/token\t" + stateOf(text("old")) + "\n"; f.files["expected"] != want {
		t.Errorf("expected is %q", f.files["expected"])
	}
	for _, line := range []string{"'lock' '", "\nexpected\npend\nstep 0\n", "'rm' '-f' '--' '/etc/web/.x.kiln-new'\n", "act restart 'web.service'\n"} {
		if !strings.Contains(f.scripts[0], line) {
			t.Errorf("the script has no %q", line)
		}
	}
}

// A run that ends half-way says what is done, and what isn't.
func TestRunInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		err   error
		want  string
	}{
		"before":   {nil, errors.New("refused"), "changing build01.example.org: refused"},
		"half-way": {[]string{"begin 0", "done 0", "begin 1"}, errors.New("chown: x"), "changing build01.example.org: chown: x\n  done: directory /srv/web\n  not done: file /etc/web/token, restart web.service, reload consul.service\n  The next run does the rest."},
		"silent":   {[]string{"begin 0", "done 0"}, nil, "it ended before its end"},
		"sudo":     {nil, &run.Error{Name: "ssh", Command: "ssh build01", Stderr: []string{"sudo: a password is required"}, Err: errors.New("exit status 1")}, "by sudo without a password"},
	} {
		err := twoChanges(t).Run(t.Context(), &fakeConn{lines: c.lines, err: c.err}, nil, func(string, bool) {})
		if _, ok := errors.AsType[*PartialError](err); !ok || !strings.Contains(err.Error(), c.want) || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	f := &fakeConn{}
	if err := (&Changes{}).Run(t.Context(), f, nil, nil); err != nil || len(f.scripts) > 0 {
		t.Errorf("nothing to do: %v, %d calls", err, len(f.scripts))
	}
}

// A host whose network changes may be the one who goes on.
func TestRunLosesTheOldNetwork(t *testing.T) {
	gone := &run.Error{Name: "ssh", Command: "ssh build01", Stderr: []string{"Timeout, server not responding."}, Err: exitStatus(t, 255)}
	failed := &run.Error{Name: "ssh", Command: "ssh build01", Err: exitStatus(t, 1)}
	for name, c := range map[string]struct {
		lines []string
		err   error
		alone bool
	}{
		"in it":                 {[]string{"begin 0"}, gone, true},
		"behind it":             {[]string{"begin 0", "done 0", "begin 1"}, gone, true},
		"before":                {nil, gone, false},
		"netplan doesn't do it": {[]string{"begin 0"}, failed, false},
	} {
		changes := &Changes{Host: "build01", drained: "a", actions: []action{{verb: network}, {restart, nomadUnit}}}
		err := changes.Run(t.Context(), &fakeConn{lines: c.lines, err: c.err}, &Drainer{}, func(string, bool) {})
		partial, ok := errors.AsType[*PartialError](err)
		if !ok || partial.Alone != c.alone || strings.Contains(err.Error(), "over its new address") != c.alone || strings.Contains(err.Error(), "stays drained") != (c.alone || c.err == failed) {
			t.Errorf("%s: got %v", name, err)
		}
		if c.alone && !strings.Contains(err.Error(), "not seen: ") {
			t.Errorf("%s: it says what isn't done: %v", name, err)
		}
	}
}

// exitStatus is the error of a program that ended so.
func exitStatus(t *testing.T, status int) error {
	t.Helper()
	err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", status)).Run()
	if err == nil {
		t.Fatal("it ended well")
	}
	return err
}

func TestParseState(t *testing.T) {
	archive := func(facts string, more ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range append([]*tar.Header{{Name: "facts", Size: int64(len(facts)), Mode: 0o600}}, more...) {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Name == "facts" {
				_, _ = io.WriteString(w, facts)
			}
		}
		w.Close()
		return b.Bytes()
	}
	s, err := parseState(archive("hostname build01\nos ID=debian\nos VERSION_ID=12\nos VERSION_CODENAME=bookworm\nsystemd yes\nmac 52:54:00:AA:00:01\nnetwork waits\ncmdline quiet x=1\nbusy \n"+
		"passwd web:x:12:13:A B:/home/web:/bin/sh\nmember web web ops\ngroup ops:x:14:web\nunit web.service enabled\npackage nginx installed\npackage old config-files\nlarge /x\n",
		&tar.Header{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o755, Uname: "root", Gname: "root"},
		&tar.Header{Name: "./etc/l", Typeflag: tar.TypeSymlink, Linkname: "x", Mode: 0o777, Uid: 7, Gid: 8},
	))
	if err != nil {
		t.Fatal(err)
	}
	if s.Hostname != "build01" || !s.Systemd || !s.Waits || s.Busy == "" || s.Release.Codename != "bookworm" || !slices.Equal(s.MACs, []string{"52:54:00:aa:00:01"}) || !slices.Equal(s.kernel, []string{"quiet", "x=1"}) {
		t.Errorf("got %+v", s)
	}
	if u := s.users["web"]; u.uid != 12 || u.gid != 13 || u.home != "/home/web" || !slices.Equal(u.groups, []string{"web", "ops"}) || s.groups["ops"] != 14 || !s.packages["nginx"] || s.packages["old"] || !s.large["/x"] || s.units["web.service"] != "enabled" {
		t.Errorf("got %+v, %+v", s, u)
	}
	if e := s.files["/etc/l"]; e.owner != "7" || e.group != "8" || e.target != "x" || s.files["/etc"].kind != tar.TypeDir {
		t.Errorf("got %+v", e)
	}
	for _, bad := range []string{"dance\n", "passwd x:y\n", "passwd web:x:a:b:::\n", "member x y\n", "group x\n"} {
		if _, err := parseState(archive(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, bad := range [][]byte{nil, []byte("Welcome to build01!\n"), archive("hostname a\n")[:515]} {
		if _, err := parseState(bad); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
	if _, err := Gather(t.Context(), &fakeConn{lines: []string{"Welcome!"}}, testWant(t)); err == nil || !strings.Contains(err.Error(), "what it answers isn't understood") {
		t.Errorf("got %v", err)
	}
}

// fakeNomad has nodes, and remembers what becomes of them.
type fakeNomad struct {
	mu     sync.Mutex
	nodes  string // as JSON
	status int
	asked  []string
	polls  int // until the drain is over
}

func (f *fakeNomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status != 0 {
		http.Error(w, "no", f.status)
		return
	}
	switch {
	case r.URL.Path == "/v1/nodes":
		_, _ = io.WriteString(w, f.nodes)
	case r.Method == http.MethodGet:
		if f.polls--; f.polls > 0 {
			_, _ = io.WriteString(w, `{"ID": "a", "DrainStrategy": {"Deadline": 1}}`)
		} else {
			_, _ = io.WriteString(w, `{"ID": "a"}`)
		}
	default:
		var body struct {
			DrainSpec    *struct{ Deadline time.Duration }
			MarkEligible bool
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		what := "drain"
		if body.DrainSpec == nil && body.MarkEligible {
			what = "eligible"
		}
		f.asked = append(f.asked, what+" "+r.URL.Path)
		_, _ = io.WriteString(w, "{}")
	}
}

func drainer(t *testing.T, f *fakeNomad) *Drainer {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	for _, name := range []string{"NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_REGION", "NOMAD_NAMESPACE"} {
		t.Setenv(name, "")
	}
	n, err := cluster.NewNomad(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &Drainer{Nomad: n, Drain: true, Deadline: time.Hour, Poll: time.Millisecond}
}

// nomadChanges restart Nomad.
func nomadChanges() *Changes {
	return &Changes{Host: "build01", actions: []action{{restart, nomadUnit}}}
}

const oneNode = `[{"ID": "a", "Name": "build01", "Status": "ready", "SchedulingEligibility": "eligible"},
	{"ID": "b", "Name": "build01", "Status": "down", "SchedulingEligibility": "eligible"}, {"ID": "c", "Name": "build02", "Status": "ready"}]`

func TestDrain(t *testing.T) {
	f := &fakeNomad{nodes: oneNode, polls: 3}
	host := &fakeConn{lines: []string{"begin 0", "done 0", "finished"}}
	var steps []string
	if err := nomadChanges().Run(t.Context(), host, drainer(t, f), func(step string, done bool) {
		if done {
			steps = append(steps, step)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.asked, []string{"drain /v1/node/a/drain", "eligible /v1/node/a/drain"}) {
		t.Errorf("Nomad was asked for %q", f.asked)
	}
	if !slices.Equal(steps, []string{"drain its Nomad node", "restart nomad.service", "make its Nomad node eligible again"}) {
		t.Errorf("the steps were %q", steps)
	}
	// The host remembers before it's drained, until it's eligible.
	if len(host.scripts) != 3 || !strings.HasSuffix(host.scripts[0], "\nexpected\npend\n") || !strings.Contains(host.scripts[2], "settle 'drained a'") && !strings.Contains(host.scripts[2], "'settle' 'drained a'") {
		t.Errorf("the host was sent %d scripts", len(host.scripts))
	}
}

// Whoever made a node ineligible has a reason: it stays so.
func TestDrainLeavesAnIneligibleNode(t *testing.T) {
	f := &fakeNomad{nodes: strings.Replace(oneNode, `"eligible"`, `"ineligible"`, 1)}
	if err := nomadChanges().Run(t.Context(), &fakeConn{lines: []string{"finished"}}, drainer(t, f), func(string, bool) {}); err != nil || len(f.asked) > 0 {
		t.Errorf("got %v, after %q", err, f.asked)
	}
}

// A run that doesn't restart Nomad leaves its jobs alone.
func TestDrainOnlyForNomad(t *testing.T) {
	f := &fakeNomad{nodes: oneNode}
	c := &Changes{Host: "build01", actions: []action{{restart, "web.service"}}}
	if err := c.Run(t.Context(), &fakeConn{lines: []string{"finished"}}, drainer(t, f), func(string, bool) {}); err != nil || len(f.asked) > 0 {
		t.Errorf("got %v, after %q", err, f.asked)
	}
}

func TestDrainFails(t *testing.T) {
	for name, c := range map[string]struct {
		nomad *fakeNomad
		want  string
	}{
		"no node":   {&fakeNomad{nodes: "[]"}, "there is no ready node called build01"},
		"two nodes": {&fakeNomad{nodes: strings.Replace(oneNode, "down", "ready", 1)}, "there are 2 ready nodes called build01"},
		"403":       {&fakeNomad{status: 403}, "NOMAD_TOKEN"},
		"500":       {&fakeNomad{status: 500}, "the server itself has a problem"},
	} {
		host := &fakeConn{}
		d := drainer(t, c.nomad)
		err := nomadChanges().Run(t.Context(), host, d, func(string, bool) {})
		if err == nil || !strings.Contains(err.Error(), c.want) || len(host.scripts) > 0 {
			t.Errorf("%s: got %v, and %d calls of the host", name, err, len(host.scripts))
		}
	}
	// A drain that takes too long for who waits: nothing has changed, and the host
	// knows that its node is to be eligible again.
	f := &fakeNomad{nodes: oneNode, polls: 1 << 30}
	d := drainer(t, f)
	ctx, stop := context.WithCancel(t.Context())
	host := &fakeConn{lines: []string{"finished"}}
	err := nomadChanges().Run(ctx, host, d, func(step string, _ bool) {
		if step == "drain its Nomad node" {
			time.AfterFunc(20*time.Millisecond, stop)
		}
	})
	if err == nil || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing was changed") || len(host.scripts) != 1 || !strings.Contains(host.files["pending"], "drained a\n") {
		t.Errorf("got %v", err)
	}
	// The next run makes it eligible, asked to drain or not.
	again := &Changes{Host: "build01", drained: "a"}
	d.Drain = false
	if err := again.Run(t.Context(), host, d, func(string, bool) {}); err != nil || f.asked[len(f.asked)-1] != "eligible /v1/node/a/drain" {
		t.Errorf("got %v, after %q", err, f.asked)
	}
	if err := again.Run(t.Context(), host, nil, func(string, bool) {}); err == nil {
		t.Error("without Nomad it's forgotten")
	}
}
