package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Config is what a cluster is to be like. Consul, Nomad, Address and Names have
// to be set.
type Config struct {
	Consul, Nomad string // the programs

	Datacenter, Region string // by default dc1 and global

	// Address is the servers', with the length of the network's prefix; More are
	// further ones that the lab has, a gateway's for instance.
	Address netip.Prefix
	More    []netip.Addr

	// Names are those of the servers, as hosts are told to join them. The first is
	// in the servers' certificate. The Resolvers know all of them.
	Names []string
	// Resolvers answer for Names and Records, and for nothing else.
	Resolvers []netip.Addr
	Records   map[string]netip.Addr
	// ConsulResolvers answer, at the usual port, for .consul alone. Consul's
	// server itself does at port 8600 of Address.
	ConsulResolvers []netip.Addr
	// Vault is the address of the service vault that Consul has; by default the
	// servers'. Nobody is there: it's for looking it up.
	Vault netip.Addr

	// TLS has all speak TLS, with certificates of this CA; nil is nobody.
	TLS *Authority
	// Secrets are those of the cluster. Without a gossip key there is no
	// encryption of gossip, without a management token there are no ACLs.
	Secrets Secrets
	// NomadACL has Nomad, too, ask its callers for a token: the management token.
	NomadACL bool
}

// Secrets of a cluster: a key in base64, and tokens, which are UUIDs.
type Secrets struct {
	Gossip     string
	Management string // may do everything
	Agent      string // of Consul agents
	Nomad      string // of Nomad's clients, for Consul
}

// Cluster is a network with servers of Consul and Nomad in it.
type Cluster struct {
	*Space
	Config Config
	// Client speaks to whoever is in the network, with a certificate of the CA. It
	// doesn't check names: one speaks to addresses here.
	Client *http.Client

	servers []*Daemon
	names   []string // of servers
}

// startTime is how long the servers may take until they answer.
const startTime = 2 * time.Minute

// dir is the servers' directory in the space, gone with it: /run is memory there.
const dir = "/run/kiln-lab"

// NewCluster makes a network, with a bridge that containers and machines are
// plugged into, and starts its servers. It lives until ctx ends or Close is
// called.
func NewCluster(ctx context.Context, config Config) (_ *Cluster, err error) {
	if config.Datacenter == "" {
		config.Datacenter = "dc1"
	}
	if config.Region == "" {
		config.Region = "global"
	}
	if !config.Vault.IsValid() {
		config.Vault = config.Address.Addr()
	}
	if config.Consul == "" || config.Nomad == "" || !config.Address.IsValid() || len(config.Names) == 0 {
		return nil, errors.New("a lab needs the programs consul and nomad, the servers' address, and a name of theirs")
	}
	space, err := NewSpace(ctx)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Space: space, Config: config}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, errors.New("it takes too long"))
	defer cancel()
	if err := os.Mkdir(c.outside(dir), 0o700); err != nil {
		return nil, err
	}
	addresses := []netip.Prefix{config.Address}
	for _, more := range [][]netip.Addr{config.More, config.Resolvers, config.ConsulResolvers} {
		for _, a := range more {
			if a != config.Address.Addr() {
				addresses = append(addresses, netip.PrefixFrom(a, c.bits(a)))
			}
		}
	}
	if err := c.makeBridge(ctx, addresses); err != nil {
		return nil, err
	}
	if err := c.startResolvers(); err != nil {
		return nil, err
	}
	if err := c.startServers(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// bits is how much of an address is the network's.
func (c *Cluster) bits(a netip.Addr) int {
	if c.Config.Address.Contains(a) {
		return c.Config.Address.Bits()
	}
	return a.BitLen()
}

// Logs has what each server said last.
func (c *Cluster) Logs() string {
	var b strings.Builder
	for i, d := range c.servers {
		fmt.Fprintf(&b, "%s said:\n%s\n", c.names[i], d.Log())
	}
	return b.String()
}

// serve starts one of the cluster's servers.
func (c *Cluster) serve(name string, argv ...string) error {
	d, err := c.Start(argv...)
	if err != nil {
		return err
	}
	c.servers, c.names = append(c.servers, d), append(c.names, name)
	return nil
}

// await waits for something of the servers, as long as they run.
func (c *Cluster) await(ctx context.Context, what string, ok func() bool) error {
	return Wait(ctx, what, func() (bool, error) {
		for _, d := range c.servers {
			if err := d.ended(); err != nil {
				return false, err
			}
		}
		return ok(), nil
	})
}

func (c *Cluster) startResolvers() error {
	server := c.Config.Address.Addr()
	if len(c.Config.Resolvers) > 0 {
		known := map[string]netip.Addr{}
		for _, name := range c.Config.Names {
			known[name] = server
		}
		for name, a := range c.Config.Records {
			known[name] = a
		}
		if err := c.dnsmasq("the resolver", c.Config.Resolvers, records(known)...); err != nil {
			return err
		}
	}
	if len(c.Config.ConsulResolvers) > 0 {
		return c.dnsmasq("the resolver for .consul", c.Config.ConsulResolvers, "--server=/consul/"+server.String()+"#8600")
	}
	return nil
}

// startServers starts Consul, tells it of its tokens, and starts Nomad.
func (c *Cluster) startServers(ctx context.Context) error {
	if c.Config.TLS != nil {
		certificate, err := c.Config.TLS.Issue(c.Config.Names[0])
		if err != nil {
			return err
		}
		own, err := certificate.TLS()
		if err != nil {
			return err
		}
		c.Client = c.HTTP(&own)
		if err := errors.Join(c.write("ca.pem", c.Config.TLS.PEM), c.write("cert.pem", certificate.Cert), c.write("key.pem", certificate.Key)); err != nil {
			return err
		}
	} else {
		c.Client = c.HTTP(nil)
	}
	if err := errors.Join(c.write("consul.hcl", []byte(c.consulConfig())), c.write("nomad.hcl", []byte(c.nomadConfig()))); err != nil {
		return err
	}
	if err := c.serve("Consul's server", c.Config.Consul, "agent", "-config-file="+filepath.Join(dir, "consul.hcl")); err != nil {
		return err
	}
	if err := c.serve("Nomad's server", c.Config.Nomad, "agent", "-config="+filepath.Join(dir, "nomad.hcl")); err != nil {
		return err
	}
	err := c.await(ctx, "Consul's server has a leader", func() bool {
		var leader string
		return c.Get(ctx, c.ConsulURL("/v1/status/leader"), &leader) == nil && leader != ""
	})
	if err != nil {
		return err
	}
	if err := c.fillConsul(ctx); err != nil {
		return err
	}
	return c.await(ctx, "Nomad's server has a leader", func() bool {
		var leader string
		if c.Get(ctx, c.NomadURL("/v1/status/leader"), &leader) != nil || leader == "" {
			return false
		}
		if !c.Config.NomadACL {
			return true
		}
		bootstrap := map[string]string{"BootstrapSecret": c.Config.Secrets.Management}
		return c.Do(ctx, http.MethodPost, c.NomadURL("/v1/acl/bootstrap"), bootstrap, nil) == nil || c.Get(ctx, c.NomadURL("/v1/nodes"), new(any)) == nil
	})
}

// fillConsul makes the tokens that hosts have, and a service to look up.
func (c *Cluster) fillConsul(ctx context.Context) error {
	put := func(path string, body any) error {
		return c.await(ctx, "Consul takes "+path, func() bool { return c.Do(ctx, http.MethodPut, c.ConsulURL(path), body, nil) == nil })
	}
	if c.Config.Secrets.Management != "" {
		for _, token := range []struct{ name, id, rules string }{
			{"agent", c.Config.Secrets.Agent, `node_prefix "" { policy = "write" } service_prefix "" { policy = "read" }`},
			{"nomad", c.Config.Secrets.Nomad, `agent_prefix "" { policy = "read" } node_prefix "" { policy = "read" } service_prefix "" { policy = "write" }`},
		} {
			if err := put("/v1/acl/policy", map[string]any{"Name": token.name, "Rules": token.rules}); err != nil {
				return err
			}
			if err := put("/v1/acl/token", map[string]any{"SecretID": token.id, "Policies": []any{map[string]any{"Name": token.name}}}); err != nil {
				return err
			}
		}
	}
	return put("/v1/catalog/register", map[string]any{
		"Node": "vault1", "Address": c.Config.Vault.String(), "Service": map[string]any{"Service": "vault", "Port": 8200},
	})
}

func (c *Cluster) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(c.outside(dir), name), content, 0o600)
}

