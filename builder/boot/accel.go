package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alisw/kiln/internal/run"
)

// Accel is how a guest's instructions run.
type Accel string

// The kinds of acceleration; empty is AccelAuto.
const (
	AccelAuto Accel = "auto" // KVM where a guest runs with it, else TCG
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg" // in software, about ten times slower
)

// how is what QEMU is told of the acceleration, and the processor that fits it.
func (a Accel) how() (accel, cpu string) {
	if a == AccelTCG {
		return "tcg,thread=multi", "max"
	}
	return "kvm", "host"
}

// probeTime is how long the smallest guest may take. With KVM it takes a tenth
// of a second, on a busy machine perhaps one.
const probeTime = 5 * time.Second

// The smallest guest leaves QEMU through a device made for that, which exits
// with twice the byte that it's given and one.
const (
	probePort   = 0xf4
	probeByte   = 0x10
	probeStatus = probeByte<<1 | 1
)

// probeSector is a disk of one sector that is a whole operating system: it says
// its byte, and halts.
func probeSector() []byte {
	sector := make([]byte, 512)
	copy(sector, []byte{
		0xba, probePort, 0x00, // mov dx, probePort
		0xb0, probeByte, // mov al, probeByte
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// prober finds out whether guests run with KVM.
type prober struct {
	run    run.Runner
	device string // /dev/kvm
	pvm    string // the folder that is there where KVM is PVM's
	bootID string // the file that names this machine's boot
	cache  string // the file of verdicts; empty is none
	limit  time.Duration
}

func newProber(r run.Runner) prober {
	p := prober{run: r, device: "/dev/kvm", pvm: "/sys/module/kvm_pvm", bootID: "/proc/sys/kernel/random/boot_id", limit: probeTime}
	dir := os.Getenv("KILN_CACHE")
	if dir == "" {
		if user, err := os.UserCacheDir(); err == nil {
			dir = filepath.Join(user, "kiln")
		}
	}
	if dir != "" {
		p.cache = filepath.Join(dir, "kvm.json")
	}
	return p
}

// verdict is what was found out. It holds until the machine restarts.
type verdict struct {
	BootID string `json:"boot"`
	Probe  int    `json:"probe"` // which probe has found it out
	Works  bool   `json:"works"`
	Why    string `json:"why,omitempty"` // it doesn't
}

// probeNumber goes up with each change of what is tried.
const probeNumber = 2

// probeTimes is how often the smallest guest has to come to its end with KVM: below
// another hypervisor, one of several may, and all others hang.
const probeTimes = 3

// choose is the acceleration to use, and why it isn't KVM where that was looked
// for.
func (p prober) choose(ctx context.Context, want Accel) (Accel, string, error) {
	switch want {
	case AccelKVM, AccelTCG:
		return want, "", nil
	case AccelAuto, "":
	default:
		return "", "", fmt.Errorf("there is no acceleration %q: it's %s, %s or %s", want, AccelAuto, AccelKVM, AccelTCG)
	}
	f, err := os.OpenFile(p.device, os.O_RDWR, 0)
	if err != nil {
		// Not kept: a user can be given the right, and a module be loaded.
		why := "this machine has no " + p.device
		if errors.Is(err, os.ErrPermission) {
			why = p.device + " isn't this user's to open: the group kvm may"
		}
		return AccelTCG, why, nil
	}
	f.Close()
	if _, err := os.Stat(p.pvm); p.pvm != "" && err == nil {
		// It emulates what firmware does before there are pages: the smallest guest
		// comes through, PXE's ROM and UEFI don't.
		return AccelTCG, "the KVM of this machine is PVM, below another hypervisor: firmware hangs with it", nil
	}
	boot := p.boot()
	v, known := p.known(boot)
	if !known {
		for n := 0; n < probeTimes && (n == 0 || v.Works); n++ {
			if v, err = p.try(ctx, AccelKVM); err != nil {
				return "", "", err
			}
		}
		p.keep(v)
	}
	if v.Works {
		return AccelKVM, "", nil
	}
	return AccelTCG, v.Why, nil
}

func (p prober) boot() string {
	b, err := os.ReadFile(p.bootID)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (p prober) known(boot string) (verdict, bool) {
	var v verdict
	b, err := os.ReadFile(p.cache)
	if err != nil || json.Unmarshal(b, &v) != nil || boot == "" || v.BootID != boot || v.Probe != probeNumber {
		return verdict{}, false
	}
	return v, true
}

// keep stores a verdict. That it can't be costs the next boot a second, no
// more.
func (p prober) keep(v verdict) {
	v.BootID, v.Probe = p.boot(), probeNumber
	if p.cache == "" || v.BootID == "" || os.MkdirAll(filepath.Dir(p.cache), 0o755) != nil {
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(p.cache), ".kvm-*")
	if err != nil {
		return
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), p.cache)
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// Choose is the acceleration that guests of this machine get, and why it isn't KVM
// where it isn't.
func Choose(ctx context.Context) (accel Accel, why string, err error) {
	return newProber(nil).choose(ctx, AccelAuto)
}

// Try runs the smallest guest with an acceleration, in a second or less: nil is
// that guests run.
func Try(ctx context.Context, accel Accel) error {
	v, err := newProber(nil).try(ctx, accel)
	if err == nil && !v.Works {
		err = errors.New(v.Why)
	}
	return err
}

// try runs the smallest guest. A guest that doesn't come to its end is a
// verdict; an error is only that it couldn't be tried.
func (p prober) try(ctx context.Context, accel Accel) (verdict, error) {
	dir, err := privateDir()
	if err != nil {
		return verdict{}, err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "sector")
	if err := os.WriteFile(disk, probeSector(), 0o600); err != nil {
		return verdict{}, fmt.Errorf("trying KVM: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	how, cpu := accel.how()
	err = p.run.Run(limited, run.Command{Name: qemuProgram, Install: qemuInstall, Grace: time.Second, Args: []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-accel", how, "-cpu", cpu, "-smp", "2", "-m", "32",
		"-drive", "if=ide,format=raw,file=" + option(disk),
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", probePort),
	}})
	if ctx.Err() != nil {
		return verdict{}, context.Cause(ctx)
	}
	failed, ok := errors.AsType[*run.Error](err)
	switch {
	case err == nil:
		return verdict{Why: "the smallest guest ended in another way than it should"}, nil
	case !ok:
		return verdict{}, err
	case failed.ExitStatus() == probeStatus:
		return verdict{Works: true}, nil
	case limited.Err() != nil && accel == AccelTCG:
		return verdict{Why: "even the smallest guest hangs"}, nil
	case limited.Err() != nil:
		return verdict{Why: fmt.Sprintf("a guest hangs with %s", p.device)}, nil
	case failed.Missing():
		return verdict{}, err
	}
	return verdict{Why: "a guest doesn't start with " + string(accel) + ": " + strings.Join(failed.Stderr, "; ")}, nil
}

// option writes a value of one of QEMU's options, where a comma ends it.
func option(value string) string { return strings.ReplaceAll(value, ",", ",,") }
