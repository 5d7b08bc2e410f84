//go:build !linux

package run

import "syscall"

// bind does nothing: other systems have no such means.
func bind(*syscall.SysProcAttr) {}
