//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The servers have a network of their own: their end of a cable, kiln0, has the
// first address, and the machines are at the other end, in a network with a router.
const (
	serverAddress = "10.1.0.1"
	clientAddress = "10.2.0.0" // the first machine's is the one after it
)

// startCabled starts a program in the servers' network, and writes what it says to a file.
func startCabled(ctx context.Context, log string, environment []string, argv ...string) (*server, error) {
	said, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer said.Close()
	// It waits for its cable, and then is the program, by the same number.
	script := "ip link set lo up && echo ready >&2 && read -r go && exec \"$@\""
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--net", "sh", "-c", script, "sh"}, argv...)...)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, stdin: in, log: log}
	if err = s.plug(ctx); err == nil {
		_, err = in.Write([]byte("go\n"))
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// plug lays the cable.
func (s *server) plug(ctx context.Context) error {
	for i := 0; !strings.HasPrefix(s.said(), "ready"); i++ {
		if i > 500 || ctx.Err() != nil {
			return errors.New("the server's network isn't there")
		}
		time.Sleep(10 * time.Millisecond)
	}
	script := fmt.Sprintf(`set -e
		ip link add kiln1 type veth peer name kiln0 netns %[1]d
		ip addr add 10.1.0.2/16 dev kiln1 && ip link set kiln1 up
		in="nsenter --target %[1]d --net"
		$in ip addr add %[2]s/16 dev kiln0
		$in ip link set kiln0 up
		$in ip route add %[3]s/16 via 10.1.0.2`, s.cmd.Process.Pid, serverAddress, clientAddress)
	if out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("the cable to the server: %w: %s", err, out)
	}
	return nil
}

// said is the end of what a server said.
func (s *server) said() string {
	data, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-(16<<10)):])
}

// waitFor asks for a URL until it has a status of 200.
func (s *server) waitFor(ctx context.Context, method, address string, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, method, address, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server isn't ready: %s: %w; it said:\n%s", address, last, s.said())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const nginxPort = "8081"

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
	server { listen ` + serverAddress + ":" + nginxPort + `; root %s; }
}
`

// startNginx serves a folder beside a server, in its network.
func (s *server) startNginx(ctx context.Context, dir, root string) (stop func(), err error) {
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, root), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "nginx.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", fmt.Sprint(s.cmd.Process.Pid), "--net", "--", "nginx", "-p", dir, "-c", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it serves until it is stopped
	}
	for range 300 {
		if c, err := net.Dial("tcp", serverAddress+":"+nginxPort); err == nil {
			c.Close()
			return stop, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	stop()
	return nil, fmt.Errorf("nginx (Debian package nginx-light) isn't ready: %s", (&server{log: log.Name()}).said())
}
