package packer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/common"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/alisw/kiln/internal/quote"
)

//go:generate packer-sdc mapstructure-to-hcl2 -type ProvisionerConfig

// ProvisionerConfig is what a template says of provisioner "kiln".
type ProvisionerConfig struct {
	common.PackerConfig `mapstructure:",squash"`
	// Site is the folder of the site; default: the one here or above.
	Site string `mapstructure:"site"`
	// Profile is the profile's name.
	Profile string `mapstructure:"profile" required:"true"`
	// Image is the name of the image definition that the machine is of; default:
	// debian-12.
	Image string `mapstructure:"image"`
	// ExecuteCommand runs the script {{.Path}} as root.
	ExecuteCommand string `mapstructure:"execute_command"`
	// StagingDirectory is where the script goes on the machine; default: /tmp.
	StagingDirectory string `mapstructure:"staging_directory"`
	// Seal is whether the machine becomes a golden image; default: true.
	Seal *bool `mapstructure:"seal"`
}

// defaultCommand works for root, and for whoever may become root without a
// password or a terminal.
const defaultCommand = `if [ "$(id -u)" = 0 ]; then exec sh {{.Path}}; else exec sudo -n sh {{.Path}}; fi`

// Provisioner is the provisioner kiln.
type Provisioner struct {
	sites  Sites
	config ProvisionerConfig
	// patience is how long the script may take to stop once it is cancelled; 0 is a
	// default.
	patience time.Duration
}

// ConfigSpec is the options' types.
func (p *Provisioner) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Prepare reads the options.
func (p *Provisioner) Prepare(raws ...any) error {
	if err := decode(&p.config, raws, "execute_command"); err != nil {
		return err
	}
	c := &p.config
	c.ExecuteCommand = cmp.Or(c.ExecuteCommand, defaultCommand)
	c.StagingDirectory = cmp.Or(c.StagingDirectory, "/tmp")
	if err := required("provisioner kiln", "profile", c.Profile); err != nil {
		return err
	}
	if !path.IsAbs(c.StagingDirectory) {
		return fmt.Errorf("provisioner kiln: staging_directory is %q: an absolute path on the machine is needed", c.StagingDirectory)
	}
	const probe = "/kiln-probe"
	command, err := p.command(probe)
	if err != nil {
		return err
	}
	if !strings.Contains(command, probe) {
		return errors.New("provisioner kiln: execute_command runs nothing of Kiln's: {{.Path}} stands for the script")
	}
	return nil
}

// command runs the script that is at a path.
func (p *Provisioner) command(script string) (string, error) {
	command, err := interpolate.Render(p.config.ExecuteCommand, &interpolate.Context{Data: struct{ Path string }{quote.Word(script)}})
	if err != nil {
		return "", fmt.Errorf("provisioner kiln: execute_command: %w", err)
	}
	return command, nil
}

// Provision carries the Image half to the machine, in one file, and runs it there.
func (p *Provisioner) Provision(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, _ map[string]any) error {
	c := &p.config
	half, err := p.sites.Half(ctx, c.Site, c.Profile, c.Image)
	if err != nil {
		return err
	}
	script, err := newScript(half, c.Seal == nil || *c.Seal)
	if err != nil {
		return err
	}
	at := path.Join(c.StagingDirectory, "packer-kiln-"+rand.Text()+".sh")
	command, err := p.command(at)
	if err != nil {
		return err
	}
	ui.Say(fmt.Sprintf("Applying the image half of the profile %s, on %s (%d KB)", half.Image.Profile, half.Image.Definition, (len(script)+1023)/1024))
	r := &remote{ui: ui, comm: comm, at: at, patience: cmp.Or(p.patience, time.Minute)}
	err = r.upload(ctx, script)
	if err == nil {
		err = r.run(ctx, command)
	}
	if err != nil {
		return fmt.Errorf("the image half of the profile %s isn't applied: %w", c.Profile, explain(err, half))
	}
	return nil
}

