package tftp

import "sync/atomic"

// Outcome is how a transfer ended.
type Outcome int

// The outcomes.
const (
	// Finished: the client has acknowledged every byte.
	Finished Outcome = iota
	// Probed: the client asked for the size, and then didn't want the file. EDK2
	// does so before each transfer: it's no failure.
	Probed
	// NotFound, Denied and BadRequest were answered with an error: no such file, a
	// wish to write or a file that can't be read, and a mode that there isn't.
	NotFound
	Denied
	BadRequest
	// Stopped: the client sent an error amid the transfer; Gone: its port is closed.
	Stopped
	Gone
	// Silent: the client didn't answer any more; TooLong: it took more than MaxTime.
	Silent
	TooLong
	// Interrupted: the server was shut down.
	Interrupted
	// Broken: this machine couldn't do it, for want of a socket for example.
	Broken
	outcomes
)

// String is the outcome's name in metrics.
func (o Outcome) String() string {
	names := [outcomes]string{"finished", "probed", "not found", "denied", "bad request", "stopped", "gone", "silent", "too long", "interrupted", "broken"}
	if o < 0 || o >= outcomes {
		return "unknown"
	}
	return names[o]
}

// Failure is whether somebody should know of it.
func (o Outcome) Failure() bool { return o != Finished && o != Probed }

// Counters are what a server has done since its start. They are for metrics: each
// is right, but they aren't of one instant.
type Counters struct {
	Begun  int64 // requests that were taken on
	Active int64 // of them, those that haven't ended
	// Ended are by Outcome: Ended[tftp.Finished].
	Ended [outcomes]int64
	Bytes int64 // of files, as acknowledged by clients
	// Packets are those of data that were sent, and Resent how many of them were
	// sent before.
	Packets, Resent int64
	// Not taken on, and not answered: from clients that aren't allowed, packets
	// that aren't requests, requests that were repeated while the first was being
	// answered, and those beyond the bounds of concurrent transfers.
	Refused, Malformed, Repeated, Busy int64
}

// Outcomes lists them all, for metrics.
func Outcomes() []Outcome {
	all := make([]Outcome, outcomes)
	for i := range all {
		all[i] = Outcome(i)
	}
	return all
}

type counters struct {
	begun, active, bytes, packets, resent atomic.Int64
	refused, malformed, repeated, busy    atomic.Int64
	ended                                 [outcomes]atomic.Int64
}

// Counters says what the server has done.
func (s *Server) Counters() Counters {
	c := Counters{
		Begun: s.count.begun.Load(), Active: s.count.active.Load(), Bytes: s.count.bytes.Load(),
		Packets: s.count.packets.Load(), Resent: s.count.resent.Load(),
		Refused: s.count.refused.Load(), Malformed: s.count.malformed.Load(),
		Repeated: s.count.repeated.Load(), Busy: s.count.busy.Load(),
	}
	for i := range s.count.ended {
		c.Ended[i] = s.count.ended[i].Load()
	}
	return c
}
