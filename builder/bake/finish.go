package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alisw/kiln/images"
)

// finish makes what the image is delivered as, and puts it into the store. Where
// all of that was done before, the manifest that it gives is without the lists of
// files and blocks, which take longer to read than all else.
func (b *builder) finish(ctx context.Context, made *parts, sources []source) (*images.Manifest, error) {
	var delivered []artifact
	if b.definition.Kernel != "" {
		var err error
		if delivered, err = b.disk(ctx, made); err != nil {
			return nil, err
		}
	}
	if b.wantsTar() {
		r, err := b.do(ctx, b.tarStep(made))
		if err != nil {
			return nil, err
		}
		delivered = append(delivered, artifact{format: images.FormatTar, from: filepath.Join(r.Dir, tarName), name: tarName})
	}
	if m := b.delivered(); m != nil {
		b.cache.tell(Event{Step: stepStore, State: StateCached})
		return m, nil
	}
	key := b.deliveredName()
	m, err := b.manifest(made, sources)
	if err != nil {
		return nil, err
	}
	if m.Disk != nil {
		if err := b.check(ctx, m, made); err != nil {
			return nil, err
		}
	}
	if err := b.put(ctx, m, delivered); err != nil {
		return nil, err
	}
	noteDelivered(key, m)
	return m, nil
}

// manifest describes the image, but for its artifacts.
func (b *builder) manifest(made *parts, sources []source) (*images.Manifest, error) {
	c, err := made.contents()
	if err != nil {
		return nil, err
	}
	m := &images.Manifest{
		Profile: b.image.Profile, Definition: b.definition.Name, Release: b.definition.Release, Created: time.Now().UTC().Truncate(time.Second),
		Inputs: b.inputs(sources, made), Tools: b.tools, Packages: withLocked(c.Packages, b.locked), Files: c.Files,
		KernelArguments: strings.Join(b.kernelArguments(), " "),
	}
	if b.definition.Kernel != "" {
		if m.Kernel, m.Initrd, err = b.kernel(made); err != nil {
			return nil, err
		}
		if m.Disk, err = readBlocks(made.disk); err != nil {
			return nil, err
		}
	}
	m.ID = m.ContentID()
	return m, nil
}

// kernel gives the paths of the image's kernel and initramfs.
func (b *builder) kernel(made *parts) (kernel, initrd string, err error) {
	c, err := made.contents()
	if err != nil {
		return "", "", err
	}
	kernel, initrd = images.Newest(c.Files, "/boot/vmlinuz-"), images.Newest(c.Files, "/boot/initrd.img-")
	if kernel == "" || initrd == "" {
		return "", "", fmt.Errorf("the image %s has no kernel or no initramfs in /boot: does its package %s bring one?", b.definition.Name, b.definition.Kernel)
	}
	return kernel, initrd, nil
}

// deliveredName is the file that says which image the same steps have become.
func (b *builder) deliveredName() string {
	keys := []string{b.image.Profile, b.definition.Name, strings.Join(b.kernelArguments(), " ")}
	for _, s := range b.took {
		keys = append(keys, s.Name, s.Key)
	}
	return filepath.Join(b.cache.Dir, "delivered", hash([]byte(strings.Join(keys, "\n")))[:32]+".json")
}

// delivered is the image that the same steps have become before, where the store
// still has it; nil where it hasn't.
func (b *builder) delivered() *images.Manifest {
	data, err := os.ReadFile(b.deliveredName())
	if err != nil {
		return nil
	}
	var m images.Manifest
	if json.Unmarshal(data, &m) != nil || m.ID == "" {
		return nil
	}
	for _, name := range []string{images.ManifestName, images.SumsName} {
		if _, err := os.Stat(b.store.Path(m.ID, name)); err != nil {
			return nil
		}
	}
	for _, a := range m.Artifacts {
		if info, err := os.Stat(b.store.Path(m.ID, a.Name)); err != nil || info.Size() != a.Size {
			return nil
		}
	}
	return &m
}

// noteDelivered remembers what the steps have become.
func noteDelivered(name string, m *images.Manifest) {
	brief := *m
	brief.Files, brief.Steps = nil, nil
	if m.Disk != nil {
		brief.Disk = &images.Disk{Size: m.Disk.Size, BlockSize: m.Disk.BlockSize}
	}
	keepJSON(name, brief)
}

