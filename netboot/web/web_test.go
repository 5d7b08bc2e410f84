package web

import (
	"bytes"
	"context"
	"crypto/tls"
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
	s.Arm = func(_ context.Context, host, image, by string) (*state.Record, error) { return l.armAs(host, by) }
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
	return l.ask("GET", l.plain+ScriptPath(mac(i)), "", nil)
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

func TestWay(t *testing.T) {
	verified := false
	l := newLab(t, 2, func(s *Server) {
		s.VerifyEvery = 10 * time.Millisecond
		s.Verify = func(_ context.Context, host string) (bool, []string, error) {
			return verified && host == "node1", []string{"no nomad yet"}, nil
		}
	})
	if status, text := l.script(1); status != 200 || strings.Contains(text, "kernel") {
		t.Errorf("who isn't armed gets %d %s", status, text)
	}
	l.arm("node1")
	i := l.boot(1)
	if status, refusal := i.redeem(); status != 200 {
		t.Fatalf("%d %+v", status, refusal)
	}
	if j := i.job; j.Host != "node1" || j.Image != image || j.ImageURL != l.plain+"/images/"+image+"/" || j.Install.Serial != "S1" || len(j.Keys) != 1 {
		t.Errorf("the job is %+v", j)
	}
	if status, _ := l.ask("GET", i.job.ImageURL+"manifest.json", "", nil); status != 200 {
		t.Errorf("the manifest: %d", status)
	}
	var turn protocol.Turn
	if i.say(protocol.PathTurn, struct{}{}, &turn); !turn.Go {
		t.Errorf("the only one waits: %+v", turn)
	}
	i.write()
	if got := l.state("node1"); got != "writing 40%" {
		t.Errorf("it is %s", got)
	}
	var seed protocol.Seed
	if i.say(protocol.PathSeed, struct{}{}, &seed); len(seed.Files) != 1 || string(seed.Files[0].Data) != secret {
		t.Errorf("the seed is %v", seed)
	}
	for range 2 { // the first answer may be lost
		if status, refusal := i.say(protocol.PathWritten, struct{}{}, &struct{}{}); status != 200 {
			t.Fatalf("%d %+v", status, refusal)
		}
	}
	if status, text := l.script(1); status != 200 || strings.Contains(text, "kernel") || !strings.Contains(text, "sanboot") {
		t.Errorf("who is written gets %d %s", status, text)
	}
	if status, refusal := i.say(protocol.PathSeed, struct{}{}, &seed); status != 403 || refusal.Code != protocol.CodeSession {
		t.Errorf("the seed after that: %d %+v", status, refusal)
	}
	if status, _ := l.ask("POST", l.plain+protocol.PathFirstBoot+i.job.ID, "", nil); status != 200 {
		t.Errorf("the first boot: %d", status)
	}
	eventually(t, func() bool {
		r := must(l.Store.Get("node1"))
		return len(r.Findings) == 1 && r.Stage == state.FirstBoot
	})
	verified = true
	eventually(t, func() bool { return l.state("node1") == "ready" })
	if status, text := l.script(1); status != 200 || strings.Contains(text, "kernel") {
		t.Errorf("who is ready gets %d %s", status, text)
	}
	l.noSecrets(i)
}

// noSecrets looks for what nobody may read, where anybody may.
func (l *lab) noSecrets(i *installer) {
	l.t.Helper()
	_, status := l.ask("GET", l.plain+"/api/v1/status", "", nil)
	_, metrics := l.ask("GET", l.plain+"/metrics", "", nil)
	for where, text := range map[string]string{"the log": l.log.String(), "the status": status, "the metrics": metrics} {
		for what, s := range map[string]string{
			"the token": i.args[protocol.ParamToken], "the session": i.job.Session, "the operators' token": l.OperatorToken,
			"the seed": secret, "the installation's ID": i.job.ID,
		} {
			if s != "" && strings.Contains(text, s[strings.LastIndex(s, ".")+1:]) {
				l.t.Errorf("%s has %s", where, what)
			}
		}
		if strings.Contains(text, "n_hash") {
			l.t.Errorf("%s has hashes", where)
		}
	}
	if !strings.Contains(status, `"host":"node1"`) {
		l.t.Errorf("the status is %s", status)
	}
}

func TestRefusals(t *testing.T) {
	l := newLab(t, 3)
	// Twice.
	l.arm("node1")
	i := l.boot(1)
	i.redeem()
	thief := *i
	if status, refusal := thief.redeem(); status != 409 || refusal.Code != protocol.CodeRedeemed {
		t.Errorf("the second redemption: %d %+v", status, refusal)
	}
	if got := l.state("node1"); got != "failed (booted)" {
		t.Errorf("after it, the host is %s", got)
	}
	if a := i.report(protocol.Report{Step: protocol.StepDisk}); a.Stop == "" {
		t.Error("after it, the first may go on")
	}
	for _, path := range []string{protocol.PathTurn, protocol.PathSeed, protocol.PathWritten} {
		if status, refusal := i.say(path, struct{}{}, &struct{}{}); status != 403 || refusal.Code != protocol.CodeSession {
			t.Errorf("after it, %s is answered %d %+v", path, status, refusal)
		}
	}
	// By another MAC.
	l.arm("node2")
	i = l.boot(2)
	i.args[protocol.ParamMAC] = string(mac(3))
	if status, refusal := i.redeem(); status != 403 || refusal.Code != protocol.CodeToken || l.state("node2") != "failed (booted)" {
		t.Errorf("another MAC: %d %+v, %s", status, refusal, l.state("node2"))
	}
	// Too late.
	l.arm("node3")
	i = l.boot(3)
	l.Store.Now = func() time.Time { return time.Now().Add(11 * time.Minute) }
	if status, refusal := i.redeem(); status != 410 || refusal.Code != protocol.CodeExpired {
		t.Errorf("too late: %d %+v", status, refusal)
	}
	// Nobody's, and no JSON.
	nobody := &installer{l: l, args: map[string]string{protocol.ParamServer: l.secure}}
	nobody.job.Session = "node1.0000"
	for _, path := range []string{protocol.PathTurn, protocol.PathReport, protocol.PathSeed, protocol.PathWritten} {
		if status, refusal := nobody.say(path, struct{}{}, &struct{}{}); status != 403 || refusal.Code != protocol.CodeSession {
			t.Errorf("a wrong session: %s: %d %+v", path, status, refusal)
		}
		if status, _ := nobody.say(path, "no object", &struct{}{}); status != 400 {
			t.Errorf("no object: %s: %d", path, status)
		}
		if status, _ := nobody.say(path, protocol.Report{Lines: []string{strings.Repeat("x", 1<<20)}}, &struct{}{}); status != 413 {
			t.Errorf("too large: %s: %d", path, status)
		}
		if status, _ := l.ask("GET", l.secure+path, "", nil); status != 405 && status != 404 {
			t.Errorf("GET %s: %d", path, status)
		}
	}
	if status, _ := l.ask("POST", l.plain+protocol.PathRedeem, "", nil); status != 403 {
		t.Errorf("redeeming over plain HTTP: %d", status)
	}
	// Too many wrong ones. What was counted above are three.
	for range maxWrong {
		nobody.redeem()
	}
	if status, _ := nobody.redeem(); status != 429 {
		t.Errorf("after %d wrong tokens: %d", maxWrong, status)
	}
}

func TestChangedSite(t *testing.T) {
	l := newLab(t, 2)
	l.arm("node1")
	i := l.boot(1)
	l.hosts[0].Install.Serial = "another"
	if status, refusal := i.redeem(); status != 409 || i.job.Session != "" || !strings.Contains(refusal.Error, "rules for its disks") {
		t.Errorf("%d %+v", status, refusal)
	}
	if got := l.state("node1"); got != "failed (booted)" {
		t.Errorf("it is %s", got)
	}
	if err := os.Remove(filepath.Join(l.dir, "images", image, "netboot/vmlinuz")); err != nil {
		t.Fatal(err)
	}
	l.arm("node2")
	if status, text := l.script(2); status != 200 || strings.Contains(text, "kernel") || l.state("node2") != "failed (armed)" {
		t.Errorf("without a kernel: %d %s; it is %s", status, text, l.state("node2"))
	}
}

func TestScriptIsNotUsedUp(t *testing.T) {
	l := newLab(t, 1)
	l.arm("node1")
	for _, method := range []string{"HEAD", "POST", "OPTIONS"} {
		if status, _ := l.ask(method, l.plain+ScriptPath(mac(1)), "", nil); status != 405 {
			t.Errorf("%s: %d", method, status)
		}
	}
	for _, path := range []string{"/boot/52-54-00-00-00-99/script.ipxe", "/boot/x/script.ipxe", "/boot/%2e%2e/script.ipxe", "/boot//script.ipxe"} {
		if status, text := l.ask("GET", l.plain+path, "", nil); status < 300 || strings.Contains(text, "kernel") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if got := l.state("node1"); got != "armed" {
		t.Errorf("it is %s", got)
	}
	l.boot(1)
	// Power is lost, and comes back.
	if _, text := l.script(1); strings.Contains(text, "kernel") || l.state("node1") != "failed (booted)" {
		t.Errorf("again: %s", text)
	}
}

func TestRestart(t *testing.T) {
	l := newLab(t, 3, func(s *Server) { s.Writers = 1 })
	restart := func() {
		l.stop()
		l.start(func(s *Server) { s.Writers = 1 })
	}
	l.arm("node1")
	i := l.boot(1)
	// The installer knows the server by its key: a new one would be refused.
	next := func() { restart(); i.args[protocol.ParamServer] = l.secure }
	next()
	if status, refusal := i.redeem(); status != 200 {
		t.Fatalf("%d %+v", status, refusal)
	}
	next()
	i.write()
	i.report(protocol.Report{Step: protocol.StepWrite, Done: 60, Total: 100})
	next()
	if got := l.state("node1"); got != "writing 60%" {
		t.Errorf("after a stop, it is %s", got)
	}
	// It still has its place.
	l.arm("node2")
	other := l.boot(2)
	other.redeem()
	var turn protocol.Turn
	if other.say(protocol.PathTurn, struct{}{}, &turn); turn.Go || turn.Place != 1 || turn.Wait == 0 {
		t.Errorf("two write: %+v", turn)
	}
	if status, refusal := i.say(protocol.PathWritten, struct{}{}, &struct{}{}); status != 200 {
		t.Fatalf("%d %+v", status, refusal)
	}
	if other.say(protocol.PathTurn, struct{}{}, &turn); !turn.Go {
		t.Errorf("the next one waits: %+v", turn)
	}
	next()
	if _, text := l.script(1); strings.Contains(text, "kernel") {
		t.Errorf("it's given the installer again: %s", text)
	}
}

func TestOperators(t *testing.T) {
	l := newLab(t, 1)
	arm, disarm := "/api/v1/hosts/node1/arm", "/api/v1/hosts/node1/disarm"
	for _, c := range []struct {
		url, token string
		want       int
	}{
		{l.secure + arm, "", 403},
		{l.secure + arm, "wrong", 403},
		{l.secure + disarm, l.OperatorToken[1:], 403},
		{l.plain + arm, l.OperatorToken, 403},
		{l.plain + disarm, l.OperatorToken, 403},
		{l.secure + disarm, l.OperatorToken, 409},
		{l.secure + "/api/v1/hosts/node7/arm", l.OperatorToken, 404},
		{l.secure + arm, l.OperatorToken, 200},
		{l.secure + disarm, l.OperatorToken, 200},
	} {
		status, text := l.ask("POST", c.url, c.token, ArmRequest{By: "bob"})
		if status != c.want {
			t.Errorf("%s: %d %s", c.url, status, text)
		}
	}
	if r := must(l.Store.Get("node1")); r.Stage != state.Disarmed || !strings.Contains(r.By, "bob") {
		t.Errorf("it is %s, by %s", r.State(), r.By)
	}
	if token := must(OperatorToken(filepath.Join(l.dir, "state"))); token != l.OperatorToken {
		t.Error("there is another token now")
	}
	l.OperatorToken = ""
	if status, _ := l.ask("POST", l.secure+arm, "", ArmRequest{}); status != 403 {
		t.Errorf("no token is the right one: %d", status)
	}
}

func TestOwnFiles(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	pins := make([]string, 8)
	for i := range pins {
		wg.Go(func() { pins[i] = must(Pin(must(Certificate(dir)))) })
	}
	wg.Wait()
	for _, p := range pins {
		if p != pins[0] || len(p) != 64 {
			t.Fatalf("several certificates were made: %v", pins)
		}
	}
	entries := must(os.ReadDir(dir))
	if info := must(entries[0].Info()); len(entries) != 1 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", entries, info.Mode())
	}
	if err := os.Chmod(filepath.Join(dir, "server.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Certificate(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
}

func TestAnotherKeyIsRefused(t *testing.T) {
	l := newLab(t, 1)
	l.client.Transport.(*http.Transport).TLSClientConfig = protocol.PinnedTLS(strings.Repeat("0", 64))
	if _, err := l.client.Get(l.secure + "/healthz"); err == nil {
		t.Error("another key is believed")
	}
	l.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true} //nolint:gosec
	if _, err := l.client.Get(l.secure + "/healthz"); err == nil {
		t.Error("old TLS is spoken")
	}
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
