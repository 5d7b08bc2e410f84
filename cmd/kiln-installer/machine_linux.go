package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/alisw/kiln/netboot/installer"
	"github.com/alisw/kiln/netboot/installer/driver"
	"github.com/alisw/kiln/plan"
)

// How long is waited for hardware: that nothing new has appeared for quiet, and
// settled at most.
const (
	quiet   = 2 * time.Second
	settled = 60 * time.Second
)

// always are modules that no device asks for: file system, disks, and CD drives so
// that they aren't taken for something else.
var always = []string{"ext4", "sd_mod"}

// machine is the one that this runs on.
type machine struct{ say func(string) }

// Hardware loads the drivers of all devices, until the interface that booted is there.
func (*machine) Hardware(ctx context.Context, mac plan.MAC, say func(string)) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	index, err := driver.ReadIndex(os.DirFS(dir))
	if err != nil {
		return fmt.Errorf("%w: is the initramfs of another image than the kernel?", err)
	}
	loader := &driver.Loader{Index: index, Dir: dir, Tell: func(s string) { say("hardware: " + s) }}
	for _, m := range always {
		if index.Has(m) {
			if err := loader.Load(m); err != nil {
				return err
			}
		}
	}
	settling, cancel := context.WithTimeout(ctx, settled)
	defer cancel()
	err = loader.Settle(settling, quiet, func() bool { _, err := interfaceOf(mac); return err == nil })
	if _, missing := interfaceOf(mac); missing != nil {
		return fmt.Errorf("%w, only %s: is its driver in the image's initramfs?", missing, interfaces())
	}
	if ctx.Err() != nil {
		return err
	}
	return nil
}

// interfaceOf finds the interface of a MAC.
func interfaceOf(mac plan.MAC) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].HardwareAddr.String() == string(mac) {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("no network interface has the MAC %s", mac)
}

// Disks lists the disks.
func (*machine) Disks() ([]installer.Disk, error) { return installer.ReadDisks("/sys") }

// Open opens a disk for writing.
func (*machine) Open(d *installer.Disk) (installer.Target, error) {
	opened, err := installer.OpenBlockDevice("/dev/"+d.Name, d.Size)
	if err != nil {
		return nil, err
	}
	// As long as it's open, its name is no other disk's.
	now, err := installer.ReadDisks("/sys")
	if err == nil && !slices.ContainsFunc(now, func(n installer.Disk) bool { return reflect.DeepEqual(n, *d) }) {
		err = fmt.Errorf("%s isn't what it was when it was chosen: was a disk exchanged?", d)
	}
	if err != nil {
		opened.Close()
		return nil, err
	}
	return opened, nil
}

// Reboot restarts the machine.
func (m *machine) Reboot() error {
	m.say(memory.String())
	unix.Sync()
	time.Sleep(time.Second) // for the console, and its last report
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
