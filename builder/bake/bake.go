// Package bake makes golden images: it bakes the Image half of a plan, exactly,
// into a tree of files, a root file system and a disk.
//
// The work is a graph of steps. Each is keyed by all that goes into it, and its
// result kept in a cache under that key: a step runs only if its key is new. What
// is made appears by rename, whoever makes it holds a lock, and what it starts
// lives in namespaces of its own: a build that ends half-way leaves nothing.
//
//	sources ▶ packages ▶ base tree ▶ base disk ▶ + layer ▶ disk ▶ exports ▶ check
//
// The packages are the base: a tree, sealed, and a disk of it that boots. All else
// of the plan is the layer: what its files, accounts and units change in that
// tree. An image is a fresh copy of the base disk with the layer laid over it.
package bake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/userns"
	"github.com/alisw/kiln/plan"
)

// Options say what to bake.
type Options struct {
	Image      plan.Image
	Definition images.Definition
	Mirror     Mirror
	// Lock has the image's exact packages; nil is that the site has none, and what
	// the mirrors have now is taken.
	Lock *images.Lock
	// Cache is the folder of steps' results.
	Cache string
	// CacheSize is how many bytes of it are left at most, where no other build goes
	// on; 0 is all.
	CacheSize int64
	// Store is where finished images go.
	Store *images.Store
	// Formats are those that the image is exported in, beside the raw disk that
	// each has; nil is none.
	Formats []images.Format
	// Canaries gives the site's secrets, which the image's disk is searched for; nil is
	// that there are none. It's called only where something was made.
	Canaries func(ctx context.Context) ([]check.Canary, error)
	// Events is told of the progress; nil is nobody.
	Events func(Event)
	// Run runs external programs; nil is the usual way.
	Run run.Runner
}

// builder is one build.
type builder struct {
	image      plan.Image
	definition images.Definition
	mirror     Mirror
	formats    []images.Format
	store      *images.Store
	cache      *Cache
	packages   *packageCache
	run        run.Runner
	withLock   bool
	locked     *images.PackageSet // what the lock has; nil without one
	tools      map[string]string  // program → version
	epoch      int64              // what the build's clock shows, Unix seconds
	ids        disk.IDs           // of the disk that is made
	took       []images.Step
	canaries   func(ctx context.Context) ([]check.Canary, error)
}

// ErrMachine is what an error is that has to do with this machine or what it can
// reach, so that no other image could be built either.
var ErrMachine = errors.New("no image can be built here")

// machineError is an ErrMachine.
type machineError struct{ error }

func (e *machineError) Unwrap() error        { return e.error }
func (e *machineError) Is(target error) bool { return target == ErrMachine }

// Build bakes an image, and puts it into the store.
func Build(ctx context.Context, o Options) (*images.Manifest, error) {
	b := newBuilder(&o)
	if err := b.checkDefinition(); err != nil {
		return nil, err
	}
	if err := b.checkIDs(); err != nil {
		return nil, err
	}
	if err := b.checkMachine(ctx); err != nil {
		return nil, &machineError{err}
	}
	m, err := b.build(ctx, o.Lock)
	if err == nil && o.CacheSize > 0 {
		_, err = b.cache.Trim(o.CacheSize)
	}
	return m, err
}

func (b *builder) build(ctx context.Context, lock *images.Lock) (*images.Manifest, error) {
	release, err := b.cache.hold()
	if err != nil {
		return nil, err
	}
	defer release()
	if err := b.cache.sameIDs(userns.IDs()); err != nil {
		return nil, &machineError{err}
	}
	if err := errors.Join(b.cache.Sweep(), b.store.Sweep()); err != nil {
		return nil, err
	}
	sources, base, err := b.baseOf(ctx, lock)
	if err != nil {
		return nil, err
	}
	// Images that are made of the same packages have the same numbers, and the
	// more of their disks in common.
	b.ids = disk.NewIDs(base.Key)
	step, err := b.layerStep(base, sources)
	if err != nil {
		return nil, err
	}
	layer, err := b.do(ctx, step)
	if err != nil {
		return nil, err
	}
	made, err := readParts(base, layer)
	if err != nil {
		return nil, err
	}
	return b.finish(ctx, made, sources)
}

// parts are what an image is made of.
type parts struct {
	base    Result
	entries []disk.Entry // of the layer
	hash    string       // of the layer: the same changes are the same layer, whatever made them
	size    int64        // of the layer, in bytes
	disk    Result       // the image's, once it is made
	known   *contents
}

// contents are what the image has.
func (p *parts) contents() (*contents, error) {
	if p.known == nil {
		c := new(contents)
		if err := readJSON(p.base, contentsName, c); err != nil {
			return nil, err
		}
		c.Files = c.with(p.entries)
		p.known = c
	}
	return p.known, nil
}

