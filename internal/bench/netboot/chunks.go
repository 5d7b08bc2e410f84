//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// chunkServing compares what curl gets of a file from nginx, and from kiln.
type chunkServing struct {
	command, url, file string
}

func (c *chunkServing) flags() {
	flag.StringVar(&c.command, "chunk-server", "", "shell command of the server of chunks; by default Go's file server, as a stand-in")
	flag.StringVar(&c.url, "chunk-url", "", "URL of a file on that server")
	flag.StringVar(&c.file, "chunk-file", "", "the same file on this machine, which nginx will serve")
}

const nginxConfig = `daemon off;
user root;
worker_processes 2;
pid nginx.pid;
error_log stderr error;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	default_type application/octet-stream;
	server { listen 127.0.0.1:8081; root %s; }
}
`

// measure fetches in turns, one file at a time and eight at once; the best counts.
func (c *chunkServing) measure(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	what, command, address, file := "kiln", c.command, c.url, c.file
	if command == "" {
		if file, err = bigFile(dir); err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		what = "Go's file server, a stand-in"
		command = fmt.Sprintf("'%s' -role files -folder '%s'", self, dir)
		address = "http://127.0.0.1:8082/" + filepath.Base(file)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, filepath.Dir(file)), 0o600); err != nil {
		return err
	}
	stopNginx, err := startCommand(ctx, fmt.Sprintf("nginx -p '%s' -c '%s'", dir, config), "127.0.0.1:8081")
	if err != nil {
		return fmt.Errorf("nginx (Debian package nginx-light): %w", err)
	}
	defer stopNginx()
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	stopOther, err := startCommand(ctx, command, u.Host)
	if err != nil {
		return err
	}
	defer stopOther()
	fmt.Printf("Chunks: curl fetches %d MiB, best of 5 rounds in turns\n", info.Size()>>20)
	for _, parallel := range []int{1, 8} {
		best := map[string]float64{}
		for range 5 {
			for name, a := range map[string]string{"nginx": "http://127.0.0.1:8081/" + filepath.Base(file), what: address} {
				speed, err := curl(ctx, a, info.Size(), parallel)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				best[name] = max(best[name], speed)
			}
		}
		fmt.Printf("  %d at once: nginx %.0f MiB/s, %s %.0f MiB/s: %.2f of nginx's (wanted: 0.90)\n", parallel, best["nginx"]/(1<<20), what, best[what]/(1<<20), best[what]/best["nginx"])
	}
	return nil
}

// curl fetches a file so many times at once, and gives the bytes per second.
func curl(ctx context.Context, address string, size int64, parallel int) (float64, error) {
	args := []string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--no-progress-meter", "--parallel", "--parallel-immediate", "--write-out", "%{size_download}\n"}
	for range parallel {
		args = append(args, "--output", "/dev/null", address)
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, "curl", args...)
	var said lines
	cmd.Stderr = &said
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("curl %s: %w: %s", address, err, said.String())
	}
	for _, line := range strings.Fields(string(out)) {
		if n, err := strconv.ParseInt(line, 10, 64); err != nil || n != size {
			return 0, fmt.Errorf("curl %s: got %s bytes, not %d", address, line, size)
		}
	}
	return float64(size) * float64(parallel) / took.Seconds(), nil
}

// bigFile is large enough that the start of a program doesn't matter.
func bigFile(dir string) (string, error) {
	name := filepath.Join(dir, "chunk")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	block := []byte(strings.Repeat("kiln", 1<<18))
	for range 256 {
		if _, err := f.Write(block); err != nil {
			return "", err
		}
	}
	return name, f.Close()
}

// startCommand starts a server, and waits until it can be reached.
func startCommand(ctx context.Context, command, address string) (stop func(), err error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+command)
	var said lines
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it serves until it is stopped
	}()
	stop = func() {
		in.Close()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}
	for range 300 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return stop, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("it has ended: %s", said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	stop()
	return nil, errors.New("nobody listens at " + address)
}

// serveFolder is the stand-in.
func serveFolder(ctx context.Context, folder string) error {
	s := &http.Server{Addr: "127.0.0.1:8082", Handler: http.FileServer(http.Dir(folder)), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { s.Close() })
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
