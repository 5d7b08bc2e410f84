// Package protocol is what the network installer and the server say to each
// other: over HTTPS, with the server's key pinned by the kernel's command line.
// What isn't secret, images and boot files, goes over plain HTTP beside it, and is
// believed for its hashes only.
package protocol

import "github.com/alisw/kiln/plan"

// The kernel's command line tells the installer where it is.
const (
	ParamServer = "kiln.server" // URL of the HTTPS server: https://10.0.0.1:8443
	ParamPin    = "kiln.pin"    // see Pin
	ParamToken  = "kiln.token"  // the one-time token
	ParamMAC    = "kiln.mac"    // MAC of the interface that booted, as plan.MAC has it
	ParamHost   = "kiln.host"   // the host's name, for people at its console
)

// Paths of the HTTPS server. All take a POST with a JSON object, and answer with
// one; where a session is needed, it is in "Authorization: Bearer SESSION". A
// refusal has a status of 4xx and a Refusal.
const (
	PathRedeem  = "/install/v1/redeem"  // RedeemRequest → Job. 409: it was redeemed before
	PathTurn    = "/install/v1/turn"    // {} → Turn: may it begin to write?
	PathReport  = "/install/v1/report"  // Report → Answer
	PathSeed    = "/install/v1/seed"    // {} → Seed: the host's own data, secrets and all
	PathWritten = "/install/v1/written" // {} → {}: the host is disarmed once this is answered
)

// PathFirstBoot is of the plain HTTP server: a POST to PathFirstBoot+Job.ID says
// that the installed host boots from its disk.
const PathFirstBoot = "/first-boot/"

// RedeemRequest gives the one-time token back.
type RedeemRequest struct {
	Token string   `json:"token"`
	MAC   plan.MAC `json:"mac"`
}

// Job is what is to be installed.
type Job struct {
	ID      string `json:"id"`      // of this installation
	Session string `json:"session"` // authorizes all further calls
	Host    string `json:"host"`
	// Image is the image's ID, which its manifest must have, and ImageURL where its
	// files are: manifest.json, netboot/chunks.json, …; http://10.0.0.1:8080/images/ID/.
	Image    string `json:"image"`
	ImageURL string `json:"image_url"`
	// Keys are the site's public keys, as minisign writes them: one of them must
	// have signed the manifest. None: the ID alone says what is right.
	Keys []string `json:"keys,omitempty"`
	// Install picks the disk; Data are rules of those that keep every byte.
	Install plan.DiskRule   `json:"install"`
	Data    []plan.DiskRule `json:"data,omitempty"`
}

// Turn says whether an installation may go on.
type Turn struct {
	Go    bool `json:"go"`
	Place int  `json:"place,omitempty"` // in line, from 1, while it may not
	Wait  int  `json:"wait,omitempty"`  // seconds until it should ask again
}

// Step is what the installer does.
type Step string

// The steps, in their order. Each failure names one.
const (
	StepHardware Step = "hardware" // loading drivers
	StepNetwork  Step = "network"  // getting an address
	StepRedeem   Step = "redeem"   // the token
	StepDisk     Step = "disk"     // choosing it
	StepImage    Step = "image"    // its manifest, signature, chunk list
	StepTurn     Step = "turn"     // waiting in line
	StepWrite    Step = "write"    // the chunks
	StepSeed     Step = "seed"     // the host's data into the installed root
	StepCommit   Step = "commit"   // both partition tables, then the first sector
	StepReboot   Step = "reboot"
)

// Report tells the server how far it is; it is sent at each change, and every
// few seconds between.
type Report struct {
	Step  Step     `json:"step"`
	Done  int64    `json:"done,omitempty"`  // bytes of the disk that are written
	Total int64    `json:"total,omitempty"` // bytes
	Disk  string   `json:"disk,omitempty"`  // the chosen one, for people: /dev/sda 480 GB SAMSUNG… serial S3X1
	Lines []string `json:"lines,omitempty"` // what the console has said since the last report
	Error string   `json:"error,omitempty"` // it has failed, and stops
}

// Answer is the server's to a report.
type Answer struct {
	// Stop ends the installation: it was disarmed, or given up.
	Stop string `json:"stop,omitempty"`
}

// Seed is the host's NoCloud seed.
type Seed struct {
	Files []SeedFile `json:"files"`
}

// SeedFile is one file of a seed.
type SeedFile struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// Refusal is the body of an answer whose status isn't 200.
type Refusal struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"` // one of the codes, where programs ask
}

// Codes of refusals.
const (
	CodeRedeemed = "redeemed" // the token was redeemed before: nothing may be written
	CodeToken    = "token"    // there is no such token, or it is another MAC's
	CodeExpired  = "expired"  // it's too old
	CodeSession  = "session"  // there is no such session, or it is over
)
