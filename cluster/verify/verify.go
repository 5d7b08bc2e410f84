// Package verify tells whether a running host is what its plan says: as the
// cluster's servers see it, over their APIs, and, where asked, as the host itself
// shows it, over SSH.
//
// It never writes. What is expected is read from the agents' configurations as
// the plan renders them, so that it doesn't matter who set the host up: Kiln,
// Puppet, or a hand.
//
// What was found is gathered first (gather.go, hostside.go), then judged by pure
// functions (nomad.go, consul.go, reservation.go, ondisk.go and their like), each
// of which knows nothing but what was expected and what was found.
package verify

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/plan"
)

// Status is what became of a check.
type Status string

// The statuses of findings.
const (
	// Differs: what was found isn't what was expected.
	Differs Status = "differs"
	// Unknown: nobody can say, since it couldn't be looked at. It counts as
	// little as Differs for success.
	Unknown Status = "unknown"
)

// Check names what was looked at.
type Check string

// The checks. docs/verify.md says what each is about.
const (
	CheckNomadServer     Check = "nomad-server"
	CheckNomadNode       Check = "nomad-node"
	CheckNomadDuplicate  Check = "nomad-duplicate"
	CheckNomadEligible   Check = "nomad-eligible"
	CheckNomadRegion     Check = "nomad-region"
	CheckNomadDatacenter Check = "nomad-datacenter"
	CheckNomadClass      Check = "nomad-class"
	CheckNomadAddress    Check = "nomad-address"
	CheckNomadMeta       Check = "nomad-meta"
	CheckNomadVolume     Check = "nomad-volume"
	CheckNomadDriver     Check = "nomad-driver"
	CheckNomadVersion    Check = "nomad-version"
	CheckReservation     Check = "reservation"
	CheckConsulNode      Check = "consul-node"
	CheckConsulServer    Check = "consul-server"
	CheckConsulHealth    Check = "consul-health"
	CheckConsulAddress   Check = "consul-address"
	CheckConsulService   Check = "consul-service"
	CheckConsulVersion   Check = "consul-version"
	CheckCertificate     Check = "certificate"
	CheckSSH             Check = "ssh"
	CheckUnit            Check = "unit"
	CheckFile            Check = "file"
	CheckDNS             Check = "dns"
)

// Checks lists all of them, in the order of reports.
var Checks = []Check{
	CheckNomadServer, CheckNomadNode, CheckNomadDuplicate, CheckNomadEligible, CheckNomadRegion, CheckNomadDatacenter, CheckNomadClass, CheckNomadAddress,
	CheckNomadMeta, CheckNomadVolume, CheckNomadDriver, CheckNomadVersion, CheckReservation,
	CheckConsulNode, CheckConsulServer, CheckConsulHealth, CheckConsulAddress, CheckConsulService, CheckConsulVersion,
	CheckCertificate, CheckSSH, CheckUnit, CheckFile, CheckDNS,
}

// Finding is one thing that isn't as it should be.
type Finding struct {
	Check    Check  `json:"check"`
	Status   Status `json:"status"`
	Object   string `json:"object,omitempty"` // which of several: a file, a unit, a volume
	Expected string `json:"expected"`
	Found    string `json:"found"`
	Fix      string `json:"fix"`
	// Details are lines that explain it: a diff, the end of a journal.
	Details []string `json:"details,omitempty"`
}

// Report is what is known of one host.
type Report struct {
	Host     string    `json:"host"`
	OK       bool      `json:"ok"` // nothing was found, and all was looked at
	Findings []Finding `json:"findings"`
	Checked  []Check   `json:"checked"` // what was looked at
	// Notes are what was left out on purpose, and why.
	Notes []string `json:"notes,omitempty"`
}

// Versions are those of the lock; empty is that it says nothing.
type Versions struct {
	Nomad, Consul string
}

// Target is a host to verify.
type Target struct {
	Plan     *plan.Plan
	Versions Versions
	// Files are what the plan has on the host's disk, where its files are to be
	// compared; nil is that they aren't.
	Files []File
}

// Verifier asks a cluster about its hosts. Nomad and Consul have to be set.
type Verifier struct {
	Nomad  *cluster.Nomad
	Consul *cluster.Consul
	// SSH reaches the hosts themselves; nil asks the cluster alone.
	SSH *remote.Dialer
	// Expires is how long a certificate must still be valid; 0 is DefaultExpires.
	Expires time.Duration
	// Skip lists checks to leave out.
	Skip []Check
	// Timeout is how long an answer of an API may take; 0 is DefaultTimeout.
	Timeout time.Duration
	// Dial reaches an agent for its certificate; nil is the usual way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the clock; nil is the usual one.
	Now func() time.Time
}

// The defaults of a Verifier.
const (
	DefaultExpires = 14 * 24 * time.Hour
	DefaultTimeout = 10 * time.Second
)

