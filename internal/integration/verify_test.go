//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/internal/lab"
)

// operator is whoever runs kiln verify beside the cluster: with a certificate, a
// key for ssh, and tokens.
type operator struct {
	*guest
	golden *golden
	env    []string
	ssh    string // the configuration file
	old    string // the host's node before it was installed anew
}

// newOperator lets alice, who may use sudo, log in to the host.
func (g *guest) newOperator(t *testing.T, golden *golden) *operator {
	t.Helper()
	// It outlives this part of the test.
	dir := filepath.Join(filepath.Dir(golden.site), "operator-"+g.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "key")
	if out, err := exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g.sh(t, "printf '%s\\n' '"+strings.TrimSpace(read(t, dir, "key.pub"))+"' >>~alice/.ssh/authorized_keys")
	name := g.name + ".example.org"
	place(t, filepath.Join(dir, "known_hosts"), name+" "+g.sh(t, "cat /etc/ssh/ssh_host_ed25519_key.pub"))
	own := issued(t, g.Config.TLS, "operator.example.org")
	place(t, filepath.Join(dir, "ca.pem"), string(g.Config.TLS.PEM))
	place(t, filepath.Join(dir, "cert.pem"), string(own.Cert))
	place(t, filepath.Join(dir, "key.pem"), string(own.Key))
	o := &operator{guest: g, golden: golden, ssh: filepath.Join(dir, "ssh_config"), env: []string{
		"NOMAD_ADDR=https://10.66.0.2:4646", "NOMAD_TLS_SERVER_NAME=server1.example.org", "NOMAD_TOKEN=" + management,
		"NOMAD_CACERT=" + filepath.Join(dir, "ca.pem"), "NOMAD_CLIENT_CERT=" + filepath.Join(dir, "cert.pem"), "NOMAD_CLIENT_KEY=" + filepath.Join(dir, "key.pem"),
		"CONSUL_HTTP_ADDR=http://10.66.0.2:8500", "CONSUL_HTTP_TOKEN=" + management,
		"KILN_TEST_GOSSIP=" + gossipKey, "KILN_TEST_AGENT=" + agentToken, "KILN_TEST_NOMAD=" + nomadToken,
	}}
	o.reachAt(t, g.address)
	return o
}

// reachAt has ssh look for the host there: the name servers of a site are told of a
// new address like that.
func (o *operator) reachAt(t *testing.T, address string) {
	t.Helper()
	dir := filepath.Dir(o.ssh)
	place(t, o.ssh, fmt.Sprintf("Host %[1]s\nHostName %[2]s\nHostKeyAlias %[1]s\nUserKnownHostsFile %[3]s\nIdentityFile %[4]s\nIdentitiesOnly yes\n",
		o.name+".example.org", address, filepath.Join(dir, "known_hosts"), filepath.Join(dir, "key")))
}

// command is a call of kiln in the cluster's network.
func (o *operator) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := o.Cluster.Space.Command(t.Context(), append([]string{o.golden.kiln}, args...)...)
	cmd.Env = append(cmd.Env, o.env...)
	return cmd
}

// kiln runs kiln verify.
func (o *operator) kiln(t *testing.T, site string, args ...string) (out, said string, status int) {
	t.Helper()
	// The lab's certificates are valid for a day.
	return ended(t, o.command(t, append([]string{"verify", "--site", site, "--expires-within", "1h"}, args...)...))
}

// ended runs a command to its end: what it printed, and its exit status.
func ended(t *testing.T, cmd *exec.Cmd) (out, said string, status int) {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(b), stderr.String(), status
}

// finds wants verify to find exactly that, a line for each finding: its check and
// its object.
func (o *operator) finds(t *testing.T, site, want string, args ...string) {
	t.Helper()
	out, said, status := o.kiln(t, site, append(args, o.name, "--json")...)
	var result struct{ Hosts []verify.Report }
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.Hosts) != 1 {
		t.Fatalf("kiln verify: exit status %d, %v\n%s%s", status, err, out, said)
	}
	var found []string
	for _, f := range result.Hosts[0].Findings {
		found = append(found, strings.TrimSpace(string(f.Check)+" "+f.Object))
	}
	if got := strings.Join(found, "\n"); got != want || (status == 0) != (want == "") || status > 1 {
		t.Errorf("kiln verify %s: exit status %d, found:\n%s\nnot:\n%s\n%s%s", strings.Join(args, " "), status, got, want, out, said)
	}
	for _, secret := range []string{gossipKey, agentToken, nomadToken, management} {
		if strings.Contains(out+said, secret) {
			t.Errorf("kiln verify shows a secret:\n%s%s", out, said)
		}
	}
}

