package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/netboot/dashboard"
	"github.com/alisw/kiln/netboot/dhcp"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/tftp"
	"github.com/alisw/kiln/netboot/web"
)

type serveOptions struct {
	*globalOptions
	state      stateOptions
	proxy      bool
	ranges     []string
	interfaces []string
	address    string
	httpPort   uint16
	httpsPort  uint16
	installer  string
	ipxe       string
	writers    int
	firstBoot  time.Duration
	discover   bool
	cmdline    string
	tlsCert    string
	tlsKey     string
	log        string
	verbose    bool
}

func newServeCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &serveOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Boot the site's hosts from the network, and install those that are armed",
		Long: `Serve answers the firmware of the site's hosts over DHCP, TFTP and HTTP. A host that
was armed (kiln arm) gets the installer, once: it writes the host's image to its
disk, gives it its data, and restarts; from then on the host boots from its disk. It
is ready once kiln verify would find nothing. All others are sent to their disks.
Machines that aren't in the inventory get no answer at all.

By default it stands beside the network's own DHCP server, which gives the
addresses (--proxy-dhcp). In a lab without one, --dhcp has it give them, too.

http://ADDRESS:8080/ shows where each installation is, as kiln status does. The
site's files are read again when they change, or at SIGHUP, which has it read the
certificate of --tls-cert again, too; transfers go on. What verify and arm ask of
Nomad and Consul is configured by the environment, as for kiln verify.

It needs root, or CAP_NET_BIND_SERVICE and CAP_NET_RAW. iPXE is the distribution's
(Debian's package ipxe).`,
		Example: `  kiln serve --interface eno1
  kiln serve --interface lab0 --dhcp 10.0.0.100-10.0.0.200
  kiln arm build01 && kiln status --watch`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		Annotations:       map[string]string{endsByItself: "yes", reloadsAtHUP: "yes"},
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runServe(ctx, o, u) }),
	}
	f := cmd.Flags()
	f.BoolVar(&o.proxy, "proxy-dhcp", false, "leave addresses to the network's own DHCP server (the default)")
	f.StringArrayVar(&o.ranges, "dhcp", nil, "`RANGE` of addresses to give, FIRST-LAST, where no other DHCP server is; may be repeated")
	f.StringSliceVar(&o.interfaces, "interface", nil, "`INTERFACES` to answer on (default: all that have an address)")
	f.StringVar(&o.address, "address", "", "`ADDRESS` that hosts are told to reach it at (default: the interface's)")
	f.Uint16Var(&o.httpPort, "http-port", 8080, "`PORT` of HTTP: boot files, images, the dashboard")
	f.Uint16Var(&o.httpsPort, "https-port", 8443, "`PORT` of HTTPS: installers, operators")
	f.StringVar(&o.installer, "installer", "", "`FILE` of the installer's program (default: kiln-installer beside kiln)")
	f.StringVar(&o.ipxe, "ipxe", "/usr/lib/ipxe", "`DIR` of iPXE's programs: undionly.kpxe and snponly.efi")
	f.IntVar(&o.writers, "writers", 16, "`NUMBER` of hosts that are written at the same time; others wait in line")
	f.DurationVar(&o.firstBoot, "first-boot-timeout", 30*time.Minute, "`TIME` that an installed host has to become ready; it has failed then")
	f.BoolVar(&o.discover, "discover", false, "remember unknown machines that ask to boot, for kiln discover; they get no answer")
	f.StringVar(&o.cmdline, "cmdline", "console=tty0 console=ttyS0,115200", "`ARGUMENTS` that are added to the installer's kernel command line")
	f.StringVar(&o.tlsCert, "tls-cert", "", "`FILE` of HTTPS's certificate (default: one of its own, whose key installers know)")
	f.StringVar(&o.tlsKey, "tls-key", "", "`FILE` of the certificate's key")
	f.StringVar(&o.log, "log", "text", "`FORMAT` of the log: text or json")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log every request")
	o.state.flag(cmd)
	cmd.MarkFlagsMutuallyExclusive("proxy-dhcp", "dhcp")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	complete(cmd, "log", "text", "json")
	for _, dir := range []string{"ipxe"} {
		_ = cmd.MarkFlagDirname(dir)
	}
	return cmd
}

