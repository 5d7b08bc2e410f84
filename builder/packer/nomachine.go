package packer

import (
	"context"
	"errors"
	"io"
	"os"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// errNoMachine is what provisioners get that want a machine of the native builder.
var errNoMachine = errors.New("the builder kiln bakes without starting a machine, so there is none to provision: write it into the profile, or take another builder with the provisioner kiln")

// noMachine is the communicator of a build without a machine. Provisioners that
// need none, such as shell-local, don't call it.
type noMachine struct{}

func (noMachine) Start(context.Context, *packersdk.RemoteCmd) error     { return errNoMachine }
func (noMachine) Upload(string, io.Reader, *os.FileInfo) error          { return errNoMachine }
func (noMachine) UploadDir(dst string, src string, ex []string) error   { return errNoMachine }
func (noMachine) Download(string, io.Writer) error                      { return errNoMachine }
func (noMachine) DownloadDir(src string, dst string, ex []string) error { return errNoMachine }
