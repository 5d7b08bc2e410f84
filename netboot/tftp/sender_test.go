package tftp

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// receiver is a client, as simple as they are.
type receiver struct {
	block, window int
	options       bool // it waits for their acknowledgement
	each          bool // acknowledges each packet of a window, as it shouldn't
	last          uint16
	since         int
	missed, done  bool
	got           bytes.Buffer
	heard         time.Time // of any progress
}

// clientWait is when the receiver says again what it said.
const clientWait = time.Second

// take takes a packet, and gives the answer: nil, none.
func (r *receiver) take(p []byte) []byte {
	switch binary.BigEndian.Uint16(p) {
	case opOptAck:
		if r.options {
			r.options = false
			return r.ack()
		}
		if r.last == 0 {
			return r.ack()
		}
		return nil
	case opData:
	default:
		return nil
	}
	if n := binary.BigEndian.Uint16(p[2:]); n != r.last+1 || r.done {
		before := int16(n-r.last) <= 0
		if r.window > 1 && (before && (n != r.last || r.since > 0) || !before && r.missed) {
			return nil
		}
		r.missed = true
		return r.ack()
	}
	r.last++
	r.since++
	r.missed = false
	r.got.Write(p[headerSize:])
	r.done = len(p) < headerSize+r.block
	if r.done || r.each || r.since == r.window {
		return r.ack()
	}
	return nil
}

func (r *receiver) ack() []byte {
	r.since = 0
	return binary.BigEndian.AppendUint16([]byte{0, opAck}, r.last)
}

// sim is a network with a clock of its own.
type sim struct {
	random                   *rand.Rand
	now                      time.Time
	delay                    time.Duration // one way
	loss, duplicate, reorder float64
	events                   events
	count                    int
}

type event struct {
	at       time.Time
	n        int
	toClient bool
	p        []byte
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (s *sim) put(toClient bool, p []byte) {
	if p == nil {
		return
	}
	p = bytes.Clone(p)
	if s.random.Float64() < s.loss {
		return
	}
	at := s.now.Add(s.delay)
	if s.random.Float64() < s.reorder {
		at = at.Add(s.delay / 2)
	}
	heap.Push(&s.events, event{at, s.count, toClient, p})
	s.count++
	if s.random.Float64() < s.duplicate {
		heap.Push(&s.events, event{at.Add(s.delay / 8), s.count, toClient, p})
		s.count++
	}
}

// run transfers the file, and says how many packets of data it took.
func (s *sim) run(snd *sender, r *receiver) (packets int, err error) {
	s.now = time.Unix(0, 0)
	buf := make([]byte, snd.block+headerSize)
	send := func(sp span) {
		for n := sp.first; n < sp.end; n++ {
			packets++
			s.put(true, snd.packet(buf, n))
		}
	}
	send(snd.start(s.now))
	r.heard = s.now
	for !snd.done() {
		var todo span
		next := snd.deadline()
		if len(s.events) > 0 && s.events[0].at.Before(next) {
			next = s.events[0].at
		}
		if again := r.heard.Add(clientWait); !r.done && !r.options && again.Before(next) {
			s.now, r.heard, r.missed = again, again, false
			s.put(false, r.ack())
			continue
		}
		if next.Equal(snd.deadline()) {
			s.now = snd.deadline()
			todo, err = snd.expire(s.now)
		} else {
			e := heap.Pop(&s.events).(event)
			s.now = e.at
			if e.toClient {
				before := r.last
				s.put(false, r.take(e.p))
				if r.last != before {
					r.heard = s.now
				}
				continue
			}
			todo, err = snd.receive(s.now, e.p)
		}
		if err != nil {
			return packets, err
		}
		send(todo)
	}
	return packets, nil
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func testTerms(block, window int) terms {
	t := terms{Block: block, Window: window}
	if block != defaultBlock || window != 1 {
		t.Accepted = []option{{"blksize", fmt.Sprint(block)}, {"windowsize", fmt.Sprint(window)}}
	}
	return t
}

// TestBadNetworks: whatever the network does, the bytes are right, and what it
// costs is bounded.
func TestBadNetworks(t *testing.T) {
	for _, c := range []struct {
		name                     string
		loss, duplicate, reorder float64
		// Packets sent again, as a multiple of the blocks: for a lost one, all of its
		// window is.
		again float64
	}{
		{"perfect", 0, 0, 0, 0},
		{"1 % loss", 0.01, 0, 0, 0.03},
		{"5 % loss", 0.05, 0, 0, 0.13},
		{"15 % loss", 0.15, 0, 0, 0.5},
		{"each packet twice", 0, 1, 0, 0},
		{"some packets twice", 0, 0.2, 0, 0},
		{"disorder", 0, 0, 0.05, 0.1},
		{"all of it", 0.05, 0.1, 0.05, 0.25},
	} {
		for _, window := range []int{1, 2, 4, 16, 64} {
			for seed := range uint64(3) {
				snd := newSender(content(300*512+17), testTerms(512, window), 30*time.Second, 15*time.Minute)
				r := &receiver{block: 512, window: window, options: snd.optAck != nil}
				s := &sim{
					random: rand.New(rand.NewPCG(seed, uint64(window))), delay: 12 * time.Millisecond,
					loss: c.loss, duplicate: c.duplicate, reorder: c.reorder,
				}
				packets, err := s.run(snd, r)
				if err != nil {
					t.Errorf("%s, window %d, seed %d: %v", c.name, window, seed, err)
					continue
				}
				if !bytes.Equal(r.got.Bytes(), snd.data) {
					t.Errorf("%s, window %d, seed %d: other bytes", c.name, window, seed)
				}
				if most := float64(snd.last) * (1 + c.again*float64(window)); float64(packets) > most+2 {
					t.Errorf("%s, window %d, seed %d: %d packets for %d blocks", c.name, window, seed, packets, snd.last)
				}
			}
		}
	}
}

// TestApprentice: a network that doubles all, and a client that answers each packet,
// must not have everything sent twice to the end.
func TestApprentice(t *testing.T) {
	for _, each := range []bool{false, true} {
		snd := newSender(content(200*512), testTerms(512, 8), 30*time.Second, 15*time.Minute)
		r := &receiver{block: 512, window: 8, options: true, each: each}
		s := &sim{random: rand.New(rand.NewPCG(1, 1)), delay: 10 * time.Millisecond, duplicate: 1}
		packets, err := s.run(snd, r)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.got.Bytes(), snd.data) {
			t.Error("other bytes")
		}
		if packets > 2*int(snd.last)+10 {
			t.Errorf("each=%v: %d packets for %d blocks", each, packets, snd.last)
		}
	}
}

// TestRollover: more blocks than there are numbers, the last of them empty.
func TestRollover(t *testing.T) {
	for _, window := range []int{1, 16} {
		snd := newSender(content(8*140_000), testTerms(8, window), 30*time.Second, 15*time.Hour)
		r := &receiver{block: 8, window: window, options: true}
		s := &sim{random: rand.New(rand.NewPCG(1, 2)), delay: time.Millisecond, loss: 0.001}
		if _, err := s.run(snd, r); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.got.Bytes(), snd.data) {
			t.Errorf("window %d: other bytes", window)
		}
	}
}

