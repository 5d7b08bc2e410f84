package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
)

// Bytes of requests, at most.
const (
	smallBody  = 4 << 10
	reportBody = 256 << 10
)

// seedTime is how long the secrets of a seed may take: their stores may be slow.
const seedTime = time.Minute

// redeem gives the job for the one-time token.
func (s *Server) redeem(w http.ResponseWriter, r *http.Request) {
	var req protocol.RedeemRequest
	from := source(r)
	if !s.guesses.allowed(from, time.Now()) {
		s.counts.redemptions("limited").Inc()
		w.Header().Set("Retry-After", "60")
		refuse(w, http.StatusTooManyRequests, "", "too many wrong tokens came from this address: wait a minute")
		return
	}
	if !read(w, r, smallBody, &req) {
		return
	}
	session, record, err := s.Store.Redeem(req.Token, req.MAC, from)
	if err != nil {
		var refused *state.RefusedError
		result := "error"
		if errors.As(err, &refused) {
			result = refused.Code
			s.guesses.wrong(from, time.Now())
		}
		s.counts.redemptions(result).Inc()
		s.Log.Warn("a token isn't redeemed", "address", from, "error", err)
		s.refused(w, err)
		return
	}
	log := s.Log.With("host", record.Host, "address", from)
	job, err := s.job(r, record)
	if err != nil {
		s.counts.redemptions("error").Inc()
		log.Error("the installation has failed", "error", err)
		if _, e := s.Store.Fail(record.Host, record.Install, err.Error()); e != nil {
			log.Error("that isn't stored", "error", e)
		}
		refuse(w, http.StatusConflict, protocol.CodeSession, err.Error())
		return
	}
	job.Session = session
	s.counts.redemptions("ok").Inc()
	log.Info("its token is redeemed", "image", record.Image)
	reply(w, job)
}

// job is what is to be installed: what the operator was asked about, or nothing.
func (s *Server) job(r *http.Request, record *state.Record) (*protocol.Job, error) {
	host, ok := s.Hosts().ByName(record.Host)
	if !ok {
		return nil, fmt.Errorf("%s isn't registered any more", record.Host)
	}
	if !record.ArmedFor(siteOf(host, record.MAC, "")) {
		return nil, errors.New("the rules for its disks have changed since it was armed: arm it again, and look at which disk is wiped")
	}
	job := &protocol.Job{
		ID: record.Install, Host: record.Host, Image: record.Image,
		ImageURL: s.plainURL(r) + "/images/" + record.Image + "/",
		Install:  record.Rule, Data: record.Data,
	}
	if s.Keys != nil {
		job.Keys = s.Keys()
	}
	return job, nil
}

// session is the one that a request without more to say is of, and its record; none
// where it was refused.
func (s *Server) session(w http.ResponseWriter, r *http.Request) (string, *state.Record) {
	var req struct{}
	if !read(w, r, smallBody, &req) {
		return "", nil
	}
	session := bearer(r)
	record, err := s.Store.Session(session)
	if err != nil {
		s.refused(w, err)
		return "", nil
	}
	return session, record
}

// turn tells an installation whether it may write.
func (s *Server) turn(w http.ResponseWriter, r *http.Request) {
	session, record := s.session(w, r)
	if record == nil {
		return
	}
	ok, place := s.line.ask(record.Install, time.Now())
	if err := s.Store.Place(session, place); err != nil {
		s.line.leave(record.Install) // it was disarmed in this moment
		s.refused(w, err)
		return
	}
	answer := protocol.Turn{Go: ok, Place: place}
	if !ok {
		answer.Wait = int(askAgain / time.Second)
	}
	reply(w, answer)
}

// report takes what the installer says of itself.
func (s *Server) report(w http.ResponseWriter, r *http.Request) {
	var req protocol.Report
	if !read(w, r, reportBody, &req) {
		return
	}
	session := bearer(r)
	answer, err := s.Store.Report(session, req)
	if err != nil {
		s.refused(w, err)
		return
	}
	s.follow(session)
	reply(w, answer)
}

// follow brings the line to what an installation has reported.
func (s *Server) follow(session string) {
	record, err := s.Store.Of(session)
	switch {
	case err != nil:
	case record.Stage == state.Writing:
		s.line.hold(record.Install)
	case !record.Running():
		s.line.leave(record.Install)
		if record.Stage == state.Failed {
			s.Log.Warn("the installation has failed", "host", record.Host, "stage", record.FailedAt, "error", record.Error)
		}
	}
}

// seed delivers the host's own data, secrets and all.
func (s *Server) seed(w http.ResponseWriter, r *http.Request) {
	session, record := s.session(w, r)
	if record == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), seedTime)
	defer cancel()
	files, err := s.Seeds(ctx, record.Host)
	if err != nil {
		s.counts.seeds("error").Inc()
		s.Log.Error("the host's data can't be had", "host", record.Host, "error", err)
		// It asks again for some minutes: what keeps the secrets may be back by then.
		refuse(w, http.StatusServiceUnavailable, "", fmt.Sprintf("the data of %s can't be had: %v", record.Host, err))
		return
	}
	// Whoever has asked for the secrets is in the history before they have them.
	if err := s.Store.Note(session, "the host's data was delivered to "+source(r)); err != nil {
		s.counts.seeds("error").Inc()
		s.refused(w, err)
		return
	}
	s.counts.seeds("ok").Inc()
	s.Log.Info("the host's data is delivered", "host", record.Host, "address", source(r))
	reply(w, protocol.Seed{Files: files})
}

// written disarms a host, whose disk has all.
func (s *Server) written(w http.ResponseWriter, r *http.Request) {
	var req struct{}
	if !read(w, r, smallBody, &req) {
		return
	}
	record, err := s.Store.Written(bearer(r))
	if err != nil {
		s.refused(w, err)
		return
	}
	s.line.leave(record.Install)
	s.counts.written.Inc()
	s.Log.Info("all is written: the host is disarmed", "host", record.Host)
	reply(w, struct{}{})
}

// bearer is what a request is authorized by.
func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

// read reads a request's JSON, and answers where it isn't that.
func read(w http.ResponseWriter, r *http.Request, limit int64, to any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(to)
	var large *http.MaxBytesError
	switch {
	case err == nil:
		// It is all here: what follows takes the time that it takes.
		http.NewResponseController(w).SetReadDeadline(time.Time{}) //nolint:errcheck // a recorder in a test has none
		return true
	case errors.As(err, &large):
		refuse(w, http.StatusRequestEntityTooLarge, "", fmt.Sprintf("the request is larger than %d bytes", limit))
	default:
		refuse(w, http.StatusBadRequest, "", "the request isn't the JSON that is asked for")
	}
	return false
}

// reply sends an answer, which nobody in between keeps.
func reply(w http.ResponseWriter, answer any) { send(w, http.StatusOK, answer) }

func refuse(w http.ResponseWriter, status int, code, text string) {
	send(w, status, protocol.Refusal{Error: text, Code: code})
}

func send(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	limitWrite(w)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // whoever asked is gone
}

// refused answers with what the state says.
func (s *Server) refused(w http.ResponseWriter, err error) {
	var refused *state.RefusedError
	if !errors.As(err, &refused) {
		s.Log.Error("the state can't be stored", "error", err)
		refuse(w, http.StatusInternalServerError, "", "the state can't be stored: the server's log says why")
		return
	}
	status := http.StatusForbidden
	switch refused.Code {
	case protocol.CodeRedeemed:
		status = http.StatusConflict
	case protocol.CodeExpired:
		status = http.StatusGone
	}
	refuse(w, status, refused.Code, refused.Text)
}
