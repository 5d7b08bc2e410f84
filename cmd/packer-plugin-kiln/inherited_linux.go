package main

import (
	"os"
	"strconv"
	"syscall"
)

// keepInherited has programs that the plugin runs not get the files that Packer has
// left open in it: with those, mmdebstrap's own have numbers of two digits, which
// sh can't redirect to.
func keepInherited() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // no worse than before
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}