// isVerified has kiln look at a host that has joined: as it is, then with one
// thing after the other changed. In the end its agent is another node: it takes a
// while until the servers miss the old one.
func (g *guest) isVerified(t *testing.T, golden *golden) *operator {
	t.Helper()
	o := g.newOperator(t, golden)
	ssh := []string{"--ssh", "--ssh-config", o.ssh, "--ssh-user", "alice"}
	site := golden.site
	g.until(t, "all of it has started", func() bool {
		out, _ := g.try(t, "systemctl is-system-running")
		return strings.TrimSpace(out) == "running"
	})
	o.finds(t, site, "")
	o.finds(t, site, "", ssh...)
	o.finds(t, site, "", append(ssh, "--with-secrets")...)

	g.sh(t, "systemctl stop kiln-grid.timer && echo '# mine' >>/etc/dnsmasq.d/kiln.conf && echo '# mine' >>/etc/consul.d/consul.hcl && chmod 644 /etc/nomad.d/nomad.hcl")
	o.finds(t, site, "unit kiln-grid.timer\nfile /etc/consul.d/consul.hcl\nfile /etc/dnsmasq.d/kiln.conf\nfile /etc/nomad.d/nomad.hcl", ssh...)
	o.finds(t, site, "") // the cluster doesn't see it
	g.sh(t, "systemctl start kiln-grid.timer && sed -i '/^# mine/d' /etc/dnsmasq.d/kiln.conf /etc/consul.d/consul.hcl && chmod 600 /etc/nomad.d/nomad.hcl")
	o.finds(t, site, "", ssh...)

	o.siteDiffers(t)
	o.ineligible(t)
	o.registeredTwice(t)
	o.newerThanServers(t)
	o.expires(t, ssh)
	o.refused(t)
	o.installAnew(t)
	return o
}

// siteDiffers has the site say something else of the host than what it is.
func (o *operator) siteDiffers(t *testing.T) {
	site := filepath.Join(t.TempDir(), "site")
	if err := os.CopyFS(site, os.DirFS(o.golden.site)); err != nil {
		t.Fatal(err)
	}
	hosts := strings.Replace(read(t, site, "hosts.yaml"), "- name: "+o.name+"\n", "- name: "+o.name+"\n  advertise: 10.66.0.29\n  reserve: 0.25\n"+
		"  vars: {docker: true, node_class: big, nomad_meta: {rack: b12}}\n", 1)
	place(t, filepath.Join(site, "hosts.yaml"), hosts)
	place(t, filepath.Join(site, "site.yaml"), strings.NewReplacer("datacenter: ci", "datacenter: dc2", "/etc/grid-security, ca:", "/etc/other, ca:").Replace(read(t, site, "site.yaml")))
	o.finds(t, site, "nomad-datacenter\nnomad-class node_class\nnomad-address\nnomad-meta rack\nnomad-volume grid\nnomad-driver docker\n"+
		"reservation cpu\nreservation disk\nreservation memory\nconsul-node datacenter\nconsul-address")
}

func (o *operator) ineligible(t *testing.T) {
	nodes, err := o.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := func(to string) {
		id := nodes[o.name+".example.org"].ID
		if err := o.Do(t.Context(), http.MethodPut, o.NomadURL("/v1/node/"+id+"/eligibility"), map[string]string{"NodeID": id, "Eligibility": to}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set("ineligible")
	o.finds(t, o.golden.site, "nomad-eligible")
	set("eligible")
}

// refused: real servers that don't answer as they should.
func (o *operator) refused(t *testing.T) {
	env := o.env
	defer func() { o.env = env }()
	for _, c := range []struct{ change, says string }{
		{"NOMAD_TOKEN=", "NOMAD_TOKEN"},
		{"CONSUL_HTTP_TOKEN=11111111-2222-3333-4444-555555555555", "CONSUL_HTTP_TOKEN"},
		{"NOMAD_CACERT=", "NOMAD_CACERT"},
		{"NOMAD_CLIENT_CERT= NOMAD_CLIENT_KEY=", "NOMAD_CLIENT_CERT"},
		{"NOMAD_TLS_SERVER_NAME=other.example.org", "for another name"},
		{"NOMAD_ADDR=http://10.66.0.2:4646", "write https://"},
		{"CONSUL_HTTP_ADDR=http://10.66.0.2:8599", "nobody answers there"},
	} {
		o.env = append(env[:len(env):len(env)], strings.Fields(c.change)...)
		if out, said, status := o.kiln(t, o.golden.site, o.name); status != 2 || out != "" || !strings.Contains(said, c.says) {
			t.Errorf("with %s: exit status %d\n%s%s", c.change, status, out, said)
		}
	}
}

// installAnew gives the host another identity at Nomad, as an installation does.
func (o *operator) installAnew(t *testing.T) {
	t.Helper()
	before, err := o.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.old = before[o.name+".example.org"].ID
	o.sh(t, "systemctl stop nomad && rm -rf /build/nomad/client && systemctl start nomad")
}

// namesOldNode wants the old entry to be named, and not to be taken for the host.
func (o *operator) namesOldNode(t *testing.T) {
	o.until(t, "it is a new node", func() bool {
		var list []struct{ ID, Name, Status string }
		if o.Get(t.Context(), o.NomadURL("/v1/nodes"), &list) != nil {
			return false
		}
		gone, ready := false, false
		for _, n := range list {
			gone = gone || n.ID == o.old && n.Status == "down"
			ready = ready || n.ID != o.old && n.Name == o.name+".example.org" && n.Status == "ready"
		}
		services, err := o.Services(t.Context(), "nomad-client")
		registered := slices.ContainsFunc(services, func(s lab.Service) bool { return s.ServiceAddress == o.address })
		return gone && ready && registered && err == nil
	})
	o.finds(t, o.golden.site, "nomad-duplicate "+o.old[:8])
}
