package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// bridge is what all is plugged into. The lab's own addresses are its.
const bridge = "lab0"

// makeBridge gives the lab its network, with those addresses in it.
func (s *Space) makeBridge(ctx context.Context, addresses []netip.Prefix) error {
	script := "set -e\nip link add " + bridge + " type bridge\n"
	for _, a := range addresses {
		nodad := ""
		if a.Addr().Is6() {
			nodad = " nodad"
		}
		script += "ip address add " + a.String() + " dev " + bridge + nodad + "\n"
	}
	_, err := s.Run(ctx, script+"ip link set "+bridge+" up\n")
	return err
}

// Cable is a link from the bridge to a new interface of that name in the space.
// Who takes the interface into a network of its own is on the lab's network.
func (c *Cluster) Cable(ctx context.Context, name string) error {
	_, err := c.Run(ctx, fmt.Sprintf("set -e\nip link add up-%[1]s type veth peer name %[1]s\nip link set up-%[1]s master %s up\n", name, bridge))
	return err
}

// Tap is a tap interface of that name, plugged into the bridge: for a virtual
// machine that is started in the lab's network namespace.
func (c *Cluster) Tap(ctx context.Context, name string) error {
	_, err := c.Run(ctx, fmt.Sprintf("set -e\nip tuntap add %[1]s mode tap\nip link set %[1]s master %s up\n", name, bridge))
	return err
}

// Port is a network namespace of its own, for a container of that name, with lo
// and an interface that is plugged into the bridge.
func (c *Cluster) Port(ctx context.Context, name, nic string) (namespace string, err error) {
	holder, err := c.Start("unshare", "--net", "sleep", "infinity")
	if err != nil {
		return "", err
	}
	var pid int
	err = Wait(ctx, "there is a network for "+name, func() (bool, error) {
		if err := holder.ended(); err != nil {
			return false, err
		}
		pid, err = onlyChild(holder.PID())
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		still, err := c.inNetwork(pid)
		return err == nil && !still, nil //nolint:nilerr // not yet
	})
	if err != nil {
		return "", err
	}
	// The process's number is that outside.
	plug := fmt.Sprintf("ip link add up-%[1]s type veth peer name %[2]s netns %[3]d && ip link set up-%[1]s master %[4]s up", name, nic, pid, bridge)
	if out, err := c.network(ctx, plug); err != nil {
		return "", fmt.Errorf("plugging %s in: %w\n%s", name, err, out)
	}
	inside := SpaceOf(pid)
	if out, err := inside.network(ctx, "ip link set lo up"); err != nil {
		return "", fmt.Errorf("plugging %s in: %w\n%s", name, err, out)
	}
	return inside.Network(), nil
}

// records writes what a name server answers, for dnsmasq.
func records(names map[string]netip.Addr) []string {
	var args []string
	for name, address := range names {
		args = append(args, "--address=/"+strings.ToLower(name)+"/"+address.String())
	}
	slices.Sort(args)
	return args
}

// dnsmasq starts a name server that listens at those addresses alone.
func (c *Cluster) dnsmasq(name string, listen []netip.Addr, args ...string) error {
	argv := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file", "--log-facility=-"}
	for _, a := range listen {
		argv = append(argv, "--listen-address="+a.String())
	}
	return c.serve(name, append(argv, args...)...)
}

// network runs a shell script with the programs, and the processes, outside:
// only the network is the space's.
func (s *Space) network(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+s.Network(), "--", "sh", "-c", script).CombinedOutput()
	return string(out), err
}

// inNetwork tells whether a process is in the space's network.
func (s *Space) inNetwork(pid int) (bool, error) {
	own, err := os.Readlink(s.Network())
	if err != nil {
		return false, err
	}
	other, err := os.Readlink(SpaceOf(pid).Network())
	return own == other, err
}