func readParts(base, layer Result) (*parts, error) {
	data, err := os.ReadFile(filepath.Join(layer.Dir, layerName))
	if err != nil {
		return nil, fmt.Errorf("the layer: %w", err)
	}
	entries, err := decodeLayer(data)
	if err != nil {
		return nil, fmt.Errorf("the layer: %w", err)
	}
	return &parts{base: base, entries: entries, hash: hash(data), size: int64(len(data))}, nil
}

// baseOf makes the base tree: of the packages in the lock, or where there is none,
// of those that the sources have now.
func (b *builder) baseOf(ctx context.Context, lock *images.Lock) (sources []source, base Result, err error) {
	var set *images.PackageSet
	if lock == nil {
		if sources, err = b.readSources(ctx); err != nil {
			return nil, Result{}, err
		}
		if set, err = b.resolved(ctx, sources); err != nil {
			return nil, Result{}, err
		}
	} else {
		if set, err = b.lockedSet(lock); err != nil {
			return nil, Result{}, err
		}
		b.locked = set
		if sources, err = b.lockedSources(ctx, set); err != nil {
			return nil, Result{}, err
		}
	}
	b.epoch = set.Time
	base, err = b.do(ctx, b.lockedBase(sources, set))
	return sources, base, err
}

func newBuilder(o *Options) *builder {
	b := &builder{
		image: o.Image, definition: o.Definition, mirror: o.Mirror, formats: o.Formats, store: o.Store, withLock: o.Lock != nil, canaries: o.Canaries,
		run: withSystemPath(o.Run), cache: &Cache{Dir: o.Cache, About: o.Image.Profile + " on " + o.Definition.Name},
	}
	if b.definition.Kernel == noKernel {
		b.definition.Kernel = ""
	}
	b.packages = &packageCache{dir: packagesDir(o.Cache), cache: b.cache, run: b.run}
	steps := b.stepNames()
	b.cache.Events = func(e Event) {
		if o.Events != nil {
			e.Profile, e.Definition = o.Image.Profile, o.Definition.Name
			e.Number, e.Of = 1+slices.Index(steps, e.Step), len(steps)
			o.Events(e)
		}
	}
	return b
}

// stepNames are those of the whole build, in their order.
func (b *builder) stepNames() []string {
	names := []string{stepBase, stepLayer}
	if !b.withLock {
		names = []string{stepSources, stepResolve, stepBase, stepLayer}
	}
	if b.definition.Kernel != "" {
		names = append(names, stepBaseDisk, stepDisk)
		for _, f := range []images.Format{images.FormatQCOW2, images.FormatNetboot} {
			if slices.Contains(b.formats, f) {
				names = append(names, string(f))
			}
		}
	}
	if b.wantsTar() {
		names = append(names, stepTar)
	}
	if b.definition.Kernel != "" {
		names = append(names, stepCheck)
	}
	return append(names, stepStore)
}

// wantsTar tells whether the tree is packed: what doesn't boot is there as that
// alone.
func (b *builder) wantsTar() bool {
	return b.definition.Kernel == "" || slices.Contains(b.formats, images.FormatTar)
}

// noKernel is what a definition has as its kernel whose images don't boot by
// themselves: trees for containers.
const noKernel = "none"

// The names of steps; those of formats are the formats'.
const (
	stepSources  = "sources"
	stepResolve  = "resolve"
	stepBase     = "base"
	stepLayer    = "layer"
	stepBaseDisk = "basedisk"
	stepDisk     = "disk"
	stepTar      = string(images.FormatTar)
	stepCheck    = "check"
	stepStore    = "store"
)

// do runs a step, and notes how long it took.
func (b *builder) do(ctx context.Context, s Step) (Result, error) {
	r, err := b.cache.Do(ctx, s)
	b.took = append(b.took, images.Step{Name: s.Name, Key: r.Key, Cached: r.Cached, Seconds: r.Took.Seconds(), Inputs: shown(s.Inputs)})
	return r, err
}

// readSources looks what the sources have now, which no cache can know.
func (b *builder) readSources(ctx context.Context) ([]source, error) {
	start := time.Now()
	b.cache.tell(Event{Step: stepSources, State: StateStarted})
	list, err := b.sources(ctx)
	took := time.Since(start).Seconds()
	if err != nil {
		b.cache.tell(Event{Step: stepSources, State: StateFailed, Seconds: took, Message: err.Error()})
		return nil, err
	}
	b.took = append(b.took, images.Step{Name: stepSources, Seconds: took})
	b.cache.tell(Event{Step: stepSources, State: StateDone, Seconds: took})
	return list, nil
}

// epochOf is the time that an image's files get: when its sources were last
// changed. So it's the same for the same packages, and no file is from the future.
func epochOf(sources []source) int64 {
	var newest int64
	for i := range sources {
		for _, r := range sources[i].releases {
			if t, err := time.Parse(time.RFC1123, strings.Join(releaseField(r.text, "Date"), " ")); err == nil {
				newest = max(newest, t.Unix())
			}
		}
	}
	if newest == 0 {
		newest = 1700000000
	}
	return newest
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
