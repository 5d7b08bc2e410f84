package tftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// How long a sender waits for an acknowledgement before it sends again.
const (
	firstWait = time.Second
	minWait   = 200 * time.Millisecond
	// maxWait is more than the 5 s after which clients say again what they said:
	// atftp's begin anew with each packet that it hears and ignores.
	maxWait = 8 * time.Second
	// keptWait is the most that is kept once the client answers: no round trip takes
	// that long.
	keptWait = 2 * time.Second
)

// Why a transfer failed by itself.
var (
	errSilent = errors.New("the client has fallen silent")
	errLong   = errors.New("the transfer takes too long")
)

// sender is one transfer's state, without its socket and clock: it is told what
// arrives and what time it is, and says what is to be sent.
//
// Blocks have their numbers from 1 on, unlimited; packets carry the lower 16 bits.
// Block 0 is the acknowledgement of the client's options, where there are any.
// What is sent and not acknowledged is from acked+1 to next-1: a window.
type sender struct {
	data   []byte
	optAck []byte // the packet; nil: no options, begin with data
	block  int
	window int
	last   int64 // the last block's number: a short one, perhaps empty

	acked int64 // the highest that was acknowledged; -1: not even block 0
	next  int64 // the first that wasn't sent

	sentAt time.Time // when the window was sent
	again  bool      // some of the window was sent before: says nothing of the round trip
	// repeated: a second acknowledgement of the same block had the window sent
	// again already.
	repeated bool

	began, progress time.Time
	giveUp, maxTime time.Duration

	// The round trip as RFC 6298 has it, and the least that was seen.
	smooth, variance, least time.Duration
	wait                    time.Duration
	waitLimit               time.Duration

	resent int64 // packets that were sent more than once
}

// span is a range of blocks to be sent: first to end-1. The zero one is nothing.
type span struct{ first, end int64 }

func (s span) empty() bool { return s.first >= s.end }

// newSender begins a transfer. giveUp is how long it goes on without any
// progress, and maxTime how long in all.
func newSender(data []byte, t terms, giveUp, maxTime time.Duration) *sender {
	s := &sender{
		data: data, block: t.Block, window: t.Window, giveUp: giveUp, maxTime: maxTime,
		last: int64(len(data)/t.Block) + 1, wait: firstWait, waitLimit: maxWait,
	}
	if t.Timeout > 0 {
		s.wait = min(s.wait, t.Timeout)
		s.waitLimit = max(maxWait, 2*t.Timeout) // more than the client's own wait
	}
	s.next = 1
	if len(t.Accepted) > 0 {
		s.optAck = optAckPacket(t.Accepted)
		s.acked = -1
	}
	return s
}

// start says what is sent first.
func (s *sender) start(now time.Time) span {
	s.began, s.progress = now, now
	if s.acked < 0 {
		s.sentAt = now
		return span{0, 1}
	}
	return s.advance(now)
}

// advance sends the window that follows what was acknowledged.
func (s *sender) advance(now time.Time) span {
	sent := s.next
	s.next = min(s.acked+int64(s.window), s.last) + 1
	s.again = s.acked+1 < sent
	s.repeated = false
	s.sentAt = now
	s.resent += max(0, sent-(s.acked+1))
	return span{s.acked + 1, s.next}
}

// repeat sends the whole window again.
func (s *sender) repeat(now time.Time) span {
	s.again = true
	s.sentAt = now
	s.resent += s.next - (s.acked + 1)
	return span{s.acked + 1, s.next}
}

// done is whether the client has all.
func (s *sender) done() bool { return s.acked == s.last }

// started is whether the client has acknowledged anything at all.
func (s *sender) started() bool { return s.acked > 0 || s.acked == 0 && s.optAck != nil }

// deadline is when expire is to be called.
func (s *sender) deadline() time.Time { return s.sentAt.Add(s.wait) }

