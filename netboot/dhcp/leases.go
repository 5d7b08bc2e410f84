package dhcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/alisw/kiln/plan"
)

// lease is an address that a client has, has had, or is offered.
type lease struct {
	MAC     plan.MAC   `json:"mac"`
	Address netip.Addr `json:"address"`
	Host    string     `json:"host"`
	Expires time.Time  `json:"expires"` // after it, others may have the address

	key     [6]byte
	offered bool // and not yet taken: it isn't stored
}

// leases are those of a server. No two are of one address, or of one MAC.
type leases struct {
	mu        sync.Mutex
	byMAC     map[[6]byte]*lease
	byAddress map[netip.Addr]*lease
	declined  map[netip.Addr]time.Time // that somebody else has, until then
	dirty     bool                     // the file lacks something
}

// maxDeclined bounds what clients can take out of use.
const maxDeclined = 1024

// file is what is stored.
type file struct {
	Leases   []*lease                 `json:"leases"`
	Declined map[netip.Addr]time.Time `json:"declined,omitempty"`
}

const leasesFile = "leases.json"

// set makes l the only lease of its MAC and of its address.
func (ls *leases) set(l *lease) {
	if ls.byMAC == nil {
		ls.byMAC, ls.byAddress = map[[6]byte]*lease{}, map[netip.Addr]*lease{}
	}
	if old := ls.byMAC[l.key]; old != nil {
		ls.remove(old)
	}
	if old := ls.byAddress[l.Address]; old != nil {
		ls.remove(old)
	}
	ls.byMAC[l.key], ls.byAddress[l.Address] = l, l
}

func (ls *leases) remove(l *lease) {
	delete(ls.byMAC, l.key)
	delete(ls.byAddress, l.Address)
	ls.dirty = ls.dirty || !l.offered
}

// offer keeps an address for a client until it answers.
func (ls *leases) offer(mac [6]byte, a netip.Addr, now time.Time) {
	until := now.Add(offerTime)
	if l := ls.byMAC[mac]; l != nil && l.Address == a {
		if l.Expires.Before(until) {
			l.Expires = until
		}
		return
	}
	ls.set(&lease{MAC: planMAC(mac), Address: a, Expires: until, key: mac, offered: true})
}

// bind gives an address to a client.
func (ls *leases) bind(mac [6]byte, a netip.Addr, host string, until time.Time) {
	ls.set(&lease{MAC: planMAC(mac), Address: a, Host: host, Expires: until, key: mac})
	ls.dirty = true
}

// withdraw ends an offer: the client has taken another server's.
func (ls *leases) withdraw(mac [6]byte) {
	if l := ls.byMAC[mac]; l != nil && l.offered {
		ls.remove(l)
	}
}

// release ends a lease, and remembers whose the address was.
func (ls *leases) release(mac [6]byte, a netip.Addr, now time.Time) {
	if l := ls.byMAC[mac]; l != nil && l.Address == a && now.Before(l.Expires) {
		l.Expires, ls.dirty = now, true
	}
}

// decline takes an address out of use, if it is the client's.
func (ls *leases) decline(mac [6]byte, a netip.Addr, now time.Time) bool {
	l := ls.byMAC[mac]
	if l == nil || l.Address != a {
		return false
	}
	ls.remove(l)
	for a, until := range ls.declined {
		if !now.Before(until) {
			delete(ls.declined, a)
		}
	}
	if ls.declined == nil {
		ls.declined = map[netip.Addr]time.Time{}
	}
	if len(ls.declined) < maxDeclined {
		ls.declined[a] = now.Add(declineTime)
	}
	ls.dirty = true
	return true
}

// Commit stores the leases, if they have changed. It is to be called before a
// reply is sent that gives one: what a client was told is known after a restart.
func (s *Server) Commit() error {
	ls := &s.leases
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !ls.dirty {
		return nil
	}
	var f file
	for _, l := range ls.byAddress {
		if !l.offered {
			f.Leases = append(f.Leases, l)
		}
	}
	slices.SortFunc(f.Leases, func(a, b *lease) int { return a.Address.Compare(b.Address) })
	f.Declined = ls.declined
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("storing the leases: %w", err)
	}
	if err := replace(filepath.Join(s.StateDir, leasesFile), append(b, '\n')); err != nil {
		return fmt.Errorf("storing the leases: %w", err)
	}
	ls.dirty = false
	return nil
}

// replace writes a file at once, or not at all.
func replace(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, openErr := os.Open(dir)
	if openErr != nil {
		return nil // renamed it is; that it lasts can't be made sure of
	}
	defer d.Close()
	return d.Sync()
}

// load reads the leases that an earlier run has stored.
func (s *Server) load() error {
	path := filepath.Join(s.StateDir, leasesFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the leases: %w", err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("reading the leases: %s: %w: remove the file once no host runs with a lease", path, err)
	}
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	for _, l := range f.Leases {
		if l == nil {
			continue
		}
		mac, err := plan.ParseMAC(string(l.MAC))
		if err != nil || !l.Address.Is4() {
			return fmt.Errorf("reading the leases: %s: %s has no address of a client: remove the entry", path, l.MAC)
		}
		l.MAC, l.key = mac, keyOf(mac)
		s.leases.set(l)
	}
	s.leases.declined, s.leases.dirty = f.Declined, false
	return nil
}

// keyOf reads a MAC as plan.MAC has it.
func keyOf(mac plan.MAC) (key [6]byte) {
	value := func(c byte) byte {
		if c >= 'a' {
			return c - 'a' + 10
		}
		return c - '0'
	}
	for i := range key {
		key[i] = value(mac[3*i])<<4 | value(mac[3*i+1])
	}
	return key
}
