package state

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

const (
	host  = "node1.example.org"
	mac   = plan.MAC("52:54:00:00:00:01")
	other = plan.MAC("52:54:00:00:00:02")
)

var (
	rule   = plan.DiskRule{Serial: "S1"}
	site   = Site{MAC: mac, Install: rule}
	arming = Arming{Host: host, MACs: []plan.MAC{mac}, Image: "cafe", Profile: "plain", Disk: "serial S1", Install: rule, By: "alice"}
)

// clock is one that is set.
type clock struct{ t time.Time }

func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }
func newClock() *clock                { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }
func code(err error) string {
	var r *RefusedError
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

func open(t *testing.T) (*Store, *clock) {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	s.Now = c.now
	return s, c
}

// bring brings the host to a stage, and gives the token and the session.
func bring(t *testing.T, s *Store, to Stage) (token, session string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("on the way to %s: %v", to, err)
		}
	}
	r, err := s.Arm(arming)
	must(err)
	if to == Armed {
		return
	}
	i, err := s.Boot(host, site)
	must(err)
	if i == nil {
		t.Fatal("an armed host isn't given the installer")
	}
	token = i.Token
	if to == Booted {
		return
	}
	session, _, err = s.Redeem(token, mac, "10.0.0.1")
	must(err)
	_, err = s.Report(session, protocol.Report{Step: protocol.StepWrite, Total: 100, Done: 40, Disk: "/dev/sda"})
	must(err)
	if to == Writing {
		return
	}
	_, err = s.Written(session)
	must(err)
	if to == Written {
		return
	}
	_, err = s.FirstBoot(r.Install)
	must(err)
	if to == FirstBoot {
		return
	}
	_, err = s.Ready(host, r.Install)
	must(err)
	return
}

func get(t *testing.T, s *Store) *Record {
	t.Helper()
	r, err := s.Get(host)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWay(t *testing.T) {
	s, _ := open(t)
	bring(t, s, Ready)
	var way []Stage
	for _, e := range get(t, s).History {
		if e.Stage != "" {
			way = append(way, e.Stage)
		}
	}
	if want := []Stage{Armed, Booted, Writing, Written, FirstBoot, Ready}; !slices.Equal(way, want) {
		t.Errorf("it went %v, not %v", way, want)
	}
	if i, err := s.Boot(host, site); i != nil || err != nil {
		t.Errorf("a host that is ready is given the installer: %v, %v", i, err)
	}
}

func TestBoot(t *testing.T) {
	for name, c := range map[string]struct {
		at   Stage
		site Site
		want string // the state afterwards
	}{
		"armed":             {Armed, site, "booted"},
		"another MAC":       {Armed, Site{MAC: other, Install: rule}, "failed (armed)"},
		"another rule":      {Armed, Site{MAC: mac, Install: plan.DiskRule{Serial: "S2"}}, "failed (armed)"},
		"another data disk": {Armed, Site{MAC: mac, Install: rule, Data: []plan.DiskRule{{Serial: "D"}}}, "failed (armed)"},
		"booted":            {Booted, site, "failed (booted)"},
		"writing":           {Writing, site, "failed (writing)"},
		"written":           {Written, site, "written"},
		"first boot":        {FirstBoot, site, "first boot"},
		"ready":             {Ready, site, "ready"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := open(t)
			bring(t, s, c.at)
			i, err := s.Boot(host, c.site)
			if err != nil || (i != nil) != (c.want == "booted") {
				t.Errorf("it is given %v, %v", i, err)
			}
			if got := get(t, s).State(); got != c.want {
				t.Errorf("it is %s, not %s", got, c.want)
			}
			if i, _ := s.Boot(host, site); i != nil {
				t.Error("the next boot is given the installer")
			}
		})
	}
}

func TestRedeem(t *testing.T) {
	s, c := open(t)
	token, session := bring(t, s, Writing)
	if _, _, err := s.Redeem(token, mac, "10.0.0.2"); code(err) != protocol.CodeRedeemed {
		t.Errorf("the second redemption: %v", err)
	}
	r := get(t, s)
	if r.State() != "failed (writing)" || !strings.Contains(r.Error, "10.0.0.1") || !strings.Contains(r.Error, "10.0.0.2") {
		t.Errorf("it is %s: %s", r.State(), r.Error)
	}
	if a, err := s.Report(session, protocol.Report{Step: protocol.StepWrite}); err != nil || a.Stop == "" {
		t.Errorf("its installer may go on: %v, %v", a, err)
	}
	if _, err := s.Written(session); code(err) != protocol.CodeSession {
		t.Errorf("its session isn't revoked: %v", err)
	}
	if _, err := s.Session(session); code(err) != protocol.CodeSession {
		t.Errorf("its session isn't revoked: %v", err)
	}

	// Not before it, nor after its time, nor by anybody else.
	token, _ = bring(t, s, Booted)
	for _, wrong := range []string{"", "x", token[:len(token)-1], host + "." + strings.Repeat("0", 64), "../../etc." + token, strings.ToUpper(token)} {
		if _, _, err := s.Redeem(wrong, mac, "10.0.0.3"); code(err) != protocol.CodeToken {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if got := get(t, s).Stage; got != Booted {
		t.Errorf("a wrong token brings it to %s", got)
	}
	c.pass(10*time.Minute + 1)
	if _, _, err := s.Redeem(token, mac, "10.0.0.1"); code(err) != protocol.CodeExpired || get(t, s).State() != "failed (booted)" {
		t.Errorf("a token that is too old: %v", err)
	}
	token, _ = bring(t, s, Booted)
	if _, _, err := s.Redeem(token, other, "10.0.0.1"); code(err) != protocol.CodeToken || get(t, s).State() != "failed (booted)" {
		t.Errorf("another's token: %v", err)
	}
}

// TestProblem: what keeps an armed host from being installed is told until it is over.
func TestProblem(t *testing.T) {
	s, _ := open(t)
	bring(t, s, Armed)
	problem := func(text string) {
		t.Helper()
		for i := range 2 {
			if changed, err := s.Problem(host, get(t, s).Install, text); err != nil || changed != (i == 0) {
				t.Fatal(changed, err)
			}
		}
		if r := get(t, s); !strings.HasPrefix(text, r.Problem) || (r.Problem == "") != (text == "") || r.Stage != Armed {
			t.Errorf("it is %s, %q", r.State(), r.Problem)
		}
	}
	problem("its image is gone")
	problem("")
	problem("it isn't in the inventory" + strings.Repeat("x", maxText))
	if n := len(get(t, s).History); n != 4 { // and that it was armed
		t.Errorf("its history has %d lines", n)
	}
	if _, err := s.Problem(host, "another", "x"); err == nil {
		t.Error("another installation's problem is taken")
	}
	if _, err := s.Disarm(host, "bob"); err != nil || get(t, s).Problem != "" {
		t.Errorf("disarmed, with %q: %v", get(t, s).Problem, err)
	}
	if _, err := s.Problem(host, get(t, s).Install, "x"); err == nil {
		t.Error("a host that isn't armed has a problem")
	}
}

func TestRecordsHaveNoSecret(t *testing.T) {
	s, _ := open(t)
	token, session := bring(t, s, Writing)
	data, err := os.ReadFile(filepath.Join(s.where, host+suffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{token, session} {
		if strings.Contains(string(data), secret[strings.LastIndex(secret, ".")+1:]) {
			t.Error("a secret is on the disk")
		}
	}
}
