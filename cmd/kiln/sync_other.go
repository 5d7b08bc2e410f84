//go:build !linux

package main

import (
	"os"
	"path/filepath"
)

// syncAll waits until each file in dir is on the disk.
func syncAll(dir string) error {
	return closeAfter(dir, func(d *os.File) error {
		names, err := d.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := closeAfter(filepath.Join(dir, name), (*os.File).Sync); err != nil {
				return err
			}
		}
		return nil
	})
}