// serving is a server, put together.
type serving struct {
	options   *serveOptions
	log       *slog.Logger
	dir       string // of the state
	store     *state.Store
	site      *servedSite
	images    *servedImages
	dhcp      *dhcp.Server
	tftp      *tftp.Server
	web       *web.Server
	pages     *dashboard.Dashboard
	sightings dhcp.Sightings
}

func runServe(ctx context.Context, o *serveOptions, u *ui.UI) error {
	// Before all else: until it is asked for, this signal ends a process.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	s, err := newServing(ctx, o, u)
	if err != nil {
		return err
	}
	return s.run(ctx, hup)
}

func (o *serveOptions) logger(u *ui.UI) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if o.verbose {
		options.Level = slog.LevelDebug
	}
	switch o.log {
	case "text":
		return slog.New(slog.NewTextHandler(u.Err, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(u.Err, options)), nil
	}
	return nil, usagef("there is no format of logs %q: %s", o.log, strictyaml.DidYouMean(o.log, []string{"text", "json"}))
}

// newServing makes sense of the flags, and reads all that the server needs.
func newServing(ctx context.Context, o *serveOptions, u *ui.UI) (*serving, error) {
	s := &serving{options: o}
	var err error
	if s.log, err = o.logger(u); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if s.dhcp, err = o.newDHCP(s); err != nil {
		return nil, err
	}
	if err := haveIPXE(o.ipxe); err != nil {
		return nil, err
	}
	program, err := installerProgram(o.installer)
	if err != nil {
		return nil, err
	}
	if s.dir, err = o.state.directory(); err != nil {
		return nil, err
	}
	if s.store, err = o.state.open(); err != nil {
		return nil, err
	}
	s.dhcp.StateDir = s.dir
	s.store.Timeouts.FirstBoot = o.firstBoot
	s.site = &servedSite{options: o.globalOptions, log: s.log, store: s.store, state: s.dir, address: o.address, port: int(o.httpPort)}
	if err := s.site.load(ctx); err != nil {
		return nil, err
	}
	s.dhcp.SetHosts(s.site.registered())
	images, err := baking.OpenStore()
	if err != nil {
		return nil, err
	}
	if err := images.AddHolder(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // there are no images yet
		s.log.Warn("images that hosts are armed with can be removed", "error", err)
	}
	s.images = &servedImages{store: images, dir: filepath.Join(s.dir, "initramfs"), installer: program, log: s.log}
	if err := s.newTFTP(); err != nil {
		return nil, err
	}
	return s, s.newWeb()
}

// check refuses numbers that nobody can have meant.
func (o *serveOptions) check() error {
	switch {
	case o.writers < 1:
		return usagef("--writers %d: no host would ever be written: 1 is the least", o.writers)
	case o.firstBoot <= 0:
		return usagef("--first-boot-timeout %s: no host would have time to become ready", o.firstBoot)
	case o.httpPort == 0 || o.httpsPort == 0:
		return usagef("--http-port and --https-port: hosts are told the ports before they are chosen: name them")
	case o.httpPort == o.httpsPort:
		return usagef("--http-port and --https-port are both %d: name two", o.httpPort)
	}
	return nil
}

func (o *serveOptions) newDHCP(s *serving) (*dhcp.Server, error) {
	d := &dhcp.Server{Interfaces: o.interfaces, HTTPPort: o.httpPort, Log: s.log}
	if o.address != "" {
		a, err := netip.ParseAddr(o.address)
		if err != nil || !a.Is4() {
			return nil, usagef("--address %s: write an IPv4 address of this machine", o.address)
		}
		d.Address = a
	}
	for _, text := range o.ranges {
		r, err := dhcp.ParseRange(text)
		if err != nil {
			return nil, usagef("--dhcp: %s", err)
		}
		d.Mode, d.Ranges = dhcp.Full, append(d.Ranges, r)
	}
	if o.discover {
		d.Seen = s.sightings.Add
	}
	return d, nil
}

// ipxeFiles are those of iPXE's that firmware is given.
var ipxeFiles = []string{dhcp.DefaultBIOSFile, dhcp.DefaultEFIFile}

