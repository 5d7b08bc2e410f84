package dhcp

import "sync/atomic"

// Kind is what an answer gives.
type Kind uint8

// The kinds.
const (
	Lease  Kind = iota // an address, and nothing to boot
	BIOS               // iPXE for a BIOS, by TFTP
	EFI                // iPXE for UEFI, by TFTP
	HTTP               // iPXE for UEFI, by HTTP
	Script             // the host's script, to iPXE
	Nak                // that an address isn't the client's
	kinds
)

var kindNames = [kinds]string{"lease", "bios", "efi", "http", "script", "nak"}

func (k Kind) String() string { return kindNames[k] }

// Reason is why a packet has no answer. Answered is none.
type Reason uint8

// The reasons.
const (
	Answered          Reason = iota
	Malformed                // it can't be read, or is no request
	UnknownMAC               // no registered host has the MAC
	NotBooting               // a registered host that doesn't boot from the network
	OtherServer              // it is to another server, or for one to answer
	OtherType                // a type of message that has no answer
	OtherArchitecture        // for which there is no iPXE
	ChainLoop                // an iPXE that leads to another one again and again
	OtherNetwork             // of which there is no range
	Exhausted                // the range is
	Released                 // the client gives its address back
	Declined                 // the client says that somebody has its address
	NotStored                // the lease couldn't be written
	NotSent                  // the answer couldn't be sent
	reasons
)

var reasonNames = [reasons]string{
	"answered", "malformed", "unknown-mac", "not-booting", "other-server", "other-type", "architecture", "chain-loop",
	"other-network", "exhausted", "released", "declined", "not-stored", "not-sent",
}

func (r Reason) String() string { return reasonNames[r] }

// Counters count packets. They may be read while the server runs.
type Counters struct {
	received   atomic.Uint64
	answered   [kinds]atomic.Uint64
	unanswered [reasons]atomic.Uint64
}

// Counts is what Counters have counted. Each packet received is, in the end, in one
// of the two maps, which have all their keys from the beginning.
type Counts struct {
	Received   uint64
	Answered   map[string]uint64 // by Kind
	Unanswered map[string]uint64 // by Reason
}

// Read reads them.
func (c *Counters) Read() Counts {
	counts := Counts{Received: c.received.Load(), Answered: map[string]uint64{}, Unanswered: map[string]uint64{}}
	for k := range kinds {
		counts.Answered[k.String()] = c.answered[k].Load()
	}
	for r := Answered + 1; r < reasons; r++ {
		counts.Unanswered[r.String()] = c.unanswered[r].Load()
	}
	return counts
}
