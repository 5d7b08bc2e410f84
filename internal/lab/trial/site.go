package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// asInit is the way out where the site isn't what the trial needs.
const asInit = "remove the site, to have it made anew as kiln init does"

// config is a lab in which the site's host finds the cluster that it's told of:
// the lab has the addresses that the site says.
func (t *trial) config(ctx context.Context) (lab.Config, error) {
	site, problems, err := profiles.Open(t.site)
	if err == nil {
		err = problems.Err()
	}
	if err != nil {
		return lab.Config{}, err
	}
	p, problems, err := site.Host(ctx, t.host)
	if err == nil {
		err = problems.Err()
	}
	if err != nil {
		return lab.Config{}, err
	}
	t.plan, t.host = p, p.Host.Name
	if site.File.TLS != nil || len(site.File.Secrets) > 0 {
		return lab.Config{}, fmt.Errorf("%s/site.yaml has certificates or secrets of its own, which the trial's servers don't know: %s", t.site, asInit)
	}
	c := lab.Config{
		Consul: filepath.Join(t.bin, "consul"), Nomad: filepath.Join(t.bin, "nomad"),
		Datacenter: site.File.Datacenter.Or("dc1"), Region: site.File.Region.Or("global"),
	}
	for _, name := range site.File.Servers.Join {
		c.Names = append(c.Names, name.V)
	}
	for _, text := range site.File.DNS.Upstream {
		err = errors.Join(err, addResolver(&c.Resolvers, text.V))
	}
	for _, text := range site.File.DNS.Consul {
		err = errors.Join(err, addResolver(&c.ConsulResolvers, text.V))
	}
	if err != nil {
		return lab.Config{}, err
	}
	return c, t.place(&c, p)
}

func addResolver(to *[]netip.Addr, text string) error {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("the trial's name servers answer at the usual port, not at %s: %s", text, asInit)
	}
	*to = append(*to, a)
	return nil
}

// place gives the servers an address in the host's network: that of the name
// server for .consul, which Consul's server is.
func (t *trial) place(c *lab.Config, p *plan.Plan) error {
	for _, n := range p.Host.Network.Interfaces {
		for _, a := range n.Addresses {
			if !a.Addr().Is4() || len(c.ConsulResolvers) == 0 || !a.Contains(c.ConsulResolvers[0]) {
				continue
			}
			c.Address = netip.PrefixFrom(c.ConsulResolvers[0], a.Bits())
			t.address = a.Addr()
			for _, g := range n.Gateways {
				if g.Is4() {
					c.More = append(c.More, g)
				}
			}
		}
	}
	if !c.Address.IsValid() || len(c.Names) == 0 {
		return fmt.Errorf("%s: for a trial, the host %s needs a fixed address in the network of the name server for .consul, and servers to join: %s", p.Host.Origin, t.host, asInit)
	}
	return nil
}

