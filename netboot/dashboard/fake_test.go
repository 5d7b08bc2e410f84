package dashboard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

const (
	image  = "3f2a91c0b7de4455aa3f2a91c0b7de4455aa3f2a91c0b7de4455aa3f2a91c0b7"
	gib    = int64(1) << 30
	secret = "5ecre7" // a hash: never to be shown
)

var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// fake is a store of records in memory.
type fake struct {
	mu       sync.Mutex
	records  map[string]state.Record
	watchers map[chan struct{}]bool
	lists    int
	broken   bool
}

func newFake(records ...state.Record) *fake {
	f := &fake{records: map[string]state.Record{}, watchers: map[chan struct{}]bool{}}
	for _, r := range records {
		f.records[r.Host] = r
	}
	return f
}

func (f *fake) List() ([]state.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists++
	if f.broken {
		return nil, errors.New("/var/lib/kiln/records: input/output error")
	}
	var all []state.Record
	for _, r := range f.records {
		all = append(all, r)
	}
	return all, nil
}

func (f *fake) Get(host string) (state.Record, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return state.Record{}, false, errors.New("/var/lib/kiln/records: input/output error")
	}
	r, ok := f.records[host]
	return r, ok, nil
}

func (f *fake) Watch(ctx context.Context) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{}, 1)
	f.watchers[c] = true
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, c)
	})
	return c
}

func (f *fake) put(r state.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[r.Host] = r
	for c := range f.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (f *fake) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers)
}

// dashboard shows a store at noon.
func dashboard(f *fake) *Dashboard {
	return &Dashboard{Records: f, Location: time.UTC, Now: func() time.Time { return noon }}
}

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// record is a host's, in that stage, as it would be after a normal way there.
func record(name string, stage state.Stage, change func(*state.Record)) state.Record {
	r := state.Record{
		Host: name, MACs: []plan.MAC{"52:54:00:66:00:11"}, Image: image, Profile: "alissandra", Disk: "serial S3X1", Stage: stage,
		Install: "i-7f3a", By: "alice", TokenHash: secret + "token", SessionHash: secret + "session",
	}
	at := ago(20 * time.Minute)
	for _, s := range []state.Stage{state.Armed, state.Booted, state.Writing, state.Written, state.FirstBoot, state.Ready} {
		r.History = append(r.History, state.Event{Time: at, Stage: s, Text: "by the test"})
		r.Since = at
		if s == stage {
			break
		}
		at = at.Add(70 * time.Second)
	}
	if stage == state.Writing {
		r.Since, r.Heard, r.Step = ago(time.Minute), ago(time.Second), "write"
		r.Done, r.Total = 62*gib/10, 10*gib
		r.DiskFound, r.Address = "/dev/sda 480 GB SAMSUNG MZ7L3480 serial S3X1", "10.66.0.11"
		r.Redeemed = ago(90 * time.Second)
	}
	if change != nil {
		change(&r)
	}
	return r
}

func fail(at state.Stage, why string) func(*state.Record) {
	return func(r *state.Record) {
		r.FailedAt, r.Error, r.Since = at, why, ago(4*time.Minute)
		r.History = slices.DeleteFunc(r.History, func(e state.Event) bool { return e.Stage != state.Armed && e.Stage != state.Booted && e.Stage != at })
		r.History = append(r.History, state.Event{Time: r.Since, Stage: state.Failed, Text: why})
	}
}

// each has a host in each stage.
func each() []state.Record {
	d := ".example.org"
	return []state.Record{
		record("build01"+d, state.Failed, fail(state.Writing, "write: chunk 17 of 2560: got 3f2a…, want 91c0…: the image at the server is damaged, or the network is: kiln images verify")),
		record("build02"+d, state.Writing, nil),
		record("build03"+d, state.Booted, func(r *state.Record) { r.Step, r.Place, r.Heard = "turn", 1, ago(2*time.Second) }),
		record("build04"+d, state.Booted, func(r *state.Record) { r.Step, r.Heard = "hardware", ago(2*time.Second) }),
		record("build05"+d, state.Written, nil),
		record("build06"+d, state.FirstBoot, func(r *state.Record) { r.Findings = []string{"consul-node: no node of that name"} }),
		record("build07"+d, state.Armed, nil),
		record("build08"+d, state.Ready, nil),
		record("build09"+d, state.Ready, nil),
		record("build10"+d, state.Disarmed, nil),
		record("build11"+d, state.Failed, fail(state.Booted, "disk: 2 disks fit: S3X1, S3X2")),
		record("build12"+d, state.Writing, func(r *state.Record) { r.Done, r.Heard = gib, ago(45*time.Second) }),
	}
}

func seed(context.Context, string) ([]protocol.SeedFile, error) {
	return []protocol.SeedFile{
		{Name: "meta-data", Data: []byte("instance-id: i-7f3a\nlocal-hostname: build01\n")},
		{Name: "user-data", Data: []byte("#cloud-config\nwrite_files:\n- path: /etc/consul.d/consul.hcl\n  content: |\n    encrypt = \"kiln-secret:teigi://alibuild/consul_encrypt\"\n    # </pre><script>alert(1)</script>\n")},
		{Name: "blob", Data: []byte{0xff, 0xfe, 0}},
	}, nil
}

func unknown(context.Context) ([]Machine, error) {
	return []Machine{
		{
			MAC: "3c:ec:ef:12:34:56", Vendor: "Supermicro", Firmware: "UEFI x86-64", First: ago(time.Hour), Last: ago(2 * time.Minute), Times: 7,
			Entry: "- name: NAME\n  profile: PROFILE\n  interfaces: {lan: {mac: \"3c:ec:ef:12:34:56\"}}\n",
		},
		{MAC: "52:54:00:00:00:99", Firmware: "BIOS <b>", First: ago(time.Minute), Last: ago(time.Minute), Times: 1, Entry: fmt.Sprintf("- name: %s\n", "NAME")},
	}, nil
}
