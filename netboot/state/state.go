// Package state keeps where the installation of each host is. It is the one place
// that decides whether a host gets the installer; what it has said yes to is on
// the disk before anybody hears of it.
//
//	armed ▶ booted ▶ writing n% ▶ written ▶ first boot ▶ ready
//
// From each a host can fail; only arming leads out of that.
package state

import (
	"time"

	"github.com/alisw/kiln/plan"
)

// Stage is how far an installation is.
type Stage string

// The stages.
const (
	Armed     Stage = "armed"      // the next boot from the network installs
	Booted    Stage = "booted"     // it was given the installer
	Writing   Stage = "writing"    // the disk is being written
	Written   Stage = "written"    // all is on the disk: disarmed
	FirstBoot Stage = "first boot" // it has booted from its disk
	Ready     Stage = "ready"      // the cluster has it
	Failed    Stage = "failed"     // see Record.FailedAt
	Disarmed  Stage = "disarmed"   // armed, and disarmed before it booted
)

// Record is all that is known of one host's last installation.
type Record struct {
	Host  string     `json:"host"`
	MACs  []plan.MAC `json:"macs"`
	Image string     `json:"image"` // ID
	// Profile and Disk are for people: what the image is of, and the rule for the disk.
	Profile string `json:"profile"`
	Disk    string `json:"disk"`
	Stage   Stage  `json:"stage"`
	// FailedAt is the stage that it failed in, and Error why; only with Failed.
	FailedAt Stage  `json:"failed_at,omitempty"`
	Error    string `json:"error,omitempty"`
	// Problem is why the server wouldn't install it now; only with Armed.
	Problem string `json:"problem,omitempty"`
	// Done and Total are bytes of the disk.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
	// Step is what the installer does, and Place where it stands in line, from 1.
	Step  string `json:"step,omitempty"`
	Place int    `json:"place,omitempty"`
	// DiskFound is the disk that was chosen.
	DiskFound string `json:"disk_found,omitempty"`
	// Findings are what kiln verify found last, on the way to Ready.
	Findings []string `json:"findings,omitempty"`

	// Rule is the disk's rule that the operator was asked about, and Data are those of
	// the disks that keep every byte: where the site says otherwise by the time it
	// boots, nothing is installed.
	Rule plan.DiskRule   `json:"rule,omitzero"`
	Data []plan.DiskRule `json:"data,omitempty"`

	// Install is the installation's ID, MAC the one that booted, and Address whoever
	// redeemed its token.
	Install  string    `json:"install"`
	MAC      plan.MAC  `json:"mac,omitempty"`
	Address  string    `json:"address,omitempty"`
	Redeemed time.Time `json:"redeemed,omitzero"`
	// The hashes (SHA-256, hexadecimal) of the token and of the session; never they
	// themselves.
	TokenHash   string `json:"token_hash,omitempty"`
	SessionHash string `json:"session_hash,omitempty"`

	Since   time.Time `json:"since"` // of this stage
	Written time.Time `json:"written,omitzero"`
	Heard   time.Time `json:"heard,omitzero"` // when it was last heard of
	By      string    `json:"by,omitempty"`   // who has armed it
	History []Event   `json:"history"`
	// Console is what the installer's console said last.
	Console []string `json:"console,omitempty"`
}

// Event is one thing that happened.
type Event struct {
	Time  time.Time `json:"time"`
	Stage Stage     `json:"stage,omitempty"` // that it led to
	Text  string    `json:"text,omitempty"`
}
