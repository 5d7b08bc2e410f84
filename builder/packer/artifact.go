package packer

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/alisw/kiln/images"
)

// BuilderID tells artifacts of the builder kiln from others.
const BuilderID = "alisw.kiln"

// What an Artifact has to say of itself, besides its files.
const (
	StateImageID    = "image_id"
	StateManifest   = "manifest"   // path of the image's manifest
	StateProfile    = "profile"    // the profile's name
	StateDefinition = "definition" // the image definition's name
	StateSite       = "site"       // the site's folder, as the template says it
	StateStore      = "store"      // the image's folder in the user's store
)

// Artifact is a natively baked image, exported to a folder.
type Artifact struct {
	baked    *Baked
	dir      string
	files    []string
	manifest string
	site     string
}

// BuilderId is the builder's.
func (a *Artifact) BuilderId() string { return BuilderID }

// Files are those of all formats, and the manifest.
func (a *Artifact) Files() []string { return slices.Clone(a.files) }

// Id is the image's: the hash of what is in it.
func (a *Artifact) Id() string { return a.baked.Manifest.ID }

// String says what it is, for people.
func (a *Artifact) String() string {
	m := a.baked.Manifest
	return fmt.Sprintf("the golden image %s (%s on %s) in %s", m.Short(), m.Profile, m.Definition, a.dir)
}

// State is what post-processors may ask for; each is a string.
func (a *Artifact) State(name string) any {
	m := a.baked.Manifest
	switch name {
	case StateImageID:
		return m.ID
	case StateManifest:
		return a.manifest
	case StateProfile:
		return m.Profile
	case StateDefinition:
		return m.Definition
	case StateSite:
		return a.site
	case StateStore:
		return a.baked.Store.Path(m.ID, "")
	}
	return nil
}

// Destroy removes what the build has made: the folder, and the image of the store
// unless that had it before or somebody uses it.
func (a *Artifact) Destroy() error {
	err := os.RemoveAll(a.dir)
	if !a.baked.New {
		return err
	}
	if gone := a.baked.Store.Remove(a.baked.Manifest.ID); gone != nil && !errors.Is(gone, images.ErrInUse) {
		err = errors.Join(err, gone)
	}
	return err
}
