//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// measureFleet boots all of the site's machines at once, into its installer.
func measureFleet(ctx context.Context, t *table, l *lab) error {
	s, err := l.serve(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	for _, file := range []string{"vmlinuz", "installer.img"} { // made since the hosts were armed
		if err := s.waitFor(ctx, http.MethodHead, l.url("/boot/images/"+l.image.ID+"/"+file), 2*time.Minute); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	machines := make([]*virtual, l.hosts)
	problems := make([]error, l.hosts)
	address := netip.MustParseAddr(clientAddress)
	for i := range machines {
		address = address.Next()
		machines[i] = &virtual{mac: macOf(i), own: address, server: netip.AddrPortFrom(netip.MustParseAddr(serverAddress), 67)}
	}
	idle, err := usageOf(s.cmd.Process.Pid)
	if err != nil {
		return err
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
	own, err := usageOf(os.Getpid())
	if err != nil {
		return err
	}
	own.processor -= before.processor
	used.processor -= idle.processor
	if err := failures(machines, problems, s); err != nil {
		return err
	}
	printFleet(t, machines, took, used, own)
	return nil
}

// failures says of how many machines that didn't boot what was wrong with the first.
func failures(machines []*virtual, problems []error, s *server) error {
	failed := 0
	for i, err := range problems {
		if err != nil {
			if failed == 0 {
				fmt.Printf("  machine %s at %s: %v\n", machines[i].mac, machines[i].own, err)
			}
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d machines didn't boot; the server said:\n%s", failed, len(machines), s.said())
	}
	return nil
}

// What is wanted of a fleet's server.
const (
	wantedScript = 10 * time.Second // the 99th percentile, from power-on
	wantedMemory = 256 << 20        // bytes
)

func printFleet(t *table, machines []*virtual, took time.Duration, used, own usage) {
	fmt.Printf("Fleet: %d armed machines at once, DHCP → TFTP → script → kernel and initramfs, from kiln serve\n", len(machines))
	quantile := func(q float64, of func(*virtual) time.Duration) time.Duration {
		all := make([]time.Duration, len(machines))
		for i, m := range machines {
			all[i] = of(m)
		}
		slices.Sort(all)
		return all[min(len(all)-1, int(q*float64(len(all))))]
	}
	line := func(name string, of func(*virtual) time.Duration) {
		fmt.Printf("  %-24s median %6.2f s   99th percentile %6.2f s   last %6.2f s\n", name,
			quantile(0.5, of).Seconds(), quantile(0.99, of).Seconds(), quantile(1, of).Seconds())
	}
	script := func(v *virtual) time.Duration { return v.script }
	line("first DHCP offer", func(v *virtual) time.Duration { return v.offer })
	line("iPXE loaded", func(v *virtual) time.Duration { return v.loader })
	line("script", script)
	line("kernel and initramfs", func(v *virtual) time.Duration { return v.all })
	var bytes int64
	for _, m := range machines {
		bytes += m.bytes
	}
	fmt.Printf("  %.1f GiB in %.1f s: %.0f MiB/s; the server took %.1f s of processor time, the machines %.1f s\n",
		float64(bytes)/(1<<30), took.Seconds(), float64(bytes)/(1<<20)/took.Seconds(), used.processor.Seconds(), own.processor.Seconds())
	what := fmt.Sprintf("%d machines boot at once", len(machines))
	late := quantile(0.99, script)
	t.add(row{what: what, value: "all succeed", wanted: "no failure", met: true})
	t.add(row{what: what + ": 99th percentile to the script", value: seconds(late), wanted: "10 s or less", met: late <= wantedScript})
	t.add(row{what: what + ": the server's memory at most", value: fmt.Sprintf("%d MiB", used.peak>>20), wanted: "less than 256 MiB", met: used.peak < wantedMemory})
}

// macOf is the MAC of one of the site's machines.
func macOf(i int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x6b, 0x69, byte(i >> 16), byte(i >> 8), byte(i)}
}