// withLocked adds to the packages of a tree what the lock knows of their files, and
// dpkg doesn't.
func withLocked(packages []images.Package, set *images.PackageSet) []images.Package {
	if set == nil {
		return packages
	}
	for i := range packages {
		p := &packages[i]
		if l := set.Package(p.Name); l != nil && l.Version == p.Version && l.Architecture == p.Architecture {
			p.SHA256, p.Source = l.SHA256, l.Source
		}
	}
	return packages
}

// artifact is a finished file in the cache, and its name in the store.
type artifact struct {
	format images.Format
	from   string
	name   string
	sum    string // SHA-256; empty is that the step left it beside the file
}

// put gives the artifacts, and m with them, to the store. Files aren't copied
// where cache and store are on one file system.
func (b *builder) put(ctx context.Context, m *images.Manifest, made []artifact) error {
	start := time.Now()
	b.cache.tell(Event{Step: stepStore, State: StateStarted})
	if err := b.fill(ctx, m, made, start); err != nil {
		err = noSpace(b.store.Dir, err)
		b.cache.tell(Event{Step: stepStore, State: StateFailed, Seconds: time.Since(start).Seconds(), Message: err.Error()})
		return err
	}
	b.cache.tell(Event{Step: stepStore, State: StateDone, Seconds: time.Since(start).Seconds()})
	return nil
}

func (b *builder) fill(ctx context.Context, m *images.Manifest, made []artifact, start time.Time) error {
	dir, err := b.store.NewDir()
	if err != nil {
		return err
	}
	defer func() { _ = dir.Remove() }() // what is left is the next build's to remove
	for _, a := range made {
		to := filepath.Join(dir.Path, a.name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := linkOrCopy(ctx, b.run, a.from, to); err != nil {
			return err
		}
		described, err := b.describe(ctx, a)
		if err != nil {
			return err
		}
		m.Artifacts = append(m.Artifacts, described)
	}
	m.Steps = append(b.took, images.Step{Name: stepStore, Seconds: time.Since(start).Seconds()})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return b.store.Put(m, dir.Path)
}

// describe hashes an artifact, or takes the hash that its step has left beside
// it. The raw disk has no hash but those of its blocks: reading all of it would take
// longer than making it.
func (b *builder) describe(ctx context.Context, a artifact) (images.Artifact, error) {
	d := images.Artifact{Name: a.name, Format: a.format}
	info, err := os.Stat(a.from)
	if err != nil {
		return d, err
	}
	d.Size, d.SHA256 = info.Size(), a.sum
	if d.SHA256 != "" || a.format == images.FormatRaw {
		return d, nil
	}
	if sum, err := os.ReadFile(a.from + ".sha256"); err == nil {
		d.SHA256 = strings.TrimSpace(string(sum))
		return d, nil
	}
	d.SHA256, err = hashFile(ctx, a.from)
	return d, err
}

// withSum leaves the hash of a file beside it, for describe.
func withSum(ctx context.Context, name string) error {
	sum, err := hashFile(ctx, name)
	if err != nil {
		return err
	}
	return errors.Join(os.Chmod(name, 0o444), os.WriteFile(name+".sha256", []byte(sum+"\n"), 0o644))
}

func hashFile(ctx context.Context, name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum, err := images.Hash(ctx, f, nil)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("reading %s: %w", name, err)
	}
	return sum, err
}

// inputs are what the manifest says of what went into the image.
func (b *builder) inputs(sources []source, made *parts) []images.Input {
	var list []images.Input
	for i := range sources {
		for _, r := range sources[i].releases {
			list = append(list, images.Input{Name: "release " + r.suite + " of " + sources[i].uri, Value: r.sha256})
		}
	}
	packages, firmware := packagesOf(&b.definition, &b.image)
	return append(list,
		images.Input{Name: "packages", Value: strings.Join(packages, " ")}, images.Input{Name: "firmware", Value: strings.Join(firmware, " ")},
		images.Input{Name: "base", Value: made.base.Key}, images.Input{Name: "layer", Value: made.hash})
}
