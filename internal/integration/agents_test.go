//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

const (
	gossipKey  = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvUwy7Cu5s="
	management = "4c2d7d4e-0000-4000-8000-000000000001"
	agentToken = "4c2d7d4e-0000-4000-8000-000000000002"
	nomadToken = "4c2d7d4e-0000-4000-8000-000000000003"
	// hostile would change the meaning of any file that it isn't quoted in.
	hostile = "\"}${HOME}{{key}}%{\\`'\nsecond line"
)

// The addresses of these tests are private ones: go-sockaddr, which chooses one
// on the host, passes over those that are reserved for documentation.

// clusterSite is a site with everything that the shipped profiles can use, and
// a profile of its own that puts a hostile secret into both agents' metadata.
func clusterSite(t *testing.T) *profiles.Site {
	t.Helper()
	return site(t, map[string]string{
		"site.yaml": `
domain: example.org
datacenter: ci
region: alice
servers: {join: [server2.example.org, server1.example.org], nomad: 1.10.5, consul: 1.22.2}
vault_address: https://vault.service.consul:8200
# One of each is dead.
dns: {consul: [10.66.0.98, "10.66.0.2#8600"], upstream: [10.66.0.99, 10.66.0.53]}
time_servers: [10.66.0.53, ntp.example.org]
tls: {directory: /etc/grid-security, ca: ca.pem}
secrets:
  consul_encrypt: env://ENCRYPT
  consul_agent_token: env://AGENT
  nomad_consul_token: env://NOMAD
  hostile: env://HOSTILE
vars:
  nomad_meta: {site: cern, "needs.quoting": "${attr} 50%{x}"}
`,
		"hosts.yaml": `
- name: build01
  profile: builder
  interfaces:
    host0: {mac: "52:54:00:12:34:56", addresses: [10.66.0.11/24]}
- name: build02
  profile: builder
  advertise: {interface: host0}
- name: build03
  profile: builder
  advertise: 10.66.0.11
  disks:
    - {mount: /build, disk: {serial: S3X1}, filesystem: ext4, options: noatime}
`,
		"profiles/builder/profile.yaml": `
description: Builders of this site
extends: [plain]
host:
  files:
    /etc/consul.d/50-site.hcl: {group: consul, mode: "0640"}
    /etc/nomad.d/50-site.hcl: {mode: "0600"}
`,
		"profiles/builder/host/etc/nomad.d/50-site.hcl.tmpl": `
client {
  meta {
    hostile = {{ secret "hostile" | hcl }}
  }

  # Only for these tests: there is no cloud to ask.
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
`,
		// An HTTPS port shows which certificate the agent has; the profile has none.
		"profiles/builder/host/etc/consul.d/50-site.hcl.tmpl": `
node_meta {
  hostile = {{ secret "hostile" | hcl }}
}

addresses {
  https = "127.0.0.1"
}

ports {
  https = 8501
}
`,
	})
}

func clusterSecrets() known {
	return known{"env://ENCRYPT": gossipKey, "env://AGENT": agentToken, "env://NOMAD": nomadToken, "env://HOSTILE": hostile}
}

// life is a host on its way from a golden image to a member of a cluster.
type life struct {
	*cluster
	site   *profiles.Site
	bare   *plan.Plan // with references
	plan   *plan.Plan // with secrets
	host   *container
	serial *big.Int // of the certificate that the host has
}

// TestHostComesToLife takes a host of the profile plain from its golden image
// to a member of a cluster, and through a renewal of its certificate.
func TestHostComesToLife(t *testing.T) {
	l := &life{cluster: newCluster(t), site: clusterSite(t)}
	l.bare = hostPlan(t, l.site, "build01")
	l.plan = l.resolved(t, "build01")
	if err := l.Cable(t.Context(), "host0"); err != nil {
		t.Fatal(err)
	}
	l.host = boot(t, l.space, l.plan, "host0", hashicorp(t, "consul")+":/usr/bin/consul", hashicorp(t, "nomad")+":/usr/bin/nomad")
	l.host.sh(t, "ip address add 10.66.0.11/24 dev host0 && ip link set host0 up && ip link set lo up && ip route add default via 10.66.0.1")
	for _, step := range []struct {
		name string
		f    func(t *testing.T)
	}{
		{"a golden image starts nothing by itself", l.golden},
		{"references keep the agents back", l.references},
		{"without a certificate the agents wait", l.waits},
		{"names are resolved with one of two servers dead", l.names},
		{"the certificate comes, and the host joins", l.joins},
		{"Consul has understood what the plan says", func(t *testing.T) { l.checkConsul(t, "build01.example.org") }},
		{"Nomad has understood what the plan says", l.checkNomad},
		{"the CI can read the key, others can't", l.readers},
		{"the agents take a renewed certificate", l.renewal},
		{"a reader who doesn't exist has nobody reload for ever", l.missingReader},
		{"new data without its secrets stops the agents, and not the names", l.incomplete},
		{"what was missing comes, and the agents start by themselves", l.comesLate},
		{"an address chosen on the host", l.chosenAddress},
		{"no agent starts on the bare mount point of a data disk", l.bareMountPoint},
	} {
		if !t.Run(step.name, step.f) {
			t.Fatalf("%s: what follows builds on it", step.name)
		}
	}
}

