//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const movingConsul = `node_name = %q
data_dir = "/var/lib/consul-%[1]s"
bind_addr = %[2]q
client_addr = %[3]q
retry_join = ["10.66.0.2"]
encrypt = %[4]q
leave_on_terminate = true
disable_update_check = true
ports {
  dns = -1
  grpc = -1
  grpc_tls = -1
}
acl {
  enabled = true
  default_policy = "deny"
  tokens {
    agent = %[5]q
  }
}
`

const movingNomad = `name = %q
region = "alice"
data_dir = "/var/lib/nomad-%[1]s"
bind_addr = %[2]q
disable_update_check = true
client {
  enabled = true
  servers = ["10.66.0.2:4647"]
  network_interface = "lab0"
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist" = "raw_exec"
  }
}
consul {
  address = "%[3]s:8500"
  token = %[4]q
}
acl {
  enabled = true
}
`

// startSSHD starts a real sshd at an address of a host's, in a tree of its own, and
// writes what a client needs to log in to it as root. At the other hosts' addresses
// nobody lets one log in.
func (m *movers) startSSHD(t *testing.T, h mover) {
	t.Helper()
	for _, key := range []string{"host", "operator"} {
		if out, err := exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(m.ssh, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	place(t, filepath.Join(m.ssh, "known_hosts"), h.name+" "+read(t, m.ssh, "host.pub"))
	config := fmt.Sprintf("Host *\nUser root\nIdentityFile %s\nIdentitiesOnly yes\nUserKnownHostsFile %s\n", filepath.Join(m.ssh, "operator"), filepath.Join(m.ssh, "known_hosts"))
	for _, h := range []mover{mover1, mover2, mover3} {
		config += fmt.Sprintf("Host %[1]s\nHostName %[2]s\nHostKeyAlias %[1]s\n", h.name, h.before)
	}
	place(t, filepath.Join(m.ssh, "ssh_config"), config)
	// What kiln calls writes down what it was called with, and is ssh then.
	place(t, filepath.Join(m.ssh, "ssh"), "#!/bin/sh\necho \"$@\" >>"+m.ssh+"/calls\nexec "+program(t, "ssh")+" \"$@\"\n")
	if err := os.Chmod(filepath.Join(m.ssh, "ssh"), 0o755); err != nil {
		t.Fatal(err)
	}
	place(t, filepath.Join(m.ssh, "sshd_config"), "ListenAddress "+h.before+"\nHostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/operator.pub\nPasswordAuthentication no\nUseDNS no\nPidFile none\n")
	m.sshd = m.daemon(t, "sh", "-c", fmt.Sprintf(`set -e
mkdir /run/sshd-host
cd /run/sshd-host
mkdir up work root
mount -t overlay -o lowerdir=%[2]s,upperdir=up,workdir=work overlay root
mount --rbind /dev root/dev
mkdir -p root/run/sshd
cp %[1]s/host %[1]s/operator.pub %[1]s/sshd_config root/etc/ssh/
exec chroot root /usr/sbin/sshd -D -e`, m.ssh, debianTree(t, "sshhost", sshPackages)))
	eventually(t, "sshd listens", func() bool { return strings.Contains(m.sshd.Log(), "Server listening on "+h.before) })
}

// policy makes a token of Consul's that may do that, and gives its policy's ID.
func (m *movers) policy(t *testing.T, name, token, rules string) string {
	t.Helper()
	var made struct{ ID string }
	if err := m.Do(t.Context(), http.MethodPut, m.ConsulURL("/v1/acl/policy"), map[string]any{"Name": name, "Rules": rules}, &made); err != nil {
		t.Fatal(err)
	}
	m.put(t, m.ConsulURL("/v1/acl/token"), map[string]any{"SecretID": token, "Policies": []any{map[string]any{"Name": name}}})
	return made.ID
}

func (m *movers) put(t *testing.T, url string, body any) {
	t.Helper()
	if err := m.Do(t.Context(), http.MethodPut, url, body, nil); err != nil {
		t.Fatal(err)
	}
}

// start starts a program, whose process is found in a file afterwards.
func (m *movers) start(t *testing.T, program, config, host string) {
	t.Helper()
	file := "/run/" + program + "-" + host
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root%s.hcl", m.space.PID(), file), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	flag := map[string]string{"consul": "-config-file", "nomad": "-config"}[program]
	d, err := m.space.Start("sh", "-c", `echo $$ >"$0.pid" && exec "$@"`, file, hashicorp(t, program), "agent", flag+"="+file+".hcl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s on %s said:\n%s", program, host, complaints(d.Log()))
		}
	})
}

func (m *movers) consul(t *testing.T, h mover, address string) {
	t.Helper()
	m.start(t, "consul", fmt.Sprintf(movingConsul, h.name, address, h.api(address), gossipKey, h.token), h.name)
}

func (m *movers) nomad(t *testing.T, h mover, address, consulAddress string) {
	t.Helper()
	m.start(t, "nomad", fmt.Sprintf(movingNomad, h.name, address, h.api(consulAddress), nomadToken), h.name)
}

// kill ends a program, by a signal. By KILL it ends as in a power failure: nobody
// deregisters anything.
func (m *movers) kill(t *testing.T, signal, program, host string) {
	t.Helper()
	_, err := m.space.Run(t.Context(), fmt.Sprintf(`p=$(cat /run/%s-%s.pid); kill -%s $p; while kill -0 $p 2>/dev/null; do sleep 0.05; done`, program, host, signal))
	if err != nil {
		t.Fatal(err)
	}
}

// clients are the entries of a host's Nomad, by address.
func (m *movers) clients(t *testing.T, host string) map[string]string {
	t.Helper()
	var list []struct{ Node, ServiceID, ServiceAddress string }
	if m.get(m.ConsulURL("/v1/catalog/service/nomad-client"), &list) != nil {
		return nil
	}
	found := map[string]string{}
	for _, l := range list {
		if l.Node == host && strings.HasPrefix(l.ServiceID, "_nomad-client-") {
			found[l.ServiceAddress] = l.ServiceID
		}
	}
	return found
}

// ready tells whether Nomad has the node ready at that address.
func (m *movers) ready(t *testing.T, host, address string) bool {
	t.Helper()
	var nodes []struct{ Name, Address, Status string }
	if m.get(m.NomadURL("/v1/nodes"), &nodes) != nil {
		return false
	}
	return slices.ContainsFunc(nodes, func(n struct{ Name, Address, Status string }) bool {
		return n.Name == host && n.Address == address && n.Status == "ready"
	})
}
