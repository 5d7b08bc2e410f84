package bake

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
)

// check looks for what no golden image may have, in the finished disk, before the
// image gets its name.
func (b *builder) check(ctx context.Context, m *images.Manifest, made *parts) error {
	start := time.Now()
	b.cache.tell(Event{Step: stepCheck, State: StateStarted})
	err := b.checkDisk(ctx, m, filepath.Join(made.disk.Dir, rawName))
	took := time.Since(start).Seconds()
	if err != nil {
		b.cache.tell(Event{Step: stepCheck, State: StateFailed, Seconds: took, Message: err.Error()})
		return err
	}
	b.took = append(b.took, images.Step{Name: stepCheck, Seconds: took})
	b.cache.tell(Event{Step: stepCheck, State: StateDone, Seconds: took})
	return nil
}

func (b *builder) checkDisk(ctx context.Context, m *images.Manifest, file string) error {
	planned, err := render.ImagePaths(&b.image)
	if err != nil {
		return err
	}
	var canaries []check.Canary
	if b.canaries != nil {
		if canaries, err = b.canaries(ctx); err != nil {
			return err
		}
	}
	seen := readVerdicts(filepath.Join(b.cache.Dir, "verdicts"))
	findings, err := check.Disk(ctx, file, check.Options{
		Manifest: m, Canaries: canaries, Allowed: check.Planned(planned), Verdicts: seen,
		Progress: func(done, total int64) {
			b.cache.tell(Event{Step: stepCheck, State: StateProgress, Done: done, Total: total, Unit: unitBytes})
		},
	})
	if err != nil {
		return err
	}
	seen.write()
	if len(findings) == 0 {
		return nil
	}
	lines := make([]string, len(findings))
	for i := range findings {
		lines[i] = "    " + findings[i].String()
	}
	return fmt.Errorf("the image has what no golden image may have, so it gets no name:\n%s", strings.Join(lines, "\n"))
}

// verdicts are the keys of content in which a check has found nothing, each as the
// beginning of its hash: images of one base have most of theirs in common.
type verdicts struct {
	name string
	mu   sync.Mutex
	seen map[verdict]bool
	more []verdict
}

type verdict [16]byte

// mostVerdicts is how many are kept: those of a few hundred images.
const mostVerdicts = 400_000

func readVerdicts(name string) *verdicts {
	v := &verdicts{name: name, seen: map[verdict]bool{}}
	data, err := os.ReadFile(name)
	if err != nil || len(data) > mostVerdicts*len(verdict{}) {
		return v // what isn't known is looked at again
	}
	for ; len(data) >= len(verdict{}); data = data[len(verdict{}):] {
		v.seen[verdict(data)] = true
	}
	return v
}

func verdictOf(key string) verdict {
	sum := sha256.Sum256([]byte(key))
	return verdict(sum[:16])
}

// Known tells whether the key was stored.
func (v *verdicts) Known(key string) bool {
	k := verdictOf(key)
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen[k]
}

// Store remembers a key.
func (v *verdicts) Store(key string) {
	k := verdictOf(key)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.seen[k] {
		v.seen[k] = true
		v.more = append(v.more, k)
	}
}

// write keeps what is new for the next check.
func (v *verdicts) write() {
	if len(v.more) == 0 {
		return
	}
	all := make([]byte, 0, len(v.seen)*len(verdict{}))
	for k := range v.seen {
		all = append(all, k[:]...)
	}
	keep(v.name, all)
}