// TestGiveUp: a client that is silent, from the start or in the middle, is sent
// some packets and then forgotten; one that is slow is forgotten in the end.
func TestGiveUp(t *testing.T) {
	now := time.Unix(0, 0)
	snd := newSender(content(5000), testTerms(1000, 1), 30*time.Second, time.Minute)
	snd.start(now)
	sent := 1
	for {
		now = snd.deadline()
		todo, err := snd.expire(now)
		if err != nil {
			if !errors.Is(err, errSilent) {
				t.Errorf("%v", err)
			}
			break
		}
		sent += int(todo.end - todo.first)
	}
	if took := now.Sub(time.Unix(0, 0)); took < 30*time.Second || took > 38*time.Second || sent < 5 || sent > 20 {
		t.Errorf("gave up after %s and %d packets", took, sent)
	}
	now = time.Unix(0, 0)
	snd = newSender(content(1<<20), testTerms(1000, 1), 30*time.Second, time.Minute)
	snd.start(now)
	for n := uint16(0); ; n++ {
		if n > 7 {
			t.Fatal("a slow client may go on")
		}
		if _, err := snd.receive(now, []byte{0, opAck, 0, byte(n)}); err != nil {
			if !errors.Is(err, errLong) {
				t.Error(err)
			}
			break
		}
		now = now.Add(10 * time.Second)
	}
}

