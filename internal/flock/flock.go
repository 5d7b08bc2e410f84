// Package flock locks open files, as flock(2) does: the lock is gone with the file,
// and so with the process that has it, however that ends.
package flock

import (
	"errors"
	"os"
	"syscall"
)

// Lock takes the lock of a file: how is one of the system's constants, LOCK_EX or
// LOCK_SH, with LOCK_NB for an EWOULDBLOCK where somebody else has it. A signal
// doesn't end the waiting.
func Lock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}
