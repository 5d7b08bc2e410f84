package baking

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/state"
)

// heldByHosts tells which hosts are armed, or are being installed, with an image, in
// whichever state the store knows of: it can't be removed as long.
func heldByHosts(store *images.Store, id string) error {
	dirs, err := store.Holders()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		hosts, err := hostsWith(dir, id)
		if err != nil {
			return fmt.Errorf("%w, maybe: whether hosts are armed with it isn't known: %w: remove it as the owner of %s (sudo)", images.ErrInUse, err, dir)
		}
		if len(hosts) == 0 {
			continue
		}
		var said, names []string
		for _, r := range hosts {
			said, names = append(said, r.Host+" ("+r.State()+")"), append(names, r.Host)
		}
		if !isDefaultState(dir) {
			names = append(names, "--state "+dir)
		}
		return fmt.Errorf("%w, to install %s: kiln disarm %s takes that back", images.ErrInUse, strings.Join(said, ", "), strings.Join(names, " "))
	}
	return nil
}

// hostsWith are the hosts of a state that are armed, or being installed, with an image.
func hostsWith(dir, id string) ([]*state.Record, error) {
	s, err := state.Look(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // that server is no more
	}
	if err != nil {
		return nil, err
	}
	// A host whose record is damaged isn't installed.
	list, _, err := s.List()
	var hosts []*state.Record
	for _, r := range list {
		if r.Image == id && r.NeedsImage() {
			hosts = append(hosts, r)
		}
	}
	return hosts, err
}

// isDefaultState tells whether commands find that state without --state.
func isDefaultState(dir string) bool {
	own, err := StateDir()
	if err != nil {
		return false
	}
	own, err = filepath.Abs(own)
	return err == nil && own == dir
}
