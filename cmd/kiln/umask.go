package main

import (
	"io/fs"
	"sync"
	"syscall"
)

// umask is the process's own. It can only be read by setting it, so that is
// done once, before anything is written.
var umask = sync.OnceValue(func() fs.FileMode {
	m := syscall.Umask(0o077)
	syscall.Umask(m)
	return fs.FileMode(m)
})
