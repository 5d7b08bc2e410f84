// Package installer writes a golden image to the disk of a machine that has booted
// from the network. It is what cmd/kiln-installer does as the machine's first and
// only process; all that needs a real machine is behind the interface Machine.
//
// A disk is never left half-written and booting. The token is redeemed before
// anything else is asked of the server, and if somebody else has redeemed it, the
// installer stops there. Nothing is written before the disk is chosen beyond doubt,
// the image's manifest is verified, and the server has given the turn; the first
// thing that is written makes the disk one that doesn't boot, and the last thing
// makes it one that does.
package installer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

// Machine is what the installer needs of the machine.
type Machine interface {
	// Hardware loads drivers until the interface that booted is there, and what
	// else the machine has.
	Hardware(ctx context.Context, mac plan.MAC, say func(string)) error
	// Network gives that interface an address.
	Network(ctx context.Context, mac plan.MAC, say func(string)) error
	// Disks lists the disks that there are now.
	Disks() ([]Disk, error)
	// Open opens one for writing.
	Open(d *Disk) (Target, error)
	// Reboot restarts the machine.
	Reboot() error
}

// Target is a disk that is written.
type Target interface {
	Device
	// WithRoot calls use with the folder where the file system in a partition is
	// mounted, of which there is no table on the disk yet.
	WithRoot(ctx context.Context, p Partition, use func(dir string) error) error
	Close() error
}

// Installer installs one machine.
type Installer struct {
	Boot    Boot
	Machine Machine
	Server  Server       // nil: the one that Boot names
	Console func(string) // shows a line to people; nil: nobody
	// Every is how often the server is told of progress; 0: 2 s.
	Every time.Duration
	// Settle is how long the list of disks has to stay as it is before one is
	// chosen, and Wait how long a disk may take to appear; 0: 2 s and 30 s.
	Settle, Wait time.Duration
	// Workers fetch and write blocks at once; 0: 4.
	Workers int
	// Unverified leaves out reading back what was written.
	Unverified bool

	report *reporter
	job    *protocol.Job
}

// Failure is the error of an installation: at which step, and why.
type Failure struct {
	Step protocol.Step
	Err  error
}

func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.Step, f.Err) }

func (f *Failure) Unwrap() error { return f.Err }

// Run installs, and restarts the machine. Its error is a *Failure, of which the
// server has been told if it could be; where it names a step before StepWrite,
// nothing was written.
func (i *Installer) Run(ctx context.Context) error {
	say := i.Console
	if say == nil {
		say = func(string) {}
	}
	i.report = newReporter(say)
	i.report.every = i.Every
	if i.report.every == 0 {
		i.report.every = 2 * time.Second
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := i.install(work, cancel)
	if err == nil {
		return nil
	}
	failure := &Failure{i.report.current(), err}
	i.report.end()
	cancel(nil)
	i.report.failed(context.WithoutCancel(ctx), failure)
	return failure
}

// install does the steps. The server's wish to end it goes to stop.
func (i *Installer) install(ctx context.Context, stop func(error)) error {
	r := i.report
	say := func(s string) { r.line("%s", s) }
	r.step(protocol.StepHardware)
	r.line("hardware: loading drivers")
	if err := i.Machine.Hardware(ctx, i.Boot.MAC, say); err != nil {
		return err
	}
	r.step(protocol.StepNetwork)
	r.line("network: asking for an address")
	if err := i.Machine.Network(ctx, i.Boot.MAC, say); err != nil {
		return err
	}
	r.step(protocol.StepRedeem)
	r.line("redeem: giving the one-time token to %s", i.Boot.Server)
	if err := i.redeem(ctx, say); err != nil {
		return err
	}
	r.begin(ctx, stop)
	r.step(protocol.StepDisk)
	disk, err := i.choose(ctx)
	if err != nil {
		return err
	}
	r.disk(disk)
	r.line("disk: %s", disk)
	r.step(protocol.StepImage)
	fetcher := NewFetcher(i.job.ImageURL, i.workers()+1)
	image, err := readImage(ctx, fetcher, i.job)
	if err != nil {
		return err
	}
	r.line("image: %.12s, %s in %d blocks", i.job.Image, Bytes(image.Size), len(image.Blocks))
	if err := fits(disk, image.Size); err != nil {
		r.step(protocol.StepDisk)
		return err
	}
	r.step(protocol.StepTurn)
	if err := i.turn(ctx); err != nil {
		return err
	}
	if err := i.write(ctx, disk, image, fetcher); err != nil {
		return err
	}
	r.step(protocol.StepReboot)
	// The session may be over as soon as the server knows: no report may come after that.
	if err := r.last(ctx); err != nil {
		return err
	}
	if err := i.Server.Written(ctx); err != nil {
		return fmt.Errorf("the disk is written, but the server doesn't know: %w", err)
	}
	r.line("reboot: the disk is written, and this host won't be installed again unless it's armed")
	if err := i.Machine.Reboot(); err != nil {
		return fmt.Errorf("the disk is written, and only the restart failed, switch the machine off and on: %w", err)
	}
	return nil
}

func (i *Installer) workers() int {
	if i.Workers > 0 {
		return i.Workers
	}
	return 4
}

func (i *Installer) redeem(ctx context.Context, say func(string)) error {
	if i.Server == nil {
		c := NewClient(i.Boot)
		c.Tell = say
		i.Server = c
	}
	job, err := i.Server.Redeem(ctx, protocol.RedeemRequest{Token: i.Boot.Token, MAC: i.Boot.MAC})
	var refused *Refused
	if errors.As(err, &refused) && refused.Code == protocol.CodeRedeemed {
		return fmt.Errorf("somebody has redeemed this machine's token before: nothing is written; find out who (kiln status), and arm the host again: %w", err)
	}
	if err != nil {
		return fmt.Errorf("nothing is written: %w", err)
	}
	i.job, i.report.server = job, i.Server
	i.report.line("redeem: this is the installation of %s", job.Host)
	return nil
}

// choose waits until the rule picks a disk, and the disks stay as they are.
func (i *Installer) choose(ctx context.Context) (*Disk, error) {
	settle, wait := i.Settle, i.Wait
	if settle == 0 {
		settle = 2 * time.Second
	}
	if wait == 0 {
		wait = 30 * time.Second
	}
	if r := i.job.Install; r.Serial == "" && r.WWN == "" && r.Path == "" {
		// One that comes late would make a choice of the only one wrong.
		settle *= 5
	}
	begun := time.Now()
	since, last := begun, ""
	for {
		disks, err := i.Machine.Disks()
		if err != nil {
			return nil, err
		}
		if now := fmt.Sprint(disks); now != last {
			since, last = time.Now(), now
		}
		d, err := Choose(disks, i.job.Install, i.job.Data, 0)
		if err == nil && time.Since(since) >= settle {
			return d, nil
		}
		if err != nil && time.Since(begun) >= wait {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(settle/4, 250*time.Millisecond)):
		}
	}
}

