//go:build !linux

package disk

import (
	"errors"
	"os"
)

func clone(*os.File, *os.File) error { return errors.ErrUnsupported }
