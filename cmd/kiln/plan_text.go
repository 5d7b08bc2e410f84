package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/alisw/kiln/plan"
)

// planPrinter prints a plan for people. A value stands at the left, where it
// comes from at the right.
type planPrinter struct{ out io.Writer }

func printPlan(out io.Writer, p *plan.Plan) {
	pp := planPrinter{out}
	r := p.Image.Release
	pp.linef("%s: profile %s on %s (%s %s %s, %s)", p.Host.Name, p.Image.Profile, p.Image.Definition, r.ID, r.Version, r.Codename, r.Architecture)
	pp.linef("")
	pp.linef("Image half: baked once, the same for each host of %s on %s", p.Image.Profile, p.Image.Definition)
	pp.image(&p.Image)
	pp.linef("")
	pp.linef("Host half: what %s gets at its first boot", p.Host.Name)
	pp.host(&p.Host)
}

func (pp planPrinter) linef(format string, args ...any) {
	_, _ = fmt.Fprintf(pp.out, format+"\n", args...)
}

// rows prints a heading and lines of a value and its origin.
func (pp planPrinter) rows(heading string, n int, row func(i int) (value string, origin plan.Origin)) {
	if n == 0 {
		return
	}
	pp.linef("\n  %s", heading)
	w := tabwriter.NewWriter(pp.out, 0, 8, 2, ' ', 0)
	for i := range n {
		value, origin := row(i)
		_, _ = fmt.Fprintf(w, "    %s\t%s\n", visible(value), from(origin))
	}
	_ = w.Flush() // to a buffer whose errors come at its end
}

// from is an origin, as it stands beside a value.
func from(o plan.Origin) string {
	if s := o.String(); s != "" {
		return "← " + s
	}
	return ""
}

func (pp planPrinter) image(im *plan.Image) {
	pp.rows("apt sources", len(im.AptSources), func(i int) (string, plan.Origin) {
		s := im.AptSources[i]
		key := "key " + s.Fingerprint
		if len(s.Key) == 0 {
			key += ", which the site doesn't hold: kiln keys fetch"
		}
		return fmt.Sprintf("%s: %s %s (%s)", s.Name, strings.Join(s.URIs, " "), strings.Join(append(slices.Clone(s.Suites), s.Components...), " "), key), s.Origin
	})
	pp.rows("packages", len(im.Packages), func(i int) (string, plan.Origin) { return im.Packages[i].Name, im.Packages[i].Origin })
	pp.rows("kernel arguments", len(im.KernelArguments), func(i int) (string, plan.Origin) {
		return im.KernelArguments[i].Value, im.KernelArguments[i].Origin
	})
	pp.layer(&im.Layer)
}

func (pp planPrinter) host(h *plan.Host) {
	own := []struct {
		value  string
		origin plan.Origin
	}{
		{"name: " + h.Name, h.Origin},
		{"hostname: " + h.Hostname, h.Origin},
		{"platform: " + string(h.Platform), h.Origin},
		{fmt.Sprintf("kept from Nomad: %s of the processors, %s of the memory, %s of the disk", percent(h.Reserved.CPU), percent(h.Reserved.Memory), percent(h.Reserved.Disk)), h.Reserved.Origin},
	}
	if h.Install != (plan.DiskRule{}) {
		own = append(own, own[0])
		own[len(own)-1].value = "installed to the disk with " + rule(h.Install)
	}
	pp.rows("itself", len(own), func(i int) (string, plan.Origin) { return own[i].value, own[i].origin })
	pp.rows("interfaces", len(h.Network.Interfaces), func(i int) (string, plan.Origin) {
		return networkInterface(&h.Network.Interfaces[i]), h.Network.Interfaces[i].Origin
	})
	pp.rows("data disks", len(h.Disks), func(i int) (string, plan.Origin) {
		d := h.Disks[i]
		return strings.TrimSpace(fmt.Sprintf("%s: the disk with %s, %s %s", d.Mount, rule(d.Disk), d.Filesystem, d.Options)), d.Origin
	})
	refs := h.References()
	pp.rows("secrets", len(refs), func(i int) (string, plan.Origin) { return string(refs[i].Ref), refs[i].Origin })
	pp.layer(&h.Layer)
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', -1, 64) + "%" }

// rule is a disk's rule with the very numbers of the plan.
func rule(r plan.DiskRule) string {
	return r.Words(func(n int64) string { return fmt.Sprintf("%d bytes", n) })
}

func networkInterface(i *plan.Interface) string {
	words := []string{i.Name + ":"}
	add := func(key string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			words = append(words, key+" "+strings.Join(values, " ")+",")
		}
	}
	add("MAC", string(i.MAC))
	if i.Bond != nil {
		add("bond of", append(slices.Clone(i.Bond.Members), "("+i.Bond.Mode+")")...)
	}
	if i.VLAN != nil {
		add("VLAN", strconv.Itoa(i.VLAN.ID), "on", i.VLAN.Link)
	}
	for key, on := range map[string]bool{"DHCP": i.DHCP4 && !i.DHCP6, "DHCPv6": i.DHCP6 && !i.DHCP4, "DHCP and DHCPv6": i.DHCP4 && i.DHCP6} {
		if on {
			words = append(words, key+",")
		}
	}
	if i.AcceptRA != nil {
		add("router advertisements", map[bool]string{true: "taken", false: "ignored"}[*i.AcceptRA])
	}
	add("addresses", prefixes(i.Addresses)...)
	add("gateways", addrs(i.Gateways)...)
	for _, r := range i.Routes {
		add("route", r.To.String(), "via", r.Via.String())
	}
	add("DNS", addrs(i.DNS)...)
	add("search", i.Search...)
	if i.MTU != 0 {
		add("MTU", strconv.Itoa(i.MTU))
	}
	return strings.TrimSuffix(strings.Join(words, " "), ",")
}

