//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/alisw/kiln/cluster/apply"
	"github.com/alisw/kiln/plan"
)

// inside runs commands in a space, as ssh would on a host.
type inside struct{ *space }

func (i inside) Run(ctx context.Context, stdin io.Reader, argv ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := i.Command(ctx, argv...)
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return out, err
}

func (i inside) Stream(ctx context.Context, stdin io.Reader, line func(string), argv ...string) error {
	out, err := i.Run(ctx, stdin, argv...)
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line(lines.Text())
	}
	return err
}

// brought brings the host to a plan, and gives what followed.
func (l *life) brought(t *testing.T, p *plan.Plan) *apply.Changes {
	t.Helper()
	// Its key isn't these tests' matter.
	p.Image.AptSources = nil
	w := wantOf(t, p)
	s, err := apply.Gather(t.Context(), inside{l.host.space}, w)
	if err != nil {
		t.Fatal(err)
	}
	c, err := apply.Plan(w, s, apply.Options{OtherName: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), inside{l.host.space}, nil, func(string, bool) {}); err != nil {
		t.Fatal(err)
	}
	return c
}

// pids are the agents' processes.
func (l *life) pids(t *testing.T) (consul, nomad string) {
	t.Helper()
	pid := func(unit string) string {
		return strings.TrimSpace(l.host.sh(t, "systemctl show -p MainPID --value "+unit))
	}
	return pid("consul"), pid("nomad")
}

// TestApplyAgents changes a member of a real cluster, with the profile plain: its
// agents take what is new, and only those that need to are restarted.
func TestApplyAgents(t *testing.T) {
	t.Parallel()
	l := &life{cluster: newCluster(t), site: clusterSite(t)}
	l.plan = l.resolved(t, "build01")
	if err := l.Cable(t.Context(), "host0"); err != nil {
		t.Fatal(err)
	}
	l.host = boot(t, l.space, l.plan, "host0", hashicorp(t, "consul")+":/usr/bin/consul", hashicorp(t, "nomad")+":/usr/bin/nomad")
	l.host.sh(t, "ip address add 10.66.0.11/24 dev host0 && ip link set host0 up && ip link set lo up && ip route add default via 10.66.0.1")
	if l.host.deliver(t, l.plan) != 0 {
		t.Fatalf("kiln-host: %s", l.host.journal(t, "kiln-host"))
	}
	l.joins(t)

	// What a seed has brought is what apply would bring.
	consul, nomad := l.pids(t)
	first := l.brought(t, l.plan)
	for i := range first.List {
		if c := &first.List[i]; c.Name != "/etc/default/grub.d/90-kiln.cfg" {
			t.Errorf("a host from its golden image isn't as it is to be: %v", *c)
		}
	}
	if c := l.brought(t, l.plan); !c.Nothing() {
		t.Errorf("a second run isn't nothing: %v, then %v", c.List, c.Units)
	}
	if c, n := l.pids(t); c != consul || n != nomad {
		t.Error("agents were restarted, and nothing has changed")
	}

	// A rotated token of Consul's.
	secrets := clusterSecrets()
	secrets["env://AGENT"] = management
	p, err := hostPlan(t, l.site, "build01").WithSecrets(t.Context(), secrets)
	if err != nil {
		t.Fatal(err)
	}
	c := l.brought(t, p)
	if got := strings.Join(c.Units, ", "); got != "restart kiln-host.service, reload consul.service" {
		t.Errorf("after another token: %s", got)
	}
	if c, n := l.pids(t); c != consul || n != nomad {
		t.Error("agents were restarted for a token that Consul reloads")
	}
	if log := l.host.journal(t, "consul"); !strings.Contains(log, "Caught: signal=hangup") {
		t.Error("Consul didn't reload")
	}

	// Another list of servers to join: both have to know, Consul first.
	p.Host.Files = replaced(t, p.Host.Files, `"server2.example.org", `, "")
	c = l.brought(t, p)
	if got := strings.Join(c.Units, ", "); got != "restart kiln-host.service, restart consul.service, restart nomad.service" {
		t.Errorf("after another list of servers: %s", got)
	}
	if c, n := l.pids(t); c == consul || n == nomad {
		t.Error("agents run on with what they knew before")
	}
	eventually(t, "the host is a member again", func() bool { return l.active(t, "consul") && l.active(t, "nomad") && l.isReady("build01.example.org") })
}

// replaced has the files with another text in the agents' configurations.
func replaced(t *testing.T, files []plan.File, from, to string) []plan.File {
	t.Helper()
	out, n := []plan.File{}, 0
	for _, f := range files {
		if b, err := f.Content.Bytes(); err != nil {
			t.Fatal(err)
		} else if strings.Contains(string(b), from) {
			f.Content = plan.Literal([]byte(strings.ReplaceAll(string(b), from, to)))
			n++
		}
		out = append(out, f)
	}
	if n != 2 {
		t.Fatalf("%s stands in %d files, not 2", from, n)
	}
	return out
}
