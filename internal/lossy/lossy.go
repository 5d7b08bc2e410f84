// Package lossy is a bad network between a UDP client and a server, for tests:
// packets take their time, get lost, come twice, or overtake each other. It needs
// no privileges, and loses the same packets each time that it sees the same ones.
package lossy

import (
	"container/heap"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Link is how bad the network is, for each packet and direction.
type Link struct {
	Delay     time.Duration // one way
	Loss      float64       // chance from 0 to 1 that a packet is lost
	Duplicate float64       // that it comes twice
	Reorder   float64       // that it comes later than those after it
	Seed      uint64
}

// Proxy stands before a TFTP server: each client's packets to it go to the server,
// whose answers, from whichever port, come back from one of the proxy's ports.
type Proxy struct {
	link   Link
	server netip.AddrPort
	front  *net.UDPConn

	mu       sync.Mutex
	sessions map[netip.AddrPort]*session
	closed   bool

	// Passed and Lost count packets.
	Passed, Lost atomic.Int64
}

type session struct {
	proxy    *Proxy
	client   netip.AddrPort
	up, down *net.UDPConn // to the server, to the client
	peer     atomic.Pointer[netip.AddrPort]
	toServer *queue
	toClient *queue
}

// New begins. Close ends it.
func New(server netip.AddrPort, link Link) (*Proxy, error) {
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &Proxy{link: link, server: server, front: front, sessions: map[netip.AddrPort]*session{}}
	go p.accept()
	return p, nil
}

// Addr is where clients send their requests.
func (p *Proxy) Addr() netip.AddrPort { return p.front.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close ends the proxy and all that goes through it.
func (p *Proxy) Close() {
	p.front.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, s := range p.sessions {
		s.close()
	}
}

func (s *session) close() {
	s.up.Close()
	s.down.Close()
	s.toServer.close()
	s.toClient.close()
}

// accept takes the first packets of clients.
func (p *Proxy) accept() {
	buf := make([]byte, 65536)
	for {
		n, from, err := p.front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if s := p.session(from); s != nil {
			s.toServer.put(buf[:n], p.server)
		}
	}
}

func (p *Proxy) session(client netip.AddrPort) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sessions[client]; s != nil || p.closed {
		return s
	}
	local := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	up, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil
	}
	down, err := net.ListenUDP("udp", local)
	if err != nil {
		up.Close()
		return nil
	}
	n := uint64(len(p.sessions))
	s := &session{proxy: p, client: client, up: up, down: down}
	s.toServer = newQueue(p, up, 2*n)
	s.toClient = newQueue(p, down, 2*n+1)
	p.sessions[client] = s
	go s.answers()
	go s.asks()
	return s
}

func (s *session) answers() {
	buf := make([]byte, 65536)
	for {
		n, from, err := s.up.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.peer.CompareAndSwap(nil, &from)
		s.toClient.put(buf[:n], s.client)
	}
}

func (s *session) asks() {
	buf := make([]byte, 65536)
	for {
		n, _, err := s.down.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if peer := s.peer.Load(); peer != nil {
			s.toServer.put(buf[:n], *peer)
		}
	}
}

// queue sends packets when their time has come.
type queue struct {
	proxy *Proxy
	conn  *net.UDPConn
	wake  chan struct{}
	end   chan struct{}
	once  sync.Once

	mu     sync.Mutex
	random *rand.Rand
	ways   ways
	count  int
}

type way struct {
	due    time.Time
	number int
	data   []byte
	to     netip.AddrPort
}

type ways []way

func (w ways) Len() int { return len(w) }
func (w ways) Less(i, j int) bool {
	return w[i].due.Before(w[j].due) || w[i].due.Equal(w[j].due) && w[i].number < w[j].number
}
func (w ways) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *ways) Push(x any)   { *w = append(*w, x.(way)) }
func (w *ways) Pop() any {
	last := (*w)[len(*w)-1]
	*w = (*w)[:len(*w)-1]
	return last
}

func newQueue(p *Proxy, c *net.UDPConn, n uint64) *queue {
	q := &queue{proxy: p, conn: c, wake: make(chan struct{}, 1), end: make(chan struct{}), random: rand.New(rand.NewPCG(p.link.Seed, n))}
	go q.run()
	return q
}

func (q *queue) close() { q.once.Do(func() { close(q.end) }) }

// put decides the packet's fate.
func (q *queue) put(p []byte, to netip.AddrPort) {
	l := q.proxy.link
	q.mu.Lock()
	lost, twice, late := q.random.Float64() < l.Loss, q.random.Float64() < l.Duplicate, q.random.Float64() < l.Reorder
	if lost {
		q.mu.Unlock()
		q.proxy.Lost.Add(1)
		return
	}
	due := time.Now().Add(l.Delay)
	if late {
		due = due.Add(l.Delay/4 + 2*time.Millisecond)
	}
	data := append([]byte(nil), p...)
	heap.Push(&q.ways, way{due, q.count, data, to})
	q.count++
	if twice {
		heap.Push(&q.ways, way{due.Add(time.Millisecond), q.count, data, to})
		q.count++
	}
	q.mu.Unlock()
	q.proxy.Passed.Add(1)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run sends until the queue is closed.
func (q *queue) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := time.Hour
		q.mu.Lock()
		for len(q.ways) > 0 {
			if next = time.Until(q.ways[0].due); next > 0 {
				break
			}
			w := heap.Pop(&q.ways).(way)
			_, _ = q.conn.WriteToUDPAddrPort(w.data, w.to) // or lost
			next = time.Hour
		}
		q.mu.Unlock()
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-q.wake:
		case <-q.end:
			return
		}
	}
}
