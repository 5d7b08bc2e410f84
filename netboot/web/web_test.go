package web

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

func TestWay(t *testing.T) {
	verified := false
	l := newLab(t, 2, func(s *Server) {
		s.VerifyEvery = 10 * time.Millisecond
		s.RestartTime = time.Nanosecond
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
	for _, path := range []string{protocol.PathRedeem, protocol.PathTurn, protocol.PathReport, protocol.PathSeed, protocol.PathWritten} {
		if status, text := l.ask("POST", l.plain+path, "", nil); status != 403 || !strings.Contains(text, "over HTTPS only") {
			t.Errorf("%s over plain HTTP: %d %s", path, status, text)
		}
	}
	// Too many wrong ones. What was counted above are three.
	for range maxWrong {
		nobody.redeem()
	}
	if status, _ := nobody.redeem(); status != 429 {
		t.Errorf("after %d wrong tokens: %d", maxWrong, status)
	}
}

// TestUnknownHostIsLoggedOnce: who asks without an end doesn't fill the log, and is
// counted.
func TestUnknownHostIsLoggedOnce(t *testing.T) {
	l := newLab(t, 1)
	ask := func(mac string, times int) (lines int) {
		before := strings.Count(l.log.String(), "level=INFO")
		for range times {
			if status, _ := l.ask("GET", l.plain+"/boot/"+mac+"/script.ipxe", "", nil); status != 404 {
				t.Fatalf("%s: %d", mac, status)
			}
		}
		return strings.Count(l.log.String(), "level=INFO") - before
	}
	if n := ask("52-54-00-00-00-99", 50); n != 1 {
		t.Errorf("one unknown host makes %d lines", n)
	}
	if n := ask("nonsense", 50); n != 1 {
		t.Errorf("what is no MAC makes %d lines", n)
	}
	if n := l.scrape()[`kiln_netboot_scripts_total{answer="unknown"}`]; n != 100 {
		t.Errorf("%v are counted", n)
	}
}

// TestRenew: hosts that boot are told of the new key, and an installer that was told of
// the old one goes on with it.
func TestRenew(t *testing.T) {
	l := newLab(t, 2)
	l.arm("node1")
	i := l.boot(1)
	old := i.args[protocol.ParamPin]
	pin := must(l.Renew(must(Certificate(t.TempDir()))))
	l.arm("node2")
	if got := l.boot(2).args[protocol.ParamPin]; got != pin || pin == old {
		t.Errorf("the next host is told of %s, not %s, after %s", got, pin, old)
	}
	shown := func(name, pin string) error {
		config := protocol.PinnedTLS(pin)
		config.ServerName = name
		c, err := tls.Dial("tcp", strings.TrimPrefix(l.secure, "https://"), config)
		if err == nil {
			c.Close()
		}
		return err
	}
	for name, pin := range map[string]string{"": pin, "boot.example.org": pin, protocol.ServerName(pin): pin, protocol.ServerName(old): old} {
		if err := shown(name, pin); err != nil {
			t.Errorf("who asks for %q: %v", name, err)
		}
	}
	for range 2 * maxCertificates {
		must(l.Renew(must(Certificate(t.TempDir()))))
	}
	if n := len(l.certificates.list); n != maxCertificates {
		t.Errorf("%d certificates are kept", n)
	}
	if _, err := l.Renew(tls.Certificate{}); err == nil {
		t.Error("nothing is taken for a certificate")
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
		if status, _ := l.ask(method, l.plain+netboot.ScriptPath(mac(1)), "", nil); status != 405 {
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
	other := ArmRequest{Rules: &DiskRules{Install: plan.DiskRule{Serial: "OTHER"}}}
	if status, text := l.ask("POST", l.secure+arm, l.OperatorToken, other); status != 409 || !strings.Contains(text, "other rules for its disks") {
		t.Errorf("it is armed with another disk than the operator was asked about: %d %s", status, text)
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