func haveIPXE(dir string) error {
	for _, name := range ipxeFiles {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("iPXE isn't there: %w: install the package ipxe, or name its folder with --ipxe DIR", err)
		} else if err != nil {
			return fmt.Errorf("iPXE: %w", err)
		}
	}
	return nil
}

// newTFTP serves iPXE, and what a newer iPXE asks for first.
func (s *serving) newTFTP() error {
	folder, err := tftp.OpenFolder(s.options.ipxe)
	if err != nil {
		return err
	}
	s.tftp = &tftp.Server{Log: s.log, Files: tftp.FilesFunc(func(name string, client netip.Addr) ([]byte, error) {
		if name == tftp.AutoexecName {
			own := s.options.address
			if own == "" {
				var err error
				if own, err = ownAddress(client.String()); err != nil {
					return nil, err
				}
			}
			script := "http://" + net.JoinHostPort(own, strconv.Itoa(int(s.options.httpPort))) + "/boot/${netX/mac:hexhyp}/script.ipxe"
			return tftp.Autoexec(script).Open(name, client)
		}
		if !slices.Contains(ipxeFiles, name) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return folder.Open(name, client)
	})}
	return nil
}

func (s *serving) newWeb() error {
	o := s.options
	certificate, err := web.Certificate(s.dir)
	if o.tlsCert != "" {
		certificate, err = web.LoadCertificate(o.tlsCert, o.tlsKey)
	}
	if err != nil {
		return err
	}
	token, err := web.OperatorToken(s.dir)
	if err != nil {
		return err
	}
	s.pages = &dashboard.Dashboard{Records: records{s.store}, Given: s.site.given, Log: s.log}
	if o.discover {
		s.pages.Unknown = func(context.Context) ([]dashboard.Machine, error) { return machines(s.sightings.List()), nil }
	}
	s.web = &web.Server{
		Store: s.store, Hosts: s.site.registered, Images: s.images, Seeds: s.site.seed, Check: s.site.check, Keys: s.site.keys, Verify: s.site.verify, Arm: s.site.arm,
		IPXE: os.DirFS(o.ipxe), Dashboard: s.pages, Metrics: s.metrics, Certificate: certificate, OperatorToken: token,
		Cmdline: strings.Fields(o.cmdline), Writers: o.writers, Log: s.log,
	}
	if o.address != "" {
		s.web.PlainURL = "http://" + net.JoinHostPort(o.address, strconv.Itoa(int(o.httpPort)))
		s.web.TLSURL = "https://" + net.JoinHostPort(o.address, strconv.Itoa(int(o.httpsPort)))
	}
	return nil
}

// renew reads the operator's certificate again. One that isn't sound changes nothing.
func (s *serving) renew() {
	if s.options.tlsCert == "" {
		return
	}
	c, err := web.LoadCertificate(s.options.tlsCert, s.options.tlsKey)
	var pin string
	if err == nil {
		pin, err = s.web.Renew(c)
	}
	if err != nil {
		s.log.Error("the files of --tls-cert and --tls-key aren't sound: the certificate that was read before stays", "error", err)
		return
	}
	s.log.Info("the certificate is read", "pin", pin)
}

