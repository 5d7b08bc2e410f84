//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/dhcp"
	"github.com/alisw/kiln/plan"
)

// The network of these tests: Kiln's server is .1 at the bridge kiln0, another
// DHCP server .2 in a network namespace of its own, as on a machine of its own.
const (
	dhcpOwn   = "10.77.0.1"
	dhcpOther = "10.77.0.2"
)

// dhcpConfig is what the test tells the process that serves.
type dhcpConfig struct {
	Full  bool
	Range string
	// Chain has the first script start undionly.kpxe: QEMU's cards have iPXE in their
	// ROM, which needs no other.
	Chain bool
	State string
	Hosts []netboot.Host
}

// dhcpEnv names the file with the configuration.
const dhcpEnv = "KILN_TEST_DHCP"

// TestNetbootDHCPServer is no test: it's the server, in a process that a test has
// started in a network of its own. It also serves scripts that do nothing.
func TestNetbootDHCPServer(t *testing.T) {
	path := os.Getenv(dhcpEnv)
	if path == "" {
		return // it is what other tests run in their namespaces
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c dhcpConfig
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	hosts, err := netboot.NewHosts(c.Hosts)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s := &dhcp.Server{Interfaces: []string{"kiln0"}, StateDir: c.State, Log: log}
	s.Seen = func(u dhcp.Unknown) { log.Info("seen", "mac", string(u.MAC), "firmware", u.Firmware) }
	if c.Full {
		s.Mode = dhcp.Full
		r, err := dhcp.ParseRange(c.Range)
		if err != nil {
			t.Fatal(err)
		}
		s.Ranges = []dhcp.Range{r}
	}
	s.SetHosts(hosts)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := s.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	mux, n := http.NewServeMux(), 0 // of one host alone
	mux.Handle("GET /ipxe/", http.StripPrefix("/ipxe/", http.FileServer(http.Dir("/usr/lib/ipxe"))))
	mux.HandleFunc("GET /boot/{mac}/script.ipxe", func(w http.ResponseWriter, r *http.Request) {
		log.Info("script", "mac", r.PathValue("mac"), "agent", r.UserAgent())
		if n++; c.Chain && n == 1 {
			fmt.Fprintf(w, "#!ipxe\nchain tftp://%s/%s\n", dhcpOwn, dhcp.DefaultBIOSFile)
			return
		}
		log.Info("script, the last", "mac", r.PathValue("mac"))
		fmt.Fprint(w, "#!ipxe\nsleep 60\n")
	})
	go func() { _ = http.ListenAndServe(dhcpOwn+":8080", mux) }()
	if err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	counts, _ := json.Marshal(s.Counters.Read())
	fmt.Fprintf(os.Stderr, "counts %s\n", counts)
}

// dhcpLab is a segment with Kiln's server on it.
type dhcpLab struct {
	*space
	kiln *lab.Daemon
}

func newDHCPLab(t *testing.T) *dhcpLab {
	t.Helper()
	l := &dhcpLab{space: newSpace(t)}
	l.sh(t, `ip link add kiln0 type bridge && ip address add `+dhcpOwn+`/24 dev kiln0 && ip link set kiln0 up
		mkdir -p /run/netns`)
	return l
}

// serve starts Kiln's server.
func (l *dhcpLab) serve(t *testing.T, c dhcpConfig) {
	t.Helper()
	dir := t.TempDir()
	if c.State == "" {
		c.State = dir
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "dhcp.json")
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l.kiln = l.start(t, "env", dhcpEnv+"="+config, program, "-test.run=^TestNetbootDHCPServer$")
	eventually(t, "Kiln listens", func() bool { return strings.Contains(l.kiln.Log(), "dhcp: listening") })
}

// start starts a program, and ends it in time: what is killed with the space takes
// seconds.
func (l *dhcpLab) start(t *testing.T, argv ...string) *lab.Daemon {
	t.Helper()
	d := l.daemon(t, argv...)
	t.Cleanup(func() { _ = d.Stop() }) // it may have ended
	return d
}

// plug makes a network namespace with an interface eth0, plugged into the bridge.
func (l *dhcpLab) plug(t *testing.T, name string, mac plan.MAC) {
	t.Helper()
	l.sh(t, fmt.Sprintf(`ip netns add %[1]s
		ip link add %[1]s0 type veth peer name eth0 netns %[1]s
		ip link set %[1]s0 master kiln0 up
		ip -n %[1]s link set eth0 address %[2]s up`, name, mac))
}

// dnsmasq starts the other DHCP server.
func (l *dhcpLab) dnsmasq(t *testing.T) *lab.Daemon {
	t.Helper()
	l.plug(t, "other", "52:54:00:00:00:fe")
	l.sh(t, "ip -n other address add "+dhcpOther+"/24 dev eth0")
	d := l.start(t, "ip", "netns", "exec", "other", program(t, "dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--pid-file",
		"--log-facility=-", "--log-dhcp", "--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.50,10.77.0.99,1h", "--dhcp-leasefile=/run/leases", "--dhcp-authoritative", "--no-ping")
	eventually(t, "dnsmasq listens", func() bool { return strings.Contains(d.Log(), "IP range 10.77.0.50") })
	return d
}

func dhcpHost(name string, mac plan.MAC, addresses ...string) netboot.Host {
	nic := netboot.NIC{MAC: mac}
	for _, a := range addresses {
		nic.Addresses = append(nic.Addresses, netip.MustParsePrefix(a))
	}
	return netboot.Host{Name: name, NICs: []netboot.NIC{nic}}
}

// TestFirmwareReachesItsScript boots real firmware, until iPXE asks for the
// script: beside a real dnsmasq that gives the addresses, and without one.
func TestFirmwareReachesItsScript(t *testing.T) {
	needRoot(t)
	program(t, "qemu-system-x86_64")
	for _, mode := range []string{"proxy", "full"} {
		for _, firmware := range []string{"bios", "pxe", "http"} {
			t.Run(firmware+"-"+mode, func(t *testing.T) {
				t.Parallel()
				l := newDHCPLab(t)
				const mac = "52:54:00:77:00:01"
				if mode == "proxy" {
					l.dnsmasq(t)
				}
				l.files(t)
				l.serve(t, dhcpConfig{Full: mode == "full", Range: "10.77.0.100-10.77.0.199", Chain: firmware == "bios", Hosts: []netboot.Host{dhcpHost("build01.example.org", mac)}})
				l.machine(t, firmware, mac)
				eventually(t, "iPXE runs its last script", func() bool { return strings.Contains(l.kiln.Log(), `msg="script, the last" mac=52-54-00-77-00-01`) })
				want := map[string]string{"bios": "gives=script", "pxe": "gives=efi file=snponly.efi", "http": "gives=http file=http://10.77.0.1:8080/ipxe/snponly.efi"}[firmware]
				if !strings.Contains(l.kiln.Log(), want) {
					t.Errorf("it came another way: the log lacks %q", want)
				}
			})
		}
	}
}

// files serves what Debian's package ipxe has by TFTP, and tells of an IPv6 router:
// iPXE waits 16 seconds for one before it goes on.
func (l *dhcpLab) files(t *testing.T) {
	t.Helper()
	l.sh(t, "ip address add fd77::1/64 dev kiln0 nodad")
	l.start(t, program(t, "dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--pid-file", "--log-facility=-",
		"--interface=kiln0", "--bind-interfaces", "--enable-tftp", "--tftp-root=/usr/lib/ipxe", "--enable-ra", "--dhcp-range=fd77::,ra-only")
}

// machine starts a virtual machine without a disk.
func (l *dhcpLab) machine(t *testing.T, firmware string, mac plan.MAC) {
	t.Helper()
	l.sh(t, "ip tuntap add tap0 mode tap && ip link set tap0 master kiln0 up")
	argv := []string{"qemu-system-x86_64", "-accel", "tcg,thread=multi", "-m", "512", "-display", "none", "-serial", "stdio", "-monitor", "none", "-nodefaults",
		"-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"}
	device := "virtio-net-pci,netdev=n0,mac=" + string(mac)
	if firmware != "bios" {
		// OVMF's own driver and network stack, instead of the card's ROM.
		device += ",romfile="
		vars := filepath.Join(t.TempDir(), "vars.fd")
		b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vars, b, 0o600); err != nil {
			t.Fatal(err)
		}
		argv = append(argv, "-machine", "q35", "-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,unit=1,file="+vars)
	}
	if firmware == "http" {
		argv = append(argv, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}
	l.start(t, append(argv, "-device", device)...)
}