func (l *life) resolved(t *testing.T, name string) *plan.Plan {
	t.Helper()
	p, err := hostPlan(t, l.site, name).WithSecrets(t.Context(), clusterSecrets())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *life) active(t *testing.T, unit string) bool {
	t.Helper()
	_, status := l.host.try(t, "systemctl is-active --quiet "+unit)
	return status == 0
}

// says wants a unit's journal to hold a text.
func (l *life) says(t *testing.T, unit, text string) {
	t.Helper()
	if said := l.host.journal(t, unit); !strings.Contains(said, text) {
		t.Errorf("%s doesn't say %q, but: %s", unit, text, tail([]byte(said), 2000))
	}
}

func (l *life) nothingFailed(t *testing.T) {
	t.Helper()
	if failed := strings.TrimSpace(l.host.sh(t, "systemctl --failed --no-legend --plain")); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
}

func (l *life) golden(t *testing.T) {
	l.nothingFailed(t)
	for _, unit := range []string{"consul", "nomad", "dnsmasq"} {
		if l.active(t, unit) {
			t.Errorf("%s runs without a host's data", unit)
		}
	}
	l.says(t, "kiln-host", "no host data on this host yet")
	// The resolvers are those of the image.
	l.host.sh(t, "! grep -q 127.0.0.1 /etc/resolv.conf")
}

func (l *life) references(t *testing.T) {
	if l.host.deliver(t, l.bare) == 0 {
		t.Error("kiln-host is content with references")
	}
	l.says(t, "kiln-host", "/etc/consul.d/consul.hcl still waits for a secret: kiln-secret:env://AGENT kiln-secret:env://ENCRYPT")
	if l.active(t, "consul") || l.active(t, "nomad") {
		t.Error("an agent runs with a reference for a secret")
	}
}

func (l *life) waits(t *testing.T) {
	if status := l.host.deliver(t, l.plan); status != 0 {
		t.Fatalf("kiln-host: %s", l.host.journal(t, "kiln-host"))
	}
	eventually(t, "dnsmasq runs", func() bool { return l.active(t, "dnsmasq") })
	for _, agent := range []string{"consul", "nomad"} {
		eventually(t, agent+" says what it waits for", func() bool {
			return strings.Contains(l.host.journal(t, agent), "ConditionPathExists=/etc/grid-security")
		})
	}
	l.nothingFailed(t)
	l.says(t, "kiln-grid", "isn't there yet: consul and nomad start when it is")
}

// names resolves names on the host, each way that programs do.
func (l *life) names(t *testing.T) {
	right := func() bool {
		_, status := l.host.try(t, "test ! -L /etc/resolv.conf && cmp -s /etc/kiln/resolv.conf /etc/resolv.conf")
		return status == 0
	}
	eventually(t, "names are asked of dnsmasq", right)
	for _, c := range []struct{ how, address string }{
		{"getent ahostsv4 vault.service.consul", "10.66.0.1"},
		{"getent ahostsv4 server1.example.org", "10.66.0.2"},
		// Without systemd-resolved, and with nothing but it.
		{"getent --service=dns ahostsv4 vault.service.consul", "10.66.0.1"},
		{"resolvectl query --legend=no vault.service.consul", "10.66.0.1"},
	} {
		start := time.Now()
		out, status := l.host.try(t, c.how)
		if status != 0 || !strings.Contains(out, c.address) {
			t.Errorf("%s: exit status %d, %s", c.how, status, out)
		}
		// A resolver that waits for the dead server takes 5 seconds.
		if took := time.Since(start); took > 4500*time.Millisecond {
			t.Errorf("%s took %s", c.how, took)
		}
	}
	// A DHCP client writes the file, and it is put right again.
	l.host.sh(t, "echo nameserver 203.0.113.1 >/etc/resolv.conf")
	eventually(t, "the file of resolvers is put right", right)
}

