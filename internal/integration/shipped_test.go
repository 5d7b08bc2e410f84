//go:build integration

package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// patience bounds whatever these tests wait for.
const patience = 90 * time.Second

// repository is the root of the source tree.
func repository(t *testing.T) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no caller")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// program is the path of a program that these tests can't do without.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s isn't installed: run make setup", name)
	}
	return path
}

// hashicorp is the path of one of HashiCorp's programs, as the scripts built
// it.
func hashicorp(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("sh", filepath.Join(repository(t), "scripts/hashicorp/build.sh"), "--bin").Output()
	if err != nil {
		t.Fatalf("the folder of HashiCorp's programs: %v: run make setup", err)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(strings.TrimSpace(string(out)), name))
	if err != nil {
		t.Fatalf("%s isn't built: run make setup", name)
	}
	return path
}

// needRoot stops a test that can't do anything without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts, and makes namespaces: run it as root, as make test does")
	}
}

// known resolves secrets from a map.
type known map[plan.Ref]string

func (k known) Resolve(_ context.Context, ref plan.Ref) (plan.Secret, error) {
	v, ok := k[ref]
	if !ok {
		return plan.Secret{}, os.ErrNotExist
	}
	return plan.NewSecret(v), nil
}

// site writes a site: paths in it, and their texts.
func site(t *testing.T, files map[string]string) *profiles.Site {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, problems, err := profiles.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

// hostPlan resolves one host of a site.
func hostPlan(t *testing.T, s *profiles.Site, name string) *plan.Plan {
	t.Helper()
	p, problems, err := s.Host(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	return p
}

// content is what a plan's file at path holds.
func content(t *testing.T, files []plan.File, path string) []byte {
	t.Helper()
	for _, f := range files {
		if f.Path == path {
			b, err := f.Content.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("the plan has no file %s", path)
	return nil
}

// layOut writes files below root, owned by whom the tests run as.
func layOut(t *testing.T, root string, files []plan.File) {
	t.Helper()
	for _, f := range files {
		path := filepath.Join(root, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if f.Target != "" {
			if err := os.Symlink(f.Target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, err := f.Content.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, f.Mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
}

// space holds namespaces of its own. All that runs in it ends with the test, or
// with the test's process.
type space struct{ *lab.Space }

func newSpace(t *testing.T) *space {
	t.Helper()
	needRoot(t)
	program(t, "unshare")
	s, err := lab.NewSpace(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &space{s}
}

// try runs a shell script in the space: what it printed, both ways, and its
// exit status.
func (s *space) try(t *testing.T, script string) (string, int) {
	t.Helper()
	out, status, err := s.Try(t.Context(), script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out, status
}

// sh runs a shell script that must succeed.
func (s *space) sh(t *testing.T, script string) string {
	t.Helper()
	out, status := s.try(t, script)
	if status != 0 {
		t.Fatalf("%s: exit status %d\n%s", script, status, out)
	}
	return out
}

// daemon starts a program in the space, which ends with it. What it said is
// shown if the test fails.
func (s *space) daemon(t *testing.T, argv ...string) *lab.Daemon {
	t.Helper()
	d, err := s.Start(argv...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(argv, " "), tail([]byte(d.Log()), 6000))
		}
	})
	return d
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// eventually waits until ok, and fails the test where that takes too long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 10 * time.Millisecond; !ok(); pause = min(2*pause, 500*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(pause)
	}
}
