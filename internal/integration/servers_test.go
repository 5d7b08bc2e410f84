//go:build integration

package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// founding is a cluster that comes up from nothing, by the book: with the site and
// the commands of docs/servers.md.
type founding struct {
	*space
	whole    *testing.T // hosts live as long as it does
	desk     *desk
	files    map[string]string // the site's
	commands []string          // the document's, block by block
	servers  []*container
	operator *http.Client // with a certificate
}

// serverAddress is the address of a server, by its number from 1.
func serverAddress(n int) string { return fmt.Sprintf("192.0.2.%d", 20+n) }

// TestServersFromNothing has three hosts of the profile server become a cluster:
// with TLS, gossip keys and ACLs from the first moment on.
func TestServersFromNothing(t *testing.T) {
	t.Parallel()
	f := newFounding(t)
	for _, step := range []struct {
		name string
		f    func(t *testing.T)
	}{
		{"without a certificate all three wait", f.wait},
		{"they find each other and have leaders", f.lead},
		{"Consul's tokens", f.consulTokens},
		{"Nomad's first token", f.nomadToken},
		{"Vault", f.vault},
		{"who brings no token gets nothing", f.closed},
		{"a host of the profile plain joins", f.client},
		{"a renewed certificate doesn't seal Vault", f.renewal},
		{"a restarted Vault waits for its keys", f.restart},
	} {
		if !t.Run(step.name, step.f) {
			t.Fatalf("%s: what follows builds on it", step.name)
		}
	}
	if left := len(f.commands); left > 0 {
		t.Errorf("%d blocks of docs/servers.md weren't run: %q", left, f.commands)
	}
}

var (
	commandBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	fileBlock    = regexp.MustCompile("(?ms)^```yaml\n# ([a-z]+\\.yaml)\n(.*?)^```$")
	diskLine     = regexp.MustCompile(`(?m)^  disks: .*\n`)
)

// newFounding reads the document, makes the network, and what the desk has before
// there is a host.
func newFounding(t *testing.T) *founding {
	f := &founding{space: newSpace(t), whole: t, files: map[string]string{}}
	document := read(t, repository(t), "docs/servers.md")
	for _, m := range commandBlock.FindAllStringSubmatch(document, -1) {
		f.commands = append(f.commands, m[1])
	}
	for _, m := range fileBlock.FindAllStringSubmatch(document, -1) {
		f.files[m[1]] = diskLine.ReplaceAllString(m[2], "") // there are no disks here
	}
	f.sh(t, `set -e
		ip link add lab0 type bridge
		ip address add 192.0.2.1/24 dev lab0
		ip address add 192.0.2.53/24 dev lab0
		ip link set lab0 up
		for nic in host1 host2 host3 host4; do
			ip link add up-$nic type veth peer name $nic
			ip link set up-$nic master lab0 up
		done
		rm -f /etc/resolv.conf
		echo nameserver 192.0.2.53 >/etc/resolv.conf`)
	resolver := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file", "--listen-address=192.0.2.53"}
	for n := range 3 {
		resolver = append(resolver, fmt.Sprintf("--address=/server%d.example.org/%s", n+1, serverAddress(n+1)))
	}
	f.daemon(t, resolver...)
	f.desk = newDesk(t, f.space)
	f.follow(t, "openssl req -x509")
	f.follow(t, "consul keygen")
	own, err := tls.X509KeyPair([]byte(f.desk.run(t, "cat ca/operator.pem")), []byte(f.desk.run(t, "cat ca/operator.key")))
	if err != nil {
		t.Fatal(err)
	}
	f.operator = f.HTTP(&own)
	return f
}

// follow runs the next block of the document, which has those words in it.
func (f *founding) follow(t *testing.T, words string) string {
	t.Helper()
	if len(f.commands) == 0 || !strings.Contains(f.commands[0], words) {
		t.Fatalf("the next block of docs/servers.md isn't the one with %q: %q", words, f.commands)
	}
	block := f.commands[0]
	f.commands = f.commands[1:]
	return f.desk.run(t, block)
}

