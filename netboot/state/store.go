package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/alisw/kiln/plan"
)

const (
	maxRecord  = 1 << 20 // bytes of a record's file
	suffix     = ".json"
	storeEvery = time.Second // of mere progress
)

// Timeouts are how long a silence may be. A zero stands for the default.
type Timeouts struct {
	Redeem    time.Duration // from being given the installer to the token's redemption: 10 minutes
	Silence   time.Duration // between an installer's reports; longer than it retries: 4 minutes
	FirstBoot time.Duration // from written to ready: 30 minutes
}

// Store keeps a record for each host, in a directory that only its owner may
// enter. All its methods may be called at the same time, in several processes.
//
// A change is on the disk when its method returns, as a whole: whoever reads, or
// starts after a loss of power, sees the record as it was before, or after. Only
// progress within a stage may be a second younger than what is stored.
//
// Records that are returned are shared: they must not be changed.
type Store struct {
	Timeouts Timeouts
	// Now is the clock; nil is the real one.
	Now func() time.Time

	files files
	where string // of the records, for people

	mu      sync.Mutex
	cache   map[string]cached
	pending map[string]pending
	saved   map[string]time.Time // when each was stored, by this process
	all     listed
	settled listed // as of when the folder was synced
	changes uint64 // of records, in this process, stored or not
}

// cached is a record as it was read.
type cached struct {
	version version
	record  *Record
	err     error
}

// pending is a record with progress that isn't stored yet, on top of a version
// that is.
type pending struct {
	version version
	record  *Record
}

// listed is what the whole folder was read as.
type listed struct {
	version version
	read    time.Time
	hosts   []string
}

// Open opens the store in a directory, and makes that where it's missing.
func Open(dir string) (*Store, error) {
	d, err := openDisk(filepath.Clean(dir))
	if err != nil {
		return nil, err
	}
	return &Store{files: d, where: d.path("")}, nil
}

// Look opens the store in a directory for who only looks: it makes nothing. The error
// is an fs.ErrNotExist where there is none.
func Look(dir string) (*Store, error) {
	d := disk{filepath.Clean(dir)}
	if _, err := d.statDir(); err != nil {
		return nil, fmt.Errorf("the state of installations: %w", err)
	}
	return &Store{files: d, where: d.path("")}, nil
}

// ErrUnknown is that there is no record of a host: it was never armed.
var ErrUnknown = errors.New("it was never armed")

func neverArmed(host string) error { return fmt.Errorf("%s: %w: kiln arm does that", host, ErrUnknown) }

// DamagedError is that a record can't be read. Its host isn't installed until the
// file is gone, and it is armed again.
type DamagedError struct {
	Host string
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the record of %s is damaged: %s: %v: move the file away, and arm the host again", e.Host, e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Get gives the record of a host by its full name. The error is an ErrUnknown
// where there is none, and a *DamagedError where it can't be read.
func (s *Store) Get(host string) (*Record, error) {
	if err := checkName(host); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUnknown)
	}
	r, _, err := s.load(host)
	return r, err
}

// List gives all records, sorted by the hosts' names, and those that can't be read.
func (s *Store) List() ([]*Record, []*DamagedError, error) {
	hosts, err := s.hosts()
	if err != nil {
		return nil, nil, fmt.Errorf("listing the installations: %w", err)
	}
	list := make([]*Record, 0, len(hosts))
	var damaged []*DamagedError
	for _, h := range hosts {
		r, _, err := s.load(h)
		var d *DamagedError
		switch {
		case err == nil:
			list = append(list, r)
		case errors.As(err, &d):
			damaged = append(damaged, d)
		case errors.Is(err, ErrUnknown): // it was moved away meanwhile
		default:
			return nil, nil, err
		}
	}
	return list, damaged, nil
}

