package state

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// errDead is what everything gives once the machine has stopped.
var errDead = errors.New("the machine has stopped")

// ram is a disk that stops after some steps, with what a real one may have by
// then: of a file that wasn't synced, any beginning; of the folder, all changes
// up to its last sync, and perhaps some of those after.
type ram struct {
	mu    sync.Mutex
	rand  *rand.Rand
	names map[string]*inode // as the processes see them
	disk  map[string]*inode // as they are after a loss of power, at least
	after []renaming        // since the folder was synced
	ticks int64
	left  int // steps until it stops; negative: never
	dead  bool
	wrote string // what was last written, or was to be
	locks map[string]*sync.Mutex
}

type renaming struct {
	from, to string
	node     *inode
}

type inode struct {
	data   string
	synced string
	number uint64
	mod    time.Time
}

func newRAM(r *rand.Rand) *ram {
	return &ram{rand: r, names: map[string]*inode{}, disk: map[string]*inode{}, left: -1, locks: map[string]*sync.Mutex{}}
}

// step tells whether the next step is done, or only half of it: then the machine stops.
func (d *ram) step() (half bool, err error) {
	if d.dead {
		return false, errDead
	}
	if d.left == 0 {
		d.dead = true
		return d.rand.IntN(2) == 0, errDead
	}
	d.left--
	d.ticks++
	return false, nil
}

// kill ends all processes; start begins anew.
func (d *ram) kill() { d.dead = true }

func (d *ram) start() { d.dead, d.left = false, -1 }

// losePower also loses what no sync has brought to the disk.
func (d *ram) losePower() {
	d.dead = true
	for _, r := range d.after[:d.rand.IntN(len(d.after)+1)] {
		d.apply(d.disk, r)
	}
	d.after = nil
	d.names = map[string]*inode{}
	for name, n := range d.disk {
		if n.synced != n.data {
			d.ticks++
			n = &inode{data: n.data[:d.rand.IntN(len(n.data)+1)], number: n.number, mod: time.Unix(d.ticks, 0)}
			n.synced = n.data
			d.disk[name] = n
		}
		d.names[name] = n
	}
}

func (d *ram) apply(names map[string]*inode, r renaming) {
	if r.from != "" {
		delete(names, r.from)
	}
	names[r.to] = r.node
}

func (d *ram) change(r renaming) {
	d.apply(d.names, r)
	d.after = append(d.after, r)
}

func (d *ram) lock(name string) (func(), error) {
	d.mu.Lock()
	if d.locks[name] == nil {
		d.locks[name] = &sync.Mutex{}
	}
	l := d.locks[name]
	d.mu.Unlock()
	l.Lock()
	return l.Unlock, nil
}

func (d *ram) read(name string) ([]byte, version, error) {
	v, err := d.stat(name)
	if err != nil {
		return nil, v, err
	}
	return []byte(d.names[name].data), v, nil
}

func (d *ram) stat(name string) (version, error) {
	if d.dead {
		return version{}, errDead
	}
	n, ok := d.names[name]
	if !ok {
		return version{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return version{n.mod, int64(len(n.data)), n.number}, nil
}

func (d *ram) statDir() (version, error) { return version{mod: time.Unix(d.ticks, 0)}, nil }

func (d *ram) list() ([]string, version, error) {
	var names []string
	for n := range d.names {
		names = append(names, n)
	}
	slices.Sort(names)
	v, err := d.statDir()
	return names, v, err
}

func (d *ram) create(name string) (file, error) {
	half, err := d.step()
	if err != nil && !half {
		return nil, err
	}
	d.change(renaming{to: name, node: &inode{number: uint64(d.ticks), mod: time.Unix(d.ticks, 0)}})
	return ramFile{d, d.names[name]}, err
}

func (d *ram) rename(from, to string) error {
	half, err := d.step()
	if err == nil || half {
		d.change(renaming{from, to, d.names[from]})
	}
	return err
}

func (d *ram) syncDir() error {
	half, err := d.step()
	if err == nil || half {
		for _, r := range d.after {
			d.apply(d.disk, r)
		}
		d.after = nil
	}
	return err
}

type ramFile struct {
	d *ram
	n *inode
}

func (f ramFile) Write(data []byte) (int, error) {
	f.d.wrote = string(data)
	half, err := f.d.step()
	if err != nil {
		if half {
			f.n.data += string(data[:f.d.rand.IntN(len(data))])
		}
		return 0, err
	}
	f.n.data += string(data)
	return len(data), nil
}

func (f ramFile) Sync() error {
	half, err := f.d.step()
	if err == nil || half {
		f.n.synced = f.n.data
	}
	return err
}

func (f ramFile) Close() error { return nil }
