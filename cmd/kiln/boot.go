package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

type bootOptions struct {
	*globalOptions
	host           string
	withoutSecrets bool
	firmware       string
	accel          string
	memory         string
	diskSize       string
	cpus           int
	timeout        time.Duration
	taps           []string
	network        string
	put            []string
	quiet          bool
	keep           bool
	json           bool
	unsigned       bool // boot it, whoever signed it
}

func newBootCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &bootOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "boot IMAGE",
		Short: "Boot an image in QEMU, and see what comes up",
		// QEMU and its files go first.
		Annotations: map[string]string{endsByItself: "yes"},
		Long: `Boot starts a golden image in QEMU, shows its console, waits until all of it is
up, and lists the services with their states. The exit status is 0 if all came
up as it should. IMAGE is an ID, the beginning of one, or a profile: then its
newest image is meant. The image itself is never written to.

With --host, the machine is that host: it has its MACs and data disks (empty
ones), and gets its seed, with the secrets' values in it. Without, it gets no
host data, and no agent starts.

Its network is QEMU's own, of the host's addresses: it reaches out but can't be
reached. --tap attaches it to interfaces of this machine instead. With --keep it
runs on, until ^C shuts it down.

In a site with public keys (keys/*.pub), an image is booted only if one of them
signed it, and if its disk is what was signed.`,
		Example: `  kiln boot alissandra                                  # does the image come up at all?
  kiln boot alissandra --host build01 --firmware secureboot
  kiln boot 4f1c2e --json --quiet | jq .report.units
  kiln boot alissandra --host build01 --tap tap0 --keep \
    --put hostcert.pem:/etc/grid-security/hostcert.pem --put hostkey.pem:/etc/grid-security/hostkey.pem`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeBootable,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runBoot(ctx, o, args[0], u) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.host, "host", "", "`HOST` of the site to boot it as")
	f.BoolVar(&o.withoutSecrets, "without-secrets", false, "leave references in the host's seed: no agent starts then")
	f.StringVar(&o.firmware, "firmware", string(boot.UEFI), "`FIRMWARE`: uefi, secureboot or bios")
	f.StringVar(&o.accel, "accel", string(boot.AccelAuto), "`KIND` of acceleration: kvm, tcg (in software), or auto, which is KVM where a guest runs with it")
	f.StringVar(&o.memory, "memory", "2GiB", "`SIZE` of its memory")
	f.StringVar(&o.diskSize, "disk-size", "16GiB", "`SIZE` of its disk, which the root file system grows to")
	f.IntVar(&o.cpus, "cpus", 0, "`NUMBER` of its processors (default: 2; 1 where Secure Boot runs in software)")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "`TIME` that it has to come up")
	f.StringSliceVar(&o.taps, "tap", nil, "`INTERFACES` of this machine (taps) that its own are attached to, in their order")
	f.StringVar(&o.network, "network", "", "`CIDR` of QEMU's own network, for interfaces without fixed addresses")
	f.StringArrayVar(&o.put, "put", nil, "`FILE:PATH`: lay a file of this machine into it before services start, such as a certificate; may be repeated")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "don't show the console")
	f.BoolVar(&o.keep, "keep", false, "let it run on when it is up, until ^C")
	f.BoolVar(&o.json, "json", false, "print what came up as JSON")
	f.BoolVar(&o.unsigned, withoutSignature, false, "boot it, whoever signed it, and whatever has become of its disk")
	_ = cmd.RegisterFlagCompletionFunc("host", completeHosts(global, -1))
	complete(cmd, "firmware", bootFirmwares...)
	complete(cmd, "accel", bootAccels...)
	return cmd
}

var (
	bootFirmwares = []string{string(boot.UEFI), string(boot.SecureBoot), string(boot.BIOS)}
	bootAccels    = []string{string(boot.AccelAuto), string(boot.AccelKVM), string(boot.AccelTCG)}
)

// completeBootable offers the images of the store, and their profiles.
func completeBootable(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, directive := completeImages(cmd, args, prefix)
	if store, err := baking.OpenStore(); err == nil {
		list, _ := store.List()
		for _, m := range list {
			if !slices.Contains(names, m.Profile) {
				names = append(names, m.Profile)
			}
		}
	}
	return names, directive
}

