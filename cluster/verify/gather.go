package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/alisw/kiln/cluster"
)

// snapshot is what the cluster's servers say of all hosts together: a handful of
// lists, however many hosts there are.
type snapshot struct {
	region       string                         // of the Nomad that was asked
	servers      []*nomad.AgentMember           // Nomad's, of that region, dead ones too
	nomadServers []string                       // the versions of those that live
	nodes        map[string][]*nomadNode        // Nomad's, by name in lower case
	consulServer []string                       // the versions of Consul's servers
	isServer     map[string]bool                // those, by name in lower case
	members      map[string]*consul.Node        // Consul's nodes, by name in lower case
	byAddress    map[string][]*consul.Node      // the same, by address
	health       map[string]consul.HealthChecks // of Consul's nodes, those of the node itself
	services     map[string][]*consul.CatalogService
}

// nomadNode is a node as Nomad's list has it.
type nomadNode = nomad.NodeListStub

// gather asks Nomad and Consul for their lists, all at once.
func (v *Verifier) gather(ctx context.Context, wanted []*expected) (*snapshot, error) {
	s := &snapshot{}
	// Their names: whatever the profiles say, there are few.
	services := map[string]bool{}
	var agents, clients bool
	for _, e := range wanted {
		clients = clients || e.nomad != nil
		agents = agents || e.consul != nil
		if e.nomad != nil && e.nomad.client && e.consul != nil && e.nomad.service != "" {
			services[e.nomad.service] = true
		}
	}
	var questions []func() error
	if clients {
		questions = append(questions, func() error { return v.gatherNomad(ctx, s) })
	}
	if agents {
		lists := make(map[string]*[]*consul.CatalogService, len(services)+1)
		for name := range services {
			lists[name] = new([]*consul.CatalogService)
		}
		questions = append(questions, func() error { return v.gatherConsul(ctx, s, lists) })
	}
	return s, errors.Join(atTheSameTime(questions...)...)
}

// atTheSameTime asks several questions at once, and gives the errors in their
// order, so that the same trouble is told in the same words.
func atTheSameTime(questions ...func() error) []error {
	errs := make([]error, len(questions))
	var wg sync.WaitGroup
	for i, ask := range questions {
		wg.Go(func() { errs[i] = ask() })
	}
	wg.Wait()
	return errs
}

func (v *Verifier) gatherNomad(ctx context.Context, s *snapshot) error {
	ctx, cancel := v.bounded(ctx)
	defer cancel()
	query := (&nomad.QueryOptions{}).WithContext(ctx)
	var list []*nomadNode
	errs := atTheSameTime(func() (err error) {
		list, _, err = v.Nomad.Nodes().List(query)
		return err
	}, func() error {
		m, err := v.Nomad.Agent().MembersOpts(query)
		if err != nil {
			return err
		}
		s.region = m.ServerRegion
		for _, server := range m.Members {
			// All regions are among them, and for a while those that are gone.
			if s.region != "" && server.Tags["region"] != s.region {
				continue
			}
			s.servers = append(s.servers, server)
			if server.Status == "alive" {
				s.nomadServers = append(s.nomadServers, server.Tags["build"])
			}
		}
		return nil
	})
	if err := cmp.Or(errs...); err != nil {
		return cluster.Explain(cluster.ServiceNomad, v.Nomad.Address, late(ctx, err))
	}
	s.nodes = make(map[string][]*nomadNode, len(list))
	for _, n := range list {
		name := strings.ToLower(n.Name)
		s.nodes[name] = append(s.nodes[name], n)
	}
	for _, same := range s.nodes {
		// The one that lives comes first, else the one that was heard of last.
		slices.SortFunc(same, func(a, b *nomadNode) int {
			alive := func(n *nomadNode) int {
				if n.Status == nomad.NodeStatusReady {
					return 0
				}
				return 1
			}
			return cmp.Or(alive(a)-alive(b), cmp.Compare(b.ModifyIndex, a.ModifyIndex), cmp.Compare(a.ID, b.ID))
		})
	}
	return nil
}

