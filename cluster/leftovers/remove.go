package leftovers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/alisw/kiln/cluster"
)

// Remover removes entries, each where that lasts. Source has to be set.
type Remover struct {
	Source *Source
	Route  Route
	// Settle is how long an agent may take to tell the servers that an entry is
	// gone; 0 is [DefaultSettle].
	Settle time.Duration
	Poll   time.Duration // between two looks at the catalog; 0 is [DefaultPoll]

	own    string // the node whose agent Source.Consul is
	leader string // the cluster's; empty until both were asked for
}

// The defaults of a Remover.
const (
	DefaultSettle = 10 * time.Second
	DefaultPoll   = 2 * time.Second
)

// Outcome is what became of an entry that was to be removed.
type Outcome struct {
	Finding
	// Removed tells that the catalog doesn't have it any more: that was read back.
	Removed bool
	// How says what was asked to remove it.
	How string
	// Notes are what an operator has to know, though it is removed.
	Notes []string
	// Err says why it isn't removed, or came back; nil where all is well.
	Err error
}

// serfHealth is the check that a Consul agent's life is, as the others see it.
const serfHealth = "serfHealth"

// Remove removes an entry that was found to be stale, and still is: on the agent that registered it, or, where that is
// gone or doesn't have it, in the catalog. Then it reads back that it is gone.
func (r *Remover) Remove(ctx context.Context, f Finding) *Outcome {
	o := &Outcome{Finding: f}
	if f.Verdict != Stale || f.Node == "" || f.ID == "" || !f.ofClient() {
		o.Err = fmt.Errorf("%s on %s isn't proven to be left over, and stays", f.ID, f.Node)
		return o
	}
	if o.Err = r.still(ctx, &f); o.Err == nil {
		o.Err = r.remove(ctx, o)
	}
	o.Removed = o.Err == nil
	return o
}

// still makes sure that the entry is stale now: who found it may have waited for
// an answer, or for the removal of others.
func (r *Remover) still(ctx context.Context, f *Finding) error {
	state, err := r.Source.Gather(ctx)
	if err != nil {
		return err
	}
	if state.Nomad != nil {
		return fmt.Errorf("it isn't proven any more to be left over: %w", state.Nomad)
	}
	now := Judge(state)
	i := slices.IndexFunc(now, func(n Finding) bool { return n.key() == f.key() })
	switch {
	case i < 0:
		return errors.New("it isn't left over any more: it is gone, or in order")
	case now[i].Verdict != Stale:
		return fmt.Errorf("it isn't proven any more to be left over: %s", now[i].Why)
	case now[i].Endpoint() != f.Endpoint():
		return fmt.Errorf("it is another entry by now, for %s", now[i].Endpoint())
	}
	return nil
}

func (r *Remover) remove(ctx context.Context, o *Outcome) error {
	life, err := r.life(ctx, o.Node)
	if err != nil {
		return err
	}
	if life == "" {
		o.Notes = append(o.Notes, "no Consul agent stands behind the node: somebody wrote it into the catalog, and may write it again")
		return r.inCatalog(ctx, o)
	}
	agent, err := r.owner(ctx, o)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil && life != consul.HealthPassing && !errors.Is(err, errAnswered):
		// The others alone may be wrong: for half a minute after an agent has changed its
		// address, they take it for dead.
		o.Notes = append(o.Notes, fmt.Sprintf("the Consul agent of %s is gone, as the others see it, and isn't reached (%s); if it comes back with its old data_dir, it registers the entry again: look once more then", o.Node, err))
		return r.inCatalog(ctx, o)
	case err != nil:
		return fmt.Errorf("it has to be deregistered on the agent of %s (from the catalog alone it would come back within minutes), and that fails: %w", o.Node, err)
	}
	defer agent.close()
	if !agent.lists {
		o.Notes = append(o.Notes, fmt.Sprintf("the agent of %s doesn't list it", o.Node))
		return r.inCatalog(ctx, o)
	}
	return r.onAgent(ctx, o, agent)
}

// life is the state of the check that stands for the node's agent, empty where the
// node has none.
func (r *Remover) life(ctx context.Context, node string) (string, error) {
	ctx, cancel := r.Source.within(ctx)
	defer cancel()
	checks, meta, err := r.Source.Consul.Health().Node(node, new(consul.QueryOptions).WithContext(ctx))
	if err != nil {
		return "", cluster.Explain(cluster.ServiceConsul, r.Source.Consul.Address, err)
	}
	i := slices.IndexFunc(checks, func(c *consul.HealthCheck) bool { return c.CheckID == serfHealth })
	switch {
	case i >= 0:
		return checks[i].Status, nil
	case meta.ResultsFilteredByACLs:
		return "", fmt.Errorf("whether the agent of %s lives can't be seen: asking Consul at %s: %w", node, r.Source.Consul.Address, ErrHidden)
	}
	return "", nil
}