// TestWaits: the wait follows the round trip, keeps what a loss has taught, and
// respects the client's wish.
func TestWaits(t *testing.T) {
	now := time.Unix(0, 0)
	snd := newSender(content(1<<20), testTerms(1000, 1), 30*time.Second, time.Hour)
	snd.start(now)
	if snd.wait != firstWait {
		t.Errorf("waits %s at first", snd.wait)
	}
	for n := range uint16(20) {
		now = now.Add(500 * time.Millisecond)
		if _, err := snd.receive(now, binary.BigEndian.AppendUint16([]byte{0, opAck}, n)); err != nil {
			t.Fatal(err)
		}
	}
	if snd.wait < 500*time.Millisecond || snd.wait > 700*time.Millisecond {
		t.Errorf("waits %s where the round trip is 500 ms", snd.wait)
	}
	before := snd.wait
	now = snd.deadline()
	if todo, err := snd.expire(now); err != nil || todo != (span{20, 21}) {
		t.Errorf("%v, %v", todo, err)
	}
	if _, err := snd.receive(now.Add(time.Millisecond), []byte{0, opAck, 0, 20}); err != nil || snd.wait != 2*before {
		t.Errorf("waits %s after an answer that may be of either packet: %v", snd.wait, err)
	}
	wish := testTerms(1000, 1)
	wish.Timeout = 10 * time.Second
	if snd := newSender(nil, wish, 0, 0); snd.wait != firstWait || snd.waitLimit != 20*time.Second {
		t.Errorf("waits %s, up to %s, though the client wants 10 s", snd.wait, snd.waitLimit)
	}
}

// TestDeafClient: atftp ignores all but the first copy of a block, and says again
// what it said 5 s after the last packet, whichever that was. It has to be left in
// peace for so long.
func TestDeafClient(t *testing.T) {
	now := time.Unix(0, 0)
	snd := newSender(content(1<<20), testTerms(1000, 1), 45*time.Second, time.Hour)
	snd.start(now)
	for {
		next := snd.deadline()
		if next.Sub(now) > 5*time.Second {
			return
		}
		now = next
		if _, err := snd.expire(now); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClientStops(t *testing.T) {
	snd := newSender(content(1<<20), testTerms(1000, 1), 30*time.Second, time.Hour)
	snd.start(time.Unix(0, 0))
	_, err := snd.receive(time.Unix(0, 0), []byte("\x00\x05\x00\x00User aborted the transfer\x00"))
	if err == nil || !strings.Contains(err.Error(), "User aborted the transfer") {
		t.Error(err)
	}
}

// FuzzSender has a client that says anything at any time. Each three bytes are what
// it does: the kind, and an argument.
func FuzzSender(f *testing.F) {
	f.Add(uint16(5000), uint16(512), uint8(1), []byte("\x00\x00\x00\x00\x00\x01\x00\x00\x02"))
	f.Add(uint16(60000), uint16(8), uint8(16), []byte("\x00\x00\x00\x01\x00\x10\x02\x01\x00\x00\x00\x08\x03\x00\x00"))
	f.Fuzz(func(t *testing.T, size, block uint16, window uint8, script []byte) {
		b, w := max(minBlock, int(block)), max(1, int(window))
		snd := newSender(make([]byte, size), testTerms(b, w), 30*time.Second, 15*time.Minute)
		now := time.Unix(0, 0)
		buf := make([]byte, b+headerSize)
		check := func(todo span) {
			if todo.end-todo.first > int64(w) || todo.end > snd.last+1 || !todo.empty() && todo.first != snd.acked+1 {
				t.Fatalf("%v of %d blocks, window %d", todo, snd.last, w)
			}
			if snd.acked > snd.last || snd.next > snd.last+1 || snd.next <= snd.acked && !snd.done() || snd.next-1-snd.acked > int64(w) {
				t.Fatalf("acked %d, next %d of %d, window %d", snd.acked, snd.next, snd.last, w)
			}
			for n := todo.first; n < todo.end; n++ {
				if p := snd.packet(buf, n); n > 0 && len(p) > b+headerSize {
					t.Fatalf("block %d has %d bytes", n, len(p))
				}
			}
		}
		check(snd.start(now))
		for ; len(script) >= 3 && !snd.done(); script = script[3:] {
			arg := binary.BigEndian.Uint16(script[1:])
			var todo span
			var err error
			switch script[0] % 5 {
			case 0:
				todo, err = snd.receive(now, binary.BigEndian.AppendUint16([]byte{0, opAck}, arg))
			case 1: // relative to what would be right
				todo, err = snd.receive(now, binary.BigEndian.AppendUint16([]byte{0, opAck}, uint16(snd.acked)+arg%300))
			case 2:
				now = now.Add(time.Duration(arg) * time.Millisecond)
			case 3:
				todo, err = snd.expire(now)
			case 4:
				todo, err = snd.receive(now, script)
			}
			if err != nil {
				return
			}
			check(todo)
		}
	})
}
