package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"slices"
	"text/template"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

// bootableHosts are those of a site that can boot from the network: sound, and with
// a MAC. The problems of others are given beside: they are as good as unknown. What is
// wrong with the inventory itself is the error: nobody knows which hosts that hides.
func bootableHosts(ctx context.Context, site *profiles.Site) ([]netboot.Host, problem.List, error) {
	var hosts []netboot.Host
	var problems problem.List
	others, err := site.Plans(ctx, func(_ string, p *plan.Plan, found problem.List) bool {
		if found.Err() != nil || p == nil {
			problems = append(problems, found...)
		} else if h := bootableHost(p); len(h.NICs) > 0 {
			hosts = append(hosts, h)
		}
		return ctx.Err() == nil
	})
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = others.Err()
	}
	problems = slices.DeleteFunc(problems, func(p problem.Problem) bool { return p.Warning })
	problems.Sort()
	return hosts, problems, err
}

// bootableHost is what network booting knows of a host.
func bootableHost(p *plan.Plan) netboot.Host {
	h := netboot.Host{Name: p.Host.Name, Profile: p.Image.Profile, Definition: p.Image.Definition, Install: p.Host.Install}
	for _, d := range p.Host.Disks {
		h.Data = append(h.Data, d.Disk)
	}
	for _, i := range p.Host.Network.Interfaces {
		if i.MAC != "" {
			h.NICs = append(h.NICs, netboot.NIC{MAC: i.MAC, Addresses: i.Addresses, Gateways: i.Gateways, DNS: i.DNS})
		}
	}
	return h
}

// installedSeed is what an installed host gets: its seed, and a hook that tells the
// server that it has booted from its disk. The plan's secrets have to be resolved
// where they are to be in it.
func installedSeed(p *plan.Plan, firstBoot string) ([]protocol.SeedFile, error) {
	files, err := render.Seed(p, render.Options{Target: render.Golden})
	if err != nil {
		return nil, err
	}
	var seed []protocol.SeedFile
	for _, f := range files {
		seed = append(seed, protocol.SeedFile{Name: f.Name, Data: f.Data})
	}
	if firstBoot == "" {
		return seed, nil
	}
	if u, err := url.Parse(firstBoot); err != nil || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL that a host could report to", firstBoot)
	}
	var hook bytes.Buffer
	if err := firstBootHook.Execute(&hook, firstBoot); err != nil {
		return nil, err
	}
	return append(seed, protocol.SeedFile{Name: "vendor-data", Data: hook.Bytes()}), nil
}

// firstBootHook is vendor-data: user-data's own commands would take the place of
// others', and a hook runs as soon as there is a network. Nobody waits for it who
// has no use for it: it is done once, and its failure is none of the host's.
var firstBootHook = template.Must(template.New("").Parse(`#cloud-boothook
#!/bin/sh
# Tells the server that installed this host that it has booted from its disk.
exec cloud-init-per once kiln-first-boot python3 - <<'END'
import time, urllib.request
for wait in 0, 3, 10:
    time.sleep(wait)
    try:
        urllib.request.urlopen({{printf "%q" .}}, data=b"{}", timeout=5)
        break
    except OSError as e:
        print("kiln: telling of the first boot:", e)
END
`))
