package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// perFile is how many hosts stand in each file of the inventory.
const perFile = 10_000

const siteFile = `domain: example.org
datacenter: ci
region: global
servers:
  join: [nomad1.example.org, nomad2.example.org, nomad3.example.org]
  nomad: 1.9.7
  consul: 1.20.1
  vault: 1.18.0
dns:
  consul: [198.51.100.62]
  upstream: [192.0.2.53, 192.0.2.54]
time_servers: [ntp.example.org]
tls:
  directory: /etc/grid-security
admins:
  - {name: alice, ssh_keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEJB1yzqrXBYzGRNrZuAuhXzY0MqQqgH1X1TPYQyyo alice"], sudo: true}
secrets:
  consul_encrypt: teigi://alibuild/consul_encrypt
  nomad_consul_token: teigi://alibuild/nomad_consul_token
`

// writeSite makes a site of n hosts of mixed profiles in dir.
func writeSite(dir string, n int) error {
	if err := os.MkdirAll(filepath.Join(dir, "hosts"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "site.yaml"), []byte(siteFile), 0o644); err != nil {
		return err
	}
	for first := 0; first < n; first += perFile {
		name := filepath.Join(dir, "hosts", fmt.Sprintf("%04d.yaml", first/perFile))
		if err := writeHosts(name, first, min(first+perFile, n)); err != nil {
			return err
		}
	}
	return nil
}

// writeHosts writes the hosts from first to before end into a file.
func writeHosts(name string, first, end int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i := first; i < end; i++ {
		writeHost(w, i)
	}
	return errors.Join(w.Flush(), f.Close())
}

// writeHost writes the ith host: one in three is bare metal with a bond, data
// disk and facts, one a virtual machine with little to say, one in between.
func writeHost(w *bufio.Writer, i int) {
	a, b, c := 1+(i>>16), i>>8&0xff, i&0xff
	mac := fmt.Sprintf("02:00:00:%02x:%02x:%02x", a, b, c)
	switch i % 3 {
	case 0:
		fmt.Fprintf(w, `- name: metal%06d
  profile: alissandra
  interfaces:
    eno1: {mac: "%s"}
    eno2: {mac: "06%s"}
    bond0:
      bond: {members: [eno1, eno2], mode: 802.3ad}
      addresses: [10.%d.%d.%d/8, "2001:db8:0:%x::%x/32"]
      gateways: [10.255.255.254]
      dns: [192.0.2.53]
      mtu: 9000
  disks:
    - {mount: /build, disk: {serial: S3X%08d}, options: noatime}
  facts: {cores: 64, mhz: 166400, memory: 256GiB}
  vars:
    nomad_meta: {rack: r%02d}
`, i, mac, mac[2:], a, b, c, i>>8, (i&0xff)+1, i, i%40)
	case 1:
		fmt.Fprintf(w, "- name: vm%06d\n  profile: plain\n  platform: openstack\n  interfaces:\n    eth0: {mac: %q, dhcp4: true}\n  advertise: {interface: eth0}\n", i, mac)
	default:
		fmt.Fprintf(w, `# Rack %d
- name: build%06d
  profile: alissandra
  interfaces:
    eno1: {mac: "%s", addresses: [10.%d.%d.%d/8], gateways: [10.255.255.254]}
  reserve: {cpu: 0.25, memory: 0.5, disk: 0.5}
  secrets: {nomad_consul_token: teigi://alibuild/build%06d}
`, i%40, i, mac, a, b, c, i)
	}
}
