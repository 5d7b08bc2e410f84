package leftovers

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/remote"
)

// Route says how the agents of hosts are reached.
type Route struct {
	// Via is the only way to go; empty is the API at the node's address, and ssh
	// where that isn't reached, or would let a token go through the network in
	// clear text.
	Via Via
	// Port is that of the agents' API; 0 is the usual one.
	Port int
	// SSH reaches the hosts, by the names of their Consul nodes.
	SSH *remote.Dialer
}

// Via is a way to an agent.
type Via string

// The ways.
const (
	ViaHTTP Via = "http"
	ViaSSH  Via = "ssh"
)

// agent is the API of the Consul agent that a node is.
type agent struct {
	*cluster.Consul
	source *Source
	host   *remote.Host // where it's reached over ssh
	lists  bool         // the entry in question
}

func (a *agent) String() string { return "the agent at " + a.Address }

func (a *agent) close() {
	if a.host != nil {
		_ = a.host.Close() // what there was to say is said
	}
}

// sshTime is what ssh may take, besides the request, to connect and log in.
const sshTime = 15 * time.Second

func (a *agent) ask(ctx context.Context, ask func(*consul.QueryOptions) error) error {
	longest := cmp.Or(a.source.Timeout, DefaultTimeout)
	if a.host != nil {
		longest += sshTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errSlow)
	defer cancel()
	return ask(new(consul.QueryOptions).WithContext(ctx))
}

// explain says what an error means. The way out of one of the network isn't another
// CONSUL_HTTP_ADDR, since the agent's address is the catalog's.
func (a *agent) explain(err error, rule string) error {
	_, distrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case cluster.StatusOf(err) != 0 || distrusted:
		return explain(a.Consul, err, rule)
	case a.host == nil && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("asking Consul at %s: it took too long to answer: %w", a.Address, unwrapURL(err))
	}
	return fmt.Errorf("asking Consul at %s: %w", a.Address, unwrapURL(err))
}

// unwrapURL takes away what net/http says of the request: its address isn't one
// that anybody outside the host can use.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// service is what the agent itself has registered under an ID.
func (a *agent) service(ctx context.Context, id string) (service *consul.AgentService, err error) {
	err = a.ask(ctx, func(q *consul.QueryOptions) (err error) {
		service, _, err = a.Agent().Service(id, q)
		return err
	})
	return service, err
}

// name is the agent's node.
func (a *agent) name(ctx context.Context) (string, error) {
	var self struct{ Config struct{ NodeName string } }
	err := a.ask(ctx, func(q *consul.QueryOptions) error {
		_, err := a.Raw().Query("/v1/agent/self", &self, q)
		return err
	})
	return self.Config.NodeName, err
}

// owner reaches the agent of the entry's node, and finds out whether that lists
// the entry. The error says of each way why it led nowhere; it is errAnswered if the
// agent is there all the same.
func (r *Remover) owner(ctx context.Context, o *Outcome) (*agent, error) {
	if err := r.learn(ctx); err != nil {
		return nil, err
	}
	if r.own == o.Node {
		a := &agent{Consul: r.Source.Consul, source: r.Source}
		return a, a.identify(ctx, o)
	}
	var failed []error
	for _, way := range []func(*Outcome) (*agent, error){r.overHTTP, r.overSSH} {
		a, err := way(o)
		if a == nil && err == nil {
			continue // this way isn't to be gone
		}
		if err == nil {
			if err = a.ofCluster(ctx, r.leader); err == nil {
				err = a.identify(ctx, o)
			}
			if err == nil {
				return a, nil
			}
			a.close()
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, err)
		if errors.Is(err, errAnswered) {
			break // another way leads to the same answer
		}
	}
	return nil, joined(failed)
}

// learn asks the Consul that was named, once, whose agent it is, and which server
// leads its cluster.
func (r *Remover) learn(ctx context.Context) (err error) {
	if r.leader != "" {
		return nil
	}
	named := &agent{Consul: r.Source.Consul, source: r.Source}
	// It serves as the way to the catalog; if it doesn't say who it is, as no more.
	r.own, _ = named.name(ctx)
	if r.leader, err = named.leads(ctx); err == nil && r.leader == "" {
		err = errors.New("there is no leader")
	}
	return cluster.Explain(cluster.ServiceConsul, named.Address, err)
}

// errAnswered is that the right agent answered, but not as one would have it.
var errAnswered = errors.New("it answered")

// answered is an error that is errAnswered, too.
type answered struct{ error }

func (answered) Is(target error) bool { return target == errAnswered }
func (a answered) Unwrap() error      { return a.error }

// anonymous is the token of those who have none.
const anonymous = "anonymous"

