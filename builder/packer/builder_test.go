package packer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/images"
)

// bakes is Sites whose bake puts a small image into a store.
func bakes(t *testing.T, store *images.Store) *site {
	s := newSite()
	s.baked = func(_ context.Context, o *BakeOptions) (*Baked, error) {
		dir, err := store.NewDir()
		if err != nil {
			return nil, err
		}
		defer dir.Remove()
		if err := os.WriteFile(filepath.Join(dir.Path, "image.raw"), []byte("a disk"), 0o644); err != nil {
			t.Error(err)
		}
		o.Events(bake.Event{Step: "base", Number: 1, Of: 2, State: bake.StateStarted})
		o.Events(bake.Event{Step: "base", Number: 1, Of: 2, State: bake.StateDone, Seconds: 1.5})
		o.Events(bake.Event{Step: "store", Number: 2, Of: 2, State: bake.StateCached})
		m := &images.Manifest{ID: strings.Repeat("4f", 32), Profile: o.Profile, Definition: "debian-12", Created: time.Unix(1, 0), Artifacts: []images.Artifact{{Name: "image.raw", Format: images.FormatRaw, Size: 6}}}
		return &Baked{Manifest: m, Store: store, New: true}, store.Put(m, dir.Path)
	}
	return s
}

func newBuilder(t *testing.T, s Sites, more map[string]any) (*Builder, string) {
	t.Helper()
	b, out := &Builder{sites: s}, filepath.Join(t.TempDir(), "out")
	options := map[string]any{"profile": "plain", "site": "my site", "output_directory": out}
	for k, v := range more {
		options[k] = v
	}
	if _, _, err := b.Prepare(options); err != nil {
		t.Fatal(err)
	}
	return b, out
}

// entries are the names in a folder.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestBuild(t *testing.T) {
	store := &images.Store{Dir: t.TempDir()}
	b, out := newBuilder(t, bakes(t, store), nil)
	ui := &said{}
	a, err := b.Run(t.Context(), ui, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Baking the profile plain natively", "1/2 base: done in 1.5 s", "2/2 store: as before"} {
		if !ui.has(want) {
			t.Errorf("%q isn't said:\n%s", want, ui.text())
		}
	}
	id := strings.Repeat("4f", 32)
	disk := filepath.Join(out, "plain-debian-12-"+id[:12]+".raw")
	if want := []string{disk, filepath.Join(out, "manifest.json")}; !slices.Equal(a.Files(), want) {
		t.Errorf("its files are %q", a.Files())
	}
	if b, err := os.ReadFile(disk); err != nil || string(b) != "a disk" {
		t.Errorf("the disk is %q, %v", b, err)
	}
	if a.Id() != id || a.BuilderId() != BuilderID || !strings.Contains(a.String(), out) {
		t.Errorf("it is %s of %s: %s", a.Id(), a.BuilderId(), a)
	}
	for name, want := range map[string]any{
		StateImageID: id, StateManifest: filepath.Join(out, "manifest.json"), StateProfile: "plain", StateDefinition: "debian-12", StateSite: "my site",
		StateStore: store.Path(id, ""), "other": nil,
	} {
		if got := a.State(name); got != want {
			t.Errorf("its %s is %v", name, got)
		}
	}
	// It isn't made over what is there, unless that is asked for.
	if _, err := b.Run(t.Context(), ui, nil); err == nil || !strings.Contains(err.Error(), out+" is there already") {
		t.Errorf("once more: %v", err)
	}
	b.config.PackerForce = true
	if a, err = b.Run(t.Context(), ui, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Destroy(); err != nil {
		t.Fatal(err)
	}
	if left := append(entries(t, filepath.Dir(out)), entries(t, store.Path(id, ""))...); len(left) > 0 {
		t.Errorf("Destroy leaves %q", left)
	}
}

// hook is Packer's side, which runs provisioners.
type hook struct {
	run func(packersdk.Communicator) error
}

func (h hook) Run(_ context.Context, _ string, _ packersdk.Ui, c packersdk.Communicator, _ any) error {
	return h.run(c)
}

func TestBuildFails(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*site, context.CancelFunc)
		more   map[string]any
		hook   packersdk.Hook
		want   string
	}{
		"bake": {func(s *site, _ context.CancelFunc) {
			s.baked = func(context.Context, *BakeOptions) (*Baked, error) { return nil, errors.New("the mirror is down") }
		}, nil, nil, "baking plain: the mirror is down"},
		"cancelled": {func(s *site, cancel context.CancelFunc) {
			s.baked = func(ctx context.Context, _ *BakeOptions) (*Baked, error) {
				cancel()
				return nil, context.Cause(ctx)
			}
		}, nil, nil, "the build was cancelled; nothing of it is left"},
		"export":      {func(*site, context.CancelFunc) {}, map[string]any{"formats": []string{"tar"}}, nil, "isn't there as tar"},
		"provisioner": {func(*site, context.CancelFunc) {}, nil, hook{func(c packersdk.Communicator) error { return c.Upload("x", nil, nil) }}, "without starting a machine"},
	} {
		t.Run(name, func(t *testing.T) {
			store := &images.Store{Dir: filepath.Join(t.TempDir(), "store")}
			s := bakes(t, store)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			test.change(s, cancel)
			b, out := newBuilder(t, s, test.more)
			a, err := b.Run(ctx, &said{}, test.hook)
			if err == nil || !strings.Contains(err.Error(), test.want) || a != nil {
				t.Errorf("%v, %v, and it should have %q", a, err, test.want)
			}
			if left := append(entries(t, filepath.Dir(out)), entries(t, store.Path(strings.Repeat("4f", 32), ""))...); len(left) > 0 {
				t.Errorf("it leaves %q", left)
			}
		})
	}
}

func TestBuilderOptions(t *testing.T) {
	for want, options := range map[string]map[string]any{
		"profile must be set": {},
		`no format "qcow3"`:   {"profile": "x", "formats": []string{"qcow3"}},
		"profil":              {"profil": "x"},
	} {
		if _, _, err := new(Builder).Prepare(options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, and it should have %q", options, err, want)
		}
	}
}

// TestProgress says seldom how far a step is.
func TestProgress(t *testing.T) {
	ui, now := &said{}, time.Unix(1_700_000_000, 0)
	p := progress{ui: ui, now: func() time.Time { return now }}
	p.event(bake.Event{Step: "base", Number: 1, Of: 2, State: bake.StateStarted})
	for done := range int64(100) {
		now = now.Add(time.Second)
		p.event(bake.Event{Step: "base", Number: 1, Of: 2, State: bake.StateProgress, Done: done, Total: 100})
	}
	if len(ui.lines) != 6 || !ui.has("1/2 base: 14 %, 1m32s left") {
		t.Errorf("it says\n%s", ui.text())
	}
}
