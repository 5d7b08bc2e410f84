package scratch

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDir(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "a", "b")
	d, err := New(parent, "one.")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(d.Path); err != nil || info.Mode().Perm() != 0o755 || !strings.HasPrefix(filepath.Base(d.Path), "one.") {
		t.Errorf("%s: %v, %v", d.Path, info, err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "x"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(d.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it's still there: %v", err)
	}
}

// What got another name is nobody's temporary directory any more.
func TestRenamed(t *testing.T) {
	parent := t.TempDir()
	d, err := New(parent, "new-")
	if err != nil {
		t.Fatal(err)
	}
	final := filepath.Join(parent, "final")
	if err := os.Rename(d.Path, final); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(final); err != nil {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	parent := t.TempDir()
	mine, err := New(parent, "a.")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.left", "b.other"} {
		if err := os.MkdirAll(filepath.Join(parent, name, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(parent, "a."); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{filepath.Base(mine.Path): true, "a.left": false, "b.other": true} {
		if _, err := os.Stat(filepath.Join(parent, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Sweep(filepath.Join(parent, "absent"), "a."); err != nil {
		t.Error(err)
	}
}

// TestKilledMaker: the lock is a process's, so that its end frees it.
func TestKilledMaker(t *testing.T) {
	if parent := os.Getenv("SCRATCH_PARENT"); parent != "" {
		d, err := New(parent, "a.")
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(d.Path + "\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	parent := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestKilledMaker$")
	child.Env = append(os.Environ(), "SCRATCH_PARENT="+parent)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := stdout.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(buf[:n]))
	if err := Sweep(parent, "a."); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("removed under its maker: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if err := Sweep(parent, "a."); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed process left stays: %v", err)
	}
}