// consulConfig is the configuration of Consul's server.
func (c *Cluster) consulConfig() string {
	var b strings.Builder
	address := c.Config.Address.Addr()
	fmt.Fprintf(&b, `server = true
bootstrap_expect = 1
node_name = "server1"
datacenter = %q
data_dir = %q
bind_addr = %q
client_addr = %[3]q
disable_update_check = true
performance {
  raft_multiplier = 1
}
`, c.Config.Datacenter, filepath.Join(dir, "consul"), address)
	if c.Config.Secrets.Gossip != "" {
		fmt.Fprintf(&b, "encrypt = %q\n", c.Config.Secrets.Gossip)
	}
	if c.Config.Secrets.Management != "" {
		fmt.Fprintf(&b, `acl {
  enabled = true
  default_policy = "deny"
  tokens {
    initial_management = %q
    default = %[1]q
  }
}
`, c.Config.Secrets.Management)
	}
	if c.Config.TLS != nil {
		fmt.Fprintf(&b, `tls {
  defaults {
    ca_file = %q
    cert_file = %q
    key_file = %q
    verify_incoming = true
    verify_outgoing = true
  }
  internal_rpc {
    verify_server_hostname = false
  }
}
`, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	}
	return b.String()
}

// nomadConfig is the configuration of Nomad's server.
func (c *Cluster) nomadConfig() string {
	var b strings.Builder
	address := c.Config.Address.Addr()
	fmt.Fprintf(&b, `name = "server1"
region = %q
datacenter = %q
data_dir = %q
bind_addr = %q
disable_update_check = true
server {
  enabled = true
  bootstrap_expect = 1
}
consul {
  address = "%[4]s:8500"
  token = %[5]q
}
acl {
  enabled = %[6]t
}
`, c.Config.Region, c.Config.Datacenter, filepath.Join(dir, "nomad"), address, c.Config.Secrets.Management, c.Config.NomadACL)
	if c.Config.TLS != nil {
		fmt.Fprintf(&b, `tls {
  http = true
  rpc = true
  ca_file = %q
  cert_file = %q
  key_file = %q
  verify_https_client = true
  verify_server_hostname = false
}
`, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	}
	return b.String()
}

// requestTime bounds a request to a server.
const requestTime = 10 * time.Second

// HTTP is a client in the space's network, which shows a certificate where it is
// asked for one, and doesn't check names.
func (s *Space) HTTP(own *tls.Certificate) *http.Client {
	transport := &http.Transport{
		DialContext:       s.Dial,
		DisableKeepAlives: true,
		// A certificate holds a name, and one speaks to addresses here.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	if own != nil {
		transport.TLSClientConfig.Certificates = []tls.Certificate{*own}
	}
	return &http.Client{Transport: transport, Timeout: requestTime}
}
