package installer

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/testnetboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

// fakeMachine has two disks in memory.
type fakeMachine struct {
	t        *testing.T
	system   *memory
	data     *memory
	root     string // where the installed root is mounted
	network  error
	rebooted bool
	opened   []string
}

func (m *fakeMachine) Hardware(context.Context, plan.MAC, func(string)) error { return nil }
func (m *fakeMachine) Network(context.Context, plan.MAC, func(string)) error  { return m.network }
func (m *fakeMachine) Reboot() error                                          { m.rebooted = true; return nil }

func (m *fakeMachine) Disks() ([]Disk, error) {
	return []Disk{{Name: "vda", Size: m.data.Size(), Sector: 512, Serials: []string{"DATA1"}}, {Name: "vdb", Size: m.system.Size(), Sector: 512, Serials: []string{"SYS1"}}}, nil
}

func (m *fakeMachine) Open(d *Disk) (Target, error) {
	m.opened = append(m.opened, d.Name)
	return fakeTarget{map[string]*memory{"vda": m.data, "vdb": m.system}[d.Name], m}, nil
}

type fakeTarget struct {
	*memory
	machine *fakeMachine
}

func (fakeTarget) Close() error { return nil }

func (f fakeTarget) WithRoot(_ context.Context, p Partition, use func(dir string) error) error {
	if p.Number != 2 || p.Offset != testnetboot.Root {
		f.machine.t.Errorf("the root is %+v", p)
	}
	if boots(f.safe) || boots(f.cached) {
		f.machine.t.Error("the disk boots before its seed is written")
	}
	return use(f.machine.root)
}

// site is a server with an image, and a machine.
type site struct {
	*testnetboot.Server
	machine *fakeMachine
	dir     string // the image's
	raw     []byte
	fetched atomic.Int64
	files   http.Handler
	// console is what people saw.
	mu      sync.Mutex
	console []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), raw: testnetboot.Disk(5<<20, 1)}
	m := testnetboot.Image(t, s.dir, s.raw, testBlock)
	s.files = http.FileServer(http.Dir(s.dir))
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetched.Add(1)
		s.files.ServeHTTP(w, r)
	}))
	t.Cleanup(files.Close)
	s.Server = &testnetboot.Server{
		Token: "token-1", Refuse: map[string]protocol.Refusal{},
		Job: protocol.Job{ID: "i1", Session: "session-1", Host: "build01", Image: m.ID, ImageURL: files.URL + "/", Data: []plan.DiskRule{{Serial: "DATA1"}}},
		Seed: protocol.Seed{Files: []protocol.SeedFile{
			{Name: "user-data", Data: []byte("#cloud-config\npassword: hidden\n")}, {Name: "meta-data", Data: []byte("instance-id: i1\n")},
		}},
	}
	s.Start(t)
	s.machine = &fakeMachine{t: t, system: newMemory(testnetboot.Disk(6<<20, 5)), data: newMemory(testnetboot.Disk(6<<20, 6)), root: t.TempDir()}
	return s
}

func (s *site) installer() *Installer {
	return &Installer{
		Boot:    Boot{Server: s.HTTPS.URL, Pin: s.Pin, Token: "token-1", MAC: "52:54:00:00:00:01", Host: "build01"},
		Machine: s.machine, Every: 20 * time.Millisecond, Settle: 4 * time.Millisecond, Wait: 20 * time.Millisecond, Workers: 2,
		Console: func(line string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.console = append(s.console, line)
		},
	}
}

func TestInstall(t *testing.T) {
	s := newSite(t)
	s.InLine = 1
	dataBefore := bytes.Clone(s.machine.data.cached)
	testnetboot.Place(t, filepath.Join(s.machine.root, seedDir, "vendor-data"), []byte("of an earlier seed"))
	if err := s.installer().Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.Calls(), " "); got != strings.Join([]string{protocol.PathRedeem, protocol.PathTurn, protocol.PathTurn, protocol.PathSeed, protocol.PathWritten}, " ") {
		t.Errorf("the server was asked %s", got)
	}
	if !s.machine.rebooted || !bytes.Equal(s.machine.data.cached, dataBefore) || strings.Join(s.machine.opened, " ") != "vdb" {
		t.Errorf("rebooted: %v; opened: %v", s.machine.rebooted, s.machine.opened)
	}
	disk := s.machine.system.safe
	if !bytes.Equal(disk[34*512:5<<20-tailBytes], s.raw[34*512:5<<20-tailBytes]) || !validTable(disk, 1) || !validTable(disk, 6<<20/512-1) {
		t.Error("the disk isn't the image")
	}
	checkSeedFiles(t, s)
	steps := []protocol.Step{}
	for _, r := range s.Reports() {
		if len(steps) == 0 || steps[len(steps)-1] != r.Step {
			steps = append(steps, r.Step)
		}
		if r.Error != "" {
			t.Error(r.Error)
		}
	}
	order := []protocol.Step{protocol.StepRedeem, protocol.StepDisk, protocol.StepImage, protocol.StepTurn, protocol.StepWrite, protocol.StepSeed, protocol.StepCommit, protocol.StepReboot}
	for i, step := range steps {
		if i > 0 && slices.Index(order, step) <= slices.Index(order, steps[i-1]) {
			t.Errorf("the steps are reported as %q", steps)
		}
	}
	if all := strings.Join(s.console, "\n") + s.Lines(); strings.Contains(all, "hidden") || strings.Contains(all, "token-1") || strings.Contains(all, "session-1") {
		t.Errorf("a secret was said:\n%s", all)
	}
}

