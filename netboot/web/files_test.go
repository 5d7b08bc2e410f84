package web

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

func TestFiles(t *testing.T) {
	l := newLab(t, 1)
	for _, c := range []struct {
		path string
		want int
		body string
	}{
		{"/ipxe/ipxe.efi", 200, "MZ"},
		{"/ipxe/.hidden", 404, ""},
		{"/ipxe/dir", 404, ""},
		{"/ipxe/", 404, ""},
		{"/ipxe/none.efi", 404, ""},
		{"/ipxe/..%2fweb_test.go", 404, ""},
		{"/boot/images/" + image + "/vmlinuz", 200, "kernel"},
		{"/boot/images/" + image + "/installer.img", 200, "initramfs"},
		{"/boot/images/" + image + "/other", 404, ""},
		{"/boot/images/" + strings.Repeat("00", 32) + "/vmlinuz", 404, ""},
		{"/boot/images/..%2f" + image + "/vmlinuz", 404, ""},
		{"/images/" + image + "/manifest.json", 200, "{}"},
		{"/images/" + image + "/manifest.json.minisig", 200, "sig"},
		{"/images/" + image + "/netboot/chunks.json", 200, "[]"},
		{"/images/" + image + "/netboot/chunks/", 404, ""},
		{"/images/" + image + "/netboot/chunks/.x.zst", 404, ""},
		{"/images/" + image + "/netboot/chunks/..%2f..%2fsecret", 404, ""},
		{"/images/" + image + "/netboot/chunks/..%2f..%2fsecret.zst", 404, ""},
		{"/images/" + image + "/netboot/chunks/%00.zst", 404, ""},
		{"/images/" + image + "/SHA256SUMS", 404, ""},
		{"/images/" + image + "/secret", 404, ""},
		{"/images/" + image + "/", 404, ""},
		{"/images/" + image[:12] + "/manifest.json", 404, ""},
		{"/images/..%2fstate/operator.token", 404, ""},
		{"/images/", 404, ""},
		{"/", 404, ""},
		{"/healthz", 200, "ok"},
	} {
		status, body := l.ask("GET", l.plain+c.path, "", nil)
		if status != c.want || status == 200 && strings.TrimSpace(body) != c.body {
			t.Errorf("%s: %d %.50q", c.path, status, body)
		}
	}
	// As an attacker writes it, whatever clients make of it.
	for _, path := range []string{"/images/../state/operator.token", "/ipxe/../../state/server.pem", "//images/" + image + "/secret"} {
		conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
		fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		res := must(http.ReadResponse(bufio.NewReader(conn), nil))
		if res.StatusCode == 200 {
			t.Errorf("%s is served", path)
		}
		conn.Close()
	}
}

func TestRanges(t *testing.T) {
	l := newLab(t, 1)
	url := l.plain + "/images/" + image + "/netboot/chunks/" + chunk + ".zst"
	whole := strings.Repeat("0123456789abcdef", 8<<16)
	for _, c := range []struct {
		method, header string
		status         int
		body           string
		length         int
	}{
		{"GET", "", 200, whole, len(whole)},
		{"HEAD", "", 200, "", len(whole)},
		{"GET", "bytes=3-10", 206, whole[3:11], 8},
		{"GET", "bytes=1048575-4194306", 206, whole[1048575:4194307], 4194307 - 1048575},
		{"GET", "bytes=-5", 206, whole[len(whole)-5:], 5},
		{"GET", "bytes=99999999-", 416, "*", 0},
		{"GET", "bytes=0-1,5-6", 206, "*", 0},
		{"PUT", "", 405, "*", 0},
	} {
		req := must(http.NewRequest(c.method, url, nil))
		if c.header != "" {
			req.Header.Set("Range", c.header)
		}
		res := must(l.client.Do(req))
		body := string(must(io.ReadAll(res.Body)))
		res.Body.Close()
		if res.StatusCode != c.status || c.body != "*" && (sha256.Sum256([]byte(body)) != sha256.Sum256([]byte(c.body)) || res.ContentLength != int64(c.length)) {
			t.Errorf("%s %s: %d, %d bytes, said to be %d", c.method, c.header, res.StatusCode, len(body), res.ContentLength)
		}
	}
}

