package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
)

var update = flag.Bool("update", false, "write what kiln prints into the scripts, and fail")

// callKiln has the test's program be kiln itself.
const callKiln = "KILN_TEST_CALL"

func TestMain(m *testing.M) {
	if os.Getenv(callKiln) != "" {
		main()
	}
	testscript.Main(m, map[string]func(){"kiln": main})
}

// testKey is a public key that apt sources in scripts are trusted through.
const testKey = "testdata/key.asc"

// TestScripts runs kiln as its users do: each script is a site, the calls, and
// what they print.
func TestScripts(t *testing.T) {
	key, err := os.ReadFile(testKey)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(keyServer(key))
	t.Cleanup(server.Close)
	// Scripts run in parallel, and end before what stands behind this does.
	t.Run("all", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true, UpdateScripts: *update,
			Setup: func(env *testscript.Env) error {
				for _, name := range []string{"KILN_SITE", "HTTP_PROXY", "http_proxy", "VAULT_ADDR"} {
					env.Setenv(name, "")
				}
				env.Setenv("KEYS", server.URL)
				// A PATH for those that are to find no other program.
				bin, _, _ := strings.Cut(env.Getenv("PATH"), string(filepath.ListSeparator))
				env.Setenv("ONLY_KILN", bin)
				if err := os.Mkdir(filepath.Join(env.WorkDir, "keys"), 0o755); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(env.WorkDir, "keys", "hashicorp.asc"), key, 0o644)
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status, "mode": mode, "expand": expand, "empty": empty, "noise": noise, "image": image, "disk": diskOf, "put": put, "alter": alter, "vault": vaultServer, "tokenless": tokenless},
		})
	})
	if *update {
		t.Error("the scripts were updated: look at what has changed, and run again without -update")
	}
}

// keyServer answers as web servers with a key do, and as some others.
func keyServer(key []byte) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /good.asc", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(key) })
	mux.HandleFunc("GET /page.html", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>log in first</html>")) })
	mux.HandleFunc("GET /large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxKey+1)) })
	return mux
}

// status runs a command that must end with a certain status: status 2 kiln …
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var ended *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("the exit status is %d, not %d", got, want)
	}
}

// mode checks the permissions of files: mode 0600 FILE…
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode OCTAL FILE…")
	}
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has the mode %s, not %s", name, got, args[0])
		}
	}
}

// expand puts the environment's variables into files: expand FILE…
func expand(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		text := ts.ReadFile(name)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(text, ts.Getenv)), 0o644))
	}
}

// noise writes a file of text that hardly compresses: noise FILE BYTES
func noise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: noise FILE BYTES")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	raw := make([]byte, n*3/4)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(raw) // never fails
	ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o755))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(base64.StdEncoding.EncodeToString(raw)), 0o644))
}

// image puts an image into the store in $KILN_CACHE, whose disk is one MiB of
// nothing: image PROFILE [ARCHITECTURE], or image PROFILE none for one without.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: image PROFILE [ARCHITECTURE|none]")
	}
	m := &images.Manifest{
		Profile: args[0], Definition: "debian-12", Created: time.Unix(1_700_000_000, 0),
		Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
	}
	store := &images.Store{Dir: filepath.Join(ts.Getenv("KILN_CACHE"), "images")}
	work, err := store.NewDir()
	ts.Check(err)
	defer work.Remove()
	dir := work.Path
	if len(args) == 1 || args[1] != "none" {
		const name = "image.raw"
		ts.Check(os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o644))
		artifact, err := images.NewArtifact(dir, name, images.FormatRaw)
		ts.Check(err)
		m.Disk, m.Artifacts = &images.Disk{Size: 1 << 20, BlockSize: images.BlockSize}, []images.Artifact{artifact}
		if len(args) == 2 {
			m.Release.Architecture = args[1]
		}
	}
	m.ID = m.ContentID()
	ts.Check(store.Put(m, dir))
}

// put puts images into the store in $KILN_CACHE, each with the manifest in a file,
// which needs no ID, and whose disk, if it has one, is a MiB: put FILE…
func put(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: put FILE…")
	}
	store := &images.Store{Dir: filepath.Join(ts.Getenv("KILN_CACHE"), "images")}
	for _, name := range args {
		var m images.Manifest
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(name)), &m))
		work, err := store.NewDir()
		ts.Check(err)
		defer work.Remove()
		if m.Disk != nil {
			const disk = "image.raw"
			ts.Check(os.WriteFile(filepath.Join(work.Path, disk), make([]byte, 1<<20), 0o644))
			a, err := images.NewArtifact(work.Path, disk, images.FormatRaw)
			ts.Check(err)
			m.Artifacts = []images.Artifact{a}
		}
		m.ID = m.ContentID()
		ts.Check(store.Put(&m, work.Path))
	}
}