func runBoot(ctx context.Context, o *bootOptions, what string, u *ui.UI) error {
	m, err := o.machine()
	if err != nil {
		return err
	}
	store, image, release, err := useImage(what)
	if err != nil {
		return err
	}
	defer release()
	if !o.unsigned {
		if image, err = o.trusted(ctx, store, image, u); err != nil {
			return err
		}
	}
	if err := bootable(m, image, store); err != nil {
		return err
	}
	b := &booting{options: o, image: image, machine: m, ui: u}
	if o.host == "" {
		b.noHost()
	} else if err := b.asHost(ctx); err != nil {
		return err
	}
	if err := b.attach(); err != nil {
		return err
	}
	return b.run(ctx)
}

// machine is what the flags alone say of it.
func (o *bootOptions) machine() (*boot.Machine, error) {
	m := &boot.Machine{Format: "raw", Snapshot: true, Firmware: boot.Firmware(o.firmware), Accel: boot.Accel(o.accel), CPUs: o.cpus}
	if !slices.Contains(bootFirmwares, o.firmware) {
		return nil, usagef("there is no firmware %q: %s", o.firmware, strictyaml.DidYouMean(o.firmware, bootFirmwares))
	}
	if !slices.Contains(bootAccels, o.accel) {
		return nil, usagef("there is no acceleration %q: %s", o.accel, strictyaml.DidYouMean(o.accel, bootAccels))
	}
	memory, ok := profiles.ParseSize(o.memory)
	if !ok || memory < 128<<20 || memory > 1<<50 {
		return nil, usagef("--memory %s: write it as 4GiB; a machine needs 128MiB at least", o.memory)
	}
	m.Memory = int(memory >> 20)
	if m.DiskSize, ok = profiles.ParseSize(o.diskSize); !ok {
		return nil, usagef("--disk-size %s: write it as 20GiB", o.diskSize)
	}
	m.DiskSize = m.DiskSize / 512 * 512
	switch {
	case o.cpus < 0 || o.cpus > 255:
		return nil, usagef("--cpus %d: no machine has so many processors", o.cpus)
	case o.timeout <= 0:
		return nil, usagef("--timeout %s: a machine needs some time to come up, such as 15m", o.timeout)
	case o.withoutSecrets && o.host == "":
		return nil, usagef("--without-secrets is about a host's seed: name the host with --host")
	}
	var err error
	m.Files, err = o.files()
	return m, err
}

// mostPut bounds what --put lays into a guest: it goes through its seed.
const mostPut = 4 << 20

// files are those of --put.
func (o *bootOptions) files() ([]boot.GuestFile, error) {
	var files []boot.GuestFile
	for _, p := range o.put {
		i := strings.LastIndex(p, ":")
		if i < 1 || !path.IsAbs(p[i+1:]) || path.Clean(p[i+1:]) != p[i+1:] || p[i+1:] == "/" {
			return nil, usagef("--put %s: write it as FILE:PATH, with an absolute path in the guest", p)
		}
		f, err := regular.Open(p[:i])
		if err != nil {
			return nil, fmt.Errorf("--put %s: %w", p, err)
		}
		info, err := f.Stat()
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("--put %s: %w", p, err)
		}
		if info.Size() > mostPut {
			return nil, fmt.Errorf("--put %s: the file has %d MiB, and %d at most can be laid into a guest: add it to the image", p, info.Size()>>20, mostPut>>20)
		}
		data, err := regular.ReadFile(p[:i])
		if err != nil {
			return nil, fmt.Errorf("--put %s: %w", p, err)
		}
		files = append(files, boot.GuestFile{Path: p[i+1:], Mode: info.Mode().Perm(), Data: data})
	}
	return files, nil
}

// bootable has the machine boot the image's disk.
func bootable(m *boot.Machine, image *images.Manifest, store *images.Store) error {
	i := slices.IndexFunc(image.Artifacts, func(a images.Artifact) bool { return a.Format == images.FormatRaw })
	if i < 0 || image.Disk == nil {
		return fmt.Errorf("the image %s (%s on %s) has no disk, and can't be booted: build one from a definition with a kernel (kiln build %s --image %s)",
			image.Short(), image.Profile, image.Definition, image.Profile, images.Default)
	}
	if a := image.Release.Architecture; a != "amd64" {
		return fmt.Errorf("the image %s is for %s: kiln boot starts amd64 alone; write it to a disk of such a machine (kiln images export)", image.Short(), a)
	}
	if m.DiskSize < image.Disk.Size {
		return usagef("--disk-size: the image's disk has %d MiB already: name a larger size", image.Disk.Size>>20)
	}
	m.Disk = store.Path(image.ID, image.Artifacts[i].Name)
	return nil
}