// checkSeedFiles looks at the seed in the installed root.
func checkSeedFiles(t *testing.T, s *site) {
	t.Helper()
	for _, f := range s.Seed.Files {
		name := filepath.Join(s.machine.root, seedDir, f.Name)
		data, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(data, f.Data) {
			t.Errorf("%s: %v, %q", f.Name, err, data)
		}
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name, err, info.Mode())
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.machine.root, seedDir))
	info, e := os.Stat(filepath.Join(s.machine.root, seedDir))
	if err != nil || e != nil || len(entries) != 2 || info.Mode().Perm() != 0o700 {
		t.Errorf("the seed's folder: %v, %v, %v", err, entries, info.Mode())
	}
}

// untouched says that nothing was written before the step of writing.
const untouched = true

var failures = map[string]struct {
	change    func(t *testing.T, s *site, i *Installer)
	step      protocol.Step
	want      string
	untouched bool
}{
	"no network": {func(_ *testing.T, s *site, _ *Installer) { s.machine.network = errors.New("no lease") }, protocol.StepNetwork, "no lease", untouched},
	"redeemed before": {func(_ *testing.T, s *site, _ *Installer) { s.Redeem() }, protocol.StepRedeem,
		"somebody has redeemed this machine's token before: nothing is written; find out who (kiln status), and arm the host again: the server refuses it: it was redeemed by 10.0.0.9", untouched},
	"another token": {func(_ *testing.T, _ *site, i *Installer) { i.Boot.Token = "other" }, protocol.StepRedeem, "no such token", untouched},
	"another key":   {func(_ *testing.T, _ *site, i *Installer) { i.Boot.Pin = aPin }, protocol.StepRedeem, "somebody else answers at its address", untouched},
	"no disk": {func(_ *testing.T, s *site, _ *Installer) { s.Job.Install.Serial = "NONE" }, protocol.StepDisk,
		"no disk is one with serial NONE: /dev/vda, 6.3 MB, serial DATA1 (a data disk); /dev/vdb, 6.3 MB, serial SYS1", untouched},
	"two disks":        {func(_ *testing.T, s *site, _ *Installer) { s.Job.Data = nil }, protocol.StepDisk, "2 disks are", untouched},
	"a small disk":     {func(_ *testing.T, s *site, _ *Installer) { s.machine.system = newMemory(make([]byte, 4<<20)) }, protocol.StepDisk, "is too small", untouched},
	"another image":    {func(_ *testing.T, s *site, _ *Installer) { s.Job.Image = aPin }, protocol.StepImage, "the server sent the manifest of the image", untouched},
	"a changed image":  {replaceIn(images.ManifestName, `"size":5242880`, `"size":5242368`), protocol.StepImage, "its content doesn't have its ID", untouched},
	"another list":     {replaceIn("netboot/"+images.ChunksName, `"sha256":"`, `"sha256":"0`), protocol.StepImage, "another block 0", untouched},
	"unsigned":         {func(t *testing.T, s *site, _ *Installer) { s.sign(t, false, false) }, protocol.StepImage, "it isn't signed, and the site has keys", untouched},
	"signed otherwise": {func(t *testing.T, s *site, _ *Installer) { s.sign(t, true, false) }, protocol.StepImage, "which isn't among the trusted ones", untouched},
	"refused a turn": {func(_ *testing.T, s *site, _ *Installer) {
		s.Refuse[protocol.PathTurn] = protocol.Refusal{Error: "it is over", Code: protocol.CodeSession}
	}, protocol.StepTurn, "it is over", untouched},
	"a damaged chunk": {func(t *testing.T, s *site, _ *Installer) {
		for _, name := range s.chunks(t) {
			testnetboot.Place(t, name, []byte("\x28\xb5\x2f\xfd junk"))
		}
	}, protocol.StepWrite, "never as the image's manifest has it", false},
	"a missing chunk": {func(t *testing.T, s *site, _ *Installer) {
		if err := os.Remove(s.chunks(t)[2]); err != nil {
			t.Fatal(err)
		}
	}, protocol.StepWrite, "the server doesn't have it", false},
	"no seed":       {func(_ *testing.T, s *site, _ *Installer) { s.Seed.Files = s.Seed.Files[:1] }, protocol.StepSeed, "the seed has no meta-data", false},
	"a seed's path": {func(_ *testing.T, s *site, _ *Installer) { s.Seed.Files[0].Name = "../x" }, protocol.StepSeed, `a file called "../x"`, false},
	"a refused seed": {func(_ *testing.T, s *site, _ *Installer) {
		s.Refuse[protocol.PathSeed] = protocol.Refusal{Error: "a secret isn't there"}
	}, protocol.StepSeed, "a secret isn't there", false},
}