// alter changes one bit in the middle of a file of the only image in the store in
// $KILN_CACHE: alter FILE
func alter(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: alter FILE")
	}
	found, err := filepath.Glob(filepath.Join(ts.Getenv("KILN_CACHE"), "images", "*", args[0]))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%d images have a file %s", len(found), args[0])
	}
	data, err := os.ReadFile(found[0])
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(found[0], data, 0o644))
}

// empty checks that directories have nothing in them, hidden or not: empty DIR…
func empty(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		entries, err := os.ReadDir(ts.MkAbs(name))
		ts.Check(err)
		if len(entries) > 0 {
			ts.Fatalf("%s has %d entries, such as %s", name, len(entries), entries[0].Name())
		}
	}
}

// TestHelp holds each verb to what its users count on: an example, and a long
// description.
func TestHelp(t *testing.T) {
	root := newRootCommand(testUI())
	for _, c := range root.Commands() {
		if c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		if c.Long == "" || c.Short == "" {
			t.Errorf("%s: the help is incomplete", c.CommandPath())
		}
		if c.Runnable() && !c.HasSubCommands() && !strings.Contains(c.Example, "kiln "+c.Name()) {
			t.Errorf("%s: the help has no example of it", c.CommandPath())
		}
	}
	for _, code := range []int{exitOK, exitFailed, exitUsage, exitInterrupted} {
		if !strings.Contains(exitStatusHelp, fmt.Sprintf("\n  %-4d ", code)) {
			t.Errorf("kiln help exit-status doesn't have %d", code)
		}
	}
}

// TestHangUp: a lost terminal ends all verbs but the one that reads its site again.
func TestHangUp(t *testing.T) {
	for _, c := range []struct {
		args string
		want bool
	}{
		{"serve", true},
		{"--site s serve --interface eno1 -v", true},
		{"serve --state build", true},
		{"build serve", false},
		{"status --watch", false},
		{"", false},
		{"nothing", false},
	} {
		if got := reloads(newRootCommand(testUI()), strings.Fields(c.args)); got != c.want {
			t.Errorf("kiln %s reloads at SIGHUP: %v", c.args, got)
		}
	}
}

// TestInterrupted: a call that is ended from outside says so, and leaves nothing.
func TestInterrupted(t *testing.T) {
	site := t.TempDir()
	if err := makeSite(filepath.Join(site, "s"), false); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(site, "out")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	u := testUI()
	root := newRootCommand(u)
	root.SetArgs([]string{"--site", filepath.Join(site, "s"), "render", "--all", "-o", out})
	cmd, err := root.ExecuteContextC(ctx)
	if got := report(ctx, u, cmd, err); got != exitInterrupted {
		t.Errorf("exit status %d, want %d (error: %v)", got, exitInterrupted, err)
	}
	entries, err := os.ReadDir(out)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestInterruptedWhileBlocked: a verb that waits for somebody who never writes
// ends with a signal, too. Programs that it has started get their time first.
func TestInterruptedWhileBlocked(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "template.erb")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	kiln, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(kiln, "import", "erb", pipe)
	cmd.Env, cmd.Stderr = append(os.Environ(), callKiln+"=1"), &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It blocks once it opens the pipe, which this side sees by getting it open.
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted || !strings.Contains(stderr.String(), "interrupted") {
			t.Errorf("ended with %v, saying %q", err, stderr.String())
		}
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("kiln still waits, long after SIGTERM")
	}
}

// TestRenderExamples: the examples of kiln render --help work, on a site as kiln
// init makes it.
func TestRenderExamples(t *testing.T) {
	dir := t.TempDir()
	site := filepath.Join(dir, "site")
	if err := makeSite(site, false); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(newRenderCommand(&globalOptions{}, testUI()).Example) {
		line, _, _ = strings.Cut(line, "#")
		args := strings.Fields(line)
		if slices.Contains(args, "stock") {
			continue // needs HashiCorp's key
		}
		n++
		for i := range args {
			if args[i] == "-o" {
				args[i+1] = filepath.Join(dir, "out", strconv.Itoa(n)+filepath.Base(args[i+1]))
			}
		}
		var stderr bytes.Buffer
		u := &ui.UI{Out: io.Discard, Err: &stderr}
		if status := call(append([]string{"--site", site}, args[1:]...), u); status != exitOK {
			t.Errorf("%s: exit status %d: %s", line, status, stderr.String())
		}
	}
	if n < 4 {
		t.Errorf("only %d examples", n)
	}
}