// run opens all sockets, and serves until ctx ends: then what runs has half a minute.
// The site is read again whenever reload has something.
func (s *serving) run(ctx context.Context, reload <-chan os.Signal) error {
	plain, secure, boot, err := s.listen(ctx)
	if err != nil {
		return err
	}
	pin, err := web.Pin(s.web.Certificate)
	if err != nil {
		return err
	}
	s.log.Info("serving", "http", plain.Addr(), "https", secure.Addr(), "dhcp", s.dhcp.Mode, "interfaces", s.options.interfaces, "state", s.dir, "pin", pin)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.dhcp.Serve(ctx) })
	g.Go(func() error { return s.web.Serve(ctx, plain, secure) })
	for _, c := range boot {
		g.Go(func() error {
			if err := s.tftp.Serve(c); !errors.Is(err, tftp.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		s.site.watch(ctx, reload, s.renew, func() { s.dhcp.SetHosts(s.site.registered()) })
		return nil
	})
	g.Go(func() error {
		s.watchArmed(ctx)
		return nil
	})
	if s.options.discover {
		g.Go(func() error {
			s.keepSightings(ctx)
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
		s.pages.Close()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return s.tftp.Shutdown(end)
	})
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	err = g.Wait()
	s.log.Info("stopped")
	return err
}

// listen opens the sockets: DHCP's, HTTP's, HTTPS's and TFTP's.
func (s *serving) listen(ctx context.Context) (plain, secure net.Listener, boot []*net.UDPConn, err error) {
	var opened []interface{ Close() error }
	defer func() {
		if err != nil {
			for _, o := range opened {
				o.Close()
			}
		}
	}()
	o := s.options
	tcp := func(port uint16) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(o.address, strconv.Itoa(int(port))))
		if err != nil {
			return nil, fmt.Errorf("listening for hosts: %w%s", err, portHint(err))
		}
		opened = append(opened, l)
		return l, nil
	}
	addresses, err := o.addresses()
	if err != nil {
		return nil, nil, nil, err
	}
	if plain, err = tcp(o.httpPort); err != nil {
		return nil, nil, nil, err
	}
	if secure, err = tcp(o.httpsPort); err != nil {
		return nil, nil, nil, err
	}
	for _, a := range addresses {
		c, err := tftp.Listen(ctx, net.JoinHostPort(a, strconv.Itoa(tftp.Port)))
		if err != nil {
			return nil, nil, nil, err
		}
		opened, boot = append(opened, c), append(boot, c)
	}
	return plain, secure, boot, s.dhcp.Listen(ctx)
}

// portHint is the way out where hosts can't be listened for.
func portHint(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": this machine doesn't have the address of --address: ip address lists those it has"
	case errors.Is(err, syscall.EADDRINUSE):
		return ": --http-port and --https-port name others"
	}
	return ""
}

// addresses are those that TFTP listens at; an empty one is all.
func (o *serveOptions) addresses() ([]string, error) {
	if o.address != "" {
		return []string{o.address}, nil
	}
	if len(o.interfaces) == 0 {
		return []string{""}, nil
	}
	var list []string
	for _, name := range o.interfaces {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("there is no interface %s: ip link lists those there are", name)
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("the addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
				list = append(list, n.IP.String())
			}
		}
	}
	return list, nil
}

// metrics are those of DHCP and TFTP.
func (s *serving) metrics() []web.Metric {
	d, t := s.dhcp.Counters.Read(), s.tftp.Counters()
	list := []web.Metric{{Name: "kiln_dhcp_packets_received_total", Value: float64(d.Received)}}
	for _, k := range sortedKeys(d.Answered) {
		list = append(list, web.Metric{Name: fmt.Sprintf("kiln_dhcp_answers_total{kind=%q}", k), Value: float64(d.Answered[k])})
	}
	for _, k := range sortedKeys(d.Unanswered) {
		list = append(list, web.Metric{Name: fmt.Sprintf("kiln_dhcp_unanswered_total{reason=%q}", k), Value: float64(d.Unanswered[k])})
	}
	list = append(list, web.Metric{Name: "kiln_tftp_transfers_started_total", Value: float64(t.Begun)}, web.Metric{Name: "kiln_tftp_active", Value: float64(t.Active)})
	for _, o := range tftp.Outcomes() {
		list = append(list, web.Metric{Name: fmt.Sprintf("kiln_tftp_transfers_total{result=%q}", o), Value: float64(t.Ended[o])})
	}
	return append(list,
		web.Metric{Name: "kiln_tftp_sent_bytes_total", Value: float64(t.Bytes)},
		web.Metric{Name: "kiln_tftp_packets_total", Value: float64(t.Packets)},
		web.Metric{Name: "kiln_tftp_resent_packets_total", Value: float64(t.Resent)},
		web.Metric{Name: `kiln_tftp_unanswered_total{reason="refused"}`, Value: float64(t.Refused)},
		web.Metric{Name: `kiln_tftp_unanswered_total{reason="malformed"}`, Value: float64(t.Malformed)},
		web.Metric{Name: `kiln_tftp_unanswered_total{reason="repeated"}`, Value: float64(t.Repeated)},
		web.Metric{Name: `kiln_tftp_unanswered_total{reason="busy"}`, Value: float64(t.Busy)},
	)
}
