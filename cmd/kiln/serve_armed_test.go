package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

const build01 = "build01.example.org"

// newArmed is a server whose host build01 is armed.
func newArmed(t *testing.T) (*serving, *images.Manifest, *bytes.Buffer) {
	t.Helper()
	store, m := newTinyImage(t)
	s, log := newTestServing(t, tinySite)
	s.images = &servedImages{store: store, dir: t.TempDir(), installer: []byte("program"), log: s.log}
	// As it is once its initramfs was made.
	writeFiles(t, s.images.dir, map[string]string{s.images.nameOf(m.ID): "initramfs"})
	if _, err := s.store.Arm(state.Arming{Host: build01, MACs: []plan.MAC{"52:54:00:00:00:01"}, Image: m.ID, Profile: "tiny", Disk: "its only disk"}); err != nil {
		t.Fatal(err)
	}
	return s, m, log
}

// looks has the server look some times: it is armed, with that problem, of which the
// log has a line the first time.
func looks(t *testing.T, s *serving, log *bytes.Buffer, problem, line string) {
	t.Helper()
	log.Reset()
	for range 3 {
		s.lookAtArmed(t.Context())
	}
	r, err := s.store.Get(build01)
	if err != nil {
		t.Fatal(err)
	}
	if r.Stage != state.Armed || (r.Problem == "") != (problem == "") || !strings.Contains(r.Problem, problem) || problem != "" && !strings.HasSuffix(r.Problem, "kiln disarm "+build01) {
		t.Errorf("it is %s, with %q and not %q", r.Stage, r.Problem, problem)
	}
	if n := strings.Count(log.String(), "host="+build01); (n == 1) != (line != "") || n > 1 || !strings.Contains(log.String(), line) {
		t.Errorf("the log has %q, and not %q once", log.String(), line)
	}
}

// TestArmedOutOfInventory: a host that is armed and leaves the inventory is seen to be
// armed in vain, until it is back.
func TestArmedOutOfInventory(t *testing.T) {
	s, _, log := newArmed(t)
	looks(t, s, log, "", "")
	reload := func(hosts string) {
		t.Helper()
		writeFiles(t, s.options.site, map[string]string{"hosts.yaml": hosts})
		if err := s.site.load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const gone = "the server's inventory has no sound entry of it"
	reload("[]\n")
	looks(t, s, log, gone, "level=WARN msg=\"a host is armed, and can't be installed\"")
	looks(t, s, log, gone, "")
	reload(tinySite["hosts.yaml"])
	looks(t, s, log, "", "level=INFO msg=\"a host that is armed can be installed again\"")
	reload(strings.Replace(tinySite["hosts.yaml"], "tiny", "none", 1))
	looks(t, s, log, gone, "level=WARN")
}

// TestArmedWithoutImage: so is one whose image somebody has removed by force, until that
// is there again; and the server keeps no image that no host needs.
func TestArmedWithoutImage(t *testing.T) {
	s, m, log := newArmed(t)
	looks(t, s, log, "", "")
	store := &images.Store{Dir: s.images.store.Dir} // doesn't know of the state
	if err := store.Remove(m.ID); !errors.Is(err, images.ErrInUse) {
		t.Errorf("the server doesn't keep it: %v", err)
	}
	aside := filepath.Join(t.TempDir(), m.ID)
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(store.Path(m.ID, ""), aside)
	looks(t, s, log, "its image "+m.Short()+", or a part of it, is gone from "+store.Dir+": build it again (kiln build tiny --format netboot)", "level=WARN")
	if len(s.images.used) > 0 {
		t.Error("it keeps a folder that is gone")
	}
	move(aside, store.Path(m.ID, ""))
	looks(t, s, log, "", "level=INFO")
	kernel := store.Path(m.ID, images.NetbootDir+"/vmlinuz")
	move(kernel, kernel+".old")
	looks(t, s, log, "or a part of it, is gone", "level=WARN")
	move(kernel+".old", kernel)
	looks(t, s, log, "", "level=INFO")
	if err := os.Remove(filepath.Join(s.images.dir, s.images.nameOf(m.ID))); err != nil {
		t.Fatal(err)
	}
	looks(t, s, log, "its image "+m.Short()+" can't be booted: making the installer's initramfs", "level=WARN")
	// What takes seconds and fails isn't done again at each look.
	writeFiles(t, s.images.dir, map[string]string{s.images.nameOf(m.ID): "initramfs"})
	looks(t, s, log, "can't be booted", "")
	if _, err := s.store.Disarm(build01, "bob"); err != nil {
		t.Fatal(err)
	}
	s.lookAtArmed(t.Context())
	if err := store.Remove(m.ID); err != nil {
		t.Errorf("the server keeps what no host needs: %v", err)
	}
}
