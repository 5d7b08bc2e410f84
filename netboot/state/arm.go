package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/alisw/kiln/plan"
)

// Arming is what a host is armed with.
type Arming struct {
	Host    string // its full name
	MACs    []plan.MAC
	Image   string // ID
	Profile string
	Disk    string // the rule in words, as the operator was asked
	// Install and Data are the rules themselves.
	Install plan.DiskRule
	Data    []plan.DiskRule
	By      string // who arms it
}

// Arm lets the host's next boot from the network install the image. Once. It is
// refused while an installation is under way: that has to be disarmed first.
func (s *Store) Arm(a Arming) (*Record, error) {
	if a.Image == "" {
		return nil, fmt.Errorf("arming %s: no image is named", a.Host)
	}
	if len(a.MACs) == 0 {
		return nil, fmt.Errorf("arming %s: it has no MAC: give an interface of it one, in the inventory", a.Host)
	}
	for _, m := range a.MACs {
		if p, err := plan.ParseMAC(string(m)); err != nil || p != m {
			return nil, fmt.Errorf("arming %s: %q is no MAC address in the usual spelling", a.Host, m)
		}
	}
	return s.begin(a.Host, func(r *Record) (outcome, error) {
		if r.Running() {
			return keep, fmt.Errorf("%s is being installed (%s): kiln disarm %s ends that", a.Host, r.State(), a.Host)
		}
		*r = Record{
			Host: a.Host, MACs: slices.Clone(a.MACs), Image: a.Image, Profile: a.Profile, Disk: a.Disk,
			Rule: a.Install, Data: slices.Clone(a.Data), Install: secret(8), By: clean(a.By), History: r.History,
		}
		s.enter(r, Armed, "armed by "+a.By)
		return save, nil
	})
}

// Disarm takes arming back. An installation that is under way fails by it: its
// installer is told to stop, and what it has written of the disk doesn't boot.
func (s *Store) Disarm(host, by string) (*Record, error) {
	return s.change(host, func(r *Record) (outcome, error) {
		switch r.Stage {
		case Armed:
			s.enter(r, Disarmed, "disarmed by "+by)
		case Booted, Writing:
			s.fail(r, r.Stage, "disarmed by "+by)
		default:
			return keep, fmt.Errorf("%s isn't armed: it is %s", host, r.State())
		}
		return save, nil
	})
}

// Installation is what a host that boots is given.
type Installation struct {
	ID    string
	Image string // ID
	Token string // to be redeemed, once
}

// Site is what the site says of a host now, to be compared with what it was armed
// with.
type Site struct {
	MAC     plan.MAC // that boots
	Address string   // that it asks from, for people
	Install plan.DiskRule
	Data    []plan.DiskRule
}

// Boot decides what a host boots that asks over the network: the installer, where
// it is armed, and its disk otherwise, with a nil Installation. Whoever asks again
// during an installation was interrupted: that fails. With an error, too, it must
// boot from its disk.
func (s *Store) Boot(host string, site Site) (*Installation, error) {
	// Most boots are of hosts that are long installed: those change nothing.
	switch r, err := s.Get(host); {
	case errors.Is(err, ErrUnknown):
		return nil, nil
	case err != nil:
		return nil, err
	case r.Stage != Armed && !r.Running():
		return nil, nil
	}
	var given *Installation
	_, err := s.change(host, func(r *Record) (outcome, error) {
		switch {
		case r.Running():
			s.fail(r, r.Stage, fmt.Sprintf("the host (%s) has booted again before the image was written", site.MAC))
			return save, nil
		case r.Stage != Armed:
			return keep, nil
		case !slices.Contains(r.MACs, site.MAC):
			s.fail(r, Armed, fmt.Sprintf("it boots from %s, which it didn't have when it was armed: arm it again", site.MAC))
			return save, nil
		case !r.ArmedFor(site):
			s.fail(r, Armed, "the rules for its disks have changed since it was armed: arm it again, and look at which disk is wiped")
			return save, nil
		}
		token := host + "." + secret(32)
		r.TokenHash, r.SessionHash, r.MAC = hash(token), "", site.MAC
		s.enter(r, Booted, strings.TrimSpace(site.Address+" was given the installer, for "+string(site.MAC)))
		given = &Installation{r.Install, r.Image, token}
		return save, nil
	})
	if err != nil {
		return nil, err
	}
	return given, nil
}

// ArmedFor tells whether the rules for the disks are those that the operator was
// asked about.
func (r *Record) ArmedFor(site Site) bool {
	return r.Rule == site.Install && slices.Equal(r.Data, site.Data)
}

// secret gives that many random bytes, in hexadecimal digits.
func secret(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // it never fails, says its documentation
	return hex.EncodeToString(b)
}
