package bake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
)

// packageCache keeps packages, each under its hash, with its control file beside
// it:
//
//	debs/SHA256.deb
//	debs/SHA256.control
type packageCache struct {
	dir   string
	cache *Cache
	run   run.Runner
}

// packagesDir is where the cache has packages.
func packagesDir(cache string) string { return filepath.Join(cache, "debs") }

func (c *packageCache) path(p images.LockedPackage, ext string) string {
	return filepath.Join(c.dir, p.SHA256+ext)
}

// has tells whether the package is in the cache.
func (c *packageCache) has(p images.LockedPackage) bool {
	for _, ext := range []string{".deb", ".control"} {
		if _, err := os.Stat(c.path(p, ext)); err != nil {
			return false
		}
	}
	return true
}

// describes tells whether the package's control file in the cache is one, and whole:
// a full disk or a power cut may have left a part of one.
func (c *packageCache) describes(p images.LockedPackage) bool {
	control, err := os.ReadFile(c.path(p, ".control"))
	if err != nil || !bytes.HasSuffix(control, []byte("\n")) {
		return false
	}
	for field, value := range map[string]string{"Package": p.Name, "Version": p.Version, "Architecture": p.Architecture} {
		if !bytes.Contains(append([]byte("\n"), control...), []byte("\n"+field+": "+value+"\n")) {
			return false
		}
	}
	return true
}