// renew gives the host a new certificate, as renewals do: by renaming.
func (l *life) renew(t *testing.T) {
	t.Helper()
	own := issued(t, l.Config.TLS, "build01.example.org")
	l.serial = own.Serial
	l.host.put(t, "/etc/grid-security/hostcert.pem", own.Cert, "0444")
	l.host.put(t, "/etc/grid-security/hostkey.pem", own.Key, "0400")
}

func (l *life) joins(t *testing.T) {
	l.host.sh(t, "mkdir -m 0755 /etc/grid-security")
	l.host.put(t, "/etc/grid-security/ca.pem", l.Config.TLS.PEM, "0444")
	l.renew(t)
	eventually(t, "both agents run", func() bool { return l.active(t, "consul") && l.active(t, "nomad") })
	eventually(t, "Consul and Nomad agree on the host's address", func() bool {
		var services []struct{ Node, Address, ServiceAddress string }
		return l.get("http://10.66.0.2:8500/v1/catalog/service/nomad-client", &services) == nil && len(services) == 1 &&
			services[0].Node == "build01.example.org" && services[0].Address == "10.66.0.11" && services[0].ServiceAddress == "10.66.0.11" &&
			l.isReady("build01.example.org")
	})
}

// isReady tells whether the cluster's Nomad has this node, at the host's address.
func (l *life) isReady(name string) bool {
	var nodes []struct{ Name, Address, Status string }
	if l.get("https://10.66.0.2:4646/v1/nodes", &nodes) != nil {
		return false
	}
	for _, n := range nodes {
		if n.Name == name && n.Address == "10.66.0.11" && n.Status == "ready" {
			return true
		}
	}
	return false
}

// readers holds who can read the key against who should.
func (l *life) readers(t *testing.T) {
	t.Helper()
	for user, may := range map[string]bool{"mesosci": true, "mesosdaq": true, "consul": true, "dnsmasq": false, "nobody": false} {
		read := func() bool {
			_, status := l.host.try(t, "setpriv --reuid "+user+" --regid $(id -g "+user+") --init-groups cat /etc/grid-security/hostkey.pem >/dev/null")
			return status == 0
		}
		if may {
			eventually(t, user+" can read the key", read)
		} else if read() {
			t.Errorf("%s can read the key", user)
		}
	}
}

func (l *life) renewal(t *testing.T) {
	own := l.Client.Transport.(*http.Transport).TLSClientConfig.Certificates[0]
	const pids = "systemctl show --property MainPID --value consul nomad"
	before := l.host.sh(t, pids)
	l.renew(t)
	for name, address := range map[string]string{"Nomad": "10.66.0.11:4646", "Consul": "127.0.0.1:8501"} {
		eventually(t, name+" serves the new certificate", func() bool {
			got, err := l.host.serial(t, &own, address)
			return err == nil && got.Cmp(l.serial) == 0
		})
	}
	l.readers(t)
	if after := l.host.sh(t, pids); after != before {
		t.Errorf("the agents were restarted, and not just told: %q, before %q", after, before)
	}
}

func (l *life) missingReader(t *testing.T) {
	const told = "consul.service takes the new Grid certificate"
	before := strings.Count(l.host.journal(t, "kiln-grid"), told)
	l.host.sh(t, "echo 'readers=\"mesosci ghost mesosdaq\"' >>/etc/kiln/grid.sh")
	l.renew(t)
	eventually(t, "Consul is told of the certificate", func() bool { return strings.Count(l.host.journal(t, "kiln-grid"), told) > before })
	l.readers(t)
	// kiln-grid.path's runs are over before these.
	for range 2 {
		if _, status := l.host.try(t, "systemctl start kiln-grid.service"); status == 0 {
			t.Error("kiln-grid doesn't fail, though somebody gets no access")
		}
	}
	l.says(t, "kiln-grid", "there is no user ghost to give the Grid certificate to")
	settled := strings.Count(l.host.journal(t, "kiln-grid"), told)
	l.host.try(t, "systemctl start kiln-grid.service")
	if again := strings.Count(l.host.journal(t, "kiln-grid"), told); again != settled {
		t.Error("the agents are told of the same certificate again")
	}
}

