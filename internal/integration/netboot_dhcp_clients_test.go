//go:build integration

package integration

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/dhcp"
	"github.com/alisw/kiln/plan"
)

const (
	dhcpFirst    = "52:54:00:77:00:01" // registered
	dhcpSecond   = "52:54:00:77:00:02" // registered
	dhcpStranger = "52:54:00:77:00:99"
)

// asPXE has udhcpc say what a UEFI firmware says.
const asPXE = " -V PXEClient:Arch:00007:UNDI:003016 -x 93:0007"

// udhcpc asks for an address, as busybox does, with further options, and gives what
// it has got: the address and the server's; nothing, if nobody has answered.
func (l *dhcpLab) udhcpc(t *testing.T, where, options string) (lease, said string) {
	t.Helper()
	said, _ = l.try(t, strings.Join(udhcpc(t, l, where, "-q -n -t 2 -T 1"+options), " "))
	_, lease, _ = strings.Cut(said, "GOT ")
	lease, _, _ = strings.Cut(lease, "\n")
	return lease, said
}

// udhcpc is a call of the program, which sets the address that it gets.
func udhcpc(t *testing.T, l *dhcpLab, where, options string) []string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	place(t, script, "#!/bin/sh\n[ $1 != renew ] || exit 0\nip address flush dev eth0\n[ $1 = bound ] || exit 0\nip address add $ip/$mask dev eth0\necho \"GOT $ip $mask of $serverid\"\n")
	l.sh(t, "chmod 755 "+script)
	return append([]string{"ip", "netns", "exec", where, program(t, "udhcpc"), "-i", "eth0", "-f", "-s", script}, strings.Fields(options)...)
}

// counts ends Kiln's server, and gives what it has counted.
func (l *dhcpLab) counts(t *testing.T) dhcp.Counts {
	t.Helper()
	stop(t, l.kiln)
	_, text, _ := strings.Cut(l.kiln.Log(), "counts ")
	var c dhcp.Counts
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&c); err != nil {
		t.Fatalf("the server said no counts: %v", err)
	}
	return c
}

// sniff shows each packet of DHCP that Kiln's server sends.
func (l *dhcpLab) sniff(t *testing.T) *lab.Daemon {
	t.Helper()
	d := l.start(t, program(t, "tcpdump"), "-l", "-n", "-i", "kiln0", "udp and src host "+dhcpOwn)
	eventually(t, "tcpdump listens", func() bool { return strings.Contains(d.Log(), "listening on") })
	return d
}

// TestProxyDisturbsNobody: beside a real dnsmasq, ordinary clients get its answers
// and no others, registered or not; an unknown machine that boots gets none of
// Kiln's either.
func TestProxyDisturbsNobody(t *testing.T) {
	l := newDHCPLab(t)
	other := l.dnsmasq(t)
	l.serve(t, dhcpConfig{Hosts: []netboot.Host{dhcpHost("build01.example.org", dhcpFirst)}})
	sniffer := l.sniff(t)
	for _, c := range []struct{ name, mac, options string }{{"c1", dhcpFirst, ""}, {"c2", dhcpStranger, ""}, {"c3", "52:54:00:77:00:98", asPXE}} {
		l.plug(t, c.name, plan.MAC(c.mac))
		if lease, said := l.udhcpc(t, c.name, c.options); !strings.HasPrefix(lease, "10.77.0.") || !strings.HasSuffix(lease, " of "+dhcpOther) {
			t.Errorf("%s has got %q:\n%s", c.mac, lease, said)
		}
		if leases := l.sh(t, "cat /run/leases"); strings.Count(leases, " "+c.mac+" ") != 1 {
			t.Errorf("dnsmasq's leases:\n%s", leases)
		}
	}
	if regexp.MustCompile(`NAK|DECLINE|wrong|abandon`).MatchString(other.Log()) {
		t.Error("dnsmasq was disturbed: see what it said")
	}
	if !strings.Contains(l.kiln.Log(), `msg=seen mac=52:54:00:77:00:98 firmware="UEFI x86-64"`) || strings.Contains(l.kiln.Log(), "mac="+dhcpStranger) {
		t.Error("the unknown machine that boots, and none but it, should have been seen")
	}
	stop(t, sniffer)
	if strings.Contains(sniffer.Log(), dhcpOwn+".67") || strings.Contains(sniffer.Log(), dhcpOwn+".4011") {
		t.Error("Kiln has sent something: see what tcpdump said")
		t.Log(sniffer.Log())
	}
	c := l.counts(t)
	if c.Received != 6 || c.Unanswered["not-booting"] != 2 || c.Unanswered["unknown-mac"] != 4 {
		t.Errorf("%+v", c)
	}
}