// booting is a call of kiln boot, once it is known to make sense.
type booting struct {
	options *bootOptions
	image   *images.Manifest
	host    string // empty: none
	machine *boot.Machine
	ui      *ui.UI
}

// noHost has the report list what the image itself starts.
func (b *booting) noHost() {
	const wants = "/etc/systemd/system/multi-user.target.wants"
	for _, f := range b.image.Files {
		if dir, name := path.Split(f.Path); dir == wants+"/" && f.Type == "link" && strings.HasSuffix(name, ".service") {
			b.machine.Units = append(b.machine.Units, name)
		}
	}
	b.ui.Notef("booting %s (%s on %s) without host data: no agent will start; --host NAME boots it as a host", b.image.Short(), b.image.Profile, b.image.Definition)
}

// asHost makes the machine one of the site's hosts.
func (b *booting) asHost(ctx context.Context) error {
	site, err := b.options.open()
	if err != nil {
		return err
	}
	p, err := baking.HostPlan(ctx, site, b.options.host)
	if err != nil {
		return err
	}
	if p.Image.Profile != b.image.Profile {
		return fmt.Errorf("%s: the host %s has the profile %s, and the image %s is one of %s: boot an image of the host's profile (kiln build %[3]s), or another host",
			p.Host.Origin, p.Host.Name, p.Image.Profile, b.image.Short(), b.image.Profile)
	}
	if p.Image.Release != b.image.Release {
		return fmt.Errorf("%s: the host %s is to have the image %s, and the image %s is one of %s: build it for the host's (kiln build %s --image %[3]s), or boot another host",
			p.Host.Origin, p.Host.Name, p.Image.Definition, b.image.Short(), b.image.Definition, p.Image.Profile)
	}
	if !b.options.withoutSecrets {
		if p, err = p.WithSecrets(ctx, baking.Resolver(site)); err != nil {
			return err
		}
	}
	b.host = p.Host.Name
	if b.machine.Seed, err = render.Seed(p, render.Options{Target: render.Golden}); err != nil {
		return err
	}
	b.machine.Units = enabledUnits(p)
	nics, disks, notes, err := boot.Hardware(&p.Host)
	if err != nil {
		return err
	}
	b.machine.NICs, b.machine.DataDisks = nics, disks
	b.ui.Notef("booting %s (%s on %s) as %s", b.image.Short(), b.image.Profile, b.image.Definition, b.host)
	for _, n := range notes {
		b.ui.Notef("note: %s", n)
	}
	return nil
}

// enabledUnits are those that the host starts, the Host half having the last
// word.
func enabledUnits(p *plan.Plan) []string {
	var names []string
	for _, u := range append(slices.Clone(p.Image.Units), p.Host.Units...) {
		names = slices.DeleteFunc(names, func(n string) bool { return n == u.Name })
		if u.State == plan.UnitEnabled {
			names = append(names, u.Name)
		}
	}
	return names
}

// attach gives the machine's interfaces their networks.
func (b *booting) attach() error {
	m := b.machine
	if len(m.NICs) == 0 {
		m.NICs = []boot.NIC{{}}
	}
	if len(b.options.taps) > len(m.NICs) {
		return usagef("--tap: the machine has %d interfaces, and here are %d taps", len(m.NICs), len(b.options.taps))
	}
	for i, tap := range b.options.taps {
		// QEMU would make one that leads nowhere.
		if _, err := net.InterfaceByName(tap); err != nil {
			return fmt.Errorf("there is no interface %s here: make it first (ip tuntap add %[1]s mode tap && ip link set %[1]s master BRIDGE up)", tap)
		}
		m.NICs[i].Tap = tap
	}
	if b.options.network == "" {
		return nil
	}
	network, err := netip.ParsePrefix(b.options.network)
	if err != nil || !network.Addr().Is4() || network.Bits() > 28 {
		return usagef("--network %s: write an IPv4 network with room for 16 addresses at least, such as 198.51.100.0/24", b.options.network)
	}
	for i := range m.NICs {
		if n := &m.NICs[i]; n.Tap == "" && !n.Network.IsValid() {
			n.Network = network.Masked()
		}
	}
	return nil
}

