//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// fleet boots virtual machines at once against one server process. The server has
// a network of its own: its end of a cable, "kiln0", has the address 10.1.0.1/16
// and a way to the machines, 10.2.0.0/16, which are at the other end.
type fleet struct {
	command string // of the server, for sh; "": the stand-in
	ready   string // URL that has a status of 200 once it serves
	mac     string
}

const (
	serverAddress = "10.1.0.1"
	clientAddress = "10.2.0.0" // the first machine's is the one after it
)

func (f *fleet) flags() {
	flag.StringVar(&f.command, "server", "", "shell command of the server that the fleet boots from, on kiln0 with "+serverAddress+
		"/16; relays at "+clientAddress+"/16; by default a stand-in, to try this program")
	flag.StringVar(&f.ready, "ready", "http://"+serverAddress+":8080/healthz", "URL that has a status of 200 once that server serves")
	flag.StringVar(&f.mac, "mac", "02:6b:69:00:00:00", "MAC of the first machine: the next ones count up")
}

// measure starts the server, the machines, and prints how long they took.
func (f *fleet) measure(ctx context.Context, clients int) error {
	first, err := net.ParseMAC(f.mac)
	if err != nil {
		return err
	}
	s, err := f.startServer(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	machines := make([]*virtual, clients)
	problems := make([]error, clients)
	address := netip.MustParseAddr(clientAddress)
	for i := range machines {
		address = address.Next()
		machines[i] = &virtual{mac: macPlus(first, i), own: address, server: netip.AddrPortFrom(netip.MustParseAddr(serverAddress), 67)}
	}
	before, err := usageOf(os.Getpid())
	if err != nil {
		return err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { problems[i] = m.boot(ctx) })
	}
	wg.Wait()
	took := time.Since(start)
	used, err := usageOf(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var failed int
	for i, err := range problems {
		if err != nil {
			if failed == 0 {
				fmt.Printf("  machine %s at %s: %v\n", machines[i].mac, machines[i].own, err)
			}
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d machines didn't boot", failed, clients)
	}
	own, err := usageOf(os.Getpid())
	if err != nil {
		return err
	}
	own.processor -= before.processor
	f.print(machines, took, used, own)
	return nil
}

func (f *fleet) print(machines []*virtual, took time.Duration, used, own usage) {
	what := f.command
	if what == "" {
		what = "a stand-in, not kiln serve"
	}
	fmt.Printf("Fleet: %d machines at once, DHCP → TFTP → script → kernel and initramfs, from %s\n", len(machines), what)
	row := func(name string, of func(*virtual) time.Duration) {
		all := make([]time.Duration, len(machines))
		for i, m := range machines {
			all[i] = of(m)
		}
		slices.Sort(all)
		at := func(q float64) float64 { return all[min(len(all)-1, int(q*float64(len(all))))].Seconds() }
		fmt.Printf("  %-24s median %6.2f s   99th percentile %6.2f s   last %6.2f s\n", name, at(0.5), at(0.99), at(1))
	}
	row("first DHCP offer", func(v *virtual) time.Duration { return v.offer })
	row("iPXE loaded", func(v *virtual) time.Duration { return v.loader })
	row("script (wanted: 10 s)", func(v *virtual) time.Duration { return v.script })
	row("kernel and initramfs", func(v *virtual) time.Duration { return v.all })
	var bytes int64
	for _, m := range machines {
		bytes += m.bytes
	}
	fmt.Printf("  all succeeded; %.1f GiB in %.1f s: %.0f MiB/s; the server took at most %d MiB of memory (wanted: 256), and %.1f s of processor time; the machines took %.1f s\n",
		float64(bytes)/(1<<30), took.Seconds(), float64(bytes)/(1<<20)/took.Seconds(), used.peak>>20, used.processor.Seconds(), own.processor.Seconds())
}

func macPlus(mac net.HardwareAddr, n int) net.HardwareAddr {
	out := slices.Clone(mac)
	for i := len(out) - 1; i >= 0 && n > 0; i-- {
		n += int(out[i])
		out[i] = byte(n)
		n >>= 8
	}
	return out
}

// startServer starts the server in a network of its own, with a cable to ours.
func (f *fleet) startServer(ctx context.Context) (*server, error) {
	command, ready := f.command, f.ready
	var dir string
	if command == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if dir, err = standInFolder(); err != nil {
			return nil, err
		}
		command = fmt.Sprintf("'%s' -role stand-in -folder '%s'", self, dir)
		ready = "http://" + serverAddress + ":8080/healthz"
	}
	// It waits for its cable, and then is the server, by the same number.
	cmd := exec.CommandContext(ctx, "unshare", "--net", "sh", "-c", "ip link set lo up && echo ready >&2 && read -r go && exec "+command)
	var said lines
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, stdin: in, folder: dir}
	err = s.plug(ctx, &said)
	if err == nil {
		_, err = in.Write([]byte("go\n"))
	}
	if err == nil {
		err = waitReady(ctx, ready)
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("%w; the server said:\n%s", err, said.String())
	}
	return s, nil
}

// plug lays the cable.
func (s *server) plug(ctx context.Context, said *lines) error {
	for i := 0; !bytes.Contains([]byte(said.String()), []byte("ready")); i++ {
		if i > 500 || ctx.Err() != nil {
			return errors.New("the server's network isn't there")
		}
		time.Sleep(10 * time.Millisecond)
	}
	script := fmt.Sprintf(`set -e
		ip link add kiln1 type veth peer name kiln0 netns %[1]d
		ip addr add 10.1.0.2/16 dev kiln1 && ip link set kiln1 up
		in="nsenter --target %[1]d --net"
		$in ip addr add %[2]s/16 dev kiln0
		$in ip link set kiln0 up
		$in ip route add %[3]s/16 via 10.1.0.2`, s.cmd.Process.Pid, serverAddress, clientAddress)
	if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("the cable to the server: %w: %s", err, out)
	}
	return nil
}

func waitReady(ctx context.Context, address string) error {
	client := &http.Client{Timeout: time.Second}
	var last error
	for range 300 {
		resp, err := client.Get(address)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		last = err
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("the server isn't ready: %w", last)
}

// lines keeps the last that a server said.
type lines struct {
	mu sync.Mutex
	b  []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	l.b = l.b[max(0, len(l.b)-(16<<10)):]
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// standInFolder has what the stand-in serves.
func standInFolder() (string, error) {
	dir, _, err := newFolder(1 << 20)
	if err != nil {
		return "", err
	}
	for name, size := range map[string]int64{"kernel": 8 << 20, "initramfs": 16 << 20} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		err = errors.Join(f.Truncate(size), f.Close())
		if err != nil {
			return "", err
		}
	}
	return dir, nil
}