// turn waits in line.
func (i *Installer) turn(ctx context.Context) error {
	place := -1
	for {
		t, err := i.Server.Turn(ctx)
		if err != nil {
			return err
		}
		if t.Go {
			return nil
		}
		if t.Place != place {
			place = t.Place
			i.report.line("turn: waiting in line, at place %d", place)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(min(max(t.Wait, 1), 60)) * time.Second):
		}
	}
}

// write writes the disk: image, seed, and at last what makes it boot.
func (i *Installer) write(ctx context.Context, disk *Disk, image *images.Disk, f *Fetcher) error {
	r := i.report
	target, err := i.Machine.Open(disk)
	if err != nil {
		return err
	}
	defer target.Close()
	r.step(protocol.StepWrite)
	begun := time.Now()
	w := &Writer{Device: target, Image: image, Workers: i.Workers, Buffer: buffer,
		Fetch: func(ctx context.Context, sum string, buf []byte) ([]byte, error) {
			return f.Get(ctx, images.NetbootDir+"/"+images.ChunkFile(sum), buf, packedLimit(image.BlockSize))
		},
		Progress: func(done int64) { r.progress(done, image.Size) },
	}
	r.progress(0, image.Size)
	r.line("write: from here on the disk has nothing that boots")
	if err := w.Invalidate(); err != nil {
		return err
	}
	if err := w.Blocks(ctx); err != nil {
		return because(ctx, err)
	}
	took := time.Since(begun)
	r.line("write: %s in %s, %s a second", Bytes(image.Size), took.Round(100*time.Millisecond), Bytes(int64(float64(image.Size)/max(took.Seconds(), 0.001))))
	if !i.Unverified {
		begun, w.Progress = time.Now(), nil
		if err := w.Verify(ctx); err != nil {
			return because(ctx, err)
		}
		r.line("write: read back, all of it is right, in %s", time.Since(begun).Round(100*time.Millisecond))
	}
	r.step(protocol.StepSeed)
	if err := i.seed(ctx, target, w); err != nil {
		return because(ctx, err)
	}
	r.step(protocol.StepCommit)
	// The server may have stopped it: then it must not boot.
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return w.Commit()
}

// because prefers what ended the context to an error that only follows from it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (i *Installer) seed(ctx context.Context, target Target, w *Writer) error {
	root, err := w.Root()
	if err != nil {
		return err
	}
	seed, err := i.Server.Seed(ctx)
	if err != nil {
		return err
	}
	if err := target.WithRoot(ctx, root, func(dir string) error { return WriteSeed(dir, seed) }); err != nil {
		return err
	}
	i.report.line("seed: the host's own data is on its disk")
	return nil
}