// How many hosts are looked at at once: by one question each to Nomad's servers
// and to the host's agent, and over SSH, which is a process of its own.
const (
	atOnce    = 64
	atOnceSSH = 16
)

// Host verifies one host. An error is that the cluster couldn't be asked: then
// nothing is known of the host.
//
// A host that has just been installed is ready once its report is OK.
func (v *Verifier) Host(ctx context.Context, t Target) (Report, error) {
	var report Report
	err := v.Hosts(ctx, []Target{t}, func(r Report) { report = r })
	return report, err
}

// Hosts verifies hosts, many at once, and gives yield their reports, in order.
// An error is that the cluster couldn't be asked.
func (v *Verifier) Hosts(ctx context.Context, targets []Target, yield func(Report)) error {
	wanted := make([]*expected, len(targets))
	for i, t := range targets {
		e, err := expect(t.Plan)
		if err != nil {
			return fmt.Errorf("the host %s: %w", t.Plan.Host.Name, err)
		}
		wanted[i] = e
	}
	seen, err := v.gather(ctx, wanted)
	if err != nil {
		return err
	}
	reports := make([]chan Report, len(targets))
	for i := range reports {
		reports[i] = make(chan Report, 1)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce + 1)
	group.Go(func() error {
		for _, r := range reports {
			select {
			case report := <-r:
				yield(report)
			case <-ctx.Done():
				return nil // the group has the error
			}
		}
		return nil
	})
	ssh := make(chan struct{}, atOnceSSH)
	for i := range targets {
		group.Go(func() error {
			r, err := v.host(ctx, &targets[i], wanted[i], seen, ssh)
			if err == nil {
				reports[i] <- r
			}
			return err
		})
	}
	return group.Wait()
}

// host looks at one host, and judges it.
func (v *Verifier) host(ctx context.Context, t *Target, e *expected, seen *snapshot, ssh chan struct{}) (Report, error) {
	r := &results{report: Report{Host: e.host, Findings: []Finding{}}, skip: v.Skip}
	node, err := v.node(ctx, e, seen)
	if err != nil {
		return Report{}, err
	}
	checkNomad(r, e, seen, node, t.Versions.Nomad)
	if node != nil {
		checkReservation(r, e, node)
	}
	checkConsul(r, e, seen, node, t.Versions.Consul)
	if e.nomad == nil && e.consul == nil {
		r.note("its plan has no configuration of Nomad or Consul, so that the cluster wasn't asked about it")
	}
	if e.nomad != nil && e.nomad.https && node != nil && r.wants(CheckCertificate) {
		// The one on the disk may be newer than what the agent shows. Where that can't
		// be seen from here, the disk has to do.
		if served := v.served(ctx, node.HTTPAddr); served.err == nil || v.SSH == nil {
			checkServed(r, served, v.now(), v.expires())
		}
	}
	if v.SSH != nil {
		select {
		case ssh <- struct{}{}:
		case <-ctx.Done():
			return Report{}, context.Cause(ctx)
		}
		on, err := v.onHost(ctx, t, e)
		<-ssh
		if ctx.Err() != nil {
			return Report{}, context.Cause(ctx)
		}
		checkOnHost(r, t, e, on, err, v.now(), v.expires())
	}
	return r.done(), nil
}

func (v *Verifier) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

func (v *Verifier) expires() time.Duration { return cmp.Or(v.Expires, DefaultExpires) }

// results collects what checks find.
type results struct {
	report Report
	skip   []Check
}

// wants tells whether a check is to be done; it counts as done then. What is
// found by one that isn't, add leaves out.
func (r *results) wants(c Check) bool {
	if slices.Contains(r.skip, c) {
		return false
	}
	if !slices.Contains(r.report.Checked, c) {
		r.report.Checked = append(r.report.Checked, c)
	}
	return true
}

func (r *results) add(f Finding) {
	if !r.wants(f.Check) {
		return
	}
	if f.Status == "" {
		f.Status = Differs
	}
	r.report.Findings = append(r.report.Findings, f)
}

// same adds a finding unless what was found is what was expected.
func (r *results) same(c Check, object, expected, found, fix string) {
	if r.wants(c) && expected != found {
		r.add(Finding{Check: c, Object: object, Expected: expected, Found: cmp.Or(found, "none"), Fix: fix})
	}
}

func (r *results) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// done is the report: in the order of Checks, whatever order they were done in.
func (r *results) done() Report {
	place := func(c Check) int { return slices.Index(Checks, c) }
	slices.SortStableFunc(r.report.Findings, func(a, b Finding) int {
		return cmp.Or(place(a.Check)-place(b.Check), strings.Compare(a.Object, b.Object))
	})
	slices.SortFunc(r.report.Checked, func(a, b Check) int { return place(a) - place(b) })
	r.report.OK = len(r.report.Findings) == 0
	return r.report
}
