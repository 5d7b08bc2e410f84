package tftp

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop runs many transfers in one goroutine: it waits for all of their sockets,
// and answers whichever has a packet. It lives as long as there are transfers.
type loop struct {
	poll int // an epoll instance

	mu    sync.Mutex
	added []*transfer // since the last round
	count int         // transfers, with those added
}

// loops shares the transfers out to the processors.
type loops struct {
	mu   sync.Mutex
	all  []*loop
	next int
}

// most is how many loops there are: beyond, others than TFTP want a processor too.
const most = 4

// tick is how exact the waits are.
const tick = 20 * time.Millisecond

// send runs the transfer until all is acknowledged, or an error.
func (t *transfer) send() error {
	if err := t.write(make([]byte, t.sender.block+headerSize), t.sender.start(time.Now())); err != nil {
		return err
	}
	t.ended = make(chan error, 1)
	if err := t.server.loops.add(t); err != nil {
		return err
	}
	return <-t.ended
}

// add gives a transfer to a loop, which it starts if it doesn't run.
func (ls *loops) add(t *transfer) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.all == nil {
		ls.all = make([]*loop, min(most, runtime.GOMAXPROCS(0)))
		for i := range ls.all {
			ls.all[i] = &loop{}
		}
	}
	ls.next = (ls.next + 1) % len(ls.all)
	return ls.all[ls.next].add(t)
}

func (l *loop) add(t *transfer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("epoll_create1", err)
		}
		l.poll = poll
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(t.conn.fd)}
	if err := unix.EpollCtl(l.poll, unix.EPOLL_CTL_ADD, t.conn.fd, &event); err != nil {
		if l.count == 0 {
			unix.Close(l.poll)
		}
		return os.NewSyscallError("epoll_ctl", err)
	}
	l.added = append(l.added, t)
	if l.count++; l.count == 1 {
		go l.run(l.poll)
	}
	return nil
}

// take moves what was added to the running ones.
func (l *loop) take(running map[int32]*transfer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.added {
		running[int32(t.conn.fd)] = t
	}
	l.added = l.added[:0]
}

// end takes a transfer out, and says whether it was the last.
func (l *loop) end(t *transfer, running map[int32]*transfer, err error) (last bool) {
	delete(running, int32(t.conn.fd))
	_ = unix.EpollCtl(l.poll, unix.EPOLL_CTL_DEL, t.conn.fd, nil) // its end closes it, too
	t.ended <- err
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count--; l.count == 0 {
		unix.Close(l.poll)
		return true
	}
	return false
}

// run answers until there is no transfer any more.
func (l *loop) run(poll int) {
	running := map[int32]*transfer{}
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, maxBlock+headerSize)
	var looked time.Time
	for {
		n, err := unix.EpollWait(poll, events, int(tick/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(tick) // can't be; but the deadlines hold
			n = 0
		}
		now := time.Now()
		l.take(running)
		for _, e := range events[:max(n, 0)] {
			t := running[e.Fd]
			if t == nil {
				continue
			}
			if done, err := t.ready(now, buf); done && l.end(t, running, err) {
				return
			}
		}
		if now.Sub(looked) < tick {
			continue
		}
		looked = now
		for _, t := range running {
			if done, err := t.late(now, buf); done && l.end(t, running, err) {
				return
			}
		}
	}
}

// ready reads a packet, and answers it.
func (t *transfer) ready(now time.Time, buf []byte) (done bool, err error) {
	n, err := unix.Read(t.conn.fd, buf)
	if errors.Is(err, unix.ECONNREFUSED) {
		return true, err
	}
	if err != nil {
		// Nothing there after all, or a network that can't be reached just now: it may be
		// again before we give up.
		return false, nil
	}
	todo, err := t.sender.receive(now, buf[:n])
	return t.proceed(buf, todo, err)
}

// late sends again what wasn't answered in time.
func (t *transfer) late(now time.Time, buf []byte) (done bool, err error) {
	if t.conn.killed.Load() {
		return true, errInterrupted
	}
	todo, err := t.sender.expire(now)
	return t.proceed(buf, todo, err)
}

func (t *transfer) proceed(buf []byte, todo span, err error) (bool, error) {
	if err == nil {
		err = t.write(buf, todo)
	}
	if !t.heard.Load() && t.sender.started() {
		t.heard.Store(true)
	}
	return err != nil || t.sender.done(), err
}
