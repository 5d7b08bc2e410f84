package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

func TestFolderIsTheOwners(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	bring(t, s, Armed)
	for name, want := range map[string]os.FileMode{"": 0o700, recordsDir: 0o700, recordsDir + "/" + host + suffix: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
}

// Two processes have a store each: so do two stores of one process.
func TestOnlyOneIsGivenTheInstaller(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		bring(t, s, Armed)
		var given atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				mine, err := Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				if i, err := mine.Boot(host, site); err != nil {
					t.Error(err)
				} else if i != nil {
					given.Add(1)
				}
			})
		}
		wg.Wait()
		if given.Load() != 1 {
			t.Fatalf("%d were given the installer", given.Load())
		}
		if got := get(t, s).State(); got != "failed (booted)" {
			t.Errorf("the others asked again, and it is %s", got)
		}
	}
}

func TestArmIsRefused(t *testing.T) {
	s, _ := open(t)
	for _, stage := range []Stage{Booted, Writing} {
		bring(t, s, stage)
		if _, err := s.Arm(arming); err == nil || !strings.Contains(err.Error(), "kiln disarm "+host) {
			t.Errorf("%s: %v", stage, err)
		}
		if _, err := s.Disarm(host, "bob"); err != nil {
			t.Fatal(err)
		}
		if r := get(t, s); r.State() != "failed ("+string(stage)+")" || r.Error != "disarmed by bob" {
			t.Errorf("%s: it is %s: %s", stage, r.State(), r.Error)
		}
	}
	if _, err := s.Disarm(host, "bob"); err == nil {
		t.Error("what isn't armed is disarmed")
	}
	if _, err := s.Disarm("node2", "bob"); !errors.Is(err, ErrUnknown) {
		t.Errorf("disarming an unknown host: %v", err)
	}
	for _, a := range []Arming{
		{Host: "../x", MACs: arming.MACs, Image: "cafe"},
		{Host: "", MACs: arming.MACs, Image: "cafe"},
		{Host: host, MACs: arming.MACs},
		{Host: host, Image: "cafe"},
		{Host: host, Image: "cafe", MACs: []plan.MAC{"52-54-00-00-00-01"}},
	} {
		if _, err := s.Arm(a); err == nil {
			t.Errorf("%+v is armed", a)
		}
	}
}

func TestSweep(t *testing.T) {
	for _, c := range []struct {
		at     Stage
		after  time.Duration
		within bool // of the time that it may take
		want   string
		text   string
	}{
		{Armed, 1000 * time.Hour, true, "armed", ""},
		{Booted, 10 * time.Minute, true, "booted", ""},
		{Booted, 10*time.Minute + 1, false, "failed (booted)", "hasn't redeemed"},
		{Writing, 4 * time.Minute, true, "writing 40%", ""},
		{Writing, 4*time.Minute + 1, false, "failed (writing)", "nothing was heard"},
		{Written, 30 * time.Minute, true, "written", ""},
		{Written, 30*time.Minute + 1, false, "failed (first boot)", "hasn't said"},
		{FirstBoot, 30*time.Minute + 1, false, "failed (first boot)", "nomad isn't there"},
		{Ready, 1000 * time.Hour, true, "ready", ""},
	} {
		s, clock := open(t)
		bring(t, s, c.at)
		if c.at == FirstBoot {
			if _, err := s.Findings(host, get(t, s).Install, []string{"nomad isn't there"}); err != nil {
				t.Fatal(err)
			}
		}
		clock.pass(c.after)
		failed, err := s.Sweep()
		if err != nil || (len(failed) == 0) != c.within {
			t.Errorf("%s: %v, %v", c.at, failed, err)
		}
		if r := get(t, s); r.State() != c.want || !strings.Contains(r.Error, c.text) {
			t.Errorf("%s: it is %s: %s", c.at, r.State(), r.Error)
		}
	}
}

func TestProgressIsStoredOnceASecond(t *testing.T) {
	s, c := open(t)
	_, session := bring(t, s, Writing)
	path := filepath.Join(s.where, host+suffix)
	stores, last := 0, ""
	for i := range 100 {
		c.pass(100 * time.Millisecond)
		if _, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Done: int64(i), Total: 100, Lines: []string{"line"}}); err != nil {
			t.Fatal(err)
		}
		if now := string(must(os.ReadFile(path))); now != last {
			stores, last = stores+1, now
		}
		if r := get(t, s); r.Done != int64(i) {
			t.Fatalf("after %d of 100, it says %d", i, r.Done)
		}
	}
	if stores < 9 || stores > 12 {
		t.Errorf("in ten seconds it was stored %d times", stores)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(filepath.Dir(s.where))
	if err != nil {
		t.Fatal(err)
	}
	if r := get(t, again); r.Done != 99 || len(r.Console) != 100 {
		t.Errorf("another process sees %d, and %d lines", r.Done, len(r.Console))
	}
	// Progress that isn't stored gives way to what another process has done.
	if _, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Done: 100, Total: 100}); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Disarm(host, "bob"); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Done: 100, Total: 100}); err != nil || a.Stop != "disarmed by bob" {
		t.Errorf("it may go on: %+v, %v", a, err)
	}
}

