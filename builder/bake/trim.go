package bake

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Trim removes what was used the longest time ago, results of steps and packages,
// until the cache has at most that many bytes. It tells how many it has removed.
// While a build goes on nothing is: it may go on with any of it.
func (c *Cache) Trim(most int64) (freed int64, err error) {
	release, err := c.holdAlone()
	if errors.Is(err, ErrBusy) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer release()
	kept, err := c.kept()
	if err != nil {
		return 0, err
	}
	var all int64
	for _, k := range kept {
		all += k.bytes
	}
	for _, k := range kept {
		if all <= most {
			break
		}
		for _, path := range k.paths {
			if err := os.RemoveAll(path); err != nil {
				return freed, fmt.Errorf("the cache: %w", err)
			}
		}
		all -= k.bytes
		freed += k.bytes
	}
	return freed, nil
}

// keptThing is a step's result, or a package.
type keptThing struct {
	paths []string
	used  time.Time
	bytes int64
}

// kept lists what is in the cache, what was used last at the end.
func (c *Cache) kept() ([]keptThing, error) {
	var list []keptThing
	steps, err := os.ReadDir(filepath.Join(c.Dir, "steps"))
	if err != nil {
		return nil, fmt.Errorf("the cache: %w", err)
	}
	for _, e := range steps {
		path := filepath.Join(c.Dir, "steps", e.Name())
		k := keptThing{paths: []string{path, filepath.Join(c.Dir, "locks", e.Name())}}
		if info, err := os.Stat(filepath.Join(path, stepFile)); err == nil {
			k.used = info.ModTime()
		}
		if m := readMade(path); m != nil {
			k.bytes = m.Bytes
		}
		if k.bytes == 0 {
			k.bytes = diskUsage(path)
		}
		list = append(list, k)
	}
	packages, _ := os.ReadDir(packagesDir(c.Dir))
	for _, e := range packages {
		name, ok := strings.CutSuffix(e.Name(), ".deb")
		info, err := e.Info()
		if !ok || err != nil {
			continue
		}
		path := filepath.Join(packagesDir(c.Dir), name)
		list = append(list, keptThing{[]string{path + ".control", path + ".deb"}, info.ModTime(), info.Size()})
	}
	slices.SortStableFunc(list, func(a, b keptThing) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.paths[0], b.paths[0])) })
	return list, nil
}

// use notes that a file of the cache was of use now. What can't be noted goes
// sooner.
func use(name string) {
	now := time.Now()
	_ = os.Chtimes(name, now, now)
}
