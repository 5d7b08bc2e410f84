// Package apply brings a running host to its plan: what the Host half says, and
// what of the Image half can be changed in place.
//
// A run has two parts. Gather reads what a host is, and changes nothing. Plan
// compares that with what it is to be: a list of changes, which people are
// shown. Changes.Run makes them, in steps.
//
// Each part is one call over ssh: an archive goes in over standard input, with a
// shell script and all that it needs, into a folder of root's own in /run; the
// script runs once all of it is there. A host needs a POSIX shell, GNU tar and
// systemd, which every Debian has.
//
// What is to be restarted in the end is written to PendingPath before the first
// change, and taken out of it as it is done: whatever interrupts a run, the next
// one finishes it.
package apply

import (
	"slices"

	"github.com/alisw/kiln/plan"
)

// Paths on a host. The profile base and package render know the same ones.
const (
	// PendingPath is what an apply has still to do, for root alone.
	PendingPath  = "/var/lib/kiln/apply.pending"
	manifestPath = "/etc/kiln/host.manifest"
	acceptedPath = "/etc/kiln/host-ready.manifest" // the manifest that the mark was last set for
	imageList    = "/etc/kiln/image.list"
	markPath     = "/etc/kiln/host-ready"
	netplanPath  = "/etc/netplan/50-cloud-init.yaml" // where cloud-init puts a seed's network
	hostUnit     = "kiln-host.service"
	nomadUnit    = "nomad.service"
)

// Want is what a host is to be.
type Want struct {
	// Plan is the host's, with its secrets resolved.
	Plan *plan.Plan
	// Layer is both halves as one, with all files that Kiln makes itself, as
	// render.OnHost gives it.
	Layer *plan.Layer
	// Network is the host's network as network-config version 2; nil leaves it
	// alone.
	Network []byte
	// Leave are files of the layer's that stay as they are on the host.
	Leave map[string]bool
}

// hasUnit tells whether an enabled unit of that name is wanted.
func (w *Want) hasUnit(name string) bool {
	for i := range w.Layer.Units {
		if w.Layer.Units[i].Name == name {
			return w.Layer.Units[i].State == plan.UnitEnabled
		}
	}
	return false
}

// knows tells whether a unit is the plan's: wanted, or among its files.
func (w *Want) knows(name string) bool { return w.hasUnit(name) || w.knowsFile(name) }

// knowsFile tells whether a unit's file is among the plan's.
func (w *Want) knowsFile(name string) bool {
	return slices.ContainsFunc(w.Layer.Files, func(f plan.File) bool {
		unit, whole := unitOf(f.Path)
		return whole && unit == name
	})
}