// Resolve takes secrets from the desk's store.
func (f *founding) Resolve(ctx context.Context, ref plan.Ref) (plan.Secret, error) {
	out, err := f.Command(ctx, "sh", "-c", storeEnvironment+`pass show "$1" | head -n 1`, "sh", strings.TrimPrefix(string(ref), "pass://")).Output()
	return plan.NewSecret(strings.TrimSpace(string(out))), err
}

// host is a host of the site, with its secrets.
func (f *founding) host(t *testing.T, s *profiles.Site, name string) *plan.Plan {
	t.Helper()
	p, err := hostPlan(t, s, name).WithSecrets(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start boots a host, and plugs it into the network.
func (f *founding) start(t *testing.T, p *plan.Plan, nic, address string) *container {
	t.Helper()
	c := boot(f.whole, f.space, p, nic, hashicorp(t, "consul")+":/usr/bin/consul", hashicorp(t, "nomad")+":/usr/bin/nomad", hashicorp(t, "vault")+":/usr/bin/vault")
	c.sh(t, fmt.Sprintf(`set -e
		ip link set lo up
		ip address add %s/24 dev %s
		ip link set %[2]s up
		ip route add default via 192.0.2.1
		ip route add unreachable 169.254.0.0/16 # no cloud is here`, address, nic))
	return c
}

// certify gives a host its certificate.
func (f *founding) certify(t *testing.T, c *container) {
	t.Helper()
	c.sh(t, "mkdir -p -m 0755 /etc/grid-security")
	name := c.plan.Host.Name
	c.put(t, "/etc/grid-security/ca.pem", []byte(f.desk.run(t, "cat ca/ca.pem")), "0444")
	c.put(t, "/etc/grid-security/hostcert.pem", []byte(f.desk.run(t, "cat ca/"+name+".pem")), "0444")
	c.put(t, "/etc/grid-security/hostkey.pem", []byte(f.desk.run(t, "cat ca/"+name+".key")), "0400")
}

func (f *founding) wait(t *testing.T) {
	s := site(t, f.files)
	f.servers = make([]*container, 3)
	t.Run("boot", func(t *testing.T) {
		for n := range f.servers {
			p := f.host(t, s, fmt.Sprintf("server%d.example.org", n+1))
			t.Run(p.Host.Hostname, func(t *testing.T) {
				t.Parallel()
				c := f.start(t, p, fmt.Sprintf("host%d", n+1), serverAddress(n+1))
				if c.deliver(t, p) != 0 {
					t.Fatalf("kiln-host: %s", c.journal(t, "kiln-host"))
				}
				eventually(t, "nothing is still to be started", func() bool { return strings.Contains(c.sh(t, "systemctl list-jobs"), "No jobs") })
				for _, unit := range []string{"consul", "nomad", "vault"} {
					eventually(t, unit+" was skipped", func() bool {
						return c.sh(t, "systemctl show --property ConditionResult --property ActiveState --value "+unit) == "inactive\nno\n"
					})
				}
				f.servers[n] = c
			})
		}
	})
	for _, c := range f.servers {
		if c == nil {
			t.FailNow()
		}
		f.certify(t, c)
	}
}

// ask asks a server's API, and says whether there was an answer.
func (f *founding) ask(port, n int, token, path string, into any) bool {
	url := fmt.Sprintf("https://%s:%d%s", serverAddress(n), port, path)
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	for _, header := range []string{"X-Consul-Token", "X-Nomad-Token", "X-Vault-Token"} {
		request.Header.Set(header, token)
	}
	return answered(f.operator, request, into)
}

// answered sends a request, and reads the answer from JSON: whether it was a good
// one.
func answered(client *http.Client, request *http.Request, into any) bool {
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK && json.NewDecoder(response.Body).Decode(into) == nil
}

// leadersOf waits until Consul and Nomad on a server know leaders, and three
// servers each.
func (f *founding) leadersOf(t *testing.T, n int) {
	t.Helper()
	for name, port := range map[string]int{"Consul": 8501, "Nomad": 4646} {
		eventually(t, fmt.Sprintf("%s on server%d has a leader and three servers", name, n), func() bool {
			var leader string
			var peers []string
			return f.ask(port, n, "", "/v1/status/leader", &leader) && leader != "" && f.ask(port, n, "", "/v1/status/peers", &peers) && len(peers) == 3
		})
	}
}

func (f *founding) lead(t *testing.T) {
	for n := 1; n <= 3; n++ {
		f.leadersOf(t, n)
		eventually(t, fmt.Sprintf("Vault on server%d answers, and has nothing yet", n), func() bool {
			var status struct{ Initialized, Sealed bool }
			return f.ask(8200, n, "", "/v1/sys/seal-status", &status) && !status.Initialized && status.Sealed
		})
	}
	// As whom they run, and what of the key's folder they can read.
	for unit, user := range map[string]string{"consul": "consul", "nomad": "nomad", "vault": "vault"} {
		if got := strings.TrimSpace(f.servers[0].sh(t, "ps -o user= -p $(systemctl show --property MainPID --value "+unit+")")); got != user {
			t.Errorf("%s runs as %q", unit, got)
		}
	}
	if out := f.servers[0].sh(t, "stat -c '%U:%G %a %n' /etc/vault.d/vault.env /etc/vault.d/vault.hcl /etc/nomad.d/nomad.hcl /build/*"); out != "root:root 600 /etc/vault.d/vault.env\nroot:vault 640 /etc/vault.d/vault.hcl\nroot:nomad 640 /etc/nomad.d/nomad.hcl\n"+
		"consul:consul 750 /build/consul\nnomad:nomad 700 /build/nomad\nvault:vault 700 /build/vault\n" {
		t.Errorf("owners and modes:\n%s", out)
	}
}

func (f *founding) consulTokens(t *testing.T) {
	f.follow(t, "export CONSUL_HTTP_ADDR")
	f.follow(t, "consul acl bootstrap")
	f.follow(t, "token agent")
	if out := f.desk.run(t, "! consul acl bootstrap 2>&1"); !strings.Contains(out, "ACL bootstrap no longer allowed") {
		t.Errorf("a second bootstrap: %s", out)
	}
	// They are delivered, to one server after the other.
	f.files["site.yaml"] = strings.ReplaceAll(f.files["site.yaml"], "  # consul_", "  consul_")
	f.files["site.yaml"] = strings.NewReplacer("  # nomad_", "  nomad_", "  # vault_", "  vault_").Replace(f.files["site.yaml"])
	s := site(t, f.files)
	for n, c := range f.servers {
		if c.deliver(t, f.host(t, s, fmt.Sprintf("server%d.example.org", n+1))) != 0 {
			t.Fatalf("kiln-host: %s", c.journal(t, "kiln-host"))
		}
		f.leadersOf(t, n+1)
	}
	eventually(t, "Consul knows all servers, and Nomad's", func() bool {
		nodes, nomads := map[string]bool{}, map[string]bool{}
		for _, e := range f.catalog(t, "consul") {
			nodes[e.Node] = true
		}
		for _, e := range f.catalog(t, "nomad") {
			nomads[e.Node+" "+e.ServiceAddress] = true
		}
		return len(nodes) == 3 && len(nomads) == 3 && nomads["server2.example.org 192.0.2.22"]
	})
}

type entry struct{ Node, Address, ServiceAddress string }

// catalog is what Consul has of a service, to who has the token that may do
// everything.
func (f *founding) catalog(t *testing.T, service string) []entry {
	var list []entry
	f.ask(8501, 1, strings.TrimSpace(f.desk.run(t, "pass show consul/management")), "/v1/catalog/service/"+service, &list)
	return list
}

func (f *founding) nomadToken(t *testing.T) {
	f.follow(t, "export NOMAD_ADDR")
	f.follow(t, "nomad acl bootstrap")
	if out := f.follow(t, "nomad server members"); strings.Count(out, "alive") != 3 || strings.Count(out, "true") != 1 {
		t.Errorf("Nomad's servers:\n%s", out)
	}
}

func (f *founding) vault(t *testing.T) {
	f.follow(t, "export VAULT_CACERT")
	f.follow(t, "vault operator init")
	f.follow(t, "unseal server1")
	out := f.follow(t, "vault operator raft list-peers")
	for n := 1; n <= 3; n++ {
		if !strings.Contains(out, fmt.Sprintf("server%d.example.org    %s:8201", n, serverAddress(n))) {
			t.Errorf("server%d isn't among Vault's servers:\n%s", n, out)
		}
	}
	eventually(t, "Consul knows all of them as Vault", func() bool { return len(f.catalog(t, "vault")) == 3 })
	eventually(t, "they are found by name, on each server", func() bool {
		out, _ := f.servers[2].try(t, "getent ahostsv4 vault.service.consul")
		return strings.Contains(out, "192.0.2.21 ") && strings.Contains(out, "192.0.2.22 ") && strings.Contains(out, "192.0.2.23 ")
	})
	// What one writes, another reads: by the name that clients use.
	f.desk.run(t, "vault secrets enable -version=1 kv >/dev/null && vault write kv/a b=c >/dev/null")
	if out := f.desk.run(t, "VAULT_ADDR=https://server3.example.org:8200 VAULT_TLS_SERVER_NAME=vault.service.consul vault read -field=b kv/a"); strings.TrimSpace(out) != "c" {
		t.Errorf("server3 reads %q", out)
	}
}

func (f *founding) closed(t *testing.T) {
	// The default token reads nodes and services, for names: no more than that.
	if f.ask(8501, 1, "", "/v1/acl/tokens", new(any)) {
		t.Error("Consul lists its tokens for whoever asks")
	}
	if f.ask(4646, 1, "", "/v1/nodes", new(any)) {
		t.Error("Nomad lists its nodes for whoever asks")
	}
	if f.ask(8200, 1, "", "/v1/kv/a", new(any)) {
		t.Error("Vault tells whoever asks")
	}
	stranger := f.HTTP(nil)
	if request, err := http.NewRequest(http.MethodGet, "https://192.0.2.21:8501/v1/status/leader", nil); err != nil || answered(stranger, request, new(any)) {
		t.Errorf("Consul's API answers a caller without a certificate: %v", err)
	}
	if request, err := http.NewRequest(http.MethodGet, "http://192.0.2.21:8500/v1/status/leader", nil); err != nil || answered(stranger, request, new(any)) {
		t.Errorf("Consul's API without TLS answers to the outside: %v", err)
	}
}

func (f *founding) client(t *testing.T) {
	p := f.host(t, site(t, f.files), "build01.example.org")
	c := f.start(t, p, "host4", "192.0.2.11")
	f.certify(t, c)
	if c.deliver(t, p) != 0 {
		t.Fatalf("kiln-host: %s", c.journal(t, "kiln-host"))
	}
	eventually(t, "build01 is a ready node", func() bool {
		out := f.desk.run(t, "nomad node status")
		return strings.Contains(out, "build01.example.org") && strings.Contains(out, "ready")
	})
	eventually(t, "Consul knows Nomad's client", func() bool {
		l := f.catalog(t, "nomad-client")
		return len(l) == 1 && l[0] == entry{"build01.example.org", "192.0.2.11", "192.0.2.11"}
	})
}

func (f *founding) renewal(t *testing.T) {
	const pid = "systemctl show --property MainPID --value vault"
	before := f.servers[0].sh(t, pid)
	old, err := f.serial(t, nil, "192.0.2.21:8200")
	if err != nil {
		t.Fatal(err)
	}
	f.desk.run(t, "issue server1.example.org DNS:server1.example.org,DNS:server.ci.consul,DNS:server.global.nomad,DNS:vault.service.consul,DNS:localhost")
	f.certify(t, f.servers[0])
	for _, port := range []string{"8200", "4646"} {
		eventually(t, "port "+port+" serves the new certificate", func() bool {
			got, err := f.serial(t, nil, "192.0.2.21:"+port)
			return err == nil && got.Cmp(old) != 0
		})
	}
	if after := f.servers[0].sh(t, pid); after != before {
		t.Errorf("Vault was restarted: %q, before %q", after, before)
	}
	var status struct{ Sealed bool }
	if !f.ask(8200, 1, "", "/v1/sys/seal-status", &status) || status.Sealed {
		t.Error("Vault is sealed")
	}
}

func (f *founding) restart(t *testing.T) {
	// They get it once they have been steady for a while.
	eventually(t, "all three have a vote", func() bool { return strings.Count(f.desk.run(t, "vault operator raft list-peers"), " true") == 3 })
	sealed := func() bool {
		var status struct{ Initialized, Sealed bool }
		return !f.ask(8200, 2, "", "/v1/sys/seal-status", &status) || !status.Initialized || status.Sealed
	}
	if sealed() {
		t.Fatal("Vault on server2 was sealed before it was restarted")
	}
	f.servers[1].sh(t, "systemctl restart vault")
	eventually(t, "Vault on server2 is there again", func() bool { return f.ask(8200, 2, "", "/v1/sys/seal-status", new(any)) })
	if !sealed() {
		t.Error("Vault on server2 opened by itself")
	}
	f.desk.run(t, "unseal server2")
	eventually(t, "Vault on server2 takes part again", func() bool { return !sealed() })
}

// desk is a shell in which an operator works: what is set in it stays.
type desk struct {
	in  io.Writer
	out *bufio.Reader
}

// storeEnvironment is where the desk's password store is. All of it is in the
// space's memory.
const storeEnvironment = "export GNUPGHOME=/root/desk/gnupg PASSWORD_STORE_DIR=/root/desk/store\n"

func newDesk(t *testing.T, s *space) *desk {
	t.Helper()
	for _, name := range []string{"pass", "jq", "openssl"} {
		program(t, name)
	}
	path := ""
	for _, name := range []string{"consul", "nomad", "vault"} {
		path += strings.TrimSuffix(hashicorp(t, name), "/"+name) + ":"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	cmd := s.Command(ctx, "sh", "-eu", "-c", "exec 2>&1; exec sh -eu")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // what was wrong was said where it was
	})
	d := &desk{in, bufio.NewReader(out)}
	d.run(t, "export PATH="+path+"$PATH\n"+storeEnvironment+`mkdir -p /root/desk && cd /root/desk && mkdir -m 700 gnupg
		gpg --batch --quiet --passphrase '' --quick-generate-key desk@example.org default default never
		pass init desk@example.org`)
	return d
}

// run has the shell run commands that must succeed: what they print, both ways.
func (d *desk) run(t *testing.T, commands string) string {
	t.Helper()
	const end = "-- the desk is ready --"
	started := time.Now()
	fmt.Fprintf(d.in, "{\n%s\n} </dev/null\necho '%s'\n", strings.TrimRight(commands, "\n"), end)
	var said strings.Builder
	for {
		line, err := d.out.ReadString('\n')
		if before, ok := strings.CutSuffix(line, end+"\n"); ok {
			said.WriteString(before)
			return said.String()
		}
		said.WriteString(line)
		if err != nil {
			t.Fatalf("after %s the desk's shell has ended, in:\n%s\nit said:\n%s", time.Since(started).Round(time.Second), commands, said.String())
		}
	}
}