func TestBounds(t *testing.T) {
	s, _ := open(t)
	_, session := bring(t, s, Writing)
	lines := []string{"\x1b[31mred\x1b[0m \u202eevil\x00", strings.Repeat("é", 10000)}
	for range 110 {
		if _, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Lines: lines}); err != nil {
			t.Fatal(err)
		}
		if err := s.Note(session, strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
	}
	r := get(t, s)
	if len(r.Console) != maxConsole || len(r.History) != maxHistory {
		t.Errorf("it keeps %d lines, %d events", len(r.Console), len(r.History))
	}
	if got := r.Console[0]; got != "[31mred[0m evil" {
		t.Errorf("a line is %q", got)
	}
	if info, _ := os.Stat(filepath.Join(s.where, host+suffix)); info.Size() > maxRecord/4 {
		t.Errorf("the record has %d bytes", info.Size())
	}
}

func TestDamaged(t *testing.T) {
	s, _ := open(t)
	bring(t, s, Armed)
	path := filepath.Join(s.where, host+suffix)
	whole := string(must(os.ReadFile(path)))
	for name, content := range map[string]string{
		"empty":       "",
		"cut":         whole[:len(whole)/2],
		"zeros":       strings.Repeat("\x00", len(whole)),
		"another's":   strings.Replace(whole, host, "node2", 1),
		"no stage":    strings.Replace(whole, `"stage": "armed"`, `"stage": "Armed"`, 1),
		"more":        whole + whole,
		"unknown key": strings.Replace(whole, `"stage"`, `"force": true, "stage"`, 1),
		"huge":        whole + strings.Repeat(" ", maxRecord),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		i, err := s.Boot(host, site)
		var damaged *DamagedError
		if i != nil || !errors.As(err, &damaged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", name, i, err)
		}
		if _, err := s.Arm(arming); !errors.As(err, &damaged) {
			t.Errorf("%s: arming it: %v", name, err)
		}
		if list, bad, err := s.List(); len(list) != 0 || len(bad) != 1 || err != nil {
			t.Errorf("%s: listed: %v, %v, %v", name, list, bad, err)
		}
		if now := string(must(os.ReadFile(path))); now != content {
			t.Errorf("%s: it was overwritten", name)
		}
	}
}

func TestWatch(t *testing.T) {
	s, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed := s.Watch(ctx)
	<-changed
	for name, do := range map[string]func(s *Store){
		"this process":    func(s *Store) { bring(t, s, Ready) },
		"another process": func(*Store) { bring(t, must(Open(filepath.Dir(s.where))), Ready) },
	} {
		do(s)
		select {
		case <-changed:
		case <-time.After(5 * time.Second):
			t.Errorf("nothing is heard of what %s does", name)
		}
	}
	cancel()
	for range changed { //nolint:revive // until it's closed
	}
}

func BenchmarkList(b *testing.B) {
	s := must(Open(b.TempDir()))
	for i := range 2000 {
		a := arming
		a.Host = "node" + string(rune('a'+i%26)) + strings.Repeat("x", i/26)
		must(s.Arm(a))
	}
	for b.Loop() {
		if list, _, err := s.List(); err != nil || len(list) != 2000 {
			b.Fatal(len(list), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"host":"a","macs":["52:54:00:00:00:01"],"image":"x","stage":"armed","install":"y"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse("a", data)
		if err == nil && (r.Host != "a" || len(r.MACs) == 0 || r.Install == "") {
			t.Errorf("%q is taken for a record", data)
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1bb\xff")
	f.Fuzz(func(t *testing.T, s string) {
		c := clean(s)
		if len(c) > maxText*3 || strings.ContainsAny(c, "\x00\x1b\n\r") || clean(c) != c && len(c) <= maxText {
			t.Errorf("%q becomes %q", s, c)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestOpenElsewhere: a mistyped folder isn't closed to its users, nor filled.
func TestOpenElsewhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	if err := os.MkdirAll(filepath.Join(dir, "passwd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "has other files in it (passwd)") {
		t.Errorf("opened a folder that has other things in it: %v", err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its mode is %v now: %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("it has %d entries now: %v", len(entries), err)
	}
}

// TestOwner: what root stores in the folder of a server's own user, that can read.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const user = 65534
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	arming := Arming{Host: "build01.example.org", MACs: []plan.MAC{"52:54:00:00:00:01"}, Image: "image"}
	if _, err := s.Arm(arming); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if s, ok := info.Sys().(*syscall.Stat_t); err != nil || !ok || s.Uid != user {
			t.Errorf("%s isn't the user's: %v", name, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoName: what can't be a host's name is none that was armed, rather than a
// failure of the store.
func TestNoName(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "../x", "a/b", "a\x00b", strings.Repeat("a", 300)} {
		if _, err := s.Get(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

// TestNeverArmed: who asks about a host that was never armed leaves nothing.
func TestNeverArmed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disarm(host, "bob"); !errors.Is(err, ErrUnknown) {
		t.Errorf("disarming it: %v", err)
	}
	if _, err := s.Fail(host, "x", "a test"); !errors.Is(err, ErrUnknown) {
		t.Errorf("failing it: %v", err)
	}
	for _, name := range []string{recordsDir, locksDir} {
		if left, err := os.ReadDir(filepath.Join(dir, name)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", name, left, err)
		}
	}
}

// TestMovedAway: progress of a record that somebody has moved away isn't stored.
func TestMovedAway(t *testing.T) {
	s, _ := open(t)
	_, session := bring(t, s, Writing)
	if err := s.Place(session, 3); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(s.where, host+suffix)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there again: %v", err)
	}
}