// failedError is what the script says why it has failed, by lines.
type failedError struct{ lines []string }

func (e *failedError) Error() string { return strings.Join(e.lines, "\n") }

var wordInText = regexp.MustCompile(`[a-z0-9][a-z0-9+.-]+`)

// explain adds where the packages are written down that an error is about.
func explain(err error, half *Half) error {
	failed, ok := errors.AsType[*failedError](err)
	if !ok {
		return err
	}
	said := map[string]bool{}
	for _, line := range failed.lines {
		for _, w := range wordInText.FindAllString(line, -1) {
			said[strings.TrimRight(w, ".")] = true
		}
	}
	lines := failed.lines
	for _, pkg := range half.Image.Packages {
		if where := pkg.Origin.String(); said[pkg.Name] && where != "" {
			lines = append(lines, "(the package "+pkg.Name+" is asked for in "+where+")")
		}
	}
	return &failedError{lines}
}

// remote is the script on the machine.
type remote struct {
	ui       packersdk.Ui
	comm     packersdk.Communicator
	at       string
	patience time.Duration
}

func (r *remote) upload(ctx context.Context, script []byte) error {
	done := make(chan error, 1)
	go func() { done <- r.comm.Upload(r.at, bytes.NewReader(script), nil) }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("uploading %s to the machine: %w", r.at, err)
		}
		return nil
	case <-ctx.Done():
	}
	select {
	case <-done:
		r.clean()
		return errors.New("the build was cancelled while the script was uploaded; nothing was done on the machine")
	case <-time.After(r.patience):
		return fmt.Errorf("the build was cancelled while the script was uploaded; the machine doesn't answer, and may keep %s", r.at)
	}
}

// run runs the script until it ends. Where ctx ends before, a file beside the
// script tells it to stop: whoever has uploaded that can upload this, whatever
// user the script runs as.
func (r *remote) run(ctx context.Context, command string) error {
	said := &scriptOutput{ui: r.ui}
	cmd := &packersdk.RemoteCmd{Command: command, Stdout: said.stream(), Stderr: said.stream()}
	// Cut off, the script would go on alone.
	if err := r.comm.Start(context.WithoutCancel(ctx), cmd); err != nil {
		r.clean()
		return fmt.Errorf("starting the script on the machine: %w", err)
	}
	ended := make(chan int, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case status := <-ended:
		return r.result(status, said)
	case <-ctx.Done():
	}
	r.ui.Say("Cancelled: stopping what runs on the machine")
	stop := make(chan error, 1)
	go func() { stop <- r.comm.Upload(r.at+".stop", bytes.NewReader([]byte("stop\n")), nil) }()
	late := time.After(r.patience)
	for {
		select {
		case err := <-stop:
			if err != nil {
				return fmt.Errorf("the build was cancelled; the script on the machine couldn't be told to stop, and may still run: %w", err)
			}
			stop = nil
		case status := <-ended:
			if status != 0 {
				r.clean()
			}
			return errors.New("the build was cancelled; the script on the machine was stopped")
		case <-late:
			return errors.New("the build was cancelled; the script on the machine doesn't stop, and may still run")
		}
	}
}

// result is how the script has ended.
func (r *remote) result(status int, said *scriptOutput) error {
	causes, rest := said.end()
	if status == 0 {
		return nil
	}
	if status == packersdk.CmdDisconnect {
		return errors.New("the connection to the machine was lost while the script ran")
	}
	r.clean()
	if len(causes) == 0 {
		// The script itself always says why; before it there is a shell, or sudo.
		causes = append(rest, fmt.Sprintf("the command on the machine ended with status %d", status))
	}
	return &failedError{causes}
}

// clean removes the script, where it couldn't do that itself. It's no matter if it
// can't be.
func (r *remote) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	cmd := &packersdk.RemoteCmd{Command: "rm -f -- " + quote.Word(r.at) + " " + quote.Word(r.at+".stop")}
	if r.comm.Start(ctx, cmd) != nil {
		return
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-ctx.Done():
	}
}
