package driver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// mostModule is how large a module may be, unpacked, in bytes.
const mostModule = 256 << 20

// Loader loads modules of the running kernel.
type Loader struct {
	Index *Index
	Dir   string // the folder of modules: /lib/modules/VERSION
	Sys   string // where sysfs is; empty: /sys
	// Tell is told of each module that can't be loaded, and why; nil: nobody is.
	Tell func(string)

	loaded  map[string]bool // files
	aliases map[string]bool // that were seen
}

// Load loads a module, and what it needs.
func (l *Loader) Load(name string) error {
	files, err := l.Index.Order(name)
	if err != nil {
		return err
	}
	if l.loaded == nil {
		l.loaded = map[string]bool{}
	}
	for _, f := range files {
		if l.loaded[f] {
			continue
		}
		// One that can't be loaded now can't be later: it's tried once.
		l.loaded[f] = true
		if err := l.file(f); err != nil {
			return fmt.Errorf("the module %s: %w", f, err)
		}
	}
	return nil
}

// file loads a file of a module, compressed or not.
func (l *Loader) file(name string) error {
	name = filepath.Join(l.Dir, name)
	flags := 0
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(name, ".zst") {
		name += ".zst"
		f, err = os.Open(name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	switch {
	case strings.HasSuffix(name, ".zst"):
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(mostModule))
		if err != nil {
			return err
		}
		defer z.Close()
		var image bytes.Buffer
		if _, err := image.ReadFrom(z); err != nil {
			return fmt.Errorf("unpacking it: %w", err)
		}
		err = unix.InitModule(image.Bytes(), "")
		return ignoreLoaded(err)
	case strings.HasSuffix(name, ".xz"):
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return ignoreLoaded(unix.FinitModule(int(f.Fd()), "", flags))
}

func ignoreLoaded(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Devices loads what drives the devices that the kernel knows of and that weren't
// seen before, and gives how many these were. That one can't be driven is no
// error: it may be one that isn't needed.
func (l *Loader) Devices() int {
	if l.aliases == nil {
		l.aliases = map[string]bool{}
	}
	before := len(l.aliases)
	for _, alias := range l.modaliases() {
		if l.aliases[alias] {
			continue
		}
		l.aliases[alias] = true
		for _, name := range l.Index.Match(alias) {
			if err := l.Load(name); err != nil && l.Tell != nil {
				l.Tell(err.Error())
			}
		}
	}
	return len(l.aliases) - before
}

// modaliases lists what all devices are, sorted.
func (l *Loader) modaliases() []string {
	var list []string
	root := filepath.Join(cmp.Or(l.Sys, "/sys"), "devices")
	// Devices come and go while this walks: what can't be read isn't there any more.
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "modalias" {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil {
			if s := strings.TrimSpace(string(text)); s != "" {
				list = append(list, s)
			}
		}
		return nil
	})
	slices.Sort(list)
	return slices.Compact(list)
}

// Settle loads drivers until quiet has gone by without a new device, or ready, if
// set, says that all is there; at most for as long as ctx. Buses are searched in
// the background: a driver's devices come some time after it.
func (l *Loader) Settle(ctx context.Context, quiet time.Duration, ready func() bool) error {
	const pause = 100 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	last := time.Now()
	for {
		if l.Devices() > 0 {
			last = time.Now()
		}
		if time.Since(last) >= quiet && (ready == nil || ready()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