func replaceIn(name, old, now string) func(t *testing.T, s *site, _ *Installer) {
	return func(t *testing.T, s *site, _ *Installer) {
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil || !bytes.Contains(data, []byte(old)) {
			t.Fatal(err)
		}
		testnetboot.Place(t, filepath.Join(s.dir, name), bytes.Replace(data, []byte(old), []byte(now), 1))
	}
}

func (s *site) chunks(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "netboot/chunks/*"))
	if err != nil || len(names) < 3 {
		t.Fatal(err, names)
	}
	return names
}

// sign gives the job a key, and the image a signature: of that key, or another one.
func (s *site) sign(t *testing.T, signed, right bool) {
	t.Helper()
	public, secret, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Job.Keys = []string{public.String()}
	if !signed {
		return
	}
	if !right {
		if _, secret, err = minisign.GenerateKey(nil); err != nil {
			t.Fatal(err)
		}
	}
	manifest, err := os.ReadFile(filepath.Join(s.dir, images.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	testnetboot.Place(t, filepath.Join(s.dir, images.SignatureName), minisign.Sign(secret, manifest))
}

func TestFailures(t *testing.T) {
	for name, c := range failures {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			i := s.installer()
			c.change(t, s, i)
			err := i.Run(t.Context())
			var f *Failure
			if !errors.As(err, &f) || f.Step != c.step || !strings.Contains(f.Err.Error(), c.want) {
				t.Fatalf("%v; not %s: %q", err, c.step, c.want)
			}
			checkFailure(t, s, f, c.untouched)
		})
	}
}

func checkFailure(t *testing.T, s *site, f *Failure, untouched bool) {
	t.Helper()
	if s.machine.rebooted || slices.Contains(s.Calls(), protocol.PathWritten) {
		t.Error("it goes on")
	}
	if untouched != (s.machine.system.count == 0) || s.machine.data.count > 0 {
		t.Errorf("%d writes to the disk, %d to the other", s.machine.system.count, s.machine.data.count)
	}
	if !untouched && boots(s.machine.system.cached) {
		t.Error("the disk boots")
	}
	// Before the token is redeemed, the server can't be told.
	if f.Step == protocol.StepNetwork || f.Step == protocol.StepRedeem {
		if s.fetched.Load() > 0 || len(s.Reports()) > 0 {
			t.Errorf("%d files were fetched, %d reports sent", s.fetched.Load(), len(s.Reports()))
		}
		return
	}
	reports := s.Reports()
	if last := reports[len(reports)-1]; last.Step != f.Step || last.Error != f.Err.Error() {
		t.Errorf("the last report is %+v", last)
	}
}

func TestSigned(t *testing.T) {
	s := newSite(t)
	s.sign(t, true, true)
	if err := s.installer().Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestStop: the server ends an installation while it's written.
func TestStop(t *testing.T) {
	s := newSite(t)
	files := s.files
	s.files = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/chunks/") {
			<-r.Context().Done() // it never comes
			return
		}
		files.ServeHTTP(w, r)
	})
	i := s.installer()
	s.Changed = func(path string, _ []byte) {
		if path == protocol.PathTurn {
			s.SetStop("disarmed by alice")
		}
	}
	err := i.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the server has stopped it: disarmed by alice") || boots(s.machine.system.cached) && s.machine.system.count > 0 {
		t.Errorf("%v", err)
	}
}

// TestServerRestarts: the server is away for a while in the midst of it, for the
// reports and for the chunks.
func TestServerRestarts(t *testing.T) {
	s := newSite(t)
	var down atomic.Bool
	handler, files := s.HTTPS.Config.Handler, s.files
	away := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if down.Load() {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	}
	s.HTTPS.Config.Handler, s.files = away(handler), away(files)
	var once sync.Once
	s.Changed = func(path string, _ []byte) {
		if path == protocol.PathTurn {
			once.Do(func() {
				down.Store(true)
				time.AfterFunc(500*time.Millisecond, func() { down.Store(false) })
			})
		}
	}
	if err := s.installer().Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lines := s.Lines(); !strings.Contains(lines, "the server doesn't answer, trying on") || !strings.Contains(lines, "the server answers again") {
		t.Errorf("it doesn't say so:\n%s", lines)
	}
}

// TestServerGone: a server that stays away ends the installation.
func TestServerGone(t *testing.T) {
	s := newSite(t)
	i := s.installer()
	c := NewClient(i.Boot)
	c.Patience = 200 * time.Millisecond
	i.Server = c
	s.Changed = func(path string, _ []byte) {
		if path == protocol.PathTurn {
			go s.HTTPS.Config.Close()
		}
	}
	if err := i.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no answer for") {
		t.Error(err)
	}
	if s.machine.rebooted {
		t.Error("it restarts")
	}
}
