package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

const secret = "hunter2-of-the-grid"

var (
	image = strings.Repeat("ab", 32)
	chunk = strings.Repeat("cd", 32)
)

// inventory has n hosts: node1, ….
type inventory []*netboot.Host

func hosts(n int) inventory {
	var list inventory
	for i := range n {
		list = append(list, &netboot.Host{
			Name: fmt.Sprintf("node%d", i+1), Profile: "plain", Install: plan.DiskRule{Serial: fmt.Sprintf("S%d", i+1)},
			NICs: []netboot.NIC{{MAC: mac(i + 1)}},
		})
	}
	return list
}

func mac(i int) plan.MAC { return plan.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i)) }

func (l inventory) ByMAC(mac plan.MAC) (*netboot.Host, bool) {
	for _, h := range l {
		for _, n := range h.NICs {
			if n.MAC == mac {
				return h, true
			}
		}
	}
	return nil, false
}

func (l inventory) ByName(name string) (*netboot.Host, bool) {
	for _, h := range l {
		if h.Name == name {
			return h, true
		}
	}
	return nil, false
}

// folder has images, each in a folder of its ID.
type folder string

func (f folder) Open(id, name string) (*os.File, error) {
	return os.Open(filepath.Join(string(f), id, name))
}
func (f folder) Kernel(id string) (*os.File, error)    { return f.Open(id, "netboot/vmlinuz") }
func (f folder) Installer(id string) (*os.File, error) { return f.Open(id, "netboot/installer.img") }

// lab is a server, and what is around it.
type lab struct {
	*Server
	t      *testing.T
	dir    string
	hosts  inventory
	log    *safe
	plain  string // URL
	secure string
	client *http.Client
	stop   func()
}

// safe is a buffer for several.
type safe struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safe) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newLab(t *testing.T, n int, change ...func(*Server)) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), hosts: hosts(n), log: &safe{}}
	for name, content := range map[string]string{
		"manifest.json": `{}`, "manifest.json.minisig": "sig", "SHA256SUMS": "sums", "secret": "s",
		"netboot/chunks.json": `[]`, "netboot/vmlinuz": "kernel", "netboot/installer.img": "initramfs",
		"netboot/chunks/" + chunk + ".zst": strings.Repeat("0123456789abcdef", 8<<16), "netboot/chunks/.x.zst": "x",
	} {
		path := filepath.Join(l.dir, "images", image, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.start(change...)
	t.Cleanup(func() { l.stop() })
	return l
}

// start starts a server over the lab's folder: again, after stop.
func (l *lab) start(change ...func(*Server)) {
	l.t.Helper()
	stateDir := filepath.Join(l.dir, "state")
	store := must(state.Open(stateDir))
	s := &Server{
		Store: store, Hosts: func() netboot.Hosts { return l.hosts }, Images: folder(filepath.Join(l.dir, "images")),
		Seeds: func(context.Context, string) ([]protocol.SeedFile, error) {
			return []protocol.SeedFile{{Name: "user-data", Data: []byte(secret)}}, nil
		},
		Keys:        func() []string { return []string{"RWQkey"} },
		IPXE:        fstest.MapFS{"ipxe.efi": {Data: []byte("MZ")}, ".hidden": {Data: []byte("x")}, "dir": {Mode: fs.ModeDir}},
		Certificate: must(Certificate(stateDir)), OperatorToken: must(OperatorToken(stateDir)),
		Log: slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	s.Arm = func(_ context.Context, host string, req ArmRequest) (*state.Record, error) {
		return l.armAs(host, req.By)
	}
	for _, c := range change {
		c(s)
	}
	l.Server = s
	plain, secure := must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
	l.plain, l.secure = "http://"+plain.Addr().String(), "https://"+secure.Addr().String()
	transport := &http.Transport{TLSClientConfig: protocol.PinnedTLS(must(Pin(s.Certificate)))}
	l.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, plain, secure) }()
	l.stop = sync.OnceFunc(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
	})
}

func (l *lab) armAs(host, by string) (*state.Record, error) {
	h, _ := l.hosts.ByName(host)
	return l.Store.Arm(state.Arming{Host: h.Name, MACs: []plan.MAC{h.NICs[0].MAC}, Image: image, Profile: h.Profile, Disk: "its only one", Install: h.Install, Data: h.Data, By: by})
}

func (l *lab) arm(host string) {
	l.t.Helper()
	must(l.armAs(host, "alice"))
}

// ask sends a request, and gives the answer's status and body.
func (l *lab) ask(method, url, bearer string, body any) (int, string) {
	l.t.Helper()
	var data io.Reader
	if body != nil {
		data = bytes.NewReader(must(json.Marshal(body)))
	}
	req := must(http.NewRequest(method, url, data))
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := l.client.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode, string(must(io.ReadAll(res.Body)))
}

func (l *lab) script(i int) (int, string) {
	l.t.Helper()
	return l.ask("GET", l.plain+netboot.ScriptPath(mac(i)), "", nil)
}

func (l *lab) state(host string) string {
	l.t.Helper()
	return must(l.Store.Get(host)).State()
}

// installer is one that does what it is told.
type installer struct {
	l    *lab
	args map[string]string
	job  protocol.Job
}

// boot boots a host into the installer.
func (l *lab) boot(i int) *installer {
	l.t.Helper()
	status, text := l.script(i)
	if status != 200 || !strings.Contains(text, "\nkernel ") {
		l.t.Fatalf("node%d isn't given the installer: %d\n%s", i, status, text)
	}
	args := map[string]string{}
	for _, m := range regexp.MustCompile(`(kiln\.\w+)=(\S+)`).FindAllStringSubmatch(text, -1) {
		args[m[1]] = m[2]
	}
	return &installer{l: l, args: args}
}

// say posts something, and gives the answer's status and refusal.
func (i *installer) say(path string, body, answer any) (int, protocol.Refusal) {
	i.l.t.Helper()
	status, text := i.l.ask("POST", i.args[protocol.ParamServer]+path, i.job.Session, body)
	var refusal protocol.Refusal
	if status != 200 {
		answer = &refusal
	}
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		i.l.t.Fatalf("%s: %d %q: %v", path, status, text, err)
	}
	return status, refusal
}

func (i *installer) redeem() (int, protocol.Refusal) {
	i.l.t.Helper()
	return i.say(protocol.PathRedeem, protocol.RedeemRequest{Token: i.args[protocol.ParamToken], MAC: plan.MAC(i.args[protocol.ParamMAC])}, &i.job)
}

func (i *installer) report(r protocol.Report) protocol.Answer {
	i.l.t.Helper()
	var a protocol.Answer
	if status, refusal := i.say(protocol.PathReport, r, &a); status != 200 {
		i.l.t.Fatalf("a report is answered %d %+v", status, refusal)
	}
	return a
}

func (i *installer) write() {
	i.l.t.Helper()
	i.report(protocol.Report{Step: protocol.StepWrite, Done: 40, Total: 100, Disk: "/dev/sda", Lines: []string{"writing"}})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never comes")
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