// leads is the server that leads the agent's cluster. It doesn't take a token to
// ask, and none is shown.
func (a *agent) leads(ctx context.Context) (leader string, err error) {
	err = a.ask(ctx, func(q *consul.QueryOptions) (err error) {
		q.Token = anonymous
		leader, err = a.Status().LeaderWithQueryOptions(q)
		return err
	})
	return leader, err
}

// ofCluster makes sure that the agent is of this cluster, before it gets to see the
// token: the address of a node that is gone may be somebody else's by now.
func (a *agent) ofCluster(ctx context.Context, leader string) error {
	its, err := a.leads(ctx)
	switch {
	case err != nil:
		return a.explain(err, "")
	case its != leader:
		return fmt.Errorf("%s isn't of this cluster: its leader is %q, not %s", a, its, leader)
	}
	return nil
}

// identify finds out whether the agent lists the entry; and, if it doesn't,
// whether it is the right agent.
func (a *agent) identify(ctx context.Context, o *Outcome) error {
	service, err := a.service(ctx, o.ID)
	if err == nil {
		if listed := (&Entry{Address: service.Address, Port: service.Port}); listed.endpoint().compare(o.endpoint()) != same {
			return answered{fmt.Errorf("%s lists %s for %s, and not for %s: look again, something has changed", a, o.ID, listed.Endpoint(), o.Endpoint())}
		}
		a.lists = true
		return nil
	}
	if cluster.StatusOf(err) != http.StatusNotFound {
		return a.refused(err, `service "`+o.Service+`" { policy = "write" }`)
	}
	name, err := a.name(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%s doesn't list %s, and doesn't say whose agent it is: %w", a, o.ID, a.refused(err, `agent "`+o.Node+`" { policy = "read" }`))
	case name != o.Node:
		return fmt.Errorf("%s is that of the node %s, not of %s", a, name, o.Node)
	}
	return nil
}

// refused is explain for an agent that may have answered.
func (a *agent) refused(err error, rule string) error {
	if cluster.StatusOf(err) != 0 {
		return answered{a.explain(err, rule)}
	}
	return a.explain(err, rule)
}

// overHTTP is the agent's API at the node's address.
func (r *Remover) overHTTP(o *Outcome) (*agent, error) {
	if r.Route.Via == ViaSSH {
		return nil, nil //nolint:nilnil // see owner
	}
	c, err := cluster.NewConsulAgent(o.Node, o.NodeAddress, r.Route.Port)
	if err != nil {
		return nil, err
	}
	if r.Route.Via == "" && exposes(r.Source.Consul.Address, c.Address) {
		return nil, fmt.Errorf("%s isn't asked: the token would go through the network in clear text (--via http does it all the same)", c.Address)
	}
	return &agent{Consul: c, source: r.Source}, nil
}

// exposes tells whether a token that never left this machine in clear text would
// do so on the way to an agent.
func exposes(own, agent string) bool {
	if !cluster.ConsulTokenSet() || strings.HasPrefix(agent, "https://") || loopback(agent) {
		return false
	}
	return strings.HasPrefix(own, "https://") || strings.HasPrefix(own, "unix://") || loopback(own)
}

// loopback tells whether an address, with or without http:// and a port, is on this
// machine.
func loopback(address string) bool {
	_, after, found := strings.Cut(address, "://")
	if found {
		address = after
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// overSSH is the agent's API as the host itself reaches it.
func (r *Remover) overSSH(o *Outcome) (*agent, error) {
	if r.Route.Via == ViaHTTP {
		return nil, nil //nolint:nilnil // see owner
	}
	if !isHostName(o.Node) {
		return nil, fmt.Errorf("%q can't be the name of a host for ssh", o.Node)
	}
	host, err := cmp.Or(r.Route.SSH, new(remote.Dialer)).Dial(o.Node)
	if err != nil {
		return nil, err
	}
	port := cmp.Or(r.Route.Port, cluster.ConsulPort)
	c, err := cluster.NewConsulVia(&tunnel{host, port}, fmt.Sprintf("127.0.0.1:%d on %s, over ssh", port, o.Node))
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return &agent{Consul: c, source: r.Source, host: host}, nil
}

// isHostName keeps what anybody wrote into the catalog from meaning more to ssh
// than a host.
func isHostName(name string) bool {
	for _, c := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", c) {
			return false
		}
	}
	return name != "" && name[0] != '-'
}

// ways are why none of several led anywhere.
type ways []error

func joined(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return ways(errs)
}

func (w ways) Error() string {
	texts := make([]string, len(w))
	for i, err := range w {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; and ")
}

func (w ways) Unwrap() []error { return w }
