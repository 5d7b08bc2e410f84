package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
)

// TestMetrics does each thing that is counted, and sees it counted.
func TestMetrics(t *testing.T) {
	dhcp := 7.0
	l := newLab(t, 3, func(s *Server) {
		s.VerifyEvery = 5 * time.Millisecond
		s.RestartTime = time.Nanosecond
		s.Verify = func(context.Context, string) (bool, []string, error) { return true, nil, nil }
		s.Metrics = func() []Metric { return []Metric{{Name: `kiln_dhcp_answers_total{type="offer"}`, Value: dhcp}} }
	})
	before := l.scrape()
	l.script(1)  // disk
	l.script(99) // unknown
	l.arm("node1")
	i := l.boot(1) // install
	for _, url := range []string{"/ipxe/ipxe.efi", "/boot/images/" + image + "/vmlinuz", "/boot/images/" + image + "/installer.img", "/images/" + image + "/manifest.json", "/images/" + image + "/netboot/chunks/" + chunk + ".zst"} {
		l.ask("GET", l.plain+url, "", nil)
	}
	l.breakOff()
	i.redeem() // ok
	i.write()
	armed := l.scrape()
	if armed[`kiln_netboot_installations{stage="writing"}`] != 1 || armed["kiln_netboot_writers"] != 1 {
		t.Errorf("one writes: %v", armed)
	}
	l.Seeds = func(context.Context, string) ([]protocol.SeedFile, error) { return nil, errors.New("sealed") }
	i.say(protocol.PathSeed, struct{}{}, &struct{}{})
	l.Seeds = func(context.Context, string) ([]protocol.SeedFile, error) { return nil, nil }
	i.say(protocol.PathSeed, struct{}{}, &struct{}{})
	i.say(protocol.PathWritten, struct{}{}, &struct{}{})
	eventually(t, func() bool { return l.state("node1") == "ready" })
	l.arm("node2")
	i = l.boot(2)
	i.redeem()
	again := *i
	again.redeem() // redeemed
	l.arm("node3")
	i = l.boot(3)
	l.Store.Timeouts.Redeem = time.Nanosecond
	if l.redeemLate(i) {
		t.Error("it wasn't too late")
	}
	l.Store.Timeouts.Redeem = 0
	l.ask("POST", l.secure+"/api/v1/hosts/node1/arm", l.OperatorToken, ArmRequest{})
	l.ask("POST", l.secure+"/api/v1/hosts/node1/disarm", l.OperatorToken, ArmRequest{})
	l.ask("POST", l.secure+"/api/v1/hosts/node1/disarm", l.OperatorToken, ArmRequest{})
	l.ask("POST", l.secure+"/api/v1/hosts/node1/disarm", "wrong", ArmRequest{})
	l.arm("node1")
	i = l.boot(1)
	i.redeem()
	i.write()
	i.say(protocol.PathWritten, struct{}{}, &struct{}{})
	l.ask("POST", l.plain+protocol.PathFirstBoot+i.job.ID, "", nil)
	nobody := &installer{l: l, args: map[string]string{protocol.ParamServer: l.secure}}
	for range maxWrong + 1 {
		nobody.redeem()
	}
	l.Images = folder("/nowhere")
	l.arm("node2")
	l.script(2) // error
	dhcp++
	after := l.scrape()
	for name := range after {
		if !strings.HasPrefix(name, "kiln_") || strings.Contains(name, "installations{") || strings.HasPrefix(name, "kiln_netboot_w") && !strings.HasSuffix(name, "_total") || name == "kiln_netboot_damaged_records" || strings.Contains(name, `"error"`) && strings.Contains(name, "redemptions") || strings.Contains(name, "broken") && !strings.Contains(name, "chunk") || strings.Contains(name, "5xx") {
			continue
		}
		if name == "kiln_netboot_overdue_total" {
			continue // TestSilentHolder's
		}
		if after[name] <= before[name] {
			t.Errorf("%s was %v, and is %v", name, before[name], after[name])
		}
	}
	if n := after[`kiln_netboot_sent_bytes_total{kind="kernel"}`]; n != 6 {
		t.Errorf("of the kernel, %v bytes were sent", n)
	}
}

func (l *lab) redeemLate(i *installer) bool {
	status, _ := i.redeem()
	return status == 200
}

// breakOff asks for a chunk, and leaves.
func (l *lab) breakOff() {
	l.t.Helper()
	name := `kiln_netboot_transfers_broken_total{kind="chunk"}`
	was := l.scrape()[name]
	conn := must(net.Dial("tcp", strings.TrimPrefix(l.plain, "http://")))
	conn.(*net.TCPConn).SetReadBuffer(4096) //nolint:errcheck
	fmt.Fprintf(conn, "GET /images/%s/netboot/chunks/%s.zst HTTP/1.1\r\nHost: x\r\n\r\n", image, chunk)
	io.ReadFull(conn, make([]byte, 10)) //nolint:errcheck
	conn.(*net.TCPConn).SetLinger(0)    //nolint:errcheck
	conn.Close()
	eventually(l.t, func() bool { return l.scrape()[name] > was })
}

var sample = regexp.MustCompile(`(?m)^(\w+(?:\{[^}]*\})?) ([-+.\w]+)$`)

// scrape reads the metrics as Prometheus does.
func (l *lab) scrape() map[string]float64 {
	l.t.Helper()
	_, text := l.ask("GET", l.plain+"/metrics", "", nil)
	all := map[string]float64{}
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			l.t.Errorf("%q: %v", m[0], err)
		}
		all[m[1]] = v
	}
	if len(all) < 20 {
		l.t.Errorf("the metrics are %s", text)
	}
	return all
}