// Some send their request a letter at a time, some don't read the answer: the others don't notice.
func TestSlowClients(t *testing.T) {
	l := newLab(t, 1)
	address := strings.TrimPrefix(l.plain, "http://")
	for i := range 100 {
		conn := must(net.Dial("tcp", address))
		defer conn.Close()
		if i%2 == 0 {
			fmt.Fprintf(conn, "GET /images/")
		} else {
			fmt.Fprintf(conn, "GET /images/%s/netboot/chunks/%s.zst HTTP/1.1\r\nHost: x\r\n\r\n", image, chunk)
		}
	}
	start := time.Now()
	for range 20 {
		if status, _ := l.ask("GET", l.plain+"/images/"+image+"/manifest.json", "", nil); status != 200 {
			t.Fatal(status)
		}
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("beside slow ones, 20 requests took %s", d)
	}
}

// A client that takes nothing is given up after a time.
func TestPiecesHaveATime(t *testing.T) {
	w := &deadlines{ResponseWriter: httptest.NewRecorder()}
	p := &pieces{ResponseWriter: w, control: http.NewResponseController(w), size: turn}
	n, err := io.Copy(p, &io.LimitedReader{R: strings.NewReader(strings.Repeat("x", 3*piece+1)), N: 5 * piece})
	if err != nil || n != 3*piece+1 || w.set < 4 {
		t.Errorf("%d bytes, %v, %d deadlines", n, err, w.set)
	}
}

type deadlines struct {
	http.ResponseWriter
	set int
}

func (d *deadlines) SetWriteDeadline(time.Time) error { d.set++; return nil }

func (d *deadlines) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{d.ResponseWriter}, r)
}

func TestQueue(t *testing.T) {
	q, now := &queue{max: 2}, time.Now()
	ask := func(id string, want int) {
		t.Helper()
		if ok, place := q.ask(id, now); place != want || ok != (want == 0) {
			t.Errorf("%s: %v, %d, not %d", id, ok, place, want)
		}
	}
	ask("a", 0)
	ask("b", 0)
	ask("c", 1)
	ask("d", 2)
	ask("a", 0) // it has it already
	ask("d", 2)
	q.leave("a")
	ask("d", 2) // c was first, and has the place, whether it has asked or not
	ask("c", 0)
	ask("d", 1)
	ask("e", 2)
	// Who is silent loses its place in line, and then its place among the writers by
	// failing.
	now = now.Add(forgotten + time.Second)
	ask("e", 1)
	q.retain(map[string]bool{"b": true, "e": true})
	ask("e", 0)
	q.hold("f") // it writes since before a restart
	if w, n := q.lengths(); w != 3 || n != 0 {
		t.Errorf("%d write, %d wait", w, n)
	}
	q.leave("b")
	ask("g", 1)
	q.leave("e")
	ask("g", 0)
}

