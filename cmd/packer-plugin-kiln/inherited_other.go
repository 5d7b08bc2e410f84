//go:build !linux

package main

// keepInherited matters where images are baked, on Linux.
func keepInherited() {}
