package check

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	var last, total int64
	findings := findingsOf(t, newImage(t).disk(), Options{
		Canaries: []Canary{secret("env://A", "a secret that isn't there"), secret("env://SHORT", "grub")},
		Progress: func(d, of int64) {
			if d < last {
				t.Errorf("the progress goes back from %d to %d", last, d)
			}
			last, total = d, of
		},
	})
	for _, f := range findings {
		t.Errorf("a clean image: %s", f.String())
	}
	if last == 0 || last != total {
		t.Errorf("%d of %d bytes were reported", last, total)
	}
}

// TestMutations has for each check an image that fails it, and no other.
func TestMutations(t *testing.T) {
	file := func(name, content string) func(*image) {
		return func(i *image) { i.file(name, content, 0o644) }
	}
	add := func(name, content string) func(*image) { return func(i *image) { i.add(name, content) } }
	tests := []struct {
		name, check, path string
		change            func(*image)
	}{
		{"machine-id", Identity, "/etc/machine-id", add("etc/machine-id", "")},
		{"dbus", Identity, "/var/lib/dbus/machine-id", nil},
		{"hostname", Identity, "/etc/hostname", file("etc/hostname", "builder\n")},
		{"hosts", Identity, "/etc/hosts", add("etc/hosts", "127.0.1.1 builder\n")},
		{"seed", Identity, "/var/lib/systemd/random-seed", file("var/lib/systemd/random-seed", "x")},
		{"credential", Identity, "/var/lib/systemd/credential.secret", file("var/lib/systemd/credential.secret", "x")},
		{"cloud-init", Identity, "/var/lib/cloud/instances/i-1/user-data.txt", file("var/lib/cloud/instances/i-1/user-data.txt", "")},
		{"consul", Identity, "/build/consul/node-id", file("build/consul/node-id", "x")},
		{"nomad", Identity, "/build/nomad/client/client-id", file("build/nomad/client/client-id", "x")},
		{"nomad's state", Identity, "/opt/nomad/data/server/raft/raft.db", file("opt/nomad/data/server/raft/raft.db", "x")},
		{"iscsi", Identity, "/etc/iscsi/initiatorname.iscsi", file("etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1993-08.org.debian:01:1\n")},

		{"host key", Keys, "/etc/ssh/ssh_host_ed25519_key.pub", file("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA\n")},
		{"root's keys", Keys, "/root/.ssh/authorized_keys", file("root/.ssh/authorized_keys", "ssh-ed25519 AAAA\n")},
		{"private key", Keys, "/etc/nomad.d/key.pem", file("etc/nomad.d/key.pem", example(2))},
		{"private key in JSON", Keys, "/etc/key.json", file("etc/key.json", `{"key": "`+strings.ReplaceAll(example(2), "\n", `\n`)+`"}`)},
		{"private key in gzip", Keys, "/srv/keys.gz", func(i *image) { i.file("srv/keys.gz", gzipped(i.t, strings.Repeat("x", 3<<20)+example(2)), 0o644) }},
		{"changed example", Keys, "/usr/share/doc/good/key.pem", file("usr/share/doc/good/key.pem", example(2))},
		{"another key in a compiled file", Keys, "/usr/share/doc/good/__pycache__/key.cpython-311.pyc", file("usr/share/doc/good/__pycache__/key.cpython-311.pyc", example(2))},

		{"log", Logs, "/var/log/dpkg.log", file("var/log/dpkg.log", "")},
		{"any log", Logs, "/var/log/nginx/access", file("var/log/nginx/access", "x")},
		{"journal", Logs, "/var/log/journal/x/system.journal", file("var/log/journal/x/system.journal", "")},

		{"lists", Caches, "/var/lib/apt/lists/x_Packages", file("var/lib/apt/lists/x_Packages", "")},
		{"archives", Caches, "/var/cache/apt/archives/good.deb", file("var/cache/apt/archives/good.deb", "")},
		{"pkgcache", Caches, "/var/cache/apt/pkgcache.bin", file("var/cache/apt/pkgcache.bin", "")},

		{"file for all", WorldWritable, "/etc/fstab", func(i *image) { i.mode("etc/fstab", 0o666) }},
		{"folder for all", WorldWritable, "/tmp", func(i *image) { i.mode("tmp", 0o777) }},

		{"setuid", Setuid, "/usr/share/su", func(i *image) { i.file("usr/share/su", "x", 0o755); i.mode("usr/share/su", 0o755|fs.ModeSetuid) }},
		{"setgid", Setuid, "/usr/share/su", func(i *image) { i.file("usr/share/su", "x", 0o755); i.mode("usr/share/su", 0o755|fs.ModeSetgid) }},
		{"other than overridden", Setuid, "/usr/bin/overridden", func(i *image) { i.mode("usr/bin/overridden", 0o755|fs.ModeSetuid) }},

		{"no unit", Units, "/etc/systemd/system/multi-user.target.wants/gone.service", func(i *image) {
			i.link("etc/systemd/system/multi-user.target.wants/gone.service", "/usr/lib/systemd/system/gone.service")
		}},
		{"no alias", Units, "/etc/systemd/system/dbus-x.service", func(i *image) { i.link("etc/systemd/system/dbus-x.service", "/usr/lib/systemd/system/gone.service") }},
		{"no program", Units, "/usr/lib/systemd/system/good.service", func(i *image) { i.mode("usr/bin/good", 0o644); i.link("etc/systemd/system/tty@.service", "/dev/null") }},
		{"no program in a drop-in", Units, "/usr/lib/systemd/system/good.service",
			file("etc/systemd/system/good.service.d/x.conf", "[Service]\nExecStart=\nExecStart=gone --flag\n")},
		{"no user", Units, "/usr/lib/systemd/system/good.service", file("etc/systemd/system/good.service.d/x.conf", "[Service]\nUser=gone\n")},
		{"nothing to time", Units, "/usr/lib/systemd/system/good.timer", file("etc/systemd/system/good.timer.d/x.conf", "[Timer]\nUnit=gone.service\n")},

		{"resolvers", Network, "/etc/resolv.conf", add("etc/resolv.conf", "nameserver 192.0.2.53\n")},
		{"search", Network, "/etc/resolv.conf", add("etc/resolv.conf", "search example.org\n")},
		{"copied resolvers", Network, "/etc/.resolv.conf.systemd-resolved.bak", file("etc/.resolv.conf.systemd-resolved.bak", "")},
		{"apt's proxy", Network, "/etc/apt/apt.conf.d/99proxy", file("etc/apt/apt.conf.d/99proxy", "Acquire::http::Proxy \"http://proxy.example.org:3128\";\n")},
		{"apt's proxy in a block", Network, "/etc/apt/apt.conf", file("etc/apt/apt.conf", "Acquire {\n http {\n  Proxy \"http://proxy.example.org:3128\";\n }\n}\n")},
		{"proxy", Network, "/etc/environment", add("etc/environment", "https_proxy=http://proxy.example.org\n")},
		{"a service's proxy", Network, "/etc/systemd/system/good.service.d/x.conf", file("etc/systemd/system/good.service.d/x.conf", "[Service]\nEnvironment=\"HTTP_PROXY=http://proxy.example.org\"\n")},
		{"netplan", Network, "/etc/netplan/50-cloud-init.yaml", file("etc/netplan/50-cloud-init.yaml", "")},

		{"lease", Leases, "/var/lib/dhcp/dhclient.leases", file("var/lib/dhcp/dhclient.leases", "")},

		{"backup", Remains, "/etc/passwd-", file("etc/passwd-", "")},
		{"policy", Remains, "/usr/sbin/policy-rc.d", file("usr/sbin/policy-rc.d", "")},
		{"temporary", Remains, "/tmp/a/b", file("tmp/a/b", "")},
		{"history", Remains, "/root/.bash_history", file("root/.bash_history", "")},

		{"password", Passwords, "/etc/shadow", add("etc/shadow", "user:$y$j9T$salt$hash:19000::::::\n")},
		{"no password", Passwords, "/etc/shadow", add("etc/shadow", "user::19000::::::\n")},
		{"password in passwd", Passwords, "/etc/passwd", add("etc/passwd", "user:aBcDeFgHiJkLm:1000:1000::/:/bin/sh\n")},

		{"aws", Secrets, "/etc/aws", file("etc/aws", "aws_access_key_id = AKIA"+"Y3MNPQ7RSTUV2WXY\n")},
		{"github", Secrets, "/etc/token", file("etc/token", "ghp_"+"a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8\n")},
		{"gitlab", Secrets, "/etc/token", file("etc/token", "glpat-"+"a1B2c3D4e5F6g7H8i9J0\n")},
		{"vault", Secrets, "/etc/token", file("etc/token", "hvs."+"CAESIJa1B2c3D4e5F6g7H8i9J0k1\n")},
		{"old vault", Secrets, "/etc/token", file("etc/token", "VAULT_"+"TOKEN=s.a1B2c3D4e5F6g7H8i9J0k1L2\n")},
		{"nomad's token", Secrets, "/etc/token", file("etc/token", "export NOMAD_"+"TOKEN=8f14e45f-ceea-467f-a9af-1d2c3b4a5d6e\n")},
		{"consul's token", Secrets, "/etc/consul.d/x.hcl", file("etc/consul.d/x.hcl", "acl { tokens { initial_"+"management = \"8f14e45f-ceea-467f-a9af-1d2c3b4a5d6e\" } }\n")},
		{"a bootstrap's answer", Secrets, "/srv/bootstrap", file("srv/bootstrap", "Accessor ID  = x\nSecret "+"ID    = 8f14e45f-ceea-467f-a9af-1d2c3b4a5d6e\n")},
		{"gossip", Secrets, "/etc/consul.d/x.hcl", file("etc/consul.d/x.hcl", "encr"+"ypt = \"pUqJrVyVRj5jsiYEkM/tFQYqJyJwSs3XdlO4SBnLU+w=\"\n")},
		{"age", Secrets, "/etc/identity", file("etc/identity", "AGE-SECRET-"+"KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0S4JR2W3\n")},
		{"apt's credentials", Secrets, "/etc/apt/auth.conf.d/x.conf", file("etc/apt/auth.conf.d/x.conf", "machine example.org login x password y\n")},
		{"changed configuration", Secrets, "/etc/good.conf", add("etc/good.conf", "token = 8f14e45f-ceea-467f-a9af-1d2c3b4a5d6e\n")},
	}
	covered := map[string]bool{Canaries: true} // has tests of its own
	for _, test := range tests {
		covered[test.check] = true
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			i := newImage(t)
			switch test.name {
			case "machine-id":
				i.mode("etc/machine-id", 0o644)
				i.add("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
			case "dbus":
				i.remove("var/lib/dbus/machine-id")
				i.file("var/lib/dbus/machine-id", "", 0o644)
			default:
				test.change(i)
			}
			file := i.disk()
			only(t, findingsOf(t, file, Options{}), test.check, test.path)
			allowed := findingsOf(t, file, Options{Allowed: func(check, path string) bool { return check == test.check && path == test.path }})
			for _, f := range allowed {
				t.Errorf("allowed, and found: %s", f.String())
			}
		})
	}
	for _, c := range Checks {
		if !covered[c.Name] {
			t.Errorf("no image fails the check %s", c.Name)
		}
	}
}

