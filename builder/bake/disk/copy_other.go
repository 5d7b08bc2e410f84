//go:build !linux

package disk

import (
	"context"
	"errors"
	"os"
)

func clone(*os.File, *os.File) error { return errors.ErrUnsupported }

func copyExtents(context.Context, *os.File, *os.File, int64, func(int64)) error {
	return errors.ErrUnsupported
}
