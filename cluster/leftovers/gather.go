package leftovers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/alisw/kiln/cluster"
)

// DefaultService is what Nomad's clients are called in Consul, unless their
// client_service_name says otherwise.
const DefaultService = "nomad-client"

// DefaultTimeout is how long one request may take.
const DefaultTimeout = 10 * time.Second

// Source is where the facts come from. Consul and Nomad have to be set.
type Source struct {
	Consul *cluster.Consul
	Nomad  *cluster.Nomad
	// Services are the names that Nomad's clients have in Consul; none is
	// [DefaultService].
	Services []string
	Timeout  time.Duration // of one request; 0 is [DefaultTimeout]
}

// errSlow is why a request was given up.
var errSlow = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

func (s *Source) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, cmp.Or(s.Timeout, DefaultTimeout), errSlow)
}

func (s *Source) services() []string {
	if len(s.Services) == 0 {
		return []string{DefaultService}
	}
	return s.Services
}

// Gather asks Consul for the entries, and Nomad for its nodes. It is an error if
// Consul can't be asked; if Nomad can't, the state says so, since that alone
// proves nothing wrong.
func (s *Source) Gather(ctx context.Context) (*State, error) {
	state := &State{}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		state.Entries, state.Filtered, err = s.entries(ctx)
		return err
	})
	group.Go(func() error {
		nodes, err := s.nodes(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		state.Nodes, state.Nomad = nodes, cluster.Explain(cluster.ServiceNomad, s.Nomad.Address, err)
		return nil
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return state, nil
}

// entries are those of Consul's catalog. With filtered, the token may not see all.
func (s *Source) entries(ctx context.Context) (entries []Entry, filtered bool, err error) {
	for _, name := range s.services() {
		list, hidden, err := s.entriesOf(ctx, name)
		if err != nil {
			return nil, false, err
		}
		entries, filtered = append(entries, list...), filtered || hidden
	}
	return entries, filtered, nil
}

func (s *Source) entriesOf(ctx context.Context, service string) ([]Entry, bool, error) {
	ctx, cancel := s.within(ctx)
	defer cancel()
	// What was just removed mustn't be read from a server that has it still.
	list, meta, err := s.Consul.Catalog().Service(service, "", (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, false, cluster.Explain(cluster.ServiceConsul, s.Consul.Address, err)
	}
	entries := make([]Entry, 0, len(list))
	for _, c := range list {
		entries = append(entries, Entry{
			Node: c.Node, NodeID: c.ID, NodeAddress: c.Address,
			ID: c.ServiceID, Service: c.ServiceName, Address: c.ServiceAddress, Port: c.ServicePort, Source: c.ServiceMeta["external-source"],
		})
	}
	return entries, meta.ResultsFilteredByACLs, nil
}

// atOnce is how many of Nomad's nodes are asked for at once.
const atOnce = 8

// nodes are Nomad's, of all its regions: two regions may have nodes of one name,
// and register them in one Consul.
func (s *Source) nodes(ctx context.Context) ([]Node, error) {
	var regions []string
	if err := s.askNomad(ctx, func(q *nomad.QueryOptions) error {
		_, err := s.Nomad.Raw().Query("/v1/regions", &regions, q)
		return err
	}); err != nil {
		return nil, err
	}
	slices.Sort(regions)
	var nodes []Node
	for _, region := range regions {
		found, err := s.nodesOf(ctx, region)
		if err != nil && len(regions) > 1 {
			err = fmt.Errorf("the region %s: %w", region, err)
		}
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, found...)
	}
	return nodes, nil
}

func (s *Source) nodesOf(ctx context.Context, region string) ([]Node, error) {
	var stubs []*nomad.NodeListStub
	if err := s.askNomad(ctx, func(q *nomad.QueryOptions) (err error) {
		q.Region = region
		stubs, _, err = s.Nomad.Nodes().List(q)
		return err
	}); err != nil {
		return nil, err
	}
	nodes := make([]Node, len(stubs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, stub := range stubs {
		// The list has no ports.
		nodes[i] = Node{Name: stub.Name, Region: region, Status: stub.Status, HTTPAddr: stub.Address}
		group.Go(func() error {
			return s.askNomad(ctx, func(q *nomad.QueryOptions) error {
				q.Region = region
				full, _, err := s.Nomad.Nodes().Info(stub.ID, q)
				if cluster.StatusOf(err) == http.StatusNotFound {
					nodes[i].Status = statusDown // it was removed meanwhile
					return nil
				}
				if err != nil {
					return err
				}
				nodes[i].Status, nodes[i].HTTPAddr = full.Status, full.HTTPAddr
				return nil
			})
		})
	}
	return nodes, group.Wait()
}

func (s *Source) askNomad(ctx context.Context, ask func(*nomad.QueryOptions) error) error {
	ctx, cancel := s.within(ctx)
	defer cancel()
	return ask((&nomad.QueryOptions{}).WithContext(ctx))
}

// ErrHidden is that Consul's token sees a part of the entries at most.
var ErrHidden = errors.New("its token may not see all that Consul has: give it a policy with node_prefix \"\" { policy = \"read\" } and service_prefix \"\" { policy = \"read\" }, and name it in CONSUL_HTTP_TOKEN")

// Blind says why nothing follows from what was found not: nil, or [ErrHidden].
// Without a token, Consul doesn't say that it hides anything; but where Nomad has
// ready nodes, and Consul none of their entries, something is wrong.
func (s *Source) Blind(state *State) error {
	if state.Filtered {
		return ErrHidden
	}
	if len(state.Entries) > 0 || !slices.ContainsFunc(state.Nodes, func(n Node) bool { return n.Status == statusReady }) {
		return nil
	}
	return fmt.Errorf("there is no service %s, while Nomad has ready nodes: either %w; or the nodes register themselves by another name (client_service_name): give that with --service",
		strings.Join(s.services(), " or "), ErrHidden)
}
