package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/ramdisk"
)

// servedImages are the images of the store, as hosts are installed with them.
type servedImages struct {
	store     *images.Store
	dir       string // for the installers' initramfs
	installer []byte // the program
	log       *slog.Logger

	making sync.Mutex // of one initramfs at a time: others' files are sent meanwhile

	once sync.Once
	sum  string // the program's hash: hundreds of hosts at once can't wait for it each

	mu     sync.Mutex
	used   map[string]func() // that keep images from being removed, by ID
	broken map[string]broken // images whose initramfs couldn't be made, by ID
}

// broken is a failure, and until when it is taken for granted.
type broken struct {
	err   error
	until time.Time
}

// againAfter is when what has failed, and may take many seconds, is tried again.
const againAfter = time.Minute

// installerProgram finds the installer beside kiln itself, or where it is named.
func installerProgram(named string) ([]byte, error) {
	name := named
	if name == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("looking for kiln-installer: %w", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return nil, fmt.Errorf("looking for kiln-installer: %w", err)
		}
		name = filepath.Join(filepath.Dir(self), "kiln-installer")
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: make build builds it beside kiln; --installer FILE names another place", err)
	}
	return data, err
}

// Open implements web.Images.
func (s *servedImages) Open(id, name string) (*os.File, error) {
	if err := s.use(id); err != nil {
		return nil, err
	}
	return os.Open(s.store.Path(id, name))
}

// Kernel implements web.Images.
func (s *servedImages) Kernel(id string) (*os.File, error) {
	return s.Open(id, images.NetbootDir+"/vmlinuz")
}

// use keeps an image from being removed, until leave.
func (s *servedImages) use(id string) error {
	if !images.IsHash(id) {
		return fs.ErrNotExist
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[id] != nil {
		return nil
	}
	release, err := s.store.Use(id)
	if err != nil {
		return err
	}
	if s.used == nil {
		s.used = map[string]func(){}
	}
	s.used[id] = release
	return nil
}

// Installer implements web.Images: the initramfs is made at the first call, which
// takes seconds.
func (s *servedImages) Installer(id string) (*os.File, error) {
	initrd, err := s.Open(id, images.NetbootDir+"/initrd.img")
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	name := filepath.Join(s.dir, s.nameOf(id))
	if f, err := os.Open(name); !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	s.making.Lock()
	defer s.making.Unlock()
	f, err := os.Open(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := s.make(name, initrd); err != nil {
		return nil, fmt.Errorf("making the installer's initramfs of the image %.12s: %w", id, err)
	}
	return os.Open(name)
}

// nameOf is the file of an image's initramfs, with this installer.
func (s *servedImages) nameOf(id string) string {
	s.once.Do(func() {
		sum := sha256.Sum256(s.installer)
		s.sum = hex.EncodeToString(sum[:])
	})
	return fmt.Sprintf("%.16s-%s-%.16s.img", id, ramdisk.Recipe, s.sum)
}

// unfinished is how old a file has to be that nobody makes any more.
const unfinished = time.Hour

// tidy removes what no host is installed with any more: the initramfs of images that
// are gone, or with another installer, and what was cut off in the making.
func (s *servedImages) tidy() error {
	list, err := s.store.List()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, m := range list {
		keep[s.nameOf(m.ID)] = true
	}
	s.making.Lock()
	defer s.making.Unlock()
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || keep[e.Name()] || !info.Mode().IsRegular() || time.Since(info.ModTime()) < unfinished {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(s.dir, e.Name())))
	}
	return errors.Join(errs...)
}

// make makes an installer's initramfs: all of it, or nothing.
func (s *servedImages) make(name string, initrd *os.File) error {
	return writeFileBy(name, false, func(w io.Writer) error {
		// All of an initramfs is in memory meanwhile: not twice, and not any longer.
		percent := debug.SetGCPercent(20)
		made, err := ramdisk.Make(context.Background(), w, initrd, s.installer)
		debug.SetGCPercent(percent)
		debug.FreeOSMemory()
		if err != nil {
			return err
		}
		s.log.Info("the installer's initramfs is made", "kernel", made.Kernel, "modules", len(made.Modules), "unpacked", made.Unpacked)
		return nil
	})
}

// ready tells whether a host can be installed with an image, and makes what is missing
// for that, so that no host has to wait for it.
func (s *servedImages) ready(id string) error {
	for _, name := range []string{images.ManifestName, images.NetbootDir + "/chunks.json", images.NetbootDir + "/vmlinuz", images.NetbootDir + "/initrd.img"} {
		if _, err := os.Stat(s.store.Path(id, name)); err != nil {
			// What is kept is of a folder that is gone: the image may come back.
			s.leave(func(other string) bool { return other == id })
			return err
		}
	}
	s.mu.Lock()
	was := s.broken[id]
	s.mu.Unlock()
	if time.Now().Before(was.until) {
		return was.err
	}
	f, err := s.Installer(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if s.broken == nil {
			s.broken = map[string]broken{}
		}
		s.broken[id] = broken{err, time.Now().Add(againAfter)}
		return err
	}
	delete(s.broken, id)
	return f.Close()
}

// leave forgets images, which can be removed again.
func (s *servedImages) leave(which func(id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, release := range s.used {
		if which(id) {
			release()
			delete(s.used, id)
		}
	}
	maps.DeleteFunc(s.broken, func(id string, _ broken) bool { return which(id) })
}