// receive takes a packet of the client. The error ends the transfer.
func (s *sender) receive(now time.Time, p []byte) (span, error) {
	if now.Sub(s.began) > s.maxTime {
		return span{}, fmt.Errorf("%w: %s", errLong, s.maxTime)
	}
	if len(p) < headerSize || s.done() {
		return span{}, nil
	}
	switch binary.BigEndian.Uint16(p) {
	case opAck:
		return s.acknowledge(now, binary.BigEndian.Uint16(p[2:])), nil
	case opError:
		return span{}, parseError(p)
	}
	return span{}, nil
}

// acknowledge moves on to what follows block n, which may well be within the
// window: then the client misses what comes after it (RFC 7440). There are clients
// that acknowledge each packet, though: what comes too early for the window that
// was just sent again doesn't have it sent once more.
func (s *sender) acknowledge(now time.Time, n uint16) span {
	flight := s.next - 1 - s.acked
	switch d := int64(n - uint16(s.acked)); {
	case d == 0:
		return s.acknowledgedAgain(now)
	case d > flight:
		return span{} // of long ago, or of nothing that was sent
	default:
		if d == flight && !s.again {
			s.measure(now.Sub(s.sentAt))
		}
		s.acked += d
	}
	s.progress = now
	s.wait = min(s.wait, keptWait)
	if s.done() || s.acked+1 < s.next && s.early(now) {
		return span{}
	}
	return s.advance(now)
}

// early is whether what has come can't be an answer to the window as it was sent
// last: no client was ever that fast.
func (s *sender) early(now time.Time) bool { return now.Sub(s.sentAt) < s.least*3/4 }

// acknowledgedAgain decides whether a second acknowledgement of the same block
// means that the window's first packet is lost. With a window of one it means
// nothing: who answers each with a packet sends all twice to the end (the
// Sorcerer's Apprentice, RFC 1123). Nor does it if it comes sooner than any
// client could have answered this window: the network has doubled it, or it
// answers the window before.
func (s *sender) acknowledgedAgain(now time.Time) span {
	if s.window == 1 || s.acked < 0 || s.repeated || s.least == 0 || s.early(now) {
		return span{}
	}
	s.repeated = true
	return s.repeat(now)
}

// expire is called at the deadline: it sends the window again, or gives up.
func (s *sender) expire(now time.Time) (span, error) {
	switch {
	case s.done() || now.Before(s.deadline()):
		return span{}, nil
	case now.Sub(s.began) > s.maxTime:
		return span{}, fmt.Errorf("%w: %s", errLong, s.maxTime)
	case now.Sub(s.progress) >= s.giveUp:
		return span{}, fmt.Errorf("%w: %s without an answer, at block %d of %d", errSilent, s.giveUp, s.acked+1, s.last)
	}
	// Until a packet that was sent once is answered, the round trip isn't known any
	// more (Karn): so the longer wait stays.
	s.wait = min(2*s.wait, s.waitLimit)
	s.repeated = false
	return s.repeat(now), nil
}

// measure takes a round trip into account (RFC 6298).
func (s *sender) measure(rtt time.Duration) {
	rtt = max(rtt, time.Microsecond)
	if s.smooth == 0 {
		s.smooth, s.variance, s.least = rtt, rtt/2, rtt
	} else {
		s.variance += ((s.smooth - rtt).Abs() - s.variance) / 4
		s.smooth += (rtt - s.smooth) / 8
		s.least = min(s.least, rtt)
	}
	s.wait = min(max(s.smooth+4*s.variance, minWait), s.waitLimit)
}

// packet makes block n's packet in buf, which has to have room for it.
func (s *sender) packet(buf []byte, n int64) []byte {
	if n == 0 {
		return s.optAck
	}
	from := int(n-1) * s.block
	to := min(from+s.block, len(s.data))
	buf = buf[:headerSize+to-from]
	binary.BigEndian.PutUint16(buf, opData)
	binary.BigEndian.PutUint16(buf[2:], uint16(n))
	copy(buf[headerSize:], s.data[from:to])
	return buf
}

// bytes is how much of the file the client has acknowledged.
func (s *sender) bytes() int64 {
	return min(max(0, s.acked)*int64(s.block), int64(len(s.data)))
}