func (v *Verifier) gatherConsul(ctx context.Context, s *snapshot, lists map[string]*[]*consul.CatalogService) error {
	ctx, cancel := v.bounded(ctx)
	defer cancel()
	query := (&consul.QueryOptions{}).WithContext(ctx)
	var nodes []*consul.Node
	var checks consul.HealthChecks
	questions := []func() error{func() (err error) {
		var meta *consul.QueryMeta
		nodes, meta, err = v.Consul.Catalog().Nodes(query)
		return whole(meta, err)
	}, func() (err error) {
		checks, _, err = v.Consul.Health().State(consul.HealthAny, query)
		return err
	}, func() error {
		servers, meta, err := v.Consul.Catalog().Service("consul", "", query)
		s.isServer = make(map[string]bool, len(servers))
		for _, server := range servers {
			s.isServer[strings.ToLower(server.Node)] = true
			s.consulServer = append(s.consulServer, cmp.Or(server.ServiceMeta["version"], server.NodeMeta["consul-version"]))
		}
		return whole(meta, err)
	}}
	for name, into := range lists {
		questions = append(questions, func() (err error) {
			var meta *consul.QueryMeta
			*into, meta, err = v.Consul.Catalog().Service(name, "", query)
			return whole(meta, err)
		})
	}
	if err := cmp.Or(atTheSameTime(questions...)...); err != nil {
		return cluster.Explain(cluster.ServiceConsul, v.Consul.Address, late(ctx, err))
	}
	s.members, s.byAddress = make(map[string]*consul.Node, len(nodes)), make(map[string][]*consul.Node, len(nodes))
	for _, n := range nodes {
		s.members[strings.ToLower(n.Node)] = n
		s.byAddress[n.Address] = append(s.byAddress[n.Address], n)
	}
	s.health = make(map[string]consul.HealthChecks, len(nodes))
	for _, c := range checks {
		name := strings.ToLower(c.Node)
		s.health[name] = append(s.health[name], c)
	}
	s.services = make(map[string][]*consul.CatalogService)
	for name, list := range lists {
		s.services[name] = *list
	}
	return nil
}

// whole is err, or that Consul left out of a list what the token may not see: it
// says so nowhere else, and what is missing from a list could be missing from the
// cluster, or stand there twice.
func whole(meta *consul.QueryMeta, err error) error {
	if err == nil && meta.ResultsFilteredByACLs {
		return errors.New("its answer isn't whole: the token in CONSUL_HTTP_TOKEN may not read all nodes and services: give it node:read and service:read")
	}
	return err
}

// bounded is a context for questions to an API.
func (v *Verifier) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(v.Timeout, DefaultTimeout))
}

// late is err, as what it comes from where time is up: the clients don't always
// pass that on.
func late(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) && !errors.Is(err, cause) {
		return errors.Join(err, cause)
	}
	return err
}

// node asks Nomad for all that it knows of a host's node; nil is that it has
// none. A node that goes away between the list and this question has none.
func (v *Verifier) node(ctx context.Context, e *expected, s *snapshot) (*nomad.Node, error) {
	if e.nomad == nil || !e.nomad.client {
		return nil, nil
	}
	same := s.nodesOf(e)
	if len(same) == 0 {
		return nil, nil
	}
	bounded, cancel := v.bounded(ctx)
	defer cancel()
	node, _, err := v.Nomad.Nodes().Info(same[0].ID, (&nomad.QueryOptions{}).WithContext(bounded))
	switch {
	case cluster.StatusOf(err) == http.StatusNotFound:
		return nil, nil
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("the node of %s: %w", e.host, cluster.Explain(cluster.ServiceNomad, v.Nomad.Address, late(bounded, err)))
	}
	return node, nil
}

// nodesOf are the entries of Nomad's for a host: by the name that its
// configuration says, else by the host's full name, else by its short one.
func (s *snapshot) nodesOf(e *expected) []*nomadNode {
	for _, name := range e.names(e.nomad.name) {
		if same := s.nodes[name]; len(same) > 0 {
			return same
		}
	}
	return nil
}

// memberOf is the entry of Consul's for a host, likewise.
func (s *snapshot) memberOf(e *expected) *consul.Node {
	for _, name := range e.names(e.consul.name) {
		if m := s.members[name]; m != nil {
			return m
		}
	}
	return nil
}

// names are those that an agent can have: what is said, in lower case, before
// the host's own.
func (e *expected) names(said string) []string {
	short, _, _ := strings.Cut(e.host, ".")
	names := []string{strings.ToLower(said), strings.ToLower(e.host), strings.ToLower(short)}
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}
