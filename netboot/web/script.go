package web

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// fromDisk ends a script by booting the host's own disk, as the firmware's order of
// boot has it. A UEFI firmware goes on with its next boot option when iPXE ends
// without success (after a success it stops in its menu: seen with OVMF); iPXE of 2019
// can't start a disk there, since its sanboot knows none but those in the network. Many
// BIOSes don't go on, so iPXE starts their first disk itself; where it can't, it
// ends, which helps with the others.
const fromDisk = `iseq ${platform} efi || goto bios
exit 1
:bios
sanboot --no-describe --drive 0x80 || exit 1
`

// script decides whether a host is installed. It is asked at each boot from the
// network, and a GET in the stage armed uses that up.
func (s *Server) script(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		// HEAD would use up the token, which nobody gets.
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	mac, err := plan.ParseMAC(r.PathValue("mac"))
	if err != nil {
		s.stranger(w, r, "")
		return
	}
	host, ok := s.Hosts().ByMAC(mac)
	if !ok {
		s.stranger(w, r, mac)
		return
	}
	log := s.Log.With("host", host.Name, "mac", mac, "address", source(r))
	given, err := s.boot(r.Context(), host, mac, source(r))
	var text string
	switch {
	case err != nil:
		s.counts.scripts("error").Inc()
		log.Error("it isn't installed", "error", err)
		text = "#!ipxe\necho kiln: this host is not installed: the server's log says why\n" + fromDisk
	case given == nil:
		s.counts.scripts("disk").Inc()
		log.Info("it boots from its disk")
		text = "#!ipxe\necho kiln: " + host.Name + " boots from its disk\n" + fromDisk
	default:
		s.counts.scripts("install").Inc()
		log.Info("it is given the installer", "image", given.Image)
		text = s.installScript(r, host.Name, mac, given)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Write([]byte(text))
}

// stranger answers who isn't in the inventory, and tells the log of each once: there
// is no end to what they ask.
func (s *Server) stranger(w http.ResponseWriter, r *http.Request, mac plan.MAC) {
	s.counts.scripts("unknown").Inc()
	first, last := s.strangers.First(mac, time.Now())
	level := slog.LevelDebug
	if first {
		level = slog.LevelInfo
	}
	s.Log.Log(r.Context(), level, "an unknown host asks what to boot", "mac", mac, "address", source(r))
	if last {
		s.Log.Info("many unknown hosts have asked: no more of them are logged for a day; the metrics count them")
	}
	quiet(w)
	http.NotFound(w, r)
}

// boot asks the state, once it is sure that what would be booted is there.
func (s *Server) boot(ctx context.Context, host *netboot.Host, mac plan.MAC, address string) (*state.Installation, error) {
	record, err := s.Store.Get(host.Name)
	if err == nil && record.Stage == state.Armed {
		if err := s.bootable(record.Image); err != nil {
			_, e := s.Store.Fail(host.Name, record.Install, fmt.Sprintf("the image can't be booted: %v", err))
			return nil, fmt.Errorf("the image %.12s can't be booted: %w", record.Image, firstOf(e, err))
		}
		if err := s.seedable(ctx, host.Name); err != nil && ctx.Err() != nil {
			// Whoever asked is gone, or the server ends: nothing is wrong with the host.
			return nil, fmt.Errorf("the seed of %s isn't waited for any more: %w", host.Name, err)
		} else if err != nil {
			_, e := s.Store.Fail(host.Name, record.Install, fmt.Sprintf("its seed can't be made: %v", err))
			return nil, fmt.Errorf("the seed of %s can't be made: %w", host.Name, firstOf(e, err))
		}
	}
	before := record
	given, err := s.Store.Boot(host.Name, siteOf(host, mac, address))
	if err == nil && given == nil && before != nil && before.Running() {
		s.Log.Warn("it booted again before the image was written: the installation has failed", "host", host.Name)
		s.line.leave(before.Install)
	}
	if err == nil && given == nil && before != nil && before.Stage == state.Written {
		// It restarts from its new disk, through here: others tell so themselves, later.
		_, err = s.Store.FirstBoot(before.Install)
	}
	return given, err
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// bootable tells whether an image has what is needed to install it.
func (s *Server) bootable(image string) error {
	kernel, err := s.Images.Kernel(image)
	if err != nil {
		return err
	}
	kernel.Close()
	initramfs, err := s.Images.Installer(image)
	if err != nil {
		return err
	}
	return initramfs.Close()
}

// seedable tells whether a host's seed can be had now: better before its disk is
// wiped than after.
func (s *Server) seedable(ctx context.Context, host string) error {
	if s.Check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, seedTime)
	defer cancel()
	return s.Check(ctx, host)
}

// siteOf is what the site says of a host now.
func siteOf(host *netboot.Host, mac plan.MAC, address string) state.Site {
	return state.Site{MAC: mac, Address: address, Install: host.Install, Data: host.Data}
}

// installScript boots the installer. Should iPXE not get its files, the host boots
// from its disk, and the installation fails once the token is too old.
func (s *Server) installScript(r *http.Request, host string, mac plan.MAC, i *state.Installation) string {
	files := s.plainURL(r) + "/boot/images/" + i.Image + "/"
	args := []string{
		"initrd=" + installerName, // where a UEFI kernel finds it
		protocol.ParamServer + "=" + s.tlsURL(r),
		protocol.ParamPin + "=" + s.pin(),
		protocol.ParamToken + "=" + i.Token,
		protocol.ParamMAC + "=" + string(mac),
		protocol.ParamHost + "=" + host,
	}
	args = append(args, s.Cmdline...)
	return fmt.Sprintf(`#!ipxe
echo kiln: installing %s
kernel %s%s %s || goto failed
initrd %s%s || goto failed
boot || goto failed
:failed
echo kiln: the installer can't be fetched or started: booting from the disk
sleep 5
%s`, host, files, kernelName, strings.Join(args, " "), files, installerName, fromDisk)
}

// plainURL and tlsURL are where the host that asks reaches the servers.
func (s *Server) plainURL(r *http.Request) string {
	if s.PlainURL != "" {
		return strings.TrimSuffix(s.PlainURL, "/")
	}
	return "http://" + reached(r, s.plainPort)
}

func (s *Server) tlsURL(r *http.Request) string {
	if s.TLSURL != "" {
		return strings.TrimSuffix(s.TLSURL, "/")
	}
	return "https://" + reached(r, s.tlsPort)
}

// reached is the address that a request came to; what it says itself, in Host,
// could be anything.
func reached(r *http.Request, port int) string {
	address := "127.0.0.1"
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if p, err := netip.ParseAddrPort(a.String()); err == nil {
			address = p.Addr().Unmap().WithZone("").String()
		}
	}
	return net.JoinHostPort(address, strconv.Itoa(port))
}
