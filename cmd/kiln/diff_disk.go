package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/images/check"
)

// diff compares two images, each one of the store or a disk's file.
func diff(ctx context.Context, a, b string) (*images.Diff, error) {
	before, err := toCompare(ctx, a)
	if err != nil {
		return nil, err
	}
	after, err := toCompare(ctx, b)
	if err != nil {
		return nil, err
	}
	if before.Bare != after.Bare {
		// A disk doesn't tell for which processors it is.
		before.Release.Architecture, after.Release.Architecture = "", ""
	}
	return images.Compare(before, after), nil
}

// toCompare is what is in an image of the store, or on a disk.
func toCompare(ctx context.Context, what string) (*images.Manifest, error) {
	if !strings.Contains(what, "/") {
		store, err := baking.OpenStore()
		if err != nil {
			return nil, err
		}
		return store.Find(what)
	}
	m, err := readDisk(ctx, what)
	if err != nil {
		return nil, err
	}
	m.Profile = what
	return m, nil
}

// readDisk reads a disk, which is unpacked for that if it is a qcow2.
func readDisk(ctx context.Context, name string) (_ *images.Manifest, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	magic := make([]byte, len(check.QCOW2Magic))
	_, err = io.ReadFull(f, magic)
	f.Close()
	if err != nil || !check.IsQCOW2(magic) {
		return check.Describe(ctx, name) // which says what is wrong with it
	}
	dir, err := os.MkdirTemp("", "kiln-diff-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	raw := filepath.Join(dir, "disk.raw")
	if err := check.Unpack(ctx, nil, name, raw); err != nil {
		return nil, fmt.Errorf("unpacking %s (TMPDIR needs room for it): %w", name, err)
	}
	return check.Describe(ctx, raw)
}
