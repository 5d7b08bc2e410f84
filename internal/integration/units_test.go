//go:build integration

package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

// TestUnitsVerify has systemd read every unit and drop-in of the shipped
// profiles, beside the packages' own units, with a host's data and without.
func TestUnitsVerify(t *testing.T) {
	s := clusterSite(t)
	around := newSpace(t)
	p := hostPlan(t, s, "build01")
	p.Host.Disks = nil
	half := shippedHost(t, "alissandra")
	half.Host.Disks = nil
	server := shippedHost(t, "server")
	server.Host.Disks = nil
	for _, c := range []struct {
		name  string
		plan  *plan.Plan
		files []plan.File
	}{
		{"image", p, nil},
		{"host", p, p.Host.Files},
		{"alissandra", half, half.Host.Files},
		{"server", server, server.Host.Files},
		{"server's image", server, nil},
		{"host with a data disk", p, hostPlan(t, s, "build03").Host.Files},
		{"host without TLS", p, hostPlan(t, site(t, map[string]string{
			"site.yaml":  "domain: example.org\ndns: {upstream: [192.0.2.53]}\nservers: {join: [a.example.org]}\n",
			"hosts.yaml": "- name: build01\n  profile: plain\n  advertise: 192.0.2.11\n",
		}), "build01").Host.Files},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, dir := c.plan, t.TempDir()
			setup := bake(t, p, filepath.Join(dir, "layer"))
			layOut(t, filepath.Join(dir, "layer"), c.files)
			place(t, filepath.Join(dir, "layer/setup.sh"), setup)
			var units []string
			for _, u := range append(p.Image.Units[:len(p.Image.Units):len(p.Image.Units)], p.Host.Units...) {
				if c.files != nil || u.Name != "kiln-grid.path" {
					units = append(units, u.Name)
				}
			}
			units = append(units, "kiln-grid.service")
			out, status := around.try(t, fmt.Sprintf(`unshare --mount sh -ec 'cd %s
				mkdir up work root
				mount -t overlay -o lowerdir=%s,upperdir=up,workdir=work overlay root
				cp -a layer/. root/
				for agent in consul nomad vault; do install -m 755 %s root/usr/bin/$agent; done
				chroot root sh /setup.sh 2>/dev/null
				mount -t proc proc root/proc
				chroot root systemd-analyze --man=no verify %s'`, dir, hostTree(t), program(t, "true"), strings.Join(units, " ")))
			if status != 0 {
				t.Errorf("exit status %d:\n%s", status, out)
			}
			for _, line := range strings.Split(out, "\n") {
				for _, ours := range []string{"kiln", "consul", "nomad", "vault", "dnsmasq.service.d", "Unknown", "ordering cycle"} {
					if strings.Contains(line, ours) {
						t.Errorf("systemd says: %s", line)
						break
					}
				}
			}
		})
	}
}

// TestScriptsAreClean holds the shipped scripts to POSIX and to shellcheck.
func TestScriptsAreClean(t *testing.T) {
	program(t, "shellcheck")
	scripts, err := filepath.Glob(filepath.Join(repository(t), "profiles/*/image/usr/lib/kiln/*"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	hooks, _ := filepath.Glob(filepath.Join(repository(t), "profiles/*/image/etc/dhcp/*/*"))
	for _, script := range append(scripts, hooks...) {
		if out, err := exec.Command("shellcheck", "--shell=sh", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
		if out, err := exec.Command(program(t, "dash"), "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