// TestNoMachineID has an image with systemd, but without the file that each boot
// wants.
func TestNoMachineID(t *testing.T) {
	i := newImage(t)
	i.remove("etc/machine-id")
	only(t, findingsOf(t, i.disk(), Options{}), Identity, "/etc/machine-id")
}

// TestOrder has findings in the order of checks and paths, each once.
func TestOrder(t *testing.T) {
	i := newImage(t)
	i.file("var/log/b", "x", 0o666)
	i.file("var/log/a", "x", 0o666)
	i.file("etc/hostname", "x", 0o644)
	var got []string
	for _, f := range findingsOf(t, i.disk(), Options{}) {
		got = append(got, f.Check+" "+f.Path)
	}
	want := "identity /etc/hostname, logs /var/log/a, logs /var/log/b, world-writable /var/log/a, world-writable /var/log/b"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("found %s, want %s", s, want)
	}
}

// TestRefused has what is no disk, with what to do where something is to be done.
func TestRefused(t *testing.T) {
	file := newImage(t).disk()
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errors.New("interrupted"))
	if _, err := Disk(stopped, file, Options{}); err == nil || !strings.HasSuffix(err.Error(), ": interrupted") {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := Disk(t.Context(), t.TempDir(), Options{}); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a folder: %v", err)
	}
	if err := os.Truncate(file, 60<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Disk(t.Context(), file, Options{}); err == nil || !strings.Contains(err.Error(), "was it cut off?") {
		t.Errorf("cut off: %v", err)
	}
	if err := os.Truncate(file, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := Disk(t.Context(), file, Options{}); err == nil || !strings.Contains(err.Error(), "partition table") {
		t.Errorf("cut off early: %v", err)
	}
}

// TestHostile changes bytes where the filesystem is described: the check ends, with
// findings or an error.
func TestHostile(t *testing.T) {
	file := newImage(t).disk()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	good := make([]byte, 16<<20)
	if _, err := f.ReadAt(good, rootAt); err != nil {
		t.Fatal(err)
	}
	// Where something is; the superblock stays, or nothing else is read.
	var places []int
	for at := 4096; at < len(good); at++ {
		if good[at] != 0 {
			places = append(places, at)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	failed := 0
	for range 25 {
		b := bytes.Clone(good)
		for range 1 + len(places)/300 {
			b[places[random.IntN(len(places))]] = byte(random.Uint32())
		}
		if _, err := f.WriteAt(b, rootAt); err != nil {
			t.Fatal(err)
		}
		if _, err := Disk(t.Context(), file, Options{Canaries: canaries}); err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no change was an error: do they change anything?")
	}
}
