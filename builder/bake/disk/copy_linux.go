package disk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// clone has a file share another one's blocks.
func clone(to, from *os.File) error { return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) }

// copyExtents has the kernel copy what from holds, and leaves out its holes. The
// error is errors.ErrUnsupported where it can't.
func copyExtents(ctx context.Context, to, from *os.File, size int64, progress func(int64)) error {
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = size
		case err != nil:
			return errors.ErrUnsupported
		}
		report(progress, data-at)
		if at = data; at >= size {
			break
		}
		end, err := unix.Seek(int(from.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(ctx, to, from, at, end, progress); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// copyRange copies the bytes from at to end, to where they are in from.
func copyRange(ctx context.Context, to, from *os.File, at, end int64, progress func(int64)) error {
	const most = 16 << 20 // between two looks whether it is to stop
	first := at
	for at < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		in, out := at, at
		n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(min(end-at, most)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case at == first && (errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)):
			return errors.ErrUnsupported
		case err != nil:
			return &os.PathError{Op: "copying", Path: from.Name(), Err: err}
		case n == 0:
			return &os.PathError{Op: "copying", Path: from.Name(), Err: io.ErrUnexpectedEOF}
		}
		report(progress, int64(n))
		at += int64(n)
	}
	return nil
}
