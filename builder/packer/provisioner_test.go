package packer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/alisw/kiln/images"
)

func newProvisioner(t *testing.T, s Sites, m *machine, more map[string]any) *Provisioner {
	t.Helper()
	p := &Provisioner{sites: s, patience: 30 * time.Second}
	options := map[string]any{"profile": "plain", "execute_command": "sh {{.Path}}", "staging_directory": m.staging}
	for k, v := range more {
		options[k] = v
	}
	if err := p.Prepare(options); err != nil {
		t.Fatal(err)
	}
	return p
}

// tree is all of the machine's files below etc and usr, with their contents.
func (m *machine) tree() map[string]string {
	files := map[string]string{}
	for _, dir := range []string{"etc", "usr", "build", "var"} {
		_ = filepath.WalkDir(filepath.Join(m.root, dir), func(name string, d os.DirEntry, err error) error {
			if err == nil {
				info, err := d.Info()
				m.do(err)
				b, _ := os.ReadFile(name)
				files[strings.TrimPrefix(name, m.root)] = info.Mode().String() + " " + string(b)
			}
			return nil
		})
	}
	return files
}

func TestProvision(t *testing.T) {
	m, s, ui := newMachine(t), newSite(), &said{}
	if err := newProvisioner(t, s, m, nil).Provision(t.Context(), ui, m, nil); err != nil {
		t.Fatal(err)
	}
	if len(m.uploads) != 1 || len(m.commands) != 1 {
		t.Errorf("%d uploads and %d commands: %q", len(m.uploads), len(m.commands), m.commands)
	}
	for _, line := range []string{"1/6 looking at the machine", "2/6 installing packages", "3/6 making users and groups", "4/6 writing files", "5/6 setting units", "6/6 sealing", "the image half is applied"} {
		if !ui.has(line) {
			t.Errorf("%q isn't said:\n%s", line, ui.text())
		}
	}
	log := m.read("log")
	for _, part := range []string{"--no-install-recommends install acl consul nomad", "update-grub", "systemctl --quiet enable -- nomad.service", "systemctl --quiet disable -- apt-daily.timer", "systemctl --quiet mask -- foo.service"} {
		if !strings.Contains(log, part) {
			t.Errorf("%q isn't done:\n%s", part, log)
		}
	}
	if strings.Contains(log, "--now") || strings.Contains(log, "start") {
		t.Errorf("something was started:\n%s", log)
	}
	for name, want := range map[string]string{"usr/lib/kiln/host-ready": "#!/bin/sh\nexit 0\n", "etc/machine-id": "", "var/lib/robot/.ssh/authorized_keys": "ssh-ed25519 AAAAC3Nz robot\n"} {
		if got := m.read(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	if !strings.Contains(m.read("etc/apt/sources.list.d/hashicorp.sources"), "https://apt.example.org") {
		t.Error("the apt source isn't there")
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("it has left %q", left)
	}
	// Once more, nothing changes, and no mirror is asked.
	before := m.tree()
	m.write("log", "")
	m.write("unreachable", "E: it isn't to be asked\n")
	if err := newProvisioner(t, s, m, nil).Provision(t.Context(), ui, m, nil); err != nil {
		t.Fatal(err)
	}
	after := m.tree()
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("the second time changes %s from %q to %q", name, before[name], after[name])
		}
	}
	if len(before) != len(after) || strings.Contains(m.read("log"), "apt-get -y") {
		t.Errorf("the second time makes %d of %d files, and does\n%s", len(after), len(before), m.read("log"))
	}
}

func TestUnsealed(t *testing.T) {
	m, ui := newMachine(t), &said{}
	if err := newProvisioner(t, newSite(), m, map[string]any{"seal": false}).Provision(t.Context(), ui, m, nil); err != nil {
		t.Fatal(err)
	}
	if m.read("etc/machine-id") == "" || !ui.has("5/5 setting units") || ui.has("sealing") {
		t.Errorf("it was sealed:\n%s", ui.text())
	}
}

func TestLocked(t *testing.T) {
	set := &images.PackageSet{Packages: []images.LockedPackage{{Name: "acl", Version: "2:1.5-1"}, {Name: "consul", Version: "1.22"}, {Name: "libc6", Version: "2.37"}, {Name: "nomad", Version: "1.11"}}}
	m, s := newMachine(t), newSite()
	s.locked = set
	if err := newProvisioner(t, s, m, nil).Provision(t.Context(), &said{}, m, nil); err != nil {
		t.Fatal(err)
	}
	if log := m.read("log"); !strings.Contains(log, "install acl=2:1.5-1 consul=1.22 nomad=1.11") {
		t.Errorf("other versions were asked for:\n%s", log)
	}
	// A mirror that gives another version of what is needed besides.
	s.plan.Image.Packages[0].Name = "virtual"
	set.Packages = append(set.Packages, images.LockedPackage{Name: "provider", Version: "1"})
	m.write("bin/apt-get", strings.Replace(m.read("bin/apt-get"), ">>"+m.root+"/installed", ">/dev/null; echo provider 2 >>"+m.root+"/installed", 1))
	err := newProvisioner(t, s, m, nil).Provision(t.Context(), &said{}, m, nil)
	if err == nil || !strings.Contains(err.Error(), "provider 2, locked: 1") || !strings.Contains(err.Error(), "kiln lock --update") {
		t.Errorf("with another version than the lock's: %v", err)
	}
}

