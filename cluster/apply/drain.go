package apply

import (
	"context"
	"fmt"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/alisw/kiln/cluster"
)

// Drainer takes jobs off a host before its Nomad is restarted, and lets them
// come back.
type Drainer struct {
	Nomad *cluster.Nomad
	// Drain asks for it. Without it, only a node that an earlier run has drained is
	// made eligible again.
	Drain bool
	// Deadline is how long jobs may take to go elsewhere; then they are stopped.
	Deadline time.Duration
	// Poll is how often Nomad is asked whether it's done; 0 is once a second.
	Poll time.Duration
}

// node finds the node of a host that may get jobs; empty: there is none to drain,
// since it is ineligible already, and whoever made it so has a reason.
func (d *Drainer) node(ctx context.Context, name string) (id string, err error) {
	nodes, _, err := d.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", d.explain("looking for the node "+name, err)
	}
	var found []*nomad.NodeListStub
	for _, n := range nodes {
		// A node that is down may be what the host was before it was installed again.
		if n.Name == name && n.Status == nomad.NodeStatusReady {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 0:
		return "", fmt.Errorf("there is no ready node called %s for Nomad at %s: without --drain its Nomad is restarted nevertheless", name, d.Nomad.Address)
	case len(found) > 1:
		return "", fmt.Errorf("there are %d ready nodes called %s for Nomad at %s: drain the right one by hand, and leave --drain out", len(found), name, d.Nomad.Address)
	case found[0].SchedulingEligibility != nomad.NodeSchedulingEligible:
		return "", nil
	}
	return found[0].ID, nil
}

// drain waits until the node has no jobs any more. Those of type system stay.
func (d *Drainer) drain(ctx context.Context, id string) error {
	const doing = "draining the node"
	options := &nomad.DrainOptions{
		DrainSpec: &nomad.DrainSpec{Deadline: d.Deadline, IgnoreSystemJobs: true}, Meta: map[string]string{"message": "kiln apply"},
	}
	if _, err := d.Nomad.Nodes().UpdateDrainOpts(id, options, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return d.explain(doing, err)
	}
	poll := d.Poll
	if poll == 0 {
		poll = time.Second
	}
	for {
		node, _, err := d.Nomad.Nodes().Info(id, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return d.explain(doing, err)
		}
		if node.DrainStrategy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

// eligible lets the node have jobs again.
func (d *Drainer) eligible(ctx context.Context, id string) error {
	_, err := d.Nomad.Nodes().UpdateDrainOpts(id, &nomad.DrainOptions{MarkEligible: true}, (&nomad.WriteOptions{}).WithContext(ctx))
	return d.explain("making the node eligible again", err)
}

func (d *Drainer) explain(doing string, err error) error {
	if err = cluster.Explain(cluster.ServiceNomad, d.Nomad.Address, err); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
