//go:build unix

package main

import (
	"runtime"
	"syscall"
)

// rss reads the memory from what the system says of a process: in KiB, but for
// macOS, which counts bytes.
func rss(usage any) int64 {
	u, ok := usage.(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss)
	}
	return int64(u.Maxrss) << 10
}
