package verify

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/alisw/kiln/plan"
)

// expected is what a plan says of its host that others can see. It is read from
// the rendered configurations of the agents, which a profile of anybody's has,
// and not from anything that only Kiln's own profiles do.
type expected struct {
	host     string
	nomad    *nomadAgent  // nil: the plan has no configuration of one
	consul   *consulAgent // likewise
	reserved plan.Reservation
	units    []plan.Unit
	forward  bool // dnsmasq sends .consul to the cluster
}

// nomadAgent is what Nomad's configuration says.
type nomadAgent struct {
	name       string // empty: the host's own
	region     string
	datacenter string
	address    netip.Addr // that it advertises; invalid where only the host knows
	client     bool
	server     bool
	class      string
	pool       string
	meta       map[string]string
	volumes    map[string]volume
	drivers    []string // sorted
	service    string   // that it registers in Consul; empty is none
	https      bool
	cert       string // the file of its certificate; empty is none
	reserved   settings
}

// volume is a folder of the host that jobs can ask for.
type volume struct {
	path     string
	readOnly bool
}

// consulAgent is what Consul's configuration says.
type consulAgent struct {
	name       string // empty: the host's own
	datacenter string
	address    netip.Addr
	server     bool
	cert       string
}

// Where the agents' configurations are.
const (
	nomadDir   = "/etc/nomad.d"
	consulDir  = "/etc/consul.d"
	dnsmasqDir = "/etc/dnsmasq.d"
)

// expect reads from a plan what is expected of its host. The plan's secrets are
// best left unresolved: none is needed.
func expect(p *plan.Plan) (*expected, error) {
	e := &expected{host: p.Host.Name, reserved: p.Host.Reserved, units: units(p), forward: forwards(p)}
	nomad, err := settingsIn(p, nomadDir)
	if err != nil {
		return nil, err
	}
	if nomad != nil {
		e.nomad = expectNomad(nomad)
	}
	consul, err := settingsIn(p, consulDir)
	if err != nil {
		return nil, err
	}
	if consul != nil {
		e.consul = expectConsul(consul)
	}
	return e, nil
}

func expectNomad(s settings) *nomadAgent {
	client := s.block("client")
	n := &nomadAgent{
		name: s.text("name"), region: cmp.Or(s.text("region"), "global"), datacenter: cmp.Or(s.text("datacenter"), "dc1"),
		client: client.bool("enabled", false), server: s.block("server").bool("enabled", false), class: client.text("node_class"), pool: cmp.Or(client.text("node_pool"), "default"),
		meta: map[string]string{}, volumes: map[string]volume{}, reserved: client.block("reserved"), drivers: drivers(s),
		https: s.block("tls").bool("http", false), cert: s.block("tls").text("cert_file"),
	}
	for name := range client.block("meta") {
		n.meta[name] = client.block("meta").text(name)
	}
	for name := range client.block("host_volume") {
		v := client.block("host_volume", name)
		n.volumes[name] = volume{v.text("path"), v.bool("read_only", false)}
	}
	if consul := s.block("consul"); consul.bool("auto_advertise", true) {
		n.service = cmp.Or(consul.text("client_service_name"), "nomad-client")
	}
	for _, said := range []string{s.block("advertise").text("http"), s.block("addresses").text("http"), s.text("bind_addr")} {
		if said != "" {
			n.address = literal(said)
			break
		}
	}
	return n
}

func expectConsul(s settings) *consulAgent {
	c := &consulAgent{name: s.text("node_name"), server: s.bool("server", false), datacenter: cmp.Or(s.text("datacenter"), "dc1"), cert: cmp.Or(s.block("tls", "defaults").text("cert_file"), s.text("cert_file"))}
	for _, said := range []string{s.text("advertise_addr"), s.text("bind_addr")} {
		if said != "" {
			c.address = literal(said)
			break
		}
	}
	return c
}

// taskDrivers are the plugins that run tasks, among all that a plugin block can
// be about: those that Nomad has itself, and well-known others.
var taskDrivers = []string{"containerd-driver", "docker", "exec", "exec2", "java", "podman", "qemu", "raw_exec", "virt"}

// onlyIfEnabled are drivers that a plugin block doesn't switch on by itself.
var onlyIfEnabled = []string{"raw_exec"}

// drivers are the task drivers that a configuration asks for.
func drivers(s settings) []string {
	var out []string
	for name := range s.block("plugin") {
		config := s.block("plugin", name, "config")
		if name == "nomad-driver-podman" {
			name = "podman"
		}
		if slices.Contains(taskDrivers, name) && config.bool("enabled", !slices.Contains(onlyIfEnabled, name)) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// units are those of both halves; the Host half has the last word.
func units(p *plan.Plan) []plan.Unit {
	of := map[string]plan.Unit{}
	for _, half := range [][]plan.Unit{p.Image.Units, p.Host.Units} {
		for _, u := range half {
			of[u.Name] = u
		}
	}
	var out []plan.Unit
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, of[name])
	}
	return out
}

// forwards tells whether dnsmasq is told to ask the cluster for .consul.
func forwards(p *plan.Plan) bool {
	for _, half := range [][]plan.File{p.Image.Files, p.Host.Files} {
		for _, f := range half {
			if path.Dir(f.Path) != dnsmasqDir && f.Path != "/etc/dnsmasq.conf" {
				continue
			}
			text, err := f.Content.Bytes()
			if err != nil {
				continue // whoever renders it, says so
			}
			for line := range bytes.Lines(text) {
				if strings.HasPrefix(strings.TrimSpace(string(line)), "server=/consul/") {
					return true
				}
			}
		}
	}
	return false
}
