package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncAll waits until all that was written to the file system of dir is on the
// disk.
func syncAll(dir string) error {
	return closeAfter(dir, func(d *os.File) error { return unix.Syncfs(int(d.Fd())) })
}
