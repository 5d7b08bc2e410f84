package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// shownProblems is how many problems of --all are shown: a broken profile is
// broken for each of its hosts.
const shownProblems = 1000

// all renders every host, several at a time. Hosts stream through: no more of
// them are in memory than there are workers and places in the queue.
//
// Documents are first written beside each other into a directory of their own,
// and get their names when all are on the disk: one wait for the disk instead
// of one a host.
func (r *renderer) all(ctx context.Context, site *profiles.Site, u *ui.UI) (err error) {
	if err := os.MkdirAll(r.output, 0o777); err != nil {
		return fmt.Errorf("making the directory %s: %w", r.output, err)
	}
	b := &batch{renderer: r, progress: u.Progress("rendered %d hosts"), seen: map[string]bool{}, known: map[problem.Problem]bool{}}
	if r.format.extension != "" {
		if b.stage, err = os.MkdirTemp(r.output, ".kiln-render-"); err != nil {
			return fmt.Errorf("making a directory in %s: %w", r.output, err)
		}
		defer os.RemoveAll(b.stage)
	}
	umask() // before there is more than one goroutine
	queue := make(chan *plan.Plan, 2*runtime.GOMAXPROCS(0))
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for p := range queue {
				b.render(ctx, p)
			}
		})
	}
	found, err := site.Plans(ctx, func(name string, p *plan.Plan, problems problem.List) bool {
		if b.accept(name, p, problems) {
			select {
			case queue <- p:
			case <-ctx.Done():
			}
		}
		return ctx.Err() == nil
	})
	close(queue)
	workers.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = b.publish()
	}
	done := b.progress.End()
	if err != nil {
		return err
	}
	b.add(found)
	u.Notef("rendered %s to %s", count(done, "host"), r.output)
	return b.report(u)
}

// batch is one run over all hosts.
type batch struct {
	*renderer
	stage    string // the directory of what hasn't got its name yet; empty where there is none
	progress *ui.Progress
	seen     map[string]bool // hosts, by name

	mu       sync.Mutex
	staged   []string // names of files in stage
	problems problem.List
	known    map[problem.Problem]bool
	failed   int // hosts
}

// accept tells whether a host has a plan to render.
func (b *batch) accept(name string, p *plan.Plan, problems problem.List) bool {
	switch {
	case p == nil:
		b.fail(problems)
		return false
	case b.seen[name]:
		var twice problem.List
		twice.Addf(p.Host.Origin.Position, "remove one of the two, or rename it", "the host %s stands here a second time", name)
		b.fail(twice)
		return false
	}
	b.seen[name] = true
	return true
}

// fail counts a host that isn't written, and adds why.
func (b *batch) fail(problems problem.List) {
	b.add(problems)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed++
}

// add adds problems that aren't there yet. Warnings are for kiln check.
func (b *batch) add(problems problem.List) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range problems {
		if !p.Warning && !b.known[p] && len(b.known) < shownProblems {
			b.known[p] = true
			b.problems = append(b.problems, p)
		}
	}
}

// render renders one host.
func (b *batch) render(ctx context.Context, p *plan.Plan) {
	if ctx.Err() != nil {
		return
	}
	err := b.host(ctx, p)
	switch {
	case err == nil:
		b.progress.Add(1)
	case ctx.Err() == nil:
		b.fail(problem.List{{What: err.Error()}})
	}
}

func (b *batch) host(ctx context.Context, p *plan.Plan) error {
	p, err := b.prepare(ctx, p)
	if err != nil {
		return err
	}
	to := filepath.Join(b.output, p.Host.Name)
	switch b.format.name {
	case "seed":
		files, err := render.Seed(p, b.options)
		if err != nil {
			return err
		}
		return render.WriteSeed(to, files)
	case "files":
		tree, err := render.Files(p, b.options)
		if err != nil {
			return err
		}
		return tree.WriteDir(to)
	}
	text, err := b.format.document(p, b.options)
	if err != nil {
		return err
	}
	name := p.Host.Name + b.format.extension
	if b.options.Gzip {
		name += ".gz"
	}
	mode := secretMode
	if b.secrets == nil {
		mode = 0o666 // less the umask
	}
	if err := os.WriteFile(filepath.Join(b.stage, name), text, mode); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.staged = append(b.staged, name)
	return nil
}

// publish gives what was staged its names.
func (b *batch) publish() error {
	if b.stage == "" || len(b.staged) == 0 {
		return nil
	}
	if err := syncAll(b.stage); err != nil {
		return fmt.Errorf("writing to %s: %w", b.output, err)
	}
	for _, name := range b.staged {
		if err := b.name(filepath.Join(b.stage, name), filepath.Join(b.output, name)); err != nil {
			return fmt.Errorf("writing %s: %w", filepath.Join(b.output, name), err)
		}
	}
	return nil
}

// name moves a staged file to its place. As with writeFile, an existing file's
// mode stays, but for secrets.
func (b *batch) name(staged, to string) error {
	if info, err := os.Lstat(to); err == nil && info.Mode().IsRegular() && b.secrets == nil {
		if err := os.Chmod(staged, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return os.Rename(staged, to)
}

// report shows what was wrong.
func (b *batch) report(u *ui.UI) error {
	if len(b.problems) == 0 {
		return nil
	}
	b.problems.Sort()
	for _, p := range b.problems {
		u.Notef("%s", p.Error())
	}
	if len(b.known) >= shownProblems {
		u.Notef("… and maybe more: mend these first")
	}
	if b.failed > 0 {
		u.Notef("%s not rendered", count(b.failed, "host"))
	}
	return errShown
}

// closeAfter calls f with an open directory.
func closeAfter(dir string, f func(*os.File) error) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return f(d)
}