func (l *life) incomplete(t *testing.T) {
	if l.host.deliver(t, l.bare) == 0 {
		t.Error("kiln-host is content with references")
	}
	eventually(t, "the agents stop", func() bool { return !l.active(t, "consul") && !l.active(t, "nomad") })
	eventually(t, "dnsmasq runs", func() bool { return l.active(t, "dnsmasq") })
	l.names(t)
}

func (l *life) comesLate(t *testing.T) {
	l.host.extract(t, l.plan)
	eventually(t, "kiln-host has tried again", func() bool { _, status := l.host.try(t, "test -e /etc/kiln/host-ready"); return status == 0 })
	eventually(t, "both agents run", func() bool { return l.active(t, "consul") && l.active(t, "nomad") })
	l.nothingFailed(t)
}

func (l *life) chosenAddress(t *testing.T) {
	if l.host.deliver(t, l.resolved(t, "build02")) != 0 {
		t.Errorf("kiln-host: %s", l.host.journal(t, "kiln-host"))
	}
	l.host.sh(t, "systemctl stop nomad consul && rm -rf /build/consul/* /build/nomad/* && systemctl start consul nomad")
	eventually(t, "build02 is a ready node", func() bool { return l.isReady("build02.example.org") })
	l.checkConsul(t, "build02.example.org")
}

func (l *life) bareMountPoint(t *testing.T) {
	l.host.sh(t, "systemctl set-environment KILN_DISK_WAIT=0 && systemctl stop nomad consul")
	if l.host.deliver(t, l.resolved(t, "build03")) == 0 {
		t.Error("kiln-host is content without the data disk")
	}
	l.says(t, "kiln-host", `/build: no disk fits the rule "serial S3X1"`)
	if _, status := l.host.try(t, "test -e /etc/kiln/host-ready"); status == 0 {
		t.Error("the host has its mark without its disk")
	}
	// A host that lost its disk at a later boot has the mark.
	l.host.sh(t, "sha256sum </etc/kiln/host.manifest | cut -d ' ' -f 1 >/etc/kiln/host-ready")
	for _, unit := range []string{"consul", "nomad"} {
		if out, status := l.host.try(t, "systemctl start "+unit); status == 0 || l.active(t, unit) || !strings.Contains(out, "Assertion failed") {
			t.Errorf("%s on the bare mount point: exit status %d, %s", unit, status, out)
		}
	}
	l.host.sh(t, "mount -t tmpfs tmpfs /build && install -d -o consul -g consul /build/consul && mkdir /build/nomad && systemctl start --no-block consul")
	eventually(t, "Consul starts once the disk is there", func() bool {
		return strings.TrimSpace(l.host.sh(t, "systemctl show --property MainPID --value consul")) != "0"
	})
}

// checkConsul compares what the agent made of its configuration with the plan.
func (l *life) checkConsul(t *testing.T, name string) {
	t.Helper()
	var self map[string]any
	eventually(t, "Consul's agent answers", func() bool { return getJSON(l.host.HTTP(nil), "http://127.0.0.1:8500/v1/agent/self", &self) == nil })
	for want, got := range map[string]any{
		name:            lookup(self, "Config", "NodeName"),
		"ci":            lookup(self, "Config", "Datacenter"),
		"/build/consul": lookup(self, "DebugConfig", "DataDir"),
		hostile:         lookup(self, "Meta", "hostile"),
	} {
		if got != want {
			t.Errorf("Consul has %q, not %q", got, want)
		}
	}
	for key, want := range map[string]any{
		"ServerMode": false, "LeaveOnTerm": false, "SkipLeaveOnInt": true, "EncryptKey": "hidden", "ACLsEnabled": true, "DisableUpdateCheck": nil,
		"TLS.InternalRPC.VerifyIncoming": true, "TLS.InternalRPC.VerifyOutgoing": true, "TLS.InternalRPC.VerifyServerHostname": false,
		"TLS.InternalRPC.CAFile": "/etc/grid-security/ca.pem", "TLS.InternalRPC.CertFile": "/etc/grid-security/hostcert.pem", "TLS.InternalRPC.KeyFile": "hidden",
	} {
		if want == nil {
			continue
		}
		if got := lookup(self, append([]string{"DebugConfig"}, strings.Split(key, ".")...)...); got != want {
			t.Errorf("Consul has %s = %v, not %v", key, got, want)
		}
	}
	if got := fmt.Sprintln(lookup(self, "Member", "Addr"), lookup(self, "DebugConfig", "AdvertiseAddrLAN"), lookup(self, "DebugConfig", "ClientAddrs")); got != "10.66.0.11 10.66.0.11 [127.0.0.1]\n" {
		t.Errorf("Consul's addresses: %s", got)
	}
	if got := fmt.Sprint(lookup(self, "DebugConfig", "RetryJoinLAN")); got != "[server2.example.org server1.example.org]" {
		t.Errorf("Consul joins %s", got)
	}
}

