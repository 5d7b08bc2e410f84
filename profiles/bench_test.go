package profiles

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

// mixedSite is a site of n hosts of mixed profiles. internal/bench has the
// figures of a whole site; these benchmarks are for looking into them.
func mixedSite(b *testing.B, n int) string {
	b.Helper()
	var hosts strings.Builder
	for i := range n {
		x, y, z := 1+(i>>16), i>>8&0xff, i&0xff
		switch i % 3 {
		case 0:
			fmt.Fprintf(&hosts, "- name: metal%d\n  profile: alissandra\n  interfaces:\n    eno1: {mac: \"02:00:00:%02x:%02x:%02x\"}\n    bond0: {bond: {members: [eno1]}, addresses: [10.%d.%d.%d/8], gateways: [10.255.255.254]}\n  disks: [{mount: /build, disk: {serial: S%d}}]\n  facts: {cores: 64, mhz: 166400, memory: 256GiB}\n  vars: {nomad_meta: {rack: r%d}}\n", i, x, y, z, x, y, z, i, i%40)
		case 1:
			fmt.Fprintf(&hosts, "- name: vm%d\n  profile: plain\n  platform: openstack\n  advertise: {interface: eth0}\n", i)
		default:
			fmt.Fprintf(&hosts, "- name: build%d\n  profile: alissandra\n  interfaces:\n    eno1: {addresses: [10.%d.%d.%d/8]}\n  reserve: {cpu: 0.25}\n  secrets: {nomad_consul_token: teigi://a/b%d}\n", i, x, y, z, i)
		}
	}
	return writeFiles(b, map[string]string{
		"site.yaml":  "domain: example.org\nservers: {join: [nomad1.example.org], nomad: 1.9.7}\ndns: {consul: [198.51.100.62], upstream: [192.0.2.53]}\ntls: {}\nsecrets: {consul_encrypt: teigi://a/b}\n",
		"hosts.yaml": hosts.String(),
	})
}

func benchmarkPlans(b *testing.B, each func(*plan.Plan) error) {
	dir := mixedSite(b, b.N)
	s, _, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	n := 0
	if _, err := s.Plans(context.Background(), func(name string, p *plan.Plan, problems problem.List) bool {
		if p == nil {
			b.Fatalf("%s: %v", name, problems)
		}
		n++
		if err := each(p); err != nil {
			b.Fatal(err)
		}
		return true
	}); err != nil || n != b.N {
		b.Fatal(n, err)
	}
}

// BenchmarkResolve counts hosts.
func BenchmarkResolve(b *testing.B) {
	benchmarkPlans(b, func(*plan.Plan) error { return nil })
}

// BenchmarkResolveAndRender counts hosts, each with its golden user-data.
func BenchmarkResolveAndRender(b *testing.B) {
	benchmarkPlans(b, func(p *plan.Plan) error {
		_, err := render.CloudInit(p, render.Options{Target: render.Golden})
		return err
	})
}

// BenchmarkCheck counts hosts.
func BenchmarkCheck(b *testing.B) {
	dir := mixedSite(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	problems, n, err := Check(context.Background(), dir)
	if err != nil || n != b.N || problems.Err() != nil {
		b.Fatal(n, err, problems.Err())
	}
}

// BenchmarkDecode reads one entry of the inventory.
func BenchmarkDecode(b *testing.B) {
	e := entry{file: "hosts.yaml", text: []byte("- name: metal1\n  profile: alissandra\n  interfaces:\n    eno1: {mac: \"02:00:00:00:00:01\"}\n    bond0: {bond: {members: [eno1]}, addresses: [10.0.0.1/8], gateways: [10.255.255.254]}\n  facts: {cores: 64, mhz: 166400, memory: 256GiB}\n")}
	b.ReportAllocs()
	for range b.N {
		var problems problem.List
		if e.decode(&problems); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}
