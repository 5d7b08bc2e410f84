package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// FirstBoot stores that an installed host has booted from its disk, and gives its
// record. The ID is the installation's.
func (s *Store) FirstBoot(install string) (*Record, error) {
	list, _, err := s.List()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(r *Record) bool { return install != "" && r.Install == install })
	if i < 0 {
		return nil, fmt.Errorf("there is no installation %.40q: %w", install, ErrUnknown)
	}
	return s.ofInstall(list[i].Host, install, func(r *Record) (outcome, error) {
		switch r.Stage {
		case Written:
			r.Heard = s.now().UTC()
			s.enter(r, FirstBoot, "booted from its disk")
			return save, nil
		case FirstBoot, Ready:
			return keep, nil
		}
		return keep, fmt.Errorf("%s is %s: %w", r.Host, r.State(), errOver)
	})
}

// Findings stores what is still wrong with an installed host.
func (s *Store) Findings(host, install string, findings []string) (*Record, error) {
	return s.ofInstall(host, install, func(r *Record) (outcome, error) {
		if r.Stage != Written && r.Stage != FirstBoot {
			return keep, fmt.Errorf("%s is %s: %w", r.Host, r.State(), errOver)
		}
		now := make([]string, 0, min(len(findings), maxFindings))
		for _, f := range findings[:min(len(findings), maxFindings)] {
			now = append(now, clean(f))
		}
		if slices.Equal(now, r.Findings) {
			return keep, nil
		}
		r.Findings = now
		return save, nil
	})
}

// Ready stores that the cluster has the host.
func (s *Store) Ready(host, install string) (*Record, error) {
	return s.ofInstall(host, install, func(r *Record) (outcome, error) {
		switch r.Stage {
		case Ready:
			return keep, nil
		case Written, FirstBoot:
			r.Findings = nil
			s.enter(r, Ready, "the cluster has it")
			return save, nil
		}
		return keep, fmt.Errorf("%s is %s: %w", r.Host, r.State(), errOver)
	})
}

// Problem stores why an armed host wouldn't be installed, if it booted now; empty: it
// would. It stays armed. changed is that this is another than before.
func (s *Store) Problem(host, install, text string) (changed bool, err error) {
	text = clean(text)
	_, err = s.ofInstall(host, install, func(r *Record) (outcome, error) {
		switch {
		case r.Stage != Armed:
			return keep, fmt.Errorf("%s is %s: %w", r.Host, r.State(), errOver)
		case text == r.Problem:
			return keep, nil
		case text == "":
			s.note(r, "", "it can be installed again")
		default:
			s.note(r, "", text)
		}
		r.Problem, changed = text, true
		return save, nil
	})
	return changed && err == nil, err
}

// Fail ends an installation for a reason that the server has found.
func (s *Store) Fail(host, install, text string) (*Record, error) {
	return s.ofInstall(host, install, func(r *Record) (outcome, error) {
		switch r.Stage {
		case Failed, Disarmed, Ready:
			return keep, fmt.Errorf("%s is %s: %w", r.Host, r.State(), errOver)
		}
		s.fail(r, r.Stage, text)
		return save, nil
	})
}

// ofInstall changes the record of a host, if its last installation is that one.
func (s *Store) ofInstall(host, install string, do func(r *Record) (outcome, error)) (*Record, error) {
	return s.change(host, func(r *Record) (outcome, error) {
		if r.Install != install || install == "" {
			return keep, fmt.Errorf("%s: the installation %.40q: %w", host, install, errOver)
		}
		return do(r)
	})
}

// Sweep fails the installations that nothing was heard of for too long, and gives
// their records; and it stores progress that isn't yet. A server calls it every
// second or so.
func (s *Store) Sweep() ([]*Record, error) {
	err := s.flush(storeEvery)
	list, _, e := s.List()
	if e != nil {
		return nil, errors.Join(err, e)
	}
	var failed []*Record
	for _, r := range list {
		if _, text := s.overdue(r); text == "" {
			continue
		}
		r, e := s.ofInstall(r.Host, r.Install, func(r *Record) (outcome, error) {
			at, text := s.overdue(r)
			if text == "" {
				return keep, errOver // it was heard of meanwhile
			}
			s.fail(r, at, text)
			return save, nil
		})
		switch {
		case e == nil:
			failed = append(failed, r)
		case !errors.Is(e, errOver):
			err = errors.Join(err, e)
		}
	}
	return failed, err
}

// overdue tells the stage that a record fails in, and why, if it does.
func (s *Store) overdue(r *Record) (at Stage, text string) {
	now := s.now()
	switch r.Stage {
	case Booted, Writing:
		if r.Redeemed.IsZero() {
			if limit := s.redeemWithin(); now.Sub(r.Since) > limit {
				return r.Stage, fmt.Sprintf("the installer hasn't redeemed its token within %s: look at the host's console", limit)
			}
			return "", ""
		}
		if limit := or(s.Timeouts.Silence, 4*time.Minute); now.Sub(r.Heard) > limit {
			return r.Stage, fmt.Sprintf("nothing was heard of the installer for %s, in step %s", limit, r.Step)
		}
	case Written, FirstBoot:
		limit := or(s.Timeouts.FirstBoot, 30*time.Minute)
		if now.Sub(r.Written) <= limit {
			return "", ""
		}
		text := fmt.Sprintf("it has booted from its disk, but isn't ready %s after it was written", limit)
		if r.Stage == Written {
			text = fmt.Sprintf("it hasn't said that it boots from its disk, %s after that was written", limit)
		}
		if len(r.Findings) > 0 {
			text += ": " + strings.Join(r.Findings, "; ")
		}
		return FirstBoot, text
	}
	return "", ""
}
