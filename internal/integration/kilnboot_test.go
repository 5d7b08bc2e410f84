//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

// kilnBoot is a site with one host, and an image of few packages in its store.
type kilnBoot struct {
	kiln, site, cache string
}

// The host's service is up if its seed has the secret's value, and --put has
// laid a file into it.
const watchfulProfile = `host:
  files:
    /etc/trial/secret: {mode: "0600"}
    /etc/systemd/system/watchful.service:
      content: |
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=sh -c 'grep -qx hush /etc/trial/secret && grep -qx laid /etc/trial/put && test "$$(stat -c %%a /etc/trial/put)" = 640'
        [Install]
        WantedBy=multi-user.target
  units: {watchful.service: enabled}
`

func newKilnBoot(t *testing.T) *kilnBoot {
	t.Helper()
	needRoot(t)
	program(t, "qemu-system-x86_64")
	dir := t.TempDir()
	k := &kilnBoot{kiln: filepath.Join(dir, "kiln"), site: filepath.Join(dir, "site"), cache: filepath.Join(dir, "cache")}
	build := exec.Command("go", "build", "-o", k.kiln, "./cmd/kiln")
	build.Dir = repository(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, text := range map[string]string{
		"site.yaml":                  "domain: example.org\nsecrets: {key: \"file://" + k.site + "/secret\"}\n",
		"hosts.yaml":                 "- {name: build01, profile: tiny}\n",
		"profiles/tiny/profile.yaml": watchfulProfile,
		"profiles/tiny/host/etc/trial/secret.tmpl": "{{ secret \"key\" }}\n",
		"secret": "hush\n",
		"put":    "laid\n",
	} {
		place(t, filepath.Join(k.site, name), text)
	}
	for name, mode := range map[string]os.FileMode{"secret": 0o600, "put": 0o640} {
		if err := os.Chmod(filepath.Join(k.site, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	k.addImage(t, bootDisk(t))
	return k
}

// addImage puts a disk into the store, as an image of the profile tiny.
func (k *kilnBoot) addImage(t *testing.T, disk string) {
	t.Helper()
	store := &images.Store{Dir: filepath.Join(k.cache, "images")}
	dir, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Remove() }() // and let others use it
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", disk, filepath.Join(dir.Path, "image.raw")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	artifact, err := images.NewArtifact(dir.Path, "image.raw", images.FormatRaw)
	if err != nil {
		t.Fatal(err)
	}
	m := &images.Manifest{
		Profile: "tiny", Definition: "debian-12", Created: time.Unix(1_700_000_000, 0), Artifacts: []images.Artifact{artifact},
		Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
		Disk:    &images.Disk{Size: artifact.Size, BlockSize: images.BlockSize},
		Files:   []images.File{{Path: "/etc/systemd/system/multi-user.target.wants/ssh.service", Type: "link", Mode: "0777", Target: "/lib/systemd/system/ssh.service"}},
	}
	m.ID = m.ContentID()
	if err := store.Put(m, dir.Path); err != nil {
		t.Fatal(err)
	}
}

func (k *kilnBoot) command(args ...string) *exec.Cmd {
	cmd := exec.Command(k.kiln, append([]string{"boot", "tiny", "--firmware", "bios", "--timeout", machineTime.String()}, args...)...)
	cmd.Dir = k.site
	cmd.Env = append(os.Environ(), "KILN_CACHE="+k.cache)
	return cmd
}

// TestKilnBoot boots an image as a host of a site, whose service tells that the
// seed came with its secret.
func TestKilnBoot(t *testing.T) {
	k := newKilnBoot(t)
	alone(t)
	before := listing(t, k.cache+"/images")
	cmd := k.command("--host", "build01", "--put", "put:/etc/trial/put", "--json")
	var console strings.Builder
	cmd.Stderr = &console
	out, err := cmd.Output()
	var got struct {
		Host     string
		Ready    bool
		Problems []string
		Report   struct {
			Hostname string
			Firmware string
			Units    map[string]struct{ Active string }
		}
	}
	if jsonErr := json.Unmarshal(out, &got); err != nil || jsonErr != nil {
		t.Fatalf("%v, %v\n%s\n%s", err, jsonErr, out, console.String())
	}
	// Whether the root grows is TestGoldenDisk's to show: this disk has no growpart.
	r := got.Report
	if got.Host != "build01.example.org" || !got.Ready || len(got.Problems) > 0 || r.Hostname != "build01" || r.Firmware != "bios" {
		t.Errorf("it says %s", out)
	}
	if len(r.Units) != 1 || r.Units["watchful.service"].Active != "active" {
		t.Errorf("its units are %v", r.Units)
	}
	if !strings.Contains(console.String(), "cloud-init") || strings.Contains(console.String(), "\x1b") {
		t.Errorf("the console is %q", console.String())
	}
	if strings.Contains(console.String(), "hush") || strings.Contains(string(out), "hush") {
		t.Error("the secret is shown")
	}
	if after := listing(t, k.cache+"/images"); after != before {
		t.Error("the image was written to")
	}
}

// TestKilnBootThatIsNotReady boots the same host without what its service waits
// for, and an image without host data.
func TestKilnBootThatIsNotReady(t *testing.T) {
	k := newKilnBoot(t)
	alone(t)
	// Both at once: a machine that starts seldom has work for two processors.
	type boot struct {
		out []byte
		err error
	}
	second := make(chan boot, 1)
	go func() {
		out, err := k.command("--quiet").CombinedOutput()
		second <- boot{out, err}
	}()
	out, err := k.command("--host", "build01", "--quiet").CombinedOutput()
	without := <-second
	if err == nil || !strings.Contains(string(out), "build01 came up, but not as it should:\n    watchful.service: it failed: exit-code\n") {
		t.Errorf("got %v\n%s", err, out)
	}
	if fields := strings.Fields(string(out)); !slices.Contains(fields, "watchful.service") || slices.Contains(fields, "cloud-init[") {
		t.Errorf("it prints\n%s", out)
	}
	if text := string(without.out); without.err != nil || !strings.Contains(text, "no agent will start") || !strings.Contains(text, "ssh.service  active (running)") {
		t.Errorf("without host data: %v\n%s", without.err, text)
	}
}

// TestKilnBootInterrupted ends kiln boot while a machine starts: by ^C, and as
// kill -9 does. Neither leaves a process or a file.
func TestKilnBootInterrupted(t *testing.T) {
	k := newKilnBoot(t)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			alone(t)
			cmd := k.command("--host", "build01")
			console, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(console)
			for lines.Scan() && !strings.Contains(lines.Text(), "SeaBIOS") {
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(console)
			if err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			if signal == syscall.SIGINT {
				if status := cmd.ProcessState.ExitCode(); status != 130 || !strings.Contains(string(rest), "kiln: interrupted") {
					t.Errorf("exit status %d: %s", status, rest)
				}
				return
			}
			eventually(t, "QEMU has ended", func() bool {
				return exec.Command("pgrep", "--full", os.Getenv("TMPDIR")+"/kiln-boot-").Run() != nil
			})
		})
	}
}
