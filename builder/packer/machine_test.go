package packer

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// machine is a folder that the scripts take for a machine's root, with programs
// that stand in for those that change one. It is reached by a shell of this
// computer.
type machine struct {
	packersdk.MockCommunicator
	t       *testing.T
	root    string
	staging string

	mu       sync.Mutex
	uploads  []string
	commands []string
}

// programs stand in for a machine's; ROOT is its root.
var programs = map[string]string{
	"id":          "case $1 in -u) cat ROOT/uid ;; -un) echo debian ;; esac\n",
	"dpkg":        "case $1 in --print-architecture) echo amd64 ;; esac\n",
	"getent":      "! grep -qxF \"$1 $2\" ROOT/nobody\n",
	"groupadd":    "echo groupadd \"$@\" >>ROOT/log\n",
	"useradd":     "echo useradd \"$@\" >>ROOT/log\n",
	"usermod":     "echo usermod \"$@\" >>ROOT/log\n",
	"update-grub": "echo update-grub >>ROOT/log\n",
	"systemctl":   "echo systemctl \"$@\" >>ROOT/log\n",
	"dpkg-query": `case $* in
*Package*) sed 's/^/installed /' ROOT/installed ;;
*) for name; do :; done; sed -n "s/^$name /installed /p" ROOT/installed | grep . ;;
esac
`,
	"apt-get": `echo apt-get "$@" >>ROOT/log
case " $* " in
*" update "*) [ ! -e ROOT/unreachable ] || { echo 'Get:1 something'; cat ROOT/unreachable; exit 100; } ;;
*" -s "*) [ ! -e ROOT/unknown ] || { cat ROOT/unknown; exit 100; }; echo 'Inst acl (1)' ;;
*" install "*)
	[ -x ROOT/usr/sbin/policy-rc.d ] || { echo 'E: services would be started'; exit 100; }
	[ ! -e ROOT/endless ] || { echo reached >ROOT/endless; sleep 600; }
	[ ! -e ROOT/broken ] || { cat ROOT/broken; exit 100; }
	while [ "$1" != install ]; do shift; done
	shift
	for p; do
		case $p in *=*) echo "${p%%=*} ${p#*=}" ;; *) echo "$p $(cat ROOT/version)" ;; esac
	done >>ROOT/installed
	;;
esac
`,
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), staging: t.TempDir()}
	for _, dir := range []string{"run", "etc", "usr/sbin", "bin", "var/log"} {
		m.do(os.MkdirAll(filepath.Join(m.root, dir), 0o755))
	}
	for name, text := range programs {
		m.do(os.WriteFile(filepath.Join(m.root, "bin", name), []byte("#!/bin/sh\n"+strings.ReplaceAll(text, "ROOT", m.root)), 0o755))
	}
	m.write("uid", "0\n")
	m.write("nobody", "")
	m.write("installed", "libc6 2.36\n")
	m.write("version", "1.0")
	m.write("etc/os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
	m.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.onMachine(&headScript)
	m.onMachine(&applyScript)
	return m
}

// onMachine has a script take the folder for the root.
func (m *machine) onMachine(script *string) {
	was := *script
	m.t.Cleanup(func() { *script = was })
	*script = strings.NewReplacer(
		"PATH=/usr/local/sbin:", "PATH="+m.root+"/bin:/usr/local/sbin:",
		"/run/kiln.", m.root+"/run/kiln.", "/run/systemd/system", m.root+"/run/systemd/system",
		"/etc/apt/preferences.d", m.root+"/etc/apt/preferences.d", "/usr/sbin/policy-rc.d", m.root+"/usr/sbin/policy-rc.d", "/etc/os-release", m.root+"/etc/os-release",
		"--same-owner", "--no-same-owner", " -C / ", " -C "+m.root+" ", `"$work/seal"`, `"$work/seal" `+m.root,
	).Replace(was)
}

func (m *machine) do(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	m.do(os.WriteFile(filepath.Join(m.root, name), []byte(text), 0o644))
}

func (m *machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.root, name))
	m.do(err)
	return string(b)
}

// left lists what is left of a run, which is nothing.
func (m *machine) left() []string {
	var list []string
	for _, pattern := range []string{m.staging + "/*", m.root + "/run/kiln*", m.root + "/usr/sbin/policy-rc.d*", m.root + "/etc/apt/preferences.d/*"} {
		found, err := filepath.Glob(pattern)
		m.do(err)
		list = append(list, found...)
	}
	return list
}

func (m *machine) Start(ctx context.Context, cmd *packersdk.RemoteCmd) error {
	m.mu.Lock()
	m.commands = append(m.commands, cmd.Command)
	m.mu.Unlock()
	sh := exec.CommandContext(ctx, "/bin/sh", "-c", cmd.Command)
	sh.Stdin, sh.Stdout, sh.Stderr = cmd.Stdin, cmd.Stdout, cmd.Stderr
	if err := sh.Start(); err != nil {
		return err
	}
	go func() {
		_ = sh.Wait()
		cmd.SetExited(sh.ProcessState.ExitCode())
	}()
	return nil
}

func (m *machine) Upload(name string, r io.Reader, _ *os.FileInfo) error {
	m.mu.Lock()
	m.uploads = append(m.uploads, name)
	m.mu.Unlock()
	b, err := io.ReadAll(r)
	return errors.Join(err, os.WriteFile(name, b, 0o644))
}

// said is a Ui that keeps what is said.
type said struct {
	packersdk.MockUi
	mu    sync.Mutex
	lines []string
}

func (s *said) Say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, text)
}
func (s *said) Sayf(string, ...any)    {}
func (s *said) Error(text string)      { s.Say(text) }
func (s *said) has(part string) bool   { return strings.Contains(s.text(), part) }
func (s *said) Message(message string) { s.Say(message) }

func (s *said) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// site is Sites of one plan.
type site struct {
	plan   *plan.Plan
	locked *images.PackageSet
	baked  func(context.Context, *BakeOptions) (*Baked, error)
	search Search
	asked  []string
}

func (s *site) ask(words ...string) { s.asked = append(s.asked, strings.Join(words, " ")) }

func (s *site) Host(_ context.Context, site, host string) (*plan.Plan, error) {
	s.ask("host", site, host)
	return s.plan, nil
}

func (s *site) Half(_ context.Context, site, profile, definition string) (*Half, error) {
	s.ask("half", site, profile, definition)
	if profile != s.plan.Image.Profile {
		return nil, errors.New("there is no profile " + profile)
	}
	return &Half{Image: s.plan.Image, Locked: s.locked}, nil
}

func (s *site) Bake(ctx context.Context, o *BakeOptions) (*Baked, error) { return s.baked(ctx, o) }

func (s *site) Search(_ context.Context, site, profile, definition string) (*Search, error) {
	s.ask("search", site, profile, definition)
	return &s.search, nil
}

func newSite() *site {
	p := testplan.New()
	// What the stand-ins for programs can't own.
	p.Image.Files = slices.DeleteFunc(p.Image.Files, func(f plan.File) bool { return f.Mode&0o7000 != 0 })
	return &site{plan: p}
}
