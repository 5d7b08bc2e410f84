package web

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// OperatorToken gives the token that lets its holders arm and disarm over HTTPS. It
// is made once, in a file of the directory that only its owner may read.
func OperatorToken(dir string) (string, error) {
	name := filepath.Join(dir, "operator.token")
	data, err := once(name, func() ([]byte, error) {
		b := make([]byte, 32)
		rand.Read(b)
		return []byte(hex.EncodeToString(b) + "\n"), nil
	})
	if err != nil {
		return "", fmt.Errorf("the operators' token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 32 {
		return "", fmt.Errorf("the operators' token: %s has %d characters: write 32 at least, or remove it", name, len(token))
	}
	return token, nil
}

// once gives a file's content, and makes it where it's missing: all of it, by one
// of those who do at the same time, and readable for its owner only.
func once(name string, content func() ([]byte, error)) ([]byte, error) {
	data, err := readOwn(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	if data, err = content(); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-") // with mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	// A link, unlike a rename, doesn't replace what somebody else has made by now.
	if err := os.Link(tmp.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, err
	}
	return readOwn(name)
}

// readOwn reads a file with a secret, unless others may, too.
func readOwn(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o): chmod 600 it, or remove it so that a new one is made", name, info.Mode().Perm())
	}
	return os.ReadFile(name)
}

// ArmRequest is the body of POST /api/v1/hosts/HOST/arm.
type ArmRequest struct {
	Image string `json:"image"` // ID, the beginning of one, or a profile; empty: the newest of the host's
	By    string `json:"by"`    // who asks, for the history
	// Rules are those for the host's disks as the operator was asked about them; nil:
	// nobody was asked. The host isn't armed if the server's site has others.
	Rules *DiskRules `json:"rules,omitempty"`
	// WithoutNomad arms a host whatever runs on it.
	WithoutNomad bool `json:"without_nomad,omitempty"`
}

// DiskRules say which disk of a host is wiped, and which keep every byte.
type DiskRules struct {
	Install plan.DiskRule   `json:"install"`
	Data    []plan.DiskRule `json:"data,omitempty"`
}

// operator lets only those in who show the token.
func (s *Server) operator(do http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from := source(r)
		if !s.guesses.allowed(from, time.Now()) || !s.isOperator(bearer(r)) {
			s.guesses.wrong(from, time.Now())
			s.counts.operators("refused").Inc()
			s.Log.Warn("somebody without the operators' token wants to arm or disarm", "host", r.PathValue("host"), "address", from)
			refuse(w, http.StatusForbidden, "", "only operators may: send their token, Authorization: Bearer TOKEN")
			return
		}
		do(w, r)
	}
}

func (s *Server) isOperator(token string) bool {
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.OperatorToken))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && s.OperatorToken != ""
}

func (s *Server) arm(w http.ResponseWriter, r *http.Request) {
	var req ArmRequest
	if !read(w, r, smallBody, &req) {
		return
	}
	if s.Arm == nil {
		refuse(w, http.StatusNotImplemented, "", "this server arms no hosts over HTTPS: kiln arm does, where it runs")
		return
	}
	host, ok := s.Hosts().ByName(r.PathValue("host"))
	if !ok {
		refuse(w, http.StatusNotFound, "", fmt.Sprintf("there is no host %.100q in the inventory", r.PathValue("host")))
		return
	}
	if rules := req.Rules; rules != nil && (rules.Install != host.Install || !slices.Equal(rules.Data, host.Data)) {
		s.operated(w, r, "armed", nil, fmt.Errorf("%s isn't armed: the server's site has other rules for its disks than yours: bring both to the same state, and look at which disk is wiped", host.Name))
		return
	}
	req.By = by(r, req.By)
	record, err := s.Arm(r.Context(), host.Name, req)
	s.operated(w, r, "armed", record, err)
}

func (s *Server) disarm(w http.ResponseWriter, r *http.Request) {
	var req ArmRequest
	if !read(w, r, smallBody, &req) {
		return
	}
	name := r.PathValue("host")
	if host, ok := s.Hosts().ByName(name); ok {
		name = host.Name // else it isn't in the inventory any more, but may be armed
	}
	record, err := s.Store.Disarm(name, by(r, req.By))
	if err == nil {
		s.line.leave(record.Install)
	}
	s.operated(w, r, "disarmed", record, err)
}

func by(r *http.Request, who string) string {
	if who == "" {
		who = "an operator"
	}
	return fmt.Sprintf("%.100s, from %s", who, source(r))
}

func (s *Server) operated(w http.ResponseWriter, r *http.Request, what string, record *state.Record, err error) {
	if err != nil {
		s.counts.operators("error").Inc()
		s.Log.Warn("a host isn't "+what, "host", r.PathValue("host"), "address", source(r), "error", err)
		refuse(w, http.StatusConflict, "", err.Error())
		return
	}
	s.counts.operators(what).Inc()
	s.Log.Info("a host is "+what, "host", record.Host, "by", record.By, "address", source(r))
	reply(w, record.Public())
}

// What an address may do wrong within a time, and how many addresses are kept.
const (
	maxWrong    = 10
	wrongTime   = time.Minute
	maxGuessers = 4096
)

// guesses bounds how often an address may be wrong. Nobody finds a token of 256
// bits by guessing, but they'd fill the log.
type guesses struct {
	mu   sync.Mutex
	from map[string]guesser
}

type guesser struct {
	since time.Time
	wrong int
}

// allowed tells whether an address may try.
func (g *guesses) allowed(from string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	a, ok := g.from[from]
	return !ok || a.wrong < maxWrong || now.Sub(a.since) > wrongTime
}

// wrong counts one that was.
func (g *guesses) wrong(from string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.from[from]
	if now.Sub(a.since) > wrongTime {
		a = guesser{since: now}
	}
	a.wrong++
	if g.from == nil || len(g.from) >= maxGuessers {
		// Rather all anew than all of somebody's addresses kept.
		g.from = map[string]guesser{}
	}
	g.from[from] = a
}
