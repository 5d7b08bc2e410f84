package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/run"
)

func TestProbeSectorIsBootable(t *testing.T) {
	s := probeSector()
	if len(s) != 512 || s[510] != 0x55 || s[511] != 0xaa {
		t.Errorf("%d bytes that end in %x", len(s), s[510:])
	}
}

// tried is a prober whose guests end as script does.
func tried(t *testing.T, script string) (p prober, runs *int) {
	t.Helper()
	leavesNothing(t)
	dir := t.TempDir()
	runs = new(int)
	p = prober{
		device: filepath.Join(dir, "kvm"), bootID: filepath.Join(dir, "boot_id"), cache: filepath.Join(dir, "cache/kvm.json"),
		limit: 5 * time.Second,
		run: func(ctx context.Context, c run.Command) ([]byte, error) {
			*runs++
			if c.Name != qemuProgram || !strings.Contains(c.String(), "-accel kvm") {
				t.Errorf("%s was run", c)
			}
			return run.Command{Name: "sh", Args: []string{"-c", script, filepath.Join(dir, "ran")}, Grace: -1}.Output(ctx)
		},
	}
	write(t, p.device, "")
	write(t, p.bootID, "boot-1\n")
	return p, runs
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         Accel
		why          string
	}{
		{"works", "exit 33", AccelKVM, ""},
		{"hangs", "sleep 600", AccelTCG, "a guest hangs with "},
		{"is refused", "echo 'failed to initialize kvm' >&2; exit 1", AccelTCG, "failed to initialize kvm"},
		{"ends oddly", "exit 0", AccelTCG, "in another way than it should"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, runs := tried(t, tt.script)
			if tt.name == "hangs" {
				p.limit = 100 * time.Millisecond
			}
			for range 2 {
				got, why, err := p.choose(t.Context(), AccelAuto)
				if err != nil || got != tt.want || !strings.Contains(why, tt.why) || (why == "") != (tt.why == "") {
					t.Errorf("got %s, %q, %v", got, why, err)
				}
			}
			want := 1
			if tt.want == AccelKVM {
				want = probeTimes
			}
			if *runs != want {
				t.Errorf("it was tried %d times, want %d", *runs, want)
			}
			// After the next start of the machine, all may be different.
			write(t, p.bootID, "boot-2\n")
			if _, _, err := p.choose(t.Context(), ""); err != nil || *runs != 2*want {
				t.Errorf("tried %d times after a restart, want %d; %v", *runs, 2*want, err)
			}
		})
	}
}

// TestProbeThatWorksOnce: one guest of several isn't enough.
func TestProbeThatWorksOnce(t *testing.T) {
	p, runs := tried(t, `[ ! -e "$0" ] || exit 1; : >"$0"; exit 33`)
	got, why, err := p.choose(t.Context(), AccelAuto)
	if err != nil || got != AccelTCG || !strings.Contains(why, "a guest doesn't start") || *runs != 2 {
		t.Errorf("got %s, %q, %v after %d tries", got, why, err, *runs)
	}
}

func TestProbeWithoutKVM(t *testing.T) {
	p, runs := tried(t, "exit 33")
	p.device += "-isn't-here"
	got, why, err := p.choose(t.Context(), AccelAuto)
	if err != nil || got != AccelTCG || !strings.Contains(why, "this machine has no") || *runs != 0 {
		t.Errorf("got %s, %q, %v after %d tries", got, why, err, *runs)
	}
	if _, err := os.Stat(p.cache); err == nil {
		t.Error("that there is no device was kept")
	}
}

func TestProbeThatWasChosen(t *testing.T) {
	p, runs := tried(t, "exit 33")
	for _, want := range []Accel{AccelKVM, AccelTCG} {
		if got, why, err := p.choose(t.Context(), want); got != want || why != "" || err != nil {
			t.Errorf("got %s, %q, %v", got, why, err)
		}
	}
	if _, _, err := p.choose(t.Context(), "xen"); err == nil || !strings.Contains(err.Error(), `"xen"`) {
		t.Errorf("got %v", err)
	}
	if *runs != 0 {
		t.Error("something was tried")
	}
}

func TestProbeKeepsNoVerdictOfAnInterruption(t *testing.T) {
	p, _ := tried(t, "sleep 600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := p.choose(ctx, AccelAuto); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(p.cache); err == nil {
		t.Error("a verdict was kept")
	}
}

func TestProbeWithACacheThatIsNone(t *testing.T) {
	for _, text := range []string{"", "{", `{"boot": "boot-0", "works": false}`, `{"boot": "", "works": false}`, `{"boot": "boot-1", "works": false}`} {
		p, runs := tried(t, "exit 33")
		if err := os.MkdirAll(filepath.Dir(p.cache), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, p.cache, text)
		if got, _, err := p.choose(t.Context(), AccelAuto); err != nil || got != AccelKVM || *runs != probeTimes {
			t.Errorf("%q: got %s, %v after %d tries", text, got, err, *runs)
		}
	}
}

func TestOption(t *testing.T) {
	if got := option("/a,b"); got != "/a,,b" {
		t.Errorf("got %s", got)
	}
}

// TestProbeLeavesPVM: what little a probe runs comes through there, and firmware
// doesn't.
func TestProbeLeavesPVM(t *testing.T) {
	p, runs := tried(t, "exit 33")
	p.pvm = t.TempDir()
	if got, why, err := p.choose(t.Context(), AccelAuto); got != AccelTCG || !strings.Contains(why, "PVM") || err != nil || *runs != 0 {
		t.Errorf("got %s, %q, %v after %d tries", got, why, err, *runs)
	}
	if got, _, err := p.choose(t.Context(), AccelKVM); got != AccelKVM || err != nil {
		t.Errorf("who wants KVM gets %s, %v", got, err)
	}
}

// TestSilentMachine is taken down, one that has said something isn't.
func TestSilentMachine(t *testing.T) {
	leavesNothing(t)
	for _, said := range []string{"", "BdsDxe: loading"} {
		r, err := newRunning(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.start(run.Command{Name: "sleep", Args: []string{"600"}, Grace: -1})
		if said != "" {
			time.AfterFunc(20*time.Millisecond, func() { _, _ = r.console.Write([]byte(said)) })
		}
		err = r.wakes(t.Context(), 200*time.Millisecond)
		select {
		case <-r.Done():
			if said != "" {
				t.Errorf("a machine that says %q was taken down: %v", said, err)
			}
		default:
			if said == "" {
				t.Errorf("a silent machine runs on: %v", err)
			}
		}
		if (err == nil) != (said != "") {
			t.Errorf("of one that says %q the error is %v", said, err)
		}
		r.Kill()
	}
}