// hosts gives the names of all that have a record.
func (s *Store) hosts() ([]string, error) {
	v, err := s.files.statDir()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	all := s.all
	s.mu.Unlock()
	// A file's clock ticks slowly: a change right after this one has the same time.
	if all.hosts != nil && all.version == v && all.read.Sub(v.mod) > time.Second {
		return all.hosts, nil
	}
	read := time.Now()
	names, v, err := s.files.list()
	if err != nil {
		return nil, err
	}
	hosts := make([]string, 0, len(names))
	for _, n := range names {
		host, isRecord := strings.CutSuffix(n, suffix)
		if isRecord && checkName(host) == nil {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	s.mu.Lock()
	s.all = listed{v, read, hosts}
	s.mu.Unlock()
	return hosts, nil
}

// load gives a host's record with what isn't stored yet, and the version of what is.
func (s *Store) load(host string) (*Record, version, error) {
	v, err := s.files.stat(host + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, version{}, neverArmed(host)
	}
	if err != nil {
		return nil, version{}, fmt.Errorf("the record of %s: %w", host, err)
	}
	s.mu.Lock()
	p, c := s.pending[host], s.cache[host]
	s.mu.Unlock()
	switch {
	case p.record != nil && p.version == v:
		return p.record, v, nil
	case c.version == v && (c.record != nil || c.err != nil):
		return c.record, v, c.err
	}
	data, v, err := s.files.read(host + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, version{}, neverArmed(host)
	}
	if e := s.settle(); e != nil {
		return nil, version{}, fmt.Errorf("the record of %s: %w", host, e)
	}
	var r *Record
	if err == nil {
		r, err = parse(host, data)
	}
	if err != nil {
		err = &DamagedError{host, filepath.Join(s.where, host+suffix), err}
	}
	s.keep(host, cached{v, r, err})
	return r, v, err
}

func (s *Store) keep(host string, c cached) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil {
		s.cache = map[string]cached{}
	}
	s.cache[host] = c
}

// settle makes sure that what was read is on the disk. Whoever renamed it may have
// been killed before it was: it could be gone after a loss of power, and a host
// that was seen disarmed would be armed.
func (s *Store) settle() error {
	v, err := s.files.statDir()
	if err != nil {
		return err
	}
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	if settled.version == v && settled.read.Sub(v.mod) > time.Second {
		return nil
	}
	settled = listed{version: v, read: time.Now()}
	if err := s.files.syncDir(); err != nil {
		return err
	}
	s.mu.Lock()
	s.settled = settled
	s.mu.Unlock()
	return nil
}

// change changes a host's record: do gets a copy, and says whether it is to be
// stored (save), may wait (later), or stays as it was (keep). Whatever error do
// gives is returned after that. Where there is no record, that is an ErrUnknown.
func (s *Store) change(host string, do func(r *Record) (outcome, error)) (*Record, error) {
	if err := checkName(host); err != nil {
		return nil, err
	}
	// Before the lock, whose file would stay behind.
	if _, _, err := s.load(host); errors.Is(err, ErrUnknown) {
		return nil, err
	}
	return s.begin(host, func(r *Record) (outcome, error) {
		if r.Host == "" { // it was moved away meanwhile
			return keep, neverArmed(host)
		}
		return do(r)
	})
}

// begin is change, for a host that has no record yet, too: do gets an empty one.
func (s *Store) begin(host string, do func(r *Record) (outcome, error)) (*Record, error) {
	if err := checkName(host); err != nil {
		return nil, err
	}
	unlock, err := s.files.lock(host)
	if err != nil {
		return nil, fmt.Errorf("the record of %s: %w", host, err)
	}
	defer unlock()
	old, v, err := s.load(host)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return nil, err
	}
	r := &Record{}
	if old != nil {
		r = old.clone()
	}
	what, refusal := do(r)
	switch what {
	case keep:
		return old, refusal
	case later:
		if s.wait(host, v, r) {
			return r, refusal
		}
	}
	if err := s.save(host, r); err != nil {
		return nil, errors.Join(fmt.Errorf("storing the record of %s: %w", host, err), refusal)
	}
	return r, refusal
}

// outcome is what becomes of a changed record.
type outcome int

const (
	keep  outcome = iota // it wasn't changed
	later                // it may be stored within a second
	save                 // it is stored before anybody hears of it
)

// wait keeps progress that needn't be stored yet, and says whether it needn't.
func (s *Store) wait(host string, v version, r *Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := s.now().Sub(s.saved[host]); since < 0 || since >= storeEvery {
		return false
	}
	if s.pending == nil {
		s.pending = map[string]pending{}
	}
	s.pending[host] = pending{v, r}
	s.changes++
	return true
}

// save stores a record: when it returns, power may be lost.
func (s *Store) save(host string, r *Record) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	tmp := "." + host + ".tmp"
	f, err := s.files.create(tmp)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		// A name must never be on the disk before what it stands for.
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := s.files.rename(tmp, host+suffix); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.pending, host)
	if s.saved == nil {
		s.saved = map[string]time.Time{}
	}
	s.saved[host] = s.now()
	s.changes++
	s.mu.Unlock()
	if err := s.files.syncDir(); err != nil {
		return err
	}
	if v, err := s.files.stat(host + suffix); err == nil {
		s.keep(host, cached{version: v, record: r})
	}
	return nil
}

// Flush stores all progress that isn't yet: before the end of a server.
func (s *Store) Flush() error { return s.flush(0) }

// flush stores progress whose record was stored that long ago.
func (s *Store) flush(age time.Duration) error {
	s.mu.Lock()
	var hosts []string
	for h := range s.pending {
		if s.now().Sub(s.saved[h]) >= age {
			hosts = append(hosts, h)
		}
	}
	s.mu.Unlock()
	var err error
	for _, h := range hosts {
		_, e := s.change(h, func(*Record) (outcome, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if _, ok := s.pending[h]; !ok {
				return keep, nil
			}
			return save, nil
		})
		if errors.Is(e, ErrUnknown) { // its record was moved away
			s.mu.Lock()
			delete(s.pending, h)
			s.mu.Unlock()
			continue
		}
		err = errors.Join(err, e)
	}
	return err
}

func (s *Store) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// parse reads a record, and refuses what no store has written.
func parse(host string, data []byte) (*Record, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var r Record
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the record")
	}
	switch {
	case r.Host != host:
		return nil, fmt.Errorf("it is of %q", r.Host)
	case !slices.Contains(stages, r.Stage):
		return nil, fmt.Errorf("there is no stage %q", r.Stage)
	case r.Image == "" || r.Install == "" || len(r.MACs) == 0:
		return nil, errors.New("it lacks the image, the installation or the MACs")
	}
	for _, m := range r.MACs {
		if p, err := plan.ParseMAC(string(m)); err != nil || p != m {
			return nil, fmt.Errorf("%q is no MAC", m)
		}
	}
	return &r, nil
}

// checkName refuses what is no host's name, or no file's.
func checkName(host string) error {
	ok := host != "" && len(host) <= 200 && host[0] != '.' && host[0] != '-'
	for _, c := range []byte(host) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_')
	}
	if !ok {
		return fmt.Errorf("%.100q is no host's name", host)
	}
	return nil
}
