package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/alisw/kiln/netboot/state"
)

// lookEvery is how often hosts that are armed are looked at, at least: their images and
// their entries in the inventory can go without a change of the state.
const lookEvery = 5 * time.Second

// watchArmed prepares what hosts are armed with, and has the state say which of them
// couldn't be installed if they booted now, until ctx ends.
func (s *serving) watchArmed(ctx context.Context) {
	if err := s.images.tidy(); err != nil {
		s.log.Warn("what is left of old images can't be removed", "error", err)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	changed := s.store.Watch(ctx)
	for {
		s.lookAtArmed(ctx)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// lookAtArmed looks at each once, and lets go of images that no host needs.
func (s *serving) lookAtArmed(ctx context.Context) {
	list, _, err := s.store.List()
	if err != nil {
		return // whoever serves says so
	}
	needed := map[string]bool{}
	for _, r := range list {
		if r.NeedsImage() {
			needed[r.Image] = true
		}
		if r.Stage != state.Armed || ctx.Err() != nil {
			continue
		}
		problem := s.problemOf(r)
		if problem == r.Problem {
			continue
		}
		switch changed, err := s.store.Problem(r.Host, r.Install, problem); {
		case err != nil:
			s.log.Debug("what was found isn't stored", "host", r.Host, "error", err) // mostly it was disarmed meanwhile
		case !changed:
		case problem == "":
			s.log.Info("a host that is armed can be installed again", "host", r.Host)
		default:
			s.log.Warn("a host is armed, and can't be installed", "host", r.Host, "image", r.Image, "problem", problem)
		}
	}
	s.images.leave(func(id string) bool { return !needed[id] })
}

// problemOf is why a host that is armed wouldn't be installed, if it booted now.
func (s *serving) problemOf(r *state.Record) string {
	// By its short name, another one may be meant.
	if h, ok := s.site.registered().ByName(r.Host); !ok || h.Name != r.Host {
		return fmt.Sprintf("the server's inventory has no sound entry of it with a MAC any more: mend that (kiln check), or kiln disarm %s", r.Host)
	}
	err := s.images.ready(r.Image)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("its image %.12s, or a part of it, is gone from %s: build it again (kiln build %s --format netboot) and arm the host with that, or kiln disarm %s", r.Image, s.images.store.Dir, r.Profile, r.Host)
	}
	// The way out has to have its place in what a record keeps.
	return fmt.Sprintf("its image %.12s can't be booted: %.250s: arm the host with another one, or kiln disarm %s", r.Image, err.Error(), r.Host)
}
