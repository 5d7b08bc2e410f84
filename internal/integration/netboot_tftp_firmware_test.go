//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alisw/kiln/netboot/tftp"
)

// tftpFolder is the environment's variable that makes this test a server.
const tftpFolder = "KILN_TEST_TFTP_FOLDER"

// TestNetbootTFTPServerProcess is no test: it is the server for the firmware,
// which is in another network.
func TestNetbootTFTPServerProcess(t *testing.T) {
	folder := os.Getenv(tftpFolder)
	if folder == "" {
		return // only TestNetbootTFTPFirmware wants it
	}
	files, err := tftp.OpenFolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := tftp.Listen(ctx, ":69")
	if err != nil {
		t.Fatal(err)
	}
	s := &tftp.Server{Files: files, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
	go func() {
		<-ctx.Done()
		_ = s.Shutdown(ctx)
	}()
	if err := s.Serve(c); !errors.Is(err, tftp.ErrServerClosed) {
		t.Fatal(err)
	}
}

// TestNetbootTFTPFirmware has EDK2's own PXE load iPXE, as Debian has it, and iPXE
// as UEFI's and as a network card's in a BIOS load a script, and a megabyte more.
func TestNetbootTFTPFirmware(t *testing.T) {
	s := newSpace(t)
	folder := t.TempDir()
	loader, err := os.ReadFile("/usr/lib/ipxe/snponly.efi")
	if err != nil {
		t.Fatalf("%v: make setup installs it", err)
	}
	for name, content := range map[string]string{
		"snponly.efi": string(loader),
		"boot.ipxe":   "#!ipxe\nimgfetch tftp://10.66.0.1/payload && imgfetch tftp://10.66.0.1/done-${platform}\n:end\nsleep 10\ngoto end\n",
		"payload":     strings.Repeat("kiln", 1<<18),
		"done-efi":    "done", "done-pcbios": "done",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.sh(t, `ip link add lan type bridge && ip address add 10.66.0.1/24 dev lan && ip link set lan up
		for tap in tap0 tap1; do ip tuntap add $tap mode tap && ip link set $tap master lan up; done`)
	s.daemon(t, program(t, "dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--interface=lan", "--pid-file",
		"--dhcp-leasefile=/tmp/none", "--leasefile-ro", "--dhcp-range=10.66.0.10,10.66.0.20", "--dhcp-match=set:ipxe,175",
		"--dhcp-boot=tag:!ipxe,snponly.efi,,10.66.0.1", "--dhcp-boot=tag:ipxe,boot.ipxe,,10.66.0.1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server := s.daemon(t, "env", tftpFolder+"="+folder, self, "-test.run", "^TestNetbootTFTPServerProcess$", "-test.v")
	machine := func(n int, card string, more ...string) {
		serial := filepath.Join(t.TempDir(), "serial")
		s.daemon(t, append([]string{
			program(t, "qemu-system-x86_64"), "-machine", "q35,graphics=off", "-accel", "tcg,thread=multi", "-m", "512", "-nodefaults", "-display", "none",
			"-serial", "file:" + serial, "-netdev", fmt.Sprintf("tap,id=net,ifname=tap%d,script=no,downscript=no", n),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=52:54:00:66:00:0%d%s", n, card),
		}, more...)...)
		t.Cleanup(func() {
			if b, err := os.ReadFile(serial); err == nil && t.Failed() {
				t.Logf("machine %d's console:\n%s", n, tail(b, 3000))
			}
		})
	}
	// Without a ROM of the card's, UEFI has PXE of its own; the ROM that QEMU has for
	// the card by itself is iPXE.
	machine(0, ",romfile=", ovmf(t, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")...)
	machine(1, "", "-boot", "n")
	start := time.Now()
	finished := func(file string) int {
		return strings.Count(server.Log(), "file="+file+" outcome=finished")
	}
	for _, file := range []string{"done-pcbios", "done-efi"} {
		// Emulated, and beside others: a minute, mostly.
		for deadline := start.Add(4 * time.Minute); finished(file) == 0; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s wasn't fetched within 4 minutes", file)
			}
		}
		t.Logf("%s after %s", file, time.Since(start).Round(time.Second))
	}
	log := server.Log()
	if finished("snponly.efi") != 1 || !strings.Contains(log, "file=snponly.efi outcome=probed") || finished("payload") != 2 {
		t.Errorf("other transfers than EDK2's probe, and one of each file")
	}
	if strings.Contains(log, "level=WARN") {
		t.Errorf("some failed")
	}
	t.Log(log)
}