func TestFailures(t *testing.T) {
	for name, test := range map[string]struct {
		file, text string // on the machine
		options    map[string]any
		want       []string
	}{
		"mirror":     {"unreachable", "Err:1 https://apt.example.org bookworm InRelease\n  Could not connect to apt.example.org:443\nE: Failed to fetch https://apt.example.org/dists/bookworm/InRelease  Could not connect\n", nil, []string{"reading the apt sources failed with status 100", "E: Failed to fetch https://apt.example.org", "Could not connect"}},
		"unknown":    {"unknown", "E: Unable to locate package consul\n", nil, []string{"E: Unable to locate package consul", "the package consul is asked for in profile"}},
		"broken":     {"broken", "Setting up nomad (1.11) ...\nnomad: no room for the data\ndpkg: error processing package nomad (--configure):\n installed nomad package post-installation script subprocess returned error exit status 1\nErrors were encountered while processing:\n nomad\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n", nil, []string{"no room for the data", "dpkg: error processing package nomad", "exit status 1", "the package nomad is asked for"}},
		"release":    {"etc/os-release", "ID=ubuntu\nVERSION_CODENAME=noble\n", nil, []string{"this machine is ubuntu noble", "debian bookworm", "image"}},
		"owner":      {"nobody", "passwd consul\n", nil, []string{"belongs to consul"}},
		"no root":    {"uid", "1000\n", nil, []string{"applied by root", "execute_command"}},
		"no program": {"log", "", map[string]any{"execute_command": "no-such-sudo sh {{.Path}}"}, []string{"no-such-sudo", "not found", "status 127"}},
		"unit": {"bin/systemctl", "#!/bin/sh\ncase $* in *nomad*) echo 'Failed to enable unit: Unit file nomad.service does not exist.' >&2; exit 1 ;; esac\n", nil,
			[]string{"setting the units failed", "nomad.service does not exist"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, s := newMachine(t), newSite()
			for i := range s.plan.Image.Packages {
				s.plan.Image.Packages[i].Origin.Profile = "profile plain"
			}
			m.write(test.file, test.text)
			err := newProvisioner(t, s, m, test.options).Provision(t.Context(), &said{}, m, nil)
			if err == nil {
				t.Fatal("it has no error")
			}
			for _, part := range append(test.want, "the image half of the profile plain isn't applied") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error lacks %q: %v", part, err)
				}
			}
			if left := m.left(); len(left) > 0 {
				t.Errorf("it has left %q", left)
			}
		})
	}
}

func TestProfilesUser(t *testing.T) {
	m, s := newMachine(t), newSite()
	s.plan.Image.Users[0].Name = "debian"
	err := newProvisioner(t, s, m, nil).Provision(t.Context(), &said{}, m, nil)
	if err == nil || !strings.Contains(err.Error(), "the user debian, whom sealing would remove") {
		t.Errorf("logged in as a user of the profile's: %v", err)
	}
}

// TestCancel cancels while packages are installed.
func TestCancel(t *testing.T) {
	m := newMachine(t)
	m.write("endless", "")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil && m.read("endless") == "" {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	err := newProvisioner(t, newSite(), m, nil).Provision(ctx, &said{}, m, nil)
	if err == nil || !strings.Contains(err.Error(), "was cancelled; the script on the machine was stopped") {
		t.Errorf("cancelled: %v", err)
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("it has left %q", left)
	}
}

// deaf is a machine that takes nothing.
type deaf struct {
	packersdk.MockCommunicator
	upload, start error
	status        int
}

func (d *deaf) Upload(string, io.Reader, *os.FileInfo) error { return d.upload }

func (d *deaf) Start(_ context.Context, cmd *packersdk.RemoteCmd) error {
	if d.start == nil {
		cmd.SetExited(d.status)
	}
	return d.start
}

func TestConnection(t *testing.T) {
	m := newMachine(t)
	for _, test := range []struct {
		deaf *deaf
		want string
	}{
		{&deaf{upload: errors.New("no route to host")}, "uploading " + m.staging},
		{&deaf{start: errors.New("connection reset")}, "starting the script on the machine: connection reset"},
		{&deaf{status: packersdk.CmdDisconnect}, "the connection to the machine was lost"},
		{&deaf{status: 7}, "ended with status 7"},
	} {
		err := newProvisioner(t, newSite(), m, nil).Provision(t.Context(), &said{}, test.deaf, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, and it should have %q", err, test.want)
		}
	}
}

func TestProvisionerOptions(t *testing.T) {
	for want, options := range map[string]map[string]any{
		"profile must be set":    {},
		"runs nothing of Kiln's": {"profile": "x", "execute_command": "true"},
		"absolute path":          {"profile": "x", "staging_directory": "tmp"},
		"execute_command":        {"profile": "x", "execute_command": "{{.Pth}}"},
		"unknown":                {"profile": "x", "profil": "y"},
	} {
		if err := new(Provisioner).Prepare(options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, and it should have %q", options, err, want)
		}
	}
	p := new(Provisioner)
	if err := p.Prepare(map[string]any{"profile": "x"}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.command("/a b/x"); err != nil || !strings.Contains(got, "sudo -n sh '/a b/x'") {
		t.Errorf("the command is %q, %v", got, err)
	}
}

// TestSameScript has the same bytes of the same half.
func TestSameScript(t *testing.T) {
	half := &Half{Image: newSite().plan.Image}
	a, err := newScript(half, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newScript(half, true)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("two scripts of the same half differ: %v", err)
	}
	half.Image.AptSources[0].Key = nil
	if _, err := newScript(half, true); err == nil || !strings.Contains(err.Error(), "kiln keys fetch") {
		t.Errorf("without a key: %v", err)
	}
}