// checkNomad does the same for Nomad, and for what its server knows of it.
func (l *life) checkNomad(t *testing.T) {
	const address = "10.66.0.11"
	var self map[string]any
	if err := l.get("https://"+address+":4646/v1/agent/self", &self); err != nil {
		t.Fatal(err)
	}
	config := lookup(self, "config")
	for path, want := range map[string]any{
		"NodeName": "build01.example.org", "Region": "alice", "Datacenter": "ci", "DataDir": "/build/nomad", "BindAddr": address,
		"AdvertiseAddrs.HTTP": address + ":4646", "AdvertiseAddrs.RPC": address + ":4647", "LeaveOnInt": false, "LeaveOnTerm": false,
		"Server.Enabled": false, "Client.Enabled": true, "Client.Meta.allow_compilation": "true", "Client.Meta.site": "cern",
		"Client.Meta.needs.quoting": "${attr} 50%{x}", "Client.Meta.hostile": hostile,
		"TLSConfig.EnableHTTP": true, "TLSConfig.EnableRPC": true, "TLSConfig.VerifyHTTPSClient": true, "TLSConfig.VerifyServerHostname": false,
		"TLSConfig.CAFile": "/etc/grid-security/ca.pem", "TLSConfig.CertFile": "/etc/grid-security/hostcert.pem", "TLSConfig.KeyFile": "/etc/grid-security/hostkey.pem",
		"Telemetry.PrometheusMetrics": true, "Telemetry.PublishNodeMetrics": true, "Telemetry.PublishAllocationMetrics": true, "DisableUpdateCheck": true,
	} {
		keys := strings.Split(path, ".")
		if strings.HasSuffix(path, "needs.quoting") {
			keys = []string{"Client", "Meta", "needs.quoting"}
		}
		if got := lookup(config, keys...); got != want {
			t.Errorf("Nomad has %s = %v, not %v", path, got, want)
		}
	}
	blocks, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"RetryJoin":["server2.example.org","server1.example.org"]`, `"Addr":"https://vault.service.consul:8200"`, `"Addr":"127.0.0.1:8500"`,
		`"JWTAuthBackendPath":"jwt-nomad"`,
	} {
		if !bytes.Contains(blocks, []byte(want)) {
			t.Errorf("Nomad's configuration has no %s", want)
		}
	}
	l.checkNode(t, address)
	// TLS 1.3 reports a missing certificate with the first answer.
	if err := getJSON(l.space.HTTP(nil), "https://"+address+":4646/v1/agent/health", new(any)); err == nil {
		t.Error("Nomad's API answers a caller without a certificate")
	}
}

// checkNode compares what the cluster knows of the host.
func (l *life) checkNode(t *testing.T, address string) {
	t.Helper()
	var nodes []struct{ ID string }
	if err := l.get("https://10.66.0.2:4646/v1/nodes", &nodes); err != nil || len(nodes) != 1 {
		t.Fatalf("nodes: %v %v", nodes, err)
	}
	var node map[string]any
	if err := l.get("https://10.66.0.2:4646/v1/node/"+nodes[0].ID, &node); err != nil {
		t.Fatal(err)
	}
	for want, got := range map[string]any{
		hostile:              lookup(node, "Meta", "hostile"),
		"/etc/grid-security": lookup(node, "HostVolumes", "grid", "Path"),
		address + ":4646":    lookup(node, "HTTPAddr"),
		"linux":              lookup(node, "Attributes", "kernel.name"),
		"debian":             lookup(node, "Attributes", "os.name"),
	} {
		if got != want {
			t.Errorf("Nomad's server has %q, not %q", got, want)
		}
	}
	if lookup(node, "HostVolumes", "grid", "ReadOnly") != true {
		t.Errorf("the volume over the certificates can be written: %v", lookup(node, "HostVolumes"))
	}
}