// bootResult is what kiln boot --json prints.
type bootResult struct {
	Image    string       `json:"image"`
	Profile  string       `json:"profile"`
	Host     string       `json:"host,omitempty"`
	Ready    bool         `json:"ready"`
	Problems []string     `json:"problems"`
	Waiting  []string     `json:"waiting,omitempty"` // for host data
	Seconds  float64      `json:"seconds"`
	Report   *boot.Report `json:"report"`
}

// run boots the machine, and shows what came up.
func (b *booting) run(ctx context.Context) error {
	m := b.machine
	m.Note = func(text string) { b.ui.Notef("note: %s", text) }
	if !b.options.quiet {
		m.Line = func(line string) { b.ui.Notef("%s", line) }
	}
	// Once it is kept, ^C asks it to shut down; before, it ends it.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	ends := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer ends()
	began := time.Now()
	guest, err := m.Start(life)
	if err != nil {
		return err
	}
	defer guest.Kill()
	limited, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	report, err := guest.Report(limited)
	if err != nil {
		return fmt.Errorf("booting %s: %w", b.image.Short(), err)
	}
	result := bootResult{Image: b.image.ID, Profile: b.image.Profile, Host: b.host, Seconds: time.Since(began).Round(time.Second / 10).Seconds(), Report: report}
	verdict := b.show(&result)
	switch {
	case b.options.keep && ends():
		return b.stay(ctx, guest, verdict)
	case len(b.options.taps) > 0:
		// Others may count on it to say farewell.
		shutDown(ctx, guest)
	}
	return verdict
}

// show prints what came up; the error is that it isn't as it should be.
func (b *booting) show(r *bootResult) error {
	rows := r.Report.Rows()
	if b.host == "" {
		r.Waiting = r.Report.Waiting()
	}
	r.Problems, r.Ready = r.Report.Problems(), r.Report.Ready()
	var printed error
	if b.options.json {
		if r.Problems == nil {
			r.Problems = []string{}
		}
		printed = printJSON(b.ui, r)
	} else {
		printed = b.table(r, rows)
	}
	return errors.Join(printed, r.Report.Err())
}

func (b *booting) table(r *bootResult, rows []boot.Row) error {
	w := tabwriter.NewWriter(b.ui.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "UNIT\tSTATE\t")
	for _, row := range rows {
		note := row.Problem
		if slices.Contains(r.Waiting, row.Unit) {
			note = "waits for host data"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", row.Unit, row.State, note)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the services: %w", err)
	}
	if r.Ready {
		b.ui.Printf("\n%s\n", b.summary(r))
	}
	return nil
}

// summary is a line about a machine that is up.
func (b *booting) summary(r *bootResult) string {
	name := b.host
	if name == "" {
		name = "the machine"
	}
	firmware := r.Report.Firmware
	if r.Report.SecureBoot {
		firmware += " with Secure Boot"
	}
	return fmt.Sprintf("%s came up in %.0f s (%s, a root of %.1f GiB): all services are as they should be", name, r.Seconds, firmware, float64(r.Report.RootSize)/(1<<30))
}

// farewell is how long a guest has to shut down.
const farewell = 90 * time.Second

// shutDown has a guest end by itself, if it does so in time.
func shutDown(ctx context.Context, guest *boot.Running) {
	limited, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	_ = guest.Stop(limited) // killed, if it comes to that
}

// stay lets the guest run until it switches itself off, or is interrupted.
func (b *booting) stay(ctx context.Context, guest *boot.Running, verdict error) error {
	if verdict != nil {
		b.ui.Notef("kiln: %s", verdict)
		verdict = errShown
	}
	b.ui.Notef("it runs on: ^C shuts it down")
	select {
	case <-guest.Done():
	case <-ctx.Done():
		b.ui.Notef("shutting it down; ^C ends it at once")
		shutDown(context.WithoutCancel(ctx), guest)
	}
	return verdict
}
