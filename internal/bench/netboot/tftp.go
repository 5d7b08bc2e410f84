//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/alisw/kiln/internal/lossy"
	"github.com/alisw/kiln/internal/tftpget"
)

// bootFile is what firmware fetches.
const bootFile = "ipxe.efi"

// newFolder has a boot file of so many bytes, which no one could guess.
func newFolder(size int) (dir string, data []byte, err error) {
	dir, err = os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return "", nil, err
	}
	data = make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data) // never fails
	return dir, data, os.WriteFile(filepath.Join(dir, bootFile), data, 0o644)
}

// expect compares what comes with what should.
type expect struct{ rest []byte }

func (e *expect) block(b []byte) error {
	if len(b) > len(e.rest) || !bytes.Equal(b, e.rest[:len(b)]) {
		return errors.New("these are other bytes")
	}
	e.rest = e.rest[len(b):]
	return nil
}

// fetchAll has clients fetch the file at once, and says how long it took until
// the last had it.
func fetchAll(ctx context.Context, address string, data []byte, clients int, get tftpget.Get) (time.Duration, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	problems := make(chan error, clients)
	start := time.Now()
	for range clients {
		wg.Go(func() {
			g, e := get, &expect{data}
			if err := g.Each(ctx, to, bootFile, e.block); err != nil {
				problems <- err
			} else if len(e.rest) > 0 {
				problems <- fmt.Errorf("%d bytes are missing", len(e.rest))
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	close(problems)
	n := len(problems)
	if err := <-problems; err != nil {
		return took, fmt.Errorf("%d of %d clients failed; one of them: %w", n, clients, err)
	}
	return took, nil
}

// rounds is how often each is measured, in turns: the best counts.
const rounds = 5

// measureTFTP is beside pin/tftp.
func measureTFTP(ctx context.Context, t *table, clients int) error {
	dir, data, err := newFolder(1 << 20)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("TFTP: %d clients at once fetch 1 MiB, best of %d rounds in turns\n", clients, rounds)
	one := tftpget.Get{Block: 1468, Size: true, Wait: 2 * time.Second, Tries: 15}
	windowed := one
	windowed.Window = 8
	runs := []struct {
		what, role string
		get        tftpget.Get
		took, used time.Duration
	}{
		{what: "pin/tftp, a port per transfer, blksize 1468", role: "tftp-pin", get: one},
		{what: "kiln, the same", role: "tftp-kiln", get: one},
		{what: "kiln, windowsize 8 too, which pin/tftp hasn't", role: "tftp-kiln", get: windowed},
	}
	for range rounds {
		for i := range runs {
			r := &runs[i]
			s, err := startRole(ctx, r.role, dir)
			if err != nil {
				return err
			}
			took, err := fetchAll(ctx, s.address, data, clients, r.get)
			used, usageErr := usageOf(s.cmd.Process.Pid)
			s.stop()
			if err = errors.Join(err, usageErr); err != nil {
				return fmt.Errorf("%s: %w", r.what, err)
			}
			if r.took == 0 || took < r.took {
				r.took = took
			}
			if r.used == 0 || used.processor < r.used {
				r.used = used.processor
			}
		}
	}
	for _, r := range runs {
		fmt.Printf("  %-48s %7.2f s   %7.0f MiB/s   %6.2f × pin/tftp   server's processor time %5.2f s, %.2f of pin/tftp's\n",
			r.what, r.took.Seconds(), float64(clients)/r.took.Seconds(), runs[0].took.Seconds()/r.took.Seconds(),
			r.used.Seconds(), r.used.Seconds()/runs[0].used.Seconds())
	}
	speed := func(i int) float64 { return float64(clients) / runs[i].took.Seconds() }
	what := fmt.Sprintf("TFTP, %d clients at once, blksize 1468", clients)
	t.more(what, "pin/tftp", mib(speed(1)), mib(speed(0)), speed(1)/speed(0), 1)
	t.more(what+", with windowsize 8", "pin/tftp, which has no windows", mib(speed(2)), mib(speed(0)), speed(2)/speed(0), 1)
	return nil
}

// measureWindow is at a round trip of 25 ms, and then with losses.
func measureWindow(ctx context.Context, t *table) error {
	dir, data, err := newFolder(1 << 20)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := startRole(ctx, "tftp-kiln", dir)
	if err != nil {
		return err
	}
	defer s.stop()
	to, err := netip.ParseAddrPort(s.address)
	if err != nil {
		return err
	}
	fmt.Println("Windows: 1 MiB, blksize 1468, at a round trip of 25 ms")
	var lockStep, best time.Duration
	for _, loss := range []float64{0, 0.01} {
		for _, window := range []int{1, 4, 16, 32, 64} {
			const clients = 8
			p, err := lossy.New(to, lossy.Link{Delay: 12500 * time.Microsecond, Loss: loss, Seed: uint64(window)})
			if err != nil {
				return err
			}
			took, err := fetchAll(ctx, p.Addr().String(), data, clients, tftpget.Get{Block: 1468, Window: window, Size: true})
			p.Close()
			if err != nil {
				return fmt.Errorf("window %d, %.0f %% loss: %w", window, 100*loss, err)
			}
			if lockStep == 0 {
				lockStep = took
			}
			if loss == 0 && (best == 0 || took < best) {
				best = took
			}
			fmt.Printf("  windowsize %2d, %.0f %% loss: %d clients, the last after %6.2f s   %5.1f × lock-step\n", window, 100*loss, clients, took.Seconds(), lockStep.Seconds()/took.Seconds())
		}
	}
	t.more("TFTP windows, at a round trip of 25 ms", "lock-step", seconds(best), seconds(lockStep), lockStep.Seconds()/best.Seconds(), 10)
	t.add(row{what: "TFTP windows, at 1 % loss", value: "all succeed", wanted: "no failure", met: true})
	return nil
}
