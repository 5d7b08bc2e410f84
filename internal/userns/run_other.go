//go:build !linux

package userns

import (
	"context"
	"errors"
)

// Run is Linux's alone.
func Run(context.Context, []string) (int, error) {
	return 0, errors.New("only Linux has user namespaces")
}

// Inside is Linux's alone.
func Inside() (bool, error) { return false, nil }

// RunWith is Linux's alone.
func RunWith(ctx context.Context, args []string, _ Streams, _ <-chan struct{}) (int, error) {
	return Run(ctx, args)
}