// missing are those packages that the cache doesn't have as they are in the lock.
// What was altered there is taken out.
func (c *packageCache) missing(ctx context.Context, list []images.LockedPackage) ([]images.LockedPackage, error) {
	sound := make([]bool, len(list))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range list {
		group.Go(func() error {
			if sound[i] = c.describes(p) && verify(ctx, c.path(p, ".deb"), p) == nil; sound[i] {
				return nil
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return errors.Join(os.RemoveAll(c.path(p, ".deb")), os.RemoveAll(c.path(p, ".control")))
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("the cache of packages: %w", err)
	}
	var missing []images.LockedPackage
	for i, p := range list {
		if !sound[i] {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// fetch gets those packages that the cache doesn't have. uris are the addresses
// of a source, by its name in the lock.
func (c *packageCache) fetch(ctx context.Context, list []images.LockedPackage, uris map[string][]string, tell func(done, total int64)) error {
	missing, err := c.missing(ctx, list)
	if err != nil || len(missing) == 0 {
		return err
	}
	for i := range missing {
		if p := &missing[i]; len(uris[p.Source]) == 0 {
			return fmt.Errorf("the package %s was locked from the apt source %s, which the image doesn't have: run kiln lock", p, p.Source)
		}
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	dir, err := c.cache.Scratch("packages")
	if err != nil {
		return err
	}
	defer func() { _ = dir.Remove() }() // what is left is the next build's to remove
	stop := watchSize(dir.Path, missing, tell)
	defer stop()
	for try := 0; len(missing) > 0; try++ {
		var urls []string
		for _, p := range missing {
			if all := uris[p.Source]; try < len(all) {
				urls = append(urls, packageURI(all[try], p.Path), filepath.Join(dir.Path, p.SHA256+".deb"), "SHA256:"+p.SHA256)
			}
		}
		said := &aptProgress{tell: func(Event) {}}
		fetchErr := c.run.Run(ctx, run.Command{
			Name: aptHelper, Install: "the Debian package apt has it", Stderr: said.line, Stdout: said.line,
			Args: append([]string{"-oAPT::Sandbox::User=root", "-oAcquire::Retries=2", "-oAcquire::http::Timeout=30", "-oAcquire::https::Timeout=30", "download-file"}, urls...),
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		left, err := c.take(ctx, dir.Path, missing)
		if err != nil {
			return err
		}
		if len(left) > 0 && (fetchErr == nil || !more(left, uris, try+1)) {
			return explainFetch(left, uris, said.complaints, fetchErr)
		}
		missing = left
	}
	return nil
}

// more tells whether any of the packages' sources has another address to try.
func more(list []images.LockedPackage, uris map[string][]string, try int) bool {
	for _, p := range list {
		if try < len(uris[p.Source]) {
			return true
		}
	}
	return false
}

// packageURI is where a package is. apt's helper takes local files by copying them.
func packageURI(base, path string) string {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	base = plainURI(base)
	if rest, ok := strings.CutPrefix(base, "file:"); ok {
		base = "copy:" + rest
	}
	return strings.TrimSuffix(base, "/") + "/" + strings.Join(segments, "/")
}

// take moves what was fetched into the cache, and gives what wasn't.
func (c *packageCache) take(ctx context.Context, dir string, list []images.LockedPackage) (left []images.LockedPackage, err error) {
	var group errgroup.Group
	group.SetLimit(4)
	for _, p := range list {
		file := filepath.Join(dir, p.SHA256+".deb")
		if err := verify(ctx, file, p); errors.Is(err, os.ErrNotExist) {
			left = append(left, p)
			continue
		} else if err != nil {
			// Apt says nothing of a file that it could only write in part.
			if roomBelow(dir) < p.Size {
				err = noSpace(c.dir, fmt.Errorf("fetching the package %s: %w", &p, syscall.ENOSPC))
			}
			return nil, err
		}
		group.Go(func() error { return c.put(ctx, file, p) })
	}
	return left, group.Wait()
}

// roomBelow is how many bytes are left for files below a folder.
func roomBelow(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return math.MaxInt64
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

// put moves a verified package into the cache.
func (c *packageCache) put(ctx context.Context, file string, p images.LockedPackage) error {
	control, err := c.run.Output(ctx, run.Command{Name: "dpkg-deb", Args: []string{"--field", file}, Install: "the Debian package dpkg has it"})
	if err != nil {
		return fmt.Errorf("the package %s: %w", &p, err)
	}
	text := strings.TrimSuffix(file, ".deb") + ".control"
	// One after the other: what could be written only in part isn't to get its name.
	for _, step := range []func() error{
		func() error { return noSpace(c.dir, os.WriteFile(text, control, 0o644)) },
		func() error { return os.Chmod(file, 0o644) },
		func() error { return os.Rename(text, c.path(p, ".control")) },
		func() error { return os.Rename(file, c.path(p, ".deb")) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// verify compares a file with the hash of the package that it should be.
func verify(ctx context.Context, file string, p images.LockedPackage) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	sum, err := hashFile(ctx, file)
	if err != nil {
		return err
	}
	if n := info.Size(); sum != p.SHA256 || n != p.Size {
		return fmt.Errorf("the package %s isn't what was locked: it has the SHA-256 %s and %d bytes, and kiln.lock says %s and %d: it was altered on its way or at its source; if its maker made it anew, kiln lock --update %s takes the new one",
			&p, sum, n, p.SHA256, p.Size, p.Name)
	}
	return nil
}

// explainFetch says what to do about packages that can't be had.
func explainFetch(left []images.LockedPackage, uris map[string][]string, complaints []string, err error) error {
	p := left[0]
	others := ""
	if len(left) > 1 {
		others = fmt.Sprintf(" (and %d others)", len(left)-1)
	}
	said := strings.Join(complaints, "; ")
	at := strings.Join(uris[p.Source], ", ")
	switch {
	case saysFull(said):
		return fmt.Errorf("fetching packages: %s", said) // noSpace knows these words
	case strings.Contains(said, "Hash Sum mismatch") || strings.Contains(said, "unexpected size"):
		return fmt.Errorf("the package %s%s that %s has isn't what was locked (SHA-256 %s): it was altered on its way or at its source; if its maker made it anew, kiln lock --update %s takes the new one: %s",
			&p, others, at, p.SHA256, p.Name, said)
	case strings.Contains(said, "404") || strings.Contains(said, "File not found") || strings.Contains(said, "No such file"):
		return fmt.Errorf("%s no longer has the package %s%s: kiln lock --update %s takes what it has now; a cache that still has it serves, too (kiln cache import)", at, &p, others, p.Name)
	}
	return &machineError{fmt.Errorf("the package %s%s can't be fetched from %s: is its address right, and can this machine reach it? %s: %w", &p, others, at, said, err)}
}

// watchSize tells how much of the packages has come.
func watchSize(dir string, list []images.LockedPackage, tell func(done, total int64)) (stop func()) {
	var total int64
	for _, p := range list {
		total += p.Size
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			var got int64
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if info, err := e.Info(); err == nil {
					got += info.Size()
				}
			}
			tell(min(got, total), total)
		}
	}()
	return func() { close(done); <-ended }
}

// repository makes dir an apt repository of exactly these packages of the cache.
// Nothing signs it: nobody else writes to it.
func (c *packageCache) repository(ctx context.Context, dir, codename string, list []images.LockedPackage) error {
	var index bytes.Buffer
	for _, p := range list {
		name := strings.ReplaceAll(p.Name+"_"+p.Version+"_"+p.Architecture, ":", "%3a") + ".deb"
		control, err := os.ReadFile(c.path(p, ".control"))
		if err != nil {
			return fmt.Errorf("the cache of packages: %w", err)
		}
		index.Write(bytes.TrimSpace(control))
		fmt.Fprintf(&index, "\nFilename: ./%s\nSize: %d\nSHA256: %s\n\n", name, p.Size, p.SHA256)
		if err := linkOrCopy(ctx, c.run, c.path(p, ".deb"), filepath.Join(dir, name)); err != nil {
			return noSpace(dir, fmt.Errorf("the cache of packages: %w", err))
		}
		use(c.path(p, ".deb"))
	}
	release := fmt.Sprintf("Origin: Kiln\nSuite: %s\nCodename: %s\nSHA256:\n %s %d Packages\n", codename, codename, hash(index.Bytes()), index.Len())
	return errors.Join(os.WriteFile(filepath.Join(dir, "Packages"), index.Bytes(), 0o644), os.WriteFile(filepath.Join(dir, "Release"), []byte(release), 0o644))
}

// localSource is the source of such a repository.
func localSource(dir string) string {
	return "Types: deb\nURIs: file:" + dir + "\nSuites: ./\nTrusted: yes\n"
}
