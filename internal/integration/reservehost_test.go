//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles/reserve"
)

const (
	reserveServer = "192.0.2.1"
	reserveClient = "192.0.2.11"
	// slack is how many MiB Nomad itself may write between the script's look at
	// the disk and its own.
	slack = 16
)

// Off the clouds, asking for their metadata takes time. And the space has no
// other interface.
const reserveTestConfig = `
client {
  network_interface = "lo"
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
`

const reserveServerConfig = `
data_dir  = "/var/lib/nomad-server"
bind_addr = "` + reserveServer + `"
datacenter = "ci"
disable_update_check = true
server {
  enabled          = true
  bootstrap_expect = 1
}
consul {
  client_auto_join = false
  server_auto_join = false
}
`

// reservingHost is a host of profile alissandra in a space of its own, with a
// server beside it.
type reservingHost struct {
	*space
	t    *testing.T
	api  *http.Client // reaches the space's addresses
	wrap []string     // stands before the agent's command
	runs int
	node string // the node's ID
}

// nodeResources is what of a node counts here.
type nodeResources struct {
	Status        string
	Attributes    map[string]string
	NodeResources struct {
		Cpu struct {
			CpuShares          int64
			ReservableCpuCores []int
		}
		Memory struct{ MemoryMB int64 }
		Disk   struct{ DiskMB int64 }
	}
	ReservedResources struct {
		Cpu struct {
			CpuShares        int64
			ReservedCpuCores []int
		}
		Memory struct{ MemoryMB int64 }
		Disk   struct{ DiskMB int64 }
	}
}

// ownCgroups puts a cgroup of each controller in the place of its root (of
// version 2, one in the place of the only root): what an agent of another test
// left in Nomad's cgroups doesn't matter then.
const ownCgroups = `
own() {
	mkdir $1/NAME
	for f in cpuset.cpus cpuset.mems; do
		[ ! -e $1/$f ] || cat $1/$f >$1/NAME/$f
	done
	mount --bind $1/NAME $1
}
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	echo "+cpuset +cpu +io +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
	own /sys/fs/cgroup
else
	for c in cpu cpuset freezer memory; do
		own $(readlink -f /sys/fs/cgroup/$c)
	done
fi
`

// removeCgroups removes what ownCgroups made, with all that is below.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
		}
	}
	slices.Reverse(dirs)
	for _, dir := range dirs {
		eventually(t, dir+" is gone", func() bool {
			err := os.Remove(dir)
			return err == nil || os.IsNotExist(err)
		})
	}
}

// newReservingHost has a disk of 4 GiB for Nomad's data, nothing on it, and a
// server that waits for clients. setUp changes what the machine looks like.
func newReservingHost(t *testing.T, setUp string) *reservingHost {
	t.Helper()
	for _, name := range []string{"mkfs.ext4", "losetup", "ip", "taskset"} {
		program(t, name)
	}
	cgroup := fmt.Sprintf("kiln-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	t.Cleanup(func() { removeCgroups(t, cgroup) }) // once the space is gone
	h := &reservingHost{space: newSpace(t), t: t}
	h.api = &http.Client{Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}, Timeout: patience}
	image := filepath.Join(t.TempDir(), "disk")
	h.sh(t, fmt.Sprintf(`set -e
		ip addr add %[1]s/32 dev lo
		ip addr add %[2]s/32 dev lo
		%[5]s
		rm -rf /etc/nomad.d /etc/kiln /build
		mkdir -p /etc/nomad.d /build/nomad /var/lib/nomad-server
		truncate -s 4G %[3]s
		mkfs.ext4 -q -m 0 %[3]s
		mount -o loop %[3]s /build/nomad
		%[4]s`, reserveServer, reserveClient, image, setUp, strings.ReplaceAll(ownCgroups, "NAME", cgroup)))
	server := filepath.Join(t.TempDir(), "server.hcl")
	write(t, server, reserveServerConfig)
	h.daemon(t, hashicorp(t, "nomad"), "agent", "-config", server)
	return h
}