func prefixes(l []netip.Prefix) []string {
	out := make([]string, len(l))
	for i, p := range l {
		out[i] = p.String()
	}
	return out
}

func addrs(l []netip.Addr) []string {
	out := make([]string, len(l))
	for i, a := range l {
		out[i] = a.String()
	}
	return out
}

func (pp planPrinter) layer(l *plan.Layer) {
	pp.rows("groups", len(l.Groups), func(i int) (string, plan.Origin) {
		g := l.Groups[i]
		return g.Name + id(g.GID) + flagged(g.System, "system"), g.Origin
	})
	pp.rows("users", len(l.Users), func(i int) (string, plan.Origin) { return user(&l.Users[i]), l.Users[i].Origin })
	pp.rows("directories", len(l.Directories), func(i int) (string, plan.Origin) {
		d := l.Directories[i]
		return fmt.Sprintf("%04o %s:%s %s", uint32(d.Mode), d.Owner, d.Group, d.Path), d.Origin
	})
	pp.rows("units, in the order in which they start", len(l.Units), func(i int) (string, plan.Origin) {
		return string(l.Units[i].State) + " " + l.Units[i].Name, l.Units[i].Origin
	})
	if len(l.Files) > 0 {
		pp.linef("\n  files")
	}
	for i := range l.Files {
		pp.file(&l.Files[i])
	}
}

func id(n *int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf(" (%d)", *n)
}

func flagged(on bool, word string) string {
	if !on {
		return ""
	}
	return ", " + word
}

func user(u *plan.User) string {
	var b strings.Builder
	b.WriteString(u.Name + id(u.UID) + flagged(u.System, "system") + flagged(u.Sudo, "sudo"))
	for _, f := range []struct{ key, value string }{
		{"group", u.Group}, {"groups", strings.Join(u.Groups, " ")}, {"home", u.Home}, {"shell", u.Shell}, {"comment", u.Comment},
	} {
		if f.value != "" {
			b.WriteString(", " + f.key + " " + f.value)
		}
	}
	if n := len(u.SSHKeys); n > 0 {
		b.WriteString(", " + count(n, "SSH key"))
	}
	return b.String()
}

func (pp planPrinter) file(f *plan.File) {
	if f.Target != "" {
		pp.linef("    %s → %s  %s", visible(f.Path), visible(f.Target), from(f.Origin))
		return
	}
	pp.linef("    %04o %s:%s %s  %s", uint32(f.Mode), f.Owner, f.Group, visible(f.Path), from(f.Origin))
	content := f.Content.Redacted()
	if !utf8.ValidString(content) || strings.ContainsRune(content, 0) {
		pp.linef("      (%d bytes that are no text)", len(content))
		return
	}
	for line := range strings.Lines(content) {
		pp.linef("      │ %s", visible(strings.TrimSuffix(line, "\n")))
	}
	if content != "" && !strings.HasSuffix(content, "\n") {
		pp.linef("      (no newline at the end)")
	}
}

// visible keeps what stands in a file from steering the terminal.
func visible(s string) string {
	if !strings.ContainsFunc(s, steers) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if steers(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func steers(r rune) bool { return r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf) }
