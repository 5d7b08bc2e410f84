package state

import (
	"errors"
	"fmt"

	"github.com/alisw/kiln/netboot/protocol"
)

// Report takes what an installer says of itself, and tells it whether it may go
// on. What is more than progress is stored before it returns; progress once a
// second at most. Refusals are *RefusedError.
func (s *Store) Report(session string, p protocol.Report) (protocol.Answer, error) {
	var answer protocol.Answer
	return answer, s.withSession(session, func(r *Record) (outcome, error) {
		switch {
		case r.Running():
		case r.Stage == Written && p.Error == "":
			r.say(p.Lines) // the last words before it restarts
			return later, nil
		case r.Stage == Failed:
			answer.Stop = r.Error
			return keep, nil
		default:
			answer.Stop = "it is over: " + r.State()
			return keep, nil
		}
		what := later
		if step := string(p.Step); step != r.Step {
			r.Step, what = clean(step), save
		}
		if p.Step != protocol.StepTurn {
			r.Place = 0
		}
		if p.Disk != "" {
			r.DiskFound = clean(p.Disk)
		}
		r.Heard = s.now().UTC()
		if p.Total > 0 {
			r.Done, r.Total = max(0, min(p.Done, p.Total)), p.Total
		}
		r.say(p.Lines)
		if p.Error != "" {
			s.fail(r, r.Stage, fmt.Sprintf("%s: %s", p.Step, p.Error))
			return save, nil
		}
		if r.Stage == Booted && writes(p.Step) {
			s.enter(r, Writing, "began to write to "+r.DiskFound)
			return save, nil
		}
		return what, nil
	})
}

// writes tells whether a step changes the disk.
func writes(step protocol.Step) bool {
	switch step {
	case protocol.StepWrite, protocol.StepSeed, protocol.StepCommit:
		return true
	}
	return false
}

// Place stores where an installation stands in line, from 1; 0: it's its turn.
// Refusals are *RefusedError.
func (s *Store) Place(session string, place int) error {
	return s.withSession(session, func(r *Record) (outcome, error) {
		if !r.Running() {
			return keep, refuse(protocol.CodeSession, "the installation of %s is over: %s: %s", r.Host, r.State(), r.Error)
		}
		r.Place, r.Heard = place, s.now().UTC()
		return later, nil
	})
}

// Written stores that all is on the disk: the host is disarmed. It may be said
// again, by an installer that hasn't heard the answer. Refusals are
// *RefusedError.
func (s *Store) Written(session string) (*Record, error) {
	var done *Record
	err := s.withSession(session, func(r *Record) (outcome, error) {
		done = r
		switch r.Stage {
		case Written, FirstBoot, Ready:
			return save, nil // again: whoever stored it may have been killed before it was on the disk
		case Writing:
		default:
			return keep, refuse(protocol.CodeSession, "the installation of %s is %s: %s", r.Host, r.State(), r.Error)
		}
		r.Step, r.Place, r.Done = "", 0, r.Total
		r.Heard, r.Written = s.now().UTC(), s.now().UTC()
		s.enter(r, Written, "all is on the disk")
		return save, nil
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// Note adds to the history of an installation that runs. Refusals are
// *RefusedError.
func (s *Store) Note(session, text string) error {
	return s.withSession(session, func(r *Record) (outcome, error) {
		if !r.Running() {
			return keep, refuse(protocol.CodeSession, "the installation of %s is over: %s: %s", r.Host, r.State(), r.Error)
		}
		s.note(r, "", text)
		return save, nil
	})
}

// withSession changes the record whose session it is.
func (s *Store) withSession(session string, do func(r *Record) (outcome, error)) error {
	r, err := s.Of(session)
	if err != nil {
		return err
	}
	_, err = s.change(r.Host, func(r *Record) (outcome, error) {
		if !same(r.SessionHash, session) { // it was armed again meanwhile
			return keep, noSession()
		}
		return do(r)
	})
	return err
}

// errOver is that an installation isn't the host's last one, or isn't in the stage
// for it.
var errOver = errors.New("this installation is over")