// configure lays out what the profile makes of host, lines of hosts.yaml.
func (h *reservingHost) configure(host string) {
	h.t.Helper()
	s := site(h.t, map[string]string{
		"site.yaml": "domain: example.org\ndatacenter: ci\nservers: {join: [" + reserveServer + "], nomad: 1.10.5, consul: 1.20.1}\n" +
			"dns: {consul: [192.0.2.62], upstream: [192.0.2.53]}\n",
		"hosts.yaml": "- name: build01\n  profile: alissandra\n  advertise: " + reserveClient + "\n  vars: {raw_exec: true, docker: false}\n" + host,
	})
	p := hostPlan(h.t, s, "build01")
	dir := h.t.TempDir()
	var files []plan.File
	for _, f := range append(p.Image.Files, p.Host.Files...) {
		switch {
		case strings.HasPrefix(f.Path, "/etc/nomad.d/"), f.Path == "/etc/kiln/reserve", f.Path == "/usr/lib/kiln/reserve":
			files = append(files, f)
		}
	}
	layOut(h.t, dir, files)
	write(h.t, filepath.Join(dir, "etc/nomad.d/test.hcl"), reserveTestConfig)
	h.sh(h.t, "rm -f /etc/nomad.d/* && cp -a "+dir+"/. /")
	// What systemd runs before the agent is what this test runs.
	const command = "ExecStartPre=+/usr/lib/kiln/reserve\n"
	if unit := content(h.t, p.Image.Files, "/etc/systemd/system/nomad.service.d/20-reserve.conf"); !strings.Contains(string(unit), command) {
		h.t.Fatalf("the unit doesn't run the script: %s", unit)
	}
}

// start starts Nomad as its unit does, waits until the server knows what the
// host has, and tells it.
func (h *reservingHost) start() nodeResources {
	h.t.Helper()
	h.t.Logf("reserve: %s", h.sh(h.t, "/usr/lib/kiln/reserve && grep -h = /etc/nomad.d/30-reserved.hcl | tr -s ' \\n' ' '"))
	disk, free := h.number("sed -n 's/^ *disk *= //p' /etc/nomad.d/30-reserved.hcl"), h.diskMiB("avail")
	mhz := h.number("sed -n 's/^ *cpu *= //p' /etc/nomad.d/30-reserved.hcl")
	h.runs++
	pid := fmt.Sprintf("/run/client%d", h.runs)
	h.daemon(h.t, append(append([]string{"sh", "-c", "echo $$ >" + pid + "; exec \"$@\"", "sh"}, h.wrap...), hashicorp(h.t, "nomad"), "agent", "-config", "/etc/nomad.d")...)
	var node nodeResources
	eventually(h.t, "the node is ready", func() bool {
		var nodes []struct{ ID string }
		if h.call("GET", "/v1/nodes", nil, &nodes) != nil || len(nodes) != 1 {
			if _, status := h.try(h.t, "[ ! -e "+pid+" ] || [ -d /proc/$(cat "+pid+") ]"); status != 0 {
				h.t.Fatal("the agent has ended")
			}
			return false
		}
		h.node, node = nodes[0].ID, nodeResources{}
		if h.call("GET", "/v1/node/"+h.node, nil, &node) != nil {
			return false
		}
		// What the server knew of an earlier start may differ in nothing else.
		return node.Status == "ready" && node.Attributes["driver.raw_exec"] == "1" && node.ReservedResources.Disk.DiskMB == disk &&
			node.ReservedResources.Cpu.CpuShares == mhz && node.NodeResources.Disk.DiskMB <= free && node.NodeResources.Disk.DiskMB >= free-slack
	})
	return node
}

// stop stops Nomad, and leaves what it knows.
func (h *reservingHost) stop() {
	h.t.Helper()
	h.sh(h.t, fmt.Sprintf("kill -INT $(cat /run/client%d)", h.runs))
	eventually(h.t, "Nomad has stopped", func() bool {
		_, status := h.try(h.t, fmt.Sprintf("[ ! -d /proc/$(cat /run/client%d) ]", h.runs))
		return status == 0
	})
}

// call asks the host's agent.
func (h *reservingHost) call(method, path string, body, answer any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(h.t.Context(), method, "http://"+reserveClient+":4646"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	response, err := h.api.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	b, err = io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, b)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}

// ask is what a job asks for; 0 is little.
type ask struct {
	cores             int
	mhz, memory, disk int64
}

func (a ask) String() string {
	return fmt.Sprintf("%d cores, %d MHz, %d MiB of memory, %d MiB of disk", a.cores, a.mhz, a.memory, a.disk)
}