// TestFullServesRealClients: busybox's and ISC's, over a restart of the server.
func TestFullServesRealClients(t *testing.T) {
	l := newDHCPLab(t)
	config := dhcpConfig{Full: true, Range: "10.77.0.100-10.77.0.199", State: t.TempDir(), Hosts: []netboot.Host{
		dhcpHost("build01.example.org", dhcpFirst, "10.77.0.11/24"), dhcpHost("build02.example.org", dhcpSecond),
	}}
	l.serve(t, config)
	l.plug(t, "c1", dhcpFirst)
	l.plug(t, "c2", dhcpSecond)
	l.plug(t, "c3", dhcpStranger)
	if lease, said := l.udhcpc(t, "c1", ""); lease != "10.77.0.11 24 of "+dhcpOwn {
		t.Errorf("the address of the inventory: %q:\n%s", lease, said)
	}
	if lease, said := l.udhcpc(t, "c1", " -r 10.77.0.150"); lease != "10.77.0.11 24 of "+dhcpOwn {
		t.Errorf("another one is wanted: %q:\n%s", lease, said)
	}
	l.renewAndRelease(t, config.State)
	if lease, said := l.udhcpc(t, "c3", asPXE); lease != "" {
		t.Errorf("an unknown MAC gets %q:\n%s", lease, said)
	}
	first := l.dhclient(t)
	if !regexp.MustCompile(`DHCPACK of 10\.77\.0\.1\d\d from 10\.77\.0\.1`).MatchString(first) {
		t.Fatalf("dhclient:\n%s", first)
	}
	address := regexp.MustCompile(`bound to (\S+)`).FindStringSubmatch(first)[1]
	if c := l.counts(t); c.Answered["lease"] != 9 || c.Unanswered["released"] != 1 || c.Unanswered["unknown-mac"] == 0 {
		t.Errorf("%+v", c)
	}

	// Another process, which has to know what the first has promised. dhclient asks
	// for the address that it had, without a discovery.
	l.serve(t, config)
	if again := l.dhclient(t); strings.Contains(again, "DHCPDISCOVER") || !strings.Contains(again, "bound to "+address) {
		t.Errorf("after a restart dhclient says:\n%s", again)
	}
	// It has moved, and wants what is the first host's.
	l.sh(t, "sed -i 's/fixed-address .*/fixed-address 10.77.0.11;/' /run/dhclient.leases")
	if again := l.dhclient(t); !strings.Contains(again, "DHCPNAK") || !strings.Contains(again, "bound to "+address) {
		t.Errorf("with another's address dhclient says:\n%s", again)
	}
	if c := l.counts(t); c.Answered["nak"] != 1 {
		t.Errorf("%+v", c)
	}
}

// renewAndRelease has busybox's client in c1 do both, by unicast.
func (l *dhcpLab) renewAndRelease(t *testing.T, state string) {
	t.Helper()
	client := l.start(t, udhcpc(t, l, "c1", "-p /run/udhcpc.pid")...)
	eventually(t, "udhcpc has an address", func() bool { return strings.Contains(client.Log(), "GOT 10.77.0.11") })
	l.sh(t, "kill -USR1 $(cat /run/udhcpc.pid)")
	eventually(t, "its lease is renewed", func() bool { return strings.Contains(l.kiln.Log(), "to=10.77.0.11:68") })
	before := l.sh(t, "cat "+state+"/leases.json")
	l.sh(t, "kill -USR2 $(cat /run/udhcpc.pid)")
	eventually(t, "its release is stored", func() bool { return l.sh(t, "cat "+state+"/leases.json") != before })
}

// dhclient is ISC's, in c2, until it has an address; it keeps its leases.
func (l *dhcpLab) dhclient(t *testing.T) string {
	t.Helper()
	program(t, "dhclient")
	return l.sh(t, `ip netns exec c2 dhclient -v -1 -cf /dev/null -lf /run/dhclient.leases -pf /run/dhclient.pid -sf /bin/true eth0 2>&1
		if [ -s /run/dhclient.pid ]; then kill -KILL $(cat /run/dhclient.pid); fi; rm -f /run/dhclient.pid`)
}

// TestRelayedClients has a real relay, ISC's, between the server and its clients,
// which adds its option 82 and wants it back.
func TestRelayedClients(t *testing.T) {
	for _, full := range []bool{true, false} {
		l := newDHCPLab(t)
		l.plug(t, "relay", "52:54:00:88:00:01")
		l.sh(t, `ip -n relay address add 10.77.0.5/24 dev eth0
			ip netns add far && ip link add south netns relay type veth peer name eth0 netns far
			ip -n relay address add 10.88.0.1/24 dev south && ip -n relay link set south up
			ip -n far link set eth0 address `+dhcpFirst+` up
			ip route add 10.88.0.0/24 via 10.77.0.5`)
		l.serve(t, dhcpConfig{Full: full, Range: "10.88.0.50-10.88.0.60/24", Hosts: []netboot.Host{dhcpHost("build01.example.org", dhcpFirst, "10.88.0.7/24")}})
		relay := l.start(t, "ip", "netns", "exec", "relay", program(t, "dhcrelay"), "-4", "-d", "-a", "-m", "discard", "-id", "south", "-iu", "eth0", dhcpOwn)
		eventually(t, "the relay listens", func() bool { return strings.Contains(relay.Log(), "Sending on   Socket/fallback") })
		options := ""
		if !full {
			options = asPXE
		}
		lease, said := l.udhcpc(t, "far", options)
		switch {
		case full && lease != "10.88.0.7 24 of "+dhcpOwn:
			t.Errorf("the relayed client gets %q:\n%s", lease, said)
		case !full && !strings.Contains(said, "server "+dhcpOwn):
			t.Errorf("the relayed client that boots hears nothing of Kiln:\n%s", said)
		}
		if want := "to=10.88.0.1:67 relay=10.88.0.1"; !strings.Contains(l.kiln.Log(), want) {
			t.Errorf("the server's log lacks %q", want)
		}
	}
}
