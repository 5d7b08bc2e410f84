//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/profiles"
)

func dnsSite(t *testing.T, dns string) *profiles.Site {
	t.Helper()
	return site(t, map[string]string{
		"site.yaml":  "domain: example.org\nservers: {join: [a.example.org]}\ndns: " + dns + "\n",
		"hosts.yaml": "- name: build01\n  profile: plain\n  advertise: 192.0.2.11\n",
	})
}

// TestDnsmasqTakesTheFile has the real program check the rendered file.
func TestDnsmasqTakesTheFile(t *testing.T) {
	for _, dns := range []string{
		`{consul: [137.138.62.94], upstream: [137.138.16.5, 137.138.17.5]}`,
		`{consul: ["127.0.0.1#8600", "2001:db8::1#8600"], upstream: ["2001:db8::53"]}`,
		`{upstream: [192.0.2.53]}`,
	} {
		path := filepath.Join(t.TempDir(), "kiln.conf")
		b := content(t, hostPlan(t, dnsSite(t, dns), "build01").Host.Files, "/etc/dnsmasq.d/kiln.conf")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(program(t, "dnsmasq"), "--test", "--conf-file="+path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s\n%s", dns, err, out, b)
		}
	}
}

// TestDnsmasqNeedsResolvers: without any, no name but .consul would be found.
func TestDnsmasqNeedsResolvers(t *testing.T) {
	_, problems, err := dnsSite(t, `{consul: [192.0.2.1]}`).Host(t.Context(), "build01")
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(problems.Err()); !strings.Contains(text, "dns: {upstream: [192.0.2.53]}") || !strings.Contains(text, "kiln.conf.tmpl:2:") {
		t.Errorf("a site without resolvers: %s", text)
	}
}

// TestDnsmasqForwards runs the real program on the rendered file, beside
// something that holds port 53 as systemd-resolved does.
func TestDnsmasqForwards(t *testing.T) {
	s := newSpace(t)
	dnsmasq := program(t, "dnsmasq")
	server := func(address string, port int, answers ...string) *lab.Daemon {
		argv := []string{
			dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file",
			"--listen-address=" + address, fmt.Sprintf("--port=%d", port),
		}
		for _, a := range answers {
			argv = append(argv, "--address="+a)
		}
		return s.daemon(t, argv...)
	}
	s.sh(t, `ip link add outside type veth peer name world
		for a in 10 1 2 53; do ip address add 10.66.0.$a/24 dev outside; done
		ip link set outside up && ip link set world up`)
	server("127.0.0.53", 53)
	one := server("10.66.0.2", 8600, "/consul/10.1.2.3")
	server("10.66.0.53", 53, "/example.com/137.138.1.80", "/consul/137.138.1.1")

	// One of two is dead: a machine that is gone, or a server that is. No name may
	// wait for the dead one, whichever stands first.
	for _, dns := range []string{
		`{consul: [10.66.0.98, "10.66.0.2#8600"], upstream: [10.66.0.99, 10.66.0.53]}`,
		`{consul: ["10.66.0.2#8600", 10.66.0.98], upstream: [10.66.0.53, 10.66.0.99]}`,
		`{consul: ["10.66.0.1#8600", "10.66.0.2#8600"], upstream: ["10.66.0.1#54", 10.66.0.53]}`,
	} {
		b := content(t, hostPlan(t, dnsSite(t, dns), "build01").Host.Files, "/etc/dnsmasq.d/kiln.conf")
		path := filepath.Join(t.TempDir(), "kiln.conf")
		// A site that has rebinding protection keeps its private cluster names. (It
		// takes addresses for documentation for private ones.)
		if err := os.WriteFile(path, append(b, "stop-dns-rebind\n"...), 0o644); err != nil {
			t.Fatal(err)
		}
		own := s.daemon(t, dnsmasq, "--keep-in-foreground", "--user=root", "--pid-file", "--conf-file="+path)
		eventually(t, "dnsmasq answers", func() bool { _, status := askFor(t, s, "127.0.0.1", "localhost.example.com"); return status == 0 })
		lookUp(t, s, "127.0.0.1", "vault.service.consul", "10.1.2.3")
		lookUp(t, s, "127.0.0.1", "www.example.com", "137.138.1.80")
		// Docker's bridge comes later; the outside never gets an answer.
		s.sh(t, "ip link add docker0 type bridge && ip address add 172.17.0.1/16 dev docker0 && ip link set docker0 up")
		eventually(t, "dnsmasq answers containers", func() bool { _, status := askFor(t, s, "172.17.0.1", "vault.service.consul"); return status == 0 })
		if out, status := askFor(t, s, "10.66.0.10", "vault.service.consul"); status == 0 {
			t.Errorf("dnsmasq answers on an outside interface: %s", out)
		}
		s.sh(t, "ip link delete docker0")
		stop(t, own)
	}

	// Both live, and then either dies: the very next name is found, too.
	b := content(t, hostPlan(t, dnsSite(t, `{consul: ["10.66.0.1#8600", "10.66.0.2#8600"], upstream: [10.66.0.53]}`), "build01").Host.Files, "/etc/dnsmasq.d/kiln.conf")
	path := filepath.Join(t.TempDir(), "kiln.conf")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	other := server("10.66.0.1", 8600, "/consul/10.1.2.3")
	s.daemon(t, dnsmasq, "--keep-in-foreground", "--user=root", "--pid-file", "--conf-file="+path)
	eventually(t, "dnsmasq answers", func() bool { _, status := askFor(t, s, "127.0.0.1", "first.service.consul"); return status == 0 })
	stop(t, one)
	lookUp(t, s, "127.0.0.1", "second.service.consul", "10.1.2.3")
	server("10.66.0.2", 8600, "/consul/10.1.2.3")
	eventually(t, "the other server is back", func() bool {
		_, status := s.try(t, "ss -Hlun 'sport = :8600' | grep -q 10.66.0.2:8600")
		return status == 0
	})
	stop(t, other)
	lookUp(t, s, "127.0.0.1", "third.service.consul", "10.1.2.3")
}

// stop ends a daemon of a space.
func stop(t *testing.T, d *lab.Daemon) {
	t.Helper()
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
}

// askFor resolves a name by one server, as programs do that have no patience:
// one query, and no second.
func askFor(t *testing.T, s *space, server, name string) (string, int) {
	t.Helper()
	return s.try(t, fmt.Sprintf(`unshare --mount sh -c 'echo "nameserver %s\noptions timeout:3 attempts:1" >/run/resolv.conf && touch /etc/resolv.conf &&
		mount --bind /run/resolv.conf /etc/resolv.conf && exec getent --service=dns ahostsv4 %s'`, server, name))
}

// lookUp wants a name to be found at once.
func lookUp(t *testing.T, s *space, server, name, address string) {
	t.Helper()
	if out, status := askFor(t, s, server, name); status != 0 || !strings.Contains(out, address) {
		t.Errorf("%s through %s: exit status %d, %q, not %s", name, server, status, out, address)
	}
}