// job asks for a, and sleeps.
func (a ask) job() map[string]any {
	type object = map[string]any
	resources := object{"CPU": max(1, a.mhz), "MemoryMB": max(10, a.memory)}
	if a.cores > 0 {
		resources = object{"Cores": a.cores, "MemoryMB": max(10, a.memory)}
	}
	return object{"Job": object{
		"ID": "job", "Type": "batch", "Datacenters": []string{"ci"},
		"TaskGroups": []object{{
			"Name": "group", "Count": 1, "EphemeralDisk": object{"SizeMB": max(10, a.disk)},
			"Tasks": []object{{
				"Name": "task", "Driver": "raw_exec", "Resources": resources,
				"Config":    object{"command": "/bin/sleep", "args": []string{"4711"}},
				"LogConfig": object{"MaxFiles": 1, "MaxFileSizeMB": 1},
			}},
		}},
	}}
}

// places asks where a job would go, and wants it to go nowhere for lack of
// dimension; or anywhere, where dimension is empty.
func (h *reservingHost) places(a ask, dimension string) {
	h.t.Helper()
	var answer struct {
		FailedTGAllocs map[string]struct{ DimensionExhausted map[string]int }
	}
	if err := h.call("POST", "/v1/job/job/plan", a.job(), &answer); err != nil {
		h.t.Fatalf("%s: %v", a, err)
	}
	failed, isFailed := answer.FailedTGAllocs["group"]
	switch {
	case dimension == "" && isFailed:
		h.t.Errorf("%s: isn't placed: %v", a, failed.DimensionExhausted)
	case dimension != "" && failed.DimensionExhausted[dimension] != 1:
		h.t.Errorf("%s: isn't refused for want of %s: %v", a, dimension, failed.DimensionExhausted)
	}
}

// runsOn really runs a job, and tells on which processors.
func (h *reservingHost) runsOn(a ask) string {
	h.t.Helper()
	const sleeping = "pgrep -xf '/bin/sleep 4711'"
	type allocations []struct{ ClientStatus string }
	if err := h.call("POST", "/v1/jobs", a.job(), nil); err != nil {
		h.t.Fatalf("%s: %v", a, err)
	}
	eventually(h.t, a.String()+" runs", func() bool {
		var allocs allocations
		if err := h.call("GET", "/v1/job/job/allocations", nil, &allocs); err != nil {
			h.t.Fatal(err)
		}
		if len(allocs) == 1 && allocs[0].ClientStatus == "failed" {
			h.t.Fatalf("%s failed: %+v", a, allocs)
		}
		return len(allocs) == 1 && allocs[0].ClientStatus == "running"
	})
	processors := strings.TrimSpace(h.sh(h.t, "sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/$("+sleeping+")/status"))
	if err := h.call("DELETE", "/v1/job/job?purge=true", nil, nil); err != nil {
		h.t.Fatalf("%s: %v", a, err)
	}
	eventually(h.t, "the job has stopped, and gives back what it had", func() bool {
		var allocs allocations
		if err := h.call("GET", "/v1/node/"+h.node+"/allocations", nil, &allocs); err != nil {
			h.t.Fatal(err)
		}
		for _, alloc := range allocs {
			if alloc.ClientStatus == "running" || alloc.ClientStatus == "pending" {
				return false
			}
		}
		_, running := h.try(h.t, sleeping)
		return running != 0
	})
	return processors
}

// fakeSysfs writes what the kernel would tell of such processors.
func fakeSysfs(t *testing.T, dir string, cpus []reserve.CPU) {
	t.Helper()
	siblings := map[int][]int{}
	var ids []int
	for _, c := range cpus {
		ids = append(ids, c.ID)
		siblings[c.Group] = append(siblings[c.Group], c.ID)
	}
	file := func(path, text string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, text+"\n")
	}
	for _, c := range cpus {
		of := fmt.Sprintf("cpu/cpu%d/", c.ID)
		file(of+"topology/thread_siblings_list", list(siblings[c.Group]))
		file(of+"topology/physical_package_id", "0")
		if c.MHz > 0 {
			file(of+"cpufreq/base_frequency", strconv.FormatInt(c.MHz*1000, 10))
		}
	}
	file("cpu/online", list(ids))
	file("node/online", "0")
	file("node/node0/cpulist", list(ids))
	file("node/node0/distance", "10")
}

func mountSysfs(dir string) string {
	return "mount --bind " + dir + "/cpu /sys/devices/system/cpu\nmount --bind " + dir + "/node /sys/devices/system/node\n"
}
