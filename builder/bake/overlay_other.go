//go:build !linux

package bake

import "errors"

var errNotLinux = errors.New("images are built on Linux")

func overlaid(string, string, func(root string) error) error { return errNotLinux }

func unflushed(string, func(quick string) error) error { return errNotLinux }

func flush(string) error { return nil }