// secure gives the lab's cluster secrets, and a CA where hosts get certificates:
// nobody carries one to a machine that boots from the network.
func (t *trial) secure(c *lab.Config) (err error) {
	if !t.network {
		if c.TLS, err = lab.NewAuthority(); err != nil {
			return err
		}
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	c.Secrets = lab.Secrets{Gossip: base64.StdEncoding.EncodeToString(key), Management: token(), Agent: token(), Nomad: token()}
	return nil
}

// token is a new one, a UUID.
func token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// trialFile is a file beside the copy of the site: a secret of it, or one that is
// laid into the host.
type trialFile struct {
	name   string
	data   []byte
	mode   os.FileMode
	secret bool
}

// prepare makes a copy of the site that names the lab's secrets, and the host's
// certificate, which in real life comes from elsewhere, for kiln boot --put.
func (t *trial) prepare(c *lab.Config) (site string, put []string, err error) {
	site = filepath.Join(t.dir, "site")
	if err := os.CopyFS(site, os.DirFS(t.site)); err != nil {
		return "", nil, fmt.Errorf("copying the site: %w", err)
	}
	more := "\n# For the trial alone.\n"
	files := []trialFile{
		{"consul_encrypt", []byte(c.Secrets.Gossip), 0o600, true},
		{"consul_agent_token", []byte(c.Secrets.Agent), 0o600, true},
		{"nomad_consul_token", []byte(c.Secrets.Nomad), 0o600, true},
	}
	if c.TLS != nil {
		certificate, err := c.TLS.Issue(t.host)
		if err != nil {
			return "", nil, err
		}
		more += "tls: {directory: /etc/grid-security, ca: ca.pem, cert: hostcert.pem, key: hostkey.pem}\n"
		files = append(files,
			trialFile{"ca.pem", c.TLS.PEM, 0o644, false},
			trialFile{"hostcert.pem", certificate.Cert, 0o644, false},
			trialFile{"hostkey.pem", certificate.Key, 0o400, false})
	}
	more += "secrets:\n"
	for _, f := range files {
		name := filepath.Join(t.dir, f.name)
		if err := os.WriteFile(name, f.data, f.mode); err != nil {
			return "", nil, err
		}
		if f.secret {
			more += "  " + f.name + ": file://" + name + "\n"
		} else {
			put = append(put, name+":/etc/grid-security/"+f.name)
		}
	}
	file, err := os.OpenFile(filepath.Join(site, "site.yaml"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return "", nil, err
	}
	_, err = file.WriteString(more)
	return site, put, errors.Join(err, file.Close())
}

// show prints what the servers say of the host.
func (t *trial) show(n *lab.Node, services []lab.Service, seconds float64) {
	t.ui.Printf("%s came up in %.0f s. Nomad's server says:\n\n", t.host, seconds)
	there, kept := n.NodeResources, n.ReservedResources
	t.ui.Printf("  %-12s %s\n  %-12s %s\n  %-12s %s\n\n", "node", n.Name, "status", n.Status, "address", n.HTTPAddr)
	t.ui.Printf("  %-12s %10s %10s\n", "", "there is", "reserved")
	for _, row := range []struct {
		name        string
		there, kept int64
	}{
		{"processors", union(there.Cpu.ReservableCpuCores, kept.Cpu.ReservedCpuCores), int64(len(kept.Cpu.ReservedCpuCores))},
		{"MHz", there.Cpu.CpuShares, kept.Cpu.CpuShares},
		{"memory, MiB", there.Memory.MemoryMB, kept.Memory.MemoryMB},
		{"disk, MiB", there.Disk.DiskMB, kept.Disk.DiskMB},
	} {
		t.ui.Printf("  %-12s %10d %10d\n", row.name, row.there, row.kept)
	}
	var names []string
	for _, s := range services {
		names = append(names, s.Node+" at "+s.ServiceAddress)
	}
	t.ui.Printf("\nand Consul's, of the service nomad-client: %s\n", strings.Join(names, ", "))
}

// union counts processors that are in either list: those that are reserved aren't
// always among the reservable ones.
func union(a, b []int) int64 {
	all := map[int]bool{}
	for _, n := range slices.Concat(a, b) {
		all[n] = true
	}
	return int64(len(all))
}

// check holds what the server says against the profile.
func (t *trial) check(n *lab.Node) error {
	if want := netip.AddrPortFrom(t.address, 4646).String(); n.HTTPAddr != want {
		return fmt.Errorf("the host %s is at %s for Nomad's server, not at %s", n.Name, n.HTTPAddr, want)
	}
	for _, row := range []struct {
		name        string
		there, kept int64
	}{
		{"MHz", n.NodeResources.Cpu.CpuShares, n.ReservedResources.Cpu.CpuShares},
		{"memory", n.NodeResources.Memory.MemoryMB, n.ReservedResources.Memory.MemoryMB},
	} {
		// Nomad and the kernel count a little differently.
		if off := 2*row.kept - row.there; row.kept == 0 || off < -row.there/50 || off > row.there/50 {
			return fmt.Errorf("half of the %s should be kept from Nomad: %d of %d are", row.name, row.kept, row.there)
		}
	}
	return nil
}
