package main

import (
	"context"
	"fmt"
	"os"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/userns"
)

// exited is the end of a verb that another process has done, and has said what
// there was to say: its exit status.
type exited struct{ status int }

func (e *exited) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// asOwner is for verbs that work with files that aren't all of one owner. It is nil
// for root. A normal user's call is made once more in a user namespace, where he
// is root, and the result is how that has ended.
func asOwner(ctx context.Context, verb, cache string, store *images.Store) error {
	if err := bake.CheckOwner(cache, store); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return nil
	}
	status, err := userns.Run(ctx, os.Args[1:])
	if err != nil {
		return fmt.Errorf("%s works with the owners of images' files, for which a user who isn't root needs a user namespace: %w\nAs root it works without: sudo %[1]s", verb, err)
	}
	return &exited{status}
}
