//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// lab is what kiln serve needs: a site, an image, and a state in which hosts are armed.
type lab struct {
	programs string // folder of kiln and kiln-installer
	scratch  string // folder for its own
	proxy    bool   // addresses are somebody else's to give
	hosts    int

	dir   string // of all that is made; empty: nothing is yet
	image *images.Manifest
	raw   string // the image's disk
	runs  int
}

func (l *lab) flags() {
	flag.StringVar(&l.programs, "programs", "bin", "folder of kiln and kiln-installer, as make build makes it")
	flag.StringVar(&l.scratch, "scratch", "/var/tmp", "folder on a real disk, with 4 GB to spare")
	flag.BoolVar(&l.proxy, "proxy-dhcp", false, "kiln serve stands beside another DHCP server, instead of giving addresses")
}

// make makes all of it, once.
func (l *lab) make(ctx context.Context) error {
	if l.dir != "" {
		return nil
	}
	for _, name := range []string{"kiln", "kiln-installer"} {
		if _, err := os.Stat(filepath.Join(l.programs, name)); err != nil {
			return fmt.Errorf("%w: make build builds it; -programs names another folder", err)
		}
	}
	dir, err := os.MkdirTemp(l.scratch, "kiln-bench-")
	if err != nil {
		return err
	}
	l.dir = dir
	if err := l.writeSite(); err != nil {
		return fmt.Errorf("the site: %w", err)
	}
	if err := l.makeImage(ctx); err != nil {
		return fmt.Errorf("the image: %w", err)
	}
	return nil
}

// remove removes what was made.
func (l *lab) remove() error {
	if l.dir == "" {
		return nil
	}
	return os.RemoveAll(l.dir)
}

func (l *lab) cache() string { return filepath.Join(l.dir, "cache") }

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
  upstream: [192.0.2.53]
time_servers: [ntp.example.org]
`

// writeSite writes one of as many hosts as boot. Their addresses aren't those of the
// relays, which the virtual machines are, too.
func (l *lab) writeSite() error {
	var b strings.Builder
	address := netip.MustParseAddr("10.2.128.0")
	for i := range l.hosts {
		address = address.Next()
		fmt.Fprintf(&b, "- name: %s\n  profile: plain\n  interfaces: {lan: {mac: \"%s\", addresses: [%s/16]}}\n", hostName(i), macOf(i), address)
	}
	dir := filepath.Join(l.dir, "site")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "site.yaml"), []byte(siteFile), 0o644),
		os.WriteFile(filepath.Join(dir, "hosts.yaml"), []byte(b.String()), 0o644),
	)
}

func hostName(i int) string { return fmt.Sprintf("fleet%05d", i) }

// arm arms all hosts, in a new state.
func (l *lab) arm() (dir string, err error) {
	l.runs++
	dir = filepath.Join(l.dir, fmt.Sprintf("state%d", l.runs))
	s, err := state.Open(dir)
	if err != nil {
		return "", err
	}
	for i := range l.hosts {
		_, err := s.Arm(state.Arming{
			Host: hostName(i) + ".example.org", MACs: []plan.MAC{plan.MAC(macOf(i).String())},
			Image: l.image.ID, Profile: l.image.Profile, Disk: "the only one", By: "the benchmark",
		})
		if err != nil {
			return "", err
		}
	}
	return dir, nil
}

// serve starts kiln serve, with all hosts armed.
func (l *lab) serve(ctx context.Context) (*server, error) {
	if err := l.make(ctx); err != nil {
		return nil, err
	}
	dir, err := l.arm()
	if err != nil {
		return nil, err
	}
	argv := []string{
		filepath.Join(l.programs, "kiln"), "serve", "--site", filepath.Join(l.dir, "site"), "--state", dir,
		"--interface", "kiln0", "--address", serverAddress,
	}
	if !l.proxy {
		argv = append(argv, "--dhcp", "10.2.128.1-10.2.255.254/16")
	}
	s, err := startCabled(ctx, filepath.Join(l.dir, "serve.log"), []string{"KILN_CACHE=" + l.cache()}, argv...)
	if err != nil {
		return nil, fmt.Errorf("kiln serve: %w", err)
	}
	if err := s.waitFor(ctx, http.MethodGet, l.url("/healthz"), time.Minute); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// serveBesideNginx starts kiln serve, and in its network an nginx with the same files.
func (l *lab) serveBesideNginx(ctx context.Context) (s *server, stop func(), err error) {
	if s, err = l.serve(ctx); err != nil {
		return nil, nil, err
	}
	stopNginx, err := s.startNginx(ctx, l.dir, l.cache())
	if err != nil {
		s.stop()
		return nil, nil, err
	}
	return s, func() {
		stopNginx()
		s.stop()
	}, nil
}

// url is one of the server's.
func (l *lab) url(path string) string { return "http://" + serverAddress + ":8080" + path }

// chunk is where one of the image's chunks is, on any server.
func (l *lab) chunk(name string) string {
	return "/images/" + l.image.ID + "/" + images.NetbootDir + "/" + name
}
