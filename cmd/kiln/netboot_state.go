package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/netboot/state"
)

// stateOptions say where a server's state is.
type stateOptions struct {
	dir string
}

func (o *stateOptions) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.dir, "state", "", "`DIR` of the server's state (default: $KILN_STATE, else /var/lib/kiln for root, and ~/.local/state/kiln for others)")
	_ = cmd.MarkFlagDirname("state")
}

// directory is where the server keeps its state.
func (o *stateOptions) directory() (string, error) {
	if o.dir != "" {
		return o.dir, nil
	}
	return baking.StateDir()
}

// missing tells whether there is no state yet.
func (o *stateOptions) missing() bool {
	dir, err := o.directory()
	if err != nil {
		return false // open says why
	}
	_, err = os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// open opens the state for whoever changes it: only those who may write it can.
func (o *stateOptions) open() (*state.Store, error) {
	dir, err := o.directory()
	if err != nil {
		return nil, err
	}
	err = os.MkdirAll(filepath.Dir(dir), 0o755)
	var s *state.Store
	if err == nil {
		s, err = state.Open(dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("only who may write the server's state in %s can do that: become its owner (sudo), or ask the server over HTTPS with --server URL and an operator's token: %w", dir, err)
	}
	return s, err
}

// who is the name of the user that kiln runs as, and of the one who called sudo.
func who() string {
	name := os.Getenv("SUDO_USER")
	if name == "" {
		name = os.Getenv("USER")
	}
	if u, err := osuser.Current(); err == nil && (name == "" || os.Geteuid() != 0) {
		name = u.Username
	}
	return name
}
