package state

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
)

// world is a server on a machine that stops now and then, the operators, the host,
// its installers, whoever has listened, and what must be true of all that.
type world struct {
	t        *testing.T
	rand     *rand.Rand
	disk     *ram
	clock    *clock
	store    *Store
	tokens   []string // that were given out, all of them
	sessions []string
	given    map[string]int // installers, by the installation's ID
	redeemed map[string]int
	done     map[string]bool // it was told that all is written
	steps    map[string]int
}

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{t: t, rand: r, disk: newRAM(r), clock: newClock(), given: map[string]int{}, redeemed: map[string]int{}, done: map[string]bool{}, steps: map[string]int{}}
	w.restart()
	return w
}

func (w *world) restart() {
	w.disk.start()
	w.store = &Store{files: w.disk, Now: w.clock.now}
}

func (w *world) content() string {
	if n, ok := w.disk.names[host+suffix]; ok {
		return n.data
	}
	return ""
}

func (w *world) record() *Record {
	r, err := w.store.Get(host)
	if errors.Is(err, ErrUnknown) {
		return &Record{}
	}
	if err != nil {
		w.t.Fatalf("the record can't be read: %v", err)
	}
	return r
}

func pick(r *rand.Rand, list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	// Mostly the last one: the others are old.
	if r.IntN(4) > 0 {
		return list[len(list)-1]
	}
	return list[r.IntN(len(list))]
}

// next is what act does next, where all goes well.
var next = map[Stage]int{"": 0, Armed: 3, Booted: 5, Writing: 9, Written: 11, FirstBoot: 12}

// act does one thing that may happen, and gives its error.
func (w *world) act() error {
	session := pick(w.rand, w.sessions)
	before := w.record()
	what := w.rand.IntN(14)
	// Mostly what is next: else it'd never come far.
	if next, ok := next[before.Stage]; ok && w.rand.IntN(3) > 0 {
		what = next
		if before.Stage == Booted && !before.Redeemed.IsZero() {
			what = 7
		}
	}
	switch what {
	case 0, 1:
		_, err := w.store.Arm(arming)
		return err
	case 2:
		_, err := w.store.Disarm(host, "bob")
		return err
	case 3, 4:
		i, err := w.store.Boot(host, site)
		if i != nil {
			if before.Stage != Armed || err != nil {
				w.t.Errorf("a host that is %s was given the installer: %v", before.State(), err)
			}
			w.given[i.ID]++
			w.tokens = append(w.tokens, i.Token)
		} else if err == nil && before.Running() && w.record().Stage != Failed {
			w.t.Errorf("a host that is %s boots again, and is %s", before.State(), w.record().State())
		}
		return err
	case 5, 6:
		session, r, err := w.store.Redeem(pick(w.rand, w.tokens), mac, "10.0.0.1")
		if err == nil {
			w.redeemed[r.Install]++
			w.sessions = append(w.sessions, session)
		}
		return err
	case 7, 8:
		p := protocol.Report{Step: protocol.StepWrite, Done: w.rand.Int64N(100), Total: 100}
		if w.rand.IntN(8) == 0 {
			p.Error = "the disk is broken"
		}
		_, err := w.store.Report(session, p)
		return err
	case 9, 10:
		r, err := w.store.Written(session)
		if err == nil {
			w.done[r.Install] = true
		}
		return err
	case 11:
		_, err := w.store.FirstBoot(before.Install)
		return err
	case 12:
		_, err := w.store.Ready(host, before.Install)
		return err
	}
	w.clock.pass(time.Duration(w.rand.IntN(700)) * time.Second)
	_, err := w.store.Sweep()
	return err
}

// leads are the stages that a stage may be followed by.
var leads = map[Stage][]Stage{
	"":        {Armed},
	Armed:     {Booted, Disarmed, Failed},
	Booted:    {Writing, Failed},
	Writing:   {Written, Failed},
	Written:   {FirstBoot, Ready, Failed, Armed},
	FirstBoot: {Ready, Failed, Armed},
	Ready:     {Armed},
	Failed:    {Armed},
	Disarmed:  {Armed},
}

// check holds what must be true at any time against the record.
func (w *world) check(before, now *Record) {
	w.t.Helper()
	allowed := before.Stage == now.Stage
	for _, l := range leads[before.Stage] {
		allowed = allowed || l == now.Stage
	}
	if !allowed {
		w.t.Errorf("it was %s, and is %s", before.State(), now.State())
	}
	w.steps[string(now.Stage)]++
	if id := now.Install; w.given[id] > 1 || w.redeemed[id] > 1 || w.redeemed[id] > w.given[id] {
		w.t.Fatalf("armed once, it was given the installer %d times, and its tokens were redeemed %d times", w.given[id], w.redeemed[id])
	}
	if w.done[now.Install] && (now.Stage == Armed || now.Running()) {
		w.t.Fatalf("all was written, and it is %s", now.State())
	}
}

