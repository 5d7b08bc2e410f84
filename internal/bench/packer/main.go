// Command packer measures how long Packer takes to build a golden image: with the
// builder kiln, which bakes natively, and with the builder qemu, which starts a
// stock image and has cloud-init install the same profile there. Both in one run,
// with the same packages. Run it as root, on a machine that does nothing else:
//
//	make bench-packer
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/alisw/kiln/builder/boot"
	"github.com/alisw/kiln/internal/bench/cpu"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func say(what string) { fmt.Fprintln(os.Stderr, "bench: "+what) }

// bench is one run.
type bench struct {
	ctx         context.Context
	dir         string
	kiln        string
	packer      string
	accelerator string // of the qemu build
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("images are built as root: run this as root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "kiln-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	accel, why, err := boot.Choose(ctx)
	if err != nil {
		return err
	}
	if why != "" {
		say("the qemu build runs in software: " + why)
	}
	b := &bench{ctx: ctx, dir: dir, kiln: filepath.Join(dir, "kiln"), accelerator: string(accel)}
	for _, step := range []func() error{b.programs, b.site, b.packages} {
		if err := step(); err != nil {
			return err
		}
	}
	qemu, err := b.qemu()
	if err != nil {
		return err
	}
	cold, err := b.native("cold")
	if err != nil {
		return err
	}
	if err := b.write("site/profiles/tiny/profile.yaml", fmt.Sprintf(tiny, 1)); err != nil {
		return err
	}
	warm, err := b.native("cold")
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d cores, %s/%s\n\n", cpu.Model(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "packer build\ttime\tthe qemu build is\n")
	fmt.Fprintf(t, "builder qemu (%s), a base image at hand\t%.2f s\t\n", b.accelerator, qemu.Seconds())
	for _, row := range []struct {
		what string
		took time.Duration
	}{{"builder kiln, packages in the cache", cold}, {"builder kiln, one file changed", warm}} {
		fmt.Fprintf(t, "%s\t%.2f s\t%.1f times slower\n", row.what, row.took.Seconds(), qemu.Seconds()/row.took.Seconds())
	}
	return t.Flush()
}

// programs builds kiln and its plugin, and installs the plugins.
func (b *bench) programs() error {
	say("building kiln and its plugin")
	plugin := filepath.Join(b.dir, "packer-plugin-kiln")
	for to, from := range map[string]string{b.kiln: "./cmd/kiln", plugin: "./cmd/packer-plugin-kiln"} {
		if _, err := b.output("", nil, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, from); err != nil {
			return err
		}
	}
	bin, err := b.output("", nil, "scripts/hashicorp/build.sh", "--bin")
	if err != nil {
		return err
	}
	bin = strings.TrimSpace(bin)
	b.packer = filepath.Join(bin, "packer")
	for name, path := range map[string]string{"hashicorp/qemu": filepath.Join(bin, "packer-plugin-qemu"), "hashicorp/openstack": filepath.Join(bin, "packer-plugin-openstack"), "alisw/kiln": plugin} {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return fmt.Errorf("%w: make setup builds it", err)
		}
		if _, err := b.output(b.dir, b.settings(""), b.packer, "plugins", "install", "--path", path, "github.com/"+name); err != nil {
			return err
		}
	}
	return nil
}

// settings are Packer's, and kiln's: a cache of that name.
func (b *bench) settings(cache string) []string {
	plugins := filepath.Join(b.dir, "plugins")
	return []string{"KILN_CACHE=" + filepath.Join(b.dir, cache), "PACKER_PLUGIN_PATH=" + plugins, "PACKER_CONFIG_DIR=" + plugins, "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1"}
}

// output runs a program, and shows what it said where it fails.
func (b *bench) output(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	var stdout, all bytes.Buffer
	cmd.Stdout, cmd.Stderr = &tee{&stdout, &all}, &all
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, all.Bytes()[max(0, all.Len()-4000):])
	}
	return stdout.String(), nil
}

// tee writes to both.
type tee [2]*bytes.Buffer

func (t *tee) Write(p []byte) (int, error) {
	t[0].Write(p)
	return t[1].Write(p)
}

func (b *bench) write(name, text string) error {
	path := filepath.Join(b.dir, name)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
}

// timed runs Packer in a folder of its own.
func (b *bench) timed(folder, cache, only, template string, variables ...string) (time.Duration, error) {
	if err := b.write(folder+"/template.pkr.hcl", template); err != nil {
		return 0, err
	}
	args := []string{"build", "-force"}
	for _, v := range variables {
		args = append(args, "-var", v)
	}
	start := time.Now()
	_, err := b.output(filepath.Join(b.dir, folder), b.settings(cache), b.packer, append(args, "-only="+only+".*", "template.pkr.hcl")...)
	return time.Since(start), err
}
