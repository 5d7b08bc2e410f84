package state

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

// RefusedError is that an installer isn't given what it asks for.
type RefusedError struct {
	Code string // one of protocol's
	Text string
}

func (e *RefusedError) Error() string { return e.Text }

func refuse(code, format string, a ...any) *RefusedError {
	return &RefusedError{code, fmt.Sprintf(format, a...)}
}

// Redeem gives the session for a token, once, to the MAC that was given it. A
// second redemption ends the installation, for one of the two isn't the host.
// Refusals are *RefusedError.
func (s *Store) Redeem(token string, mac plan.MAC, address string) (session string, r *Record, err error) {
	unknown := refuse(protocol.CodeToken, "there is no such token, or it is of another MAC than %.20q", string(mac))
	host, r, err := s.holder(token)
	if err != nil {
		return "", nil, err
	}
	if r == nil || !same(r.TokenHash, token) {
		return "", nil, unknown
	}
	r, err = s.change(host, func(r *Record) (outcome, error) {
		now := s.now().UTC()
		switch {
		// Again, now that it can't change.
		case !same(r.TokenHash, token):
			return keep, unknown
		case !r.Redeemed.IsZero():
			return s.again(r, address)
		case r.Stage != Booted:
			return keep, refuse(protocol.CodeExpired, "the installation of %s is over: %s: %s", host, r.State(), r.Error)
		case mac != r.MAC:
			// It was given to one, and used by another.
			s.fail(r, Booted, fmt.Sprintf("the token of %s was offered by %s, for the MAC %.20q", r.MAC, address, string(mac)))
			return save, unknown
		case now.Sub(r.Since) > s.redeemWithin():
			s.fail(r, Booted, fmt.Sprintf("its token was offered %s after it was given; it is good for %s", now.Sub(r.Since).Round(time.Second), s.redeemWithin()))
			return save, refuse(protocol.CodeExpired, "the token of %s is too old: arm the host again", host)
		}
		session = host + "." + secret(32)
		r.SessionHash, r.Redeemed, r.Heard, r.Address = hash(session), now, now, address
		r.Step = string(protocol.StepRedeem)
		s.note(r, "", "the token was redeemed from "+address)
		return save, nil
	})
	if err != nil {
		return "", nil, err
	}
	return session, r, nil
}

// again refuses a token that was redeemed.
func (s *Store) again(r *Record, address string) (outcome, error) {
	refusal := refuse(protocol.CodeRedeemed, "the token of %s was redeemed before, from %s: nothing may be written", r.Host, r.Address)
	text := fmt.Sprintf("its token was redeemed twice, from %s and then from %s: one of them isn't the host", r.Address, address)
	switch r.Stage {
	case Booted, Writing, Written, FirstBoot:
		s.fail(r, r.Stage, text)
	default:
		// It has failed already, or the cluster has it: who offers an old token
		// mustn't be able to change that, or to fill the history.
		for _, e := range r.History {
			if e.Text == clean(text) {
				return keep, refusal
			}
		}
		s.note(r, "", text)
	}
	return save, refusal
}

func (s *Store) redeemWithin() time.Duration { return or(s.Timeouts.Redeem, 10*time.Minute) }

// Session gives the record that a session is of, while that may go on: until all
// is written, or it has failed. Refusals are *RefusedError.
func (s *Store) Session(session string) (*Record, error) {
	r, err := s.Of(session)
	if err != nil {
		return nil, err
	}
	if !r.Running() {
		return nil, refuse(protocol.CodeSession, "the installation of %s is over: %s: %s", r.Host, r.State(), r.Error)
	}
	return r, nil
}

// Of gives the record that a session is of, whether that is over or not.
func (s *Store) Of(session string) (*Record, error) {
	_, r, err := s.holder(session)
	if err != nil {
		return nil, err
	}
	if r == nil || !same(r.SessionHash, session) {
		return nil, noSession()
	}
	return r, nil
}

func noSession() error {
	return refuse(protocol.CodeSession, "there is no such session, or it is over")
}

// holder gives the record of the host whose name a token or a session begins with,
// and nil where there is none. An error is the disk's: the installer asks again.
func (s *Store) holder(secret string) (string, *Record, error) {
	i := strings.LastIndexByte(secret, '.')
	if i < 0 || checkName(secret[:i]) != nil {
		return "", nil, nil
	}
	r, err := s.Get(secret[:i])
	if errors.Is(err, ErrUnknown) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	return r.Host, r, nil
}

// hash is what is stored of a secret. It has 256 random bits: there is nothing to
// guess, so neither salt nor time would help.
func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// same tells, in the same time whatever it is, whether a secret is the one whose
// hash was stored.
func same(stored, secret string) bool {
	return stored != "" && subtle.ConstantTimeCompare([]byte(stored), []byte(hash(secret))) == 1
}

func or(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}