// TestPower does random things while the machine stops at random steps of them:
// what is stored is what was before, or what was to be; and what had been answered
// stays.
func TestPower(t *testing.T) {
	steps := map[string]int{}
	for seed := range uint64(150) {
		w := newWorld(t, seed)
		for range 60 {
			before, old := w.record(), w.content()
			stops := w.rand.IntN(6)
			if stops == 0 {
				w.disk.left = w.rand.IntN(6)
			}
			w.disk.wrote = ""
			err := w.act()
			stored := w.content()
			if w.disk.dead || stops == 1 {
				answered := !w.disk.dead
				if w.rand.IntN(3) == 0 {
					w.disk.kill()
				} else {
					w.disk.losePower()
				}
				switch now := w.content(); {
				case now != old && now != w.disk.wrote:
					t.Fatalf("seed %d: neither what was stored before nor what was to be:\n%q\nbefore: %q", seed, now, old)
				case answered && now != stored:
					t.Fatalf("seed %d: after the answer (%v) power was lost, and with it:\n%q\nnow: %q", seed, err, stored, now)
				}
				w.restart()
				steps["stop"]++
			}
			w.disk.left = -1
			w.check(before, w.record())
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		for s, n := range w.steps {
			steps[s] += n
		}
	}
	// A test that never gets anywhere proves nothing.
	for _, s := range stages {
		if steps[string(s)] < 100 {
			t.Errorf("of all the way, %s was seen %d times only", s, steps[string(s)])
		}
	}
	t.Log(steps)
}

// TestEachStep stops the machine at each step of each transition.
func TestEachStep(t *testing.T) {
	for name, tr := range transitions {
		for step := range 6 {
			for seed := range uint64(4) {
				r := rand.New(rand.NewPCG(seed, uint64(step)))
				d, c := newRAM(r), newClock()
				s := &Store{files: d, Now: c.now}
				token, session := bring(t, s, tr.from)
				before := get(t, s)
				d.left = step
				err := tr.do(s, c, token, session, before.Install)
				if stopped := d.dead; stopped != (err != nil) {
					t.Fatalf("%s, step %d: the machine has stopped: %v, and the answer is %v", name, step, stopped, err)
				}
				d.losePower()
				d.start()
				now := get(t, &Store{files: d, Now: c.now})
				if got := now.State(); got != tr.to && (err == nil || got != before.State()) {
					t.Errorf("%s, stopped at step %d (%v): it is %s", name, step, err, got)
				}
				after := &Store{files: d, Now: c.now}
				if i, _ := after.Boot(host, site); i != nil && now.Stage != Armed {
					t.Errorf("%s, stopped at step %d: it's given the installer", name, step)
				}
				if i, _ := after.Boot(host, site); i != nil {
					t.Errorf("%s, stopped at step %d: it's given the installer again", name, step)
				}
			}
		}
	}
}

// transitions are all that there are.
var transitions = map[string]struct {
	from Stage
	to   string
	do   func(s *Store, c *clock, token, session, install string) error
}{
	"arm again":  {Ready, "armed", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Arm(arming); return err }},
	"disarm":     {Armed, "disarmed", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Disarm(host, "bob"); return err }},
	"stop":       {Writing, "failed (writing)", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Disarm(host, "bob"); return err }},
	"boot":       {Armed, "booted", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Boot(host, site); return err }},
	"boot again": {Booted, "failed (booted)", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Boot(host, site); return err }},
	"interrupt":  {Writing, "failed (writing)", func(s *Store, _ *clock, _, _, _ string) error { _, err := s.Boot(host, site); return err }},
	"redeem": {Booted, "booted", func(s *Store, _ *clock, token, _, _ string) error {
		_, _, err := s.Redeem(token, mac, "10.0.0.1")
		return err
	}},
	"redeem again": {Writing, "failed (writing)", func(s *Store, _ *clock, token, _, _ string) error {
		if _, _, err := s.Redeem(token, mac, "10.0.0.2"); code(err) != protocol.CodeRedeemed || errors.Is(err, errDead) {
			return err
		}
		return nil
	}},
	"write more": {Writing, "writing 60%", func(s *Store, c *clock, _, session, _ string) error {
		c.pass(2 * time.Second)
		_, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Done: 60, Total: 100})
		return err
	}},
	"fail": {Writing, "failed (writing)", func(s *Store, _ *clock, _, session, _ string) error {
		_, err := s.Report(session, protocol.Report{Step: protocol.StepWrite, Error: "broken"})
		return err
	}},
	"silence":    {Writing, "failed (writing)", func(s *Store, c *clock, _, _, _ string) error { c.pass(time.Hour); _, err := s.Sweep(); return err }},
	"written":    {Writing, "written", func(s *Store, _ *clock, _, session, _ string) error { _, err := s.Written(session); return err }},
	"first boot": {Written, "first boot", func(s *Store, _ *clock, _, _, install string) error { _, err := s.FirstBoot(install); return err }},
	"ready":      {FirstBoot, "ready", func(s *Store, _ *clock, _, _, install string) error { _, err := s.Ready(host, install); return err }},
	"never ready": {Written, "failed (first boot)", func(s *Store, c *clock, _, _, _ string) error {
		c.pass(time.Hour)
		_, err := s.Sweep()
		return err
	}},
}