// onAgent deregisters the entry on the agent that registered it.
func (r *Remover) onAgent(ctx context.Context, o *Outcome, agent *agent) error {
	o.How = agent.String()
	err := agent.ask(ctx, func(q *consul.QueryOptions) error { return agent.Agent().ServiceDeregisterOpts(o.ID, q) })
	// Somebody else may have been faster.
	if err != nil && cluster.StatusOf(err) != http.StatusNotFound {
		return agent.explain(err, `service "`+o.Service+`" { policy = "write" }`)
	}
	if _, err := agent.service(ctx, o.ID); cluster.StatusOf(err) != http.StatusNotFound {
		if err != nil {
			return fmt.Errorf("it was deregistered, but whether that worked can't be seen: %w", agent.explain(err, `service "`+o.Service+`" { policy = "read" }`))
		}
		return fmt.Errorf("%s said that it deregistered it, and still lists it: a Nomad that advertises %s seems to run there, and to register it again", agent, o.Endpoint())
	}
	gone, err := r.awaitGone(ctx, o, cmp.Or(r.Settle, DefaultSettle))
	if gone || err != nil {
		return err
	}
	// Consul's agent deletes with its own token, and only logs that it may not. It
	// has forgotten the entry, so that it never registers it again.
	weak := fmt.Sprintf("%s deregistered it, but without effect on the catalog: the agent's own token (acl.tokens.agent) lacks node_prefix or node %q { policy = \"write\" }, or is unknown; its log says \"Service deregistration blocked by ACLs\". Give it that, or this happens again", agent, o.Node)
	if err := r.inCatalog(ctx, o); err != nil {
		return fmt.Errorf("%s; and the catalog: %w", weak, err)
	}
	o.How = agent.String() + ", then the catalog"
	o.Notes = append(o.Notes, weak)
	return nil
}

// inCatalog removes the entry from the catalog alone.
func (r *Remover) inCatalog(ctx context.Context, o *Outcome) error {
	o.How = "the catalog"
	within, cancel := r.Source.within(ctx)
	defer cancel()
	_, err := r.Source.Consul.Catalog().Deregister(&consul.CatalogDeregistration{Node: o.Node, ServiceID: o.ID}, new(consul.WriteOptions).WithContext(within))
	if err != nil {
		return explain(r.Source.Consul, err, `service "`+o.Service+`" { policy = "write" }, or node "`+o.Node+`" { policy = "write" }`)
	}
	gone, err := r.awaitGone(ctx, o, r.poll())
	if err == nil && !gone {
		err = fmt.Errorf("it was removed from the catalog, and is there again: an agent of %s lives, and registered it", o.Node)
	}
	return err
}

func (r *Remover) poll() time.Duration { return cmp.Or(r.Poll, DefaultPoll) }

// awaitGone waits until the catalog doesn't have the entry, but no longer than
// that, and tells whether it's gone.
func (r *Remover) awaitGone(ctx context.Context, o *Outcome, longest time.Duration) (bool, error) {
	end := time.Now().Add(longest)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, r.poll()) {
		present, err := r.present(ctx)
		if err != nil {
			return false, fmt.Errorf("it was deregistered, but whether that worked can't be seen: %w", err)
		}
		if !present[o.key()] {
			return true, nil
		}
		if !time.Now().Before(end) {
			return false, nil
		}
		if err := sleep(ctx, pause); err != nil {
			return false, fmt.Errorf("it was deregistered, but whether that worked wasn't waited for: %w", err)
		}
	}
}

// key is what an entry is told from others by.
type key struct{ node, id string }

func (e *Entry) key() key { return key{e.Node, e.ID} }

// present are the entries that the catalog has now.
func (r *Remover) present(ctx context.Context) (map[key]bool, error) {
	entries, _, err := r.Source.entries(ctx)
	if err != nil {
		return nil, err
	}
	present := make(map[key]bool, len(entries))
	for _, e := range entries {
		present[e.key()] = true
	}
	return present, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// explain adds which rule of a policy a token lacks.
func explain(c *cluster.Consul, err error, rule string) error {
	explained := cluster.Explain(cluster.ServiceConsul, c.Address, err)
	if cluster.StatusOf(err) == http.StatusForbidden {
		return fmt.Errorf("%w: it needs %s", explained, rule)
	}
	return explained
}
