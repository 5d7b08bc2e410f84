package state

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// killed is a disk whose process is killed at a step: for good, by SIGKILL.
type killed struct {
	files
	left *int
}

func (d killed) step() {
	if *d.left == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	*d.left--
}

func (d killed) create(name string) (file, error) {
	d.step()
	f, err := d.files.create(name)
	return killedFile{f, d}, err
}

func (d killed) rename(from, to string) error {
	d.step()
	err := d.files.rename(from, to)
	d.step()
	return err
}

func (d killed) syncDir() error {
	d.step()
	err := d.files.syncDir()
	d.step()
	return err
}

type killedFile struct {
	file
	d killed
}

func (f killedFile) Write(data []byte) (int, error) {
	f.d.step()
	n, err := f.file.Write(data[:len(data)/2])
	if err != nil {
		return n, err
	}
	f.d.step()
	m, err := f.file.Write(data[n:])
	return n + m, err
}

func (f killedFile) Sync() error {
	f.d.step()
	return f.file.Sync()
}

// killSteps are those of a transition: before and after each of what killed has.
const killSteps = 8

// TestKill kills the process that does a transition, at each step of it. They all
// store in the same way, so it is done with those that matter most; TestEachStep
// has them all.
func TestKill(t *testing.T) {
	if at := os.Getenv("KILN_TEST_KILL"); at != "" {
		beKilled(t, at)
		return
	}
	for _, name := range []string{"disarm", "boot", "redeem", "written"} {
		tr := transitions[name]
		for step := range killSteps {
			t.Run(fmt.Sprintf("%s/%d", name, step), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				s, err := Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				c := newClock()
				s.Now = c.now
				token, session := bring(t, s, tr.from)
				before := get(t, s)
				cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
				cmd.Env = append(os.Environ(), "KILN_TEST_KILL="+strings.Join([]string{name, fmt.Sprint(step), dir, token, session, before.Install}, "|"))
				out, err := cmd.CombinedOutput()
				if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
					t.Fatalf("it wasn't killed: %v\n%s", err, out)
				}
				s, err = Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				s.Now = c.now
				now := get(t, s)
				if got := now.State(); got != tr.to && got != before.State() {
					t.Errorf("it is %s", got)
				}
				given := 0
				for range 3 {
					if i, _ := s.Boot(host, site); i != nil {
						given++
					}
				}
				if given > 1 || given == 1 && now.Stage != Armed {
					t.Errorf("it was %s, and then given the installer %d times", now.State(), given)
				}
			})
		}
	}
}

// beKilled is the process.
func beKilled(t *testing.T, at string) {
	a := strings.Split(at, "|")
	var step int
	fmt.Sscan(a[1], &step)
	s, err := Open(a[2])
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	s.Now = c.now
	if _, err := s.Get(host); err != nil { // so that only the transition is counted
		t.Fatal(err)
	}
	s.files = killed{s.files, &step}
	err = transitions[a[0]].do(s, c, a[3], a[4], a[5])
	t.Fatalf("%s ends before step %s: %v", a[0], a[1], err)
}
