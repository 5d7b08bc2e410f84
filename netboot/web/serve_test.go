package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot"
)

// A live page is open for as long as the server runs, and doesn't hold up its end;
// a transfer does, until it's whole.
func TestEnd(t *testing.T) {
	open := make(chan struct{})
	l := newLab(t, 1, func(s *Server) {
		s.Dashboard = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, "live")
			w.(http.Flusher).Flush()
			close(open)
			<-r.Context().Done()
		})
	})
	page := must(l.client.Get(l.secure + "/"))
	defer page.Body.Close()
	<-open

	conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
	defer conn.Close()
	fmt.Fprintf(conn, "GET /images/%s/netboot/chunks/%s.zst HTTP/1.1\r\nHost: x\r\n\r\n", image, chunk)
	in := bufio.NewReader(conn)
	res := must(http.ReadResponse(in, nil))
	ended := make(chan struct{})
	start := time.Now()
	go func() { l.stop(); close(ended) }()
	select {
	case <-ended:
		t.Error("it has ended in the middle of a transfer")
	case <-time.After(200 * time.Millisecond):
	}
	var n int64
	for buf := make([]byte, 1<<16); ; {
		m, err := res.Body.Read(buf)
		n += int64(m)
		if err != nil {
			break
		}
	}
	if n != res.ContentLength {
		t.Errorf("of %d bytes, %d came", res.ContentLength, n)
	}
	<-ended
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("its end took %s", d)
	}
}

// What one request may take isn't what is left for the next one.
func TestLimitsAreOfOneRequest(t *testing.T) {
	l := newLab(t, 1, func(s *Server) {
		s.Dashboard = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/short" {
				limit(w, r, 300*time.Millisecond)
				return
			}
			fmt.Fprint(w, "page")
		})
	})
	conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i, path := range []string{"/short", "/healthz", "/short", "/page"} {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		res, err := http.ReadResponse(in, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%s, request %d: %v", path, i, err)
		}
		if _, err := in.Discard(int(res.ContentLength)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(400 * time.Millisecond)
	}
}

// A body that nobody reads isn't waited for as long as the server runs.
func TestStalledBody(t *testing.T) {
	l := newLab(t, 1, func(s *Server) {
		s.patience = 300 * time.Millisecond
		s.Dashboard = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "GET only", http.StatusMethodNotAllowed) })
	})
	for _, head := range []string{"Content-Length: 200000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"} {
		conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
		defer conn.Close()
		fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: x\r\n"+head)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil {
			t.Errorf("it is waited for: %v", err)
		}
	}
}

// Nothing is wrong with a host whose request was given up, or with which the
// server ended: it stays armed.
func TestGivenUp(t *testing.T) {
	asked := make(chan struct{})
	l := newLab(t, 1, func(s *Server) {
		s.Check = func(ctx context.Context, _ string) error {
			close(asked)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	l.arm("node1")
	conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", netboot.ScriptPath(mac(1)))
	<-asked
	conn.Close()
	l.stop()
	if got := l.state("node1"); got != "armed" {
		t.Errorf("it is %s", got)
	}
}