// Forty hosts at once: never more than four write, and all come to it.
func TestTurns(t *testing.T) {
	const n, most = 40, 4
	l := newLab(t, n, func(s *Server) { s.Writers = most })
	var mu sync.Mutex
	var writing, highest int
	var wg sync.WaitGroup
	for k := range n {
		l.arm(fmt.Sprintf("node%d", k+1))
		i := l.boot(k + 1)
		wg.Go(func() {
			i.redeem()
			for {
				var turn protocol.Turn
				if i.say(protocol.PathTurn, struct{}{}, &turn); turn.Go {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			mu.Lock()
			writing++
			highest = max(highest, writing)
			mu.Unlock()
			i.write()
			mu.Lock()
			writing--
			mu.Unlock()
			if k%5 == 0 {
				i.report(protocol.Report{Step: protocol.StepWrite, Error: "broken"}) // it makes place, too
			} else {
				i.say(protocol.PathWritten, struct{}{}, &struct{}{})
			}
		})
	}
	wg.Wait()
	if highest > most {
		t.Errorf("%d wrote at once", highest)
	}
	for k := range n {
		want := "written"
		if k%5 == 0 {
			want = "failed (writing)"
		}
		if got := l.state(fmt.Sprintf("node%d", k+1)); got != want {
			t.Errorf("node%d is %s", k+1, got)
		}
	}
}

// A holder that is silent fails, and the next one has its place.
func TestSilentHolder(t *testing.T) {
	l := newLab(t, 2, func(s *Server) { s.Writers, s.Store.Timeouts.Silence = 1, 2*time.Second })
	l.arm("node1")
	l.arm("node2")
	a, b := l.boot(1), l.boot(2)
	a.redeem()
	b.redeem()
	var turn protocol.Turn
	if a.say(protocol.PathTurn, struct{}{}, &turn); !turn.Go {
		t.Fatal("the first one waits")
	}
	a.write()
	waited := 0
	eventually(t, func() bool {
		turn = protocol.Turn{}
		b.say(protocol.PathTurn, struct{}{}, &turn)
		waited += turn.Place
		return turn.Go
	})
	if got := l.state("node1"); got != "failed (writing)" || waited == 0 {
		t.Errorf("the silent one is %s; the other one has waited %d times", got, waited)
	}
	if n := l.scrape()["kiln_netboot_overdue_total"]; n != 1 {
		t.Errorf("%v are overdue", n)
	}
}

func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/boot/52-54-00-00-00-01/script.ipxe", "/images/" + image + "/netboot/chunks/../secret", "/first-boot/x", "/ipxe/%2e%2e", "/api/v1/hosts/a/arm"} {
		f.Add("GET", s)
	}
	l := newLab(&testing.T{}, 1)
	f.Cleanup(func() { l.stop() })
	l.arm("node1")
	plain, secure := l.Plain(), l.TLS()
	f.Fuzz(func(t *testing.T, method, path string) {
		req, err := http.NewRequest(method, "http://x/", nil)
		if err != nil {
			return
		}
		req.RequestURI = path
		if u, err := req.URL.Parse(path); err == nil {
			req.URL = u
		}
		for _, h := range []http.Handler{plain, secure} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			body := w.Body.String()
			if strings.Contains(body, l.OperatorToken) || strings.Contains(body, "PRIVATE KEY") || w.Code == 200 && body == "s" {
				t.Errorf("%s %q gives a secret away", method, path)
			}
		}
	})
}

func FuzzKind(f *testing.F) {
	f.Add("netboot/chunks/" + chunk + ".zst")
	f.Fuzz(func(t *testing.T, name string) {
		if kindOf(name) != "" && (strings.Contains(name, "..") || strings.Contains(name, "/.") || strings.HasPrefix(name, "/") || strings.Count(name, "/") > 2) {
			t.Errorf("%q is served", name)
		}
	})
}

func FuzzRedeem(f *testing.F) {
	f.Add([]byte(`{"token":"node1.00","mac":"52:54:00:00:00:01"}`))
	l := newLab(&testing.T{}, 1)
	f.Cleanup(func() { l.stop() })
	l.arm("node1")
	l.boot(1)
	h := l.TLS()
	f.Fuzz(func(t *testing.T, body []byte) {
		l.guesses.from = nil
		for _, path := range []string{protocol.PathRedeem, protocol.PathReport, protocol.PathSeed} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(string(body))))
			if w.Code < 400 || w.Code >= 500 {
				t.Errorf("%s: %q: %d", path, body, w.Code)
			}
		}
	})
}

func TestScriptText(t *testing.T) {
	l := newLab(t, 1, func(s *Server) {
		s.PlainURL, s.TLSURL, s.Cmdline = "http://10.0.0.1:8080/", "https://10.0.0.1:8443", []string{"console=ttyS0,115200"}
	})
	l.arm("node1")
	_, text := l.script(1)
	text = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllStringFunc(text, func(s string) string {
		if s == image {
			return "IMAGE"
		}
		return "HEX"
	})
	const want = `#!ipxe
echo kiln: installing node1
kernel http://10.0.0.1:8080/boot/images/IMAGE/vmlinuz initrd=installer.img kiln.server=https://10.0.0.1:8443 kiln.pin=HEX kiln.token=node1.HEX kiln.mac=52:54:00:00:00:01 kiln.host=node1 console=ttyS0,115200 || goto failed
initrd http://10.0.0.1:8080/boot/images/IMAGE/installer.img || goto failed
boot || goto failed
:failed
echo kiln: the installer can't be fetched or started: booting from the disk
sleep 5
` + fromDisk
	if text != want {
		t.Errorf("the script is\n%s", text)
	}
	if got := netboot.ScriptPath(plan.MAC("52:54:00:00:00:01")); got != "/boot/52-54-00-00-00-01/script.ipxe" {
		t.Error(got)
	}
}
