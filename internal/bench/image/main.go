// Command image measures how long kiln build takes, beside what it's compared
// with, all in one run and with the same packages: mmdebstrap alone, and mkosi
// where that is installed. Run it as root, on a machine that does nothing else:
//
//	make bench-image
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alisw/kiln/images"
)

const site = `domain: example.org
datacenter: ci
servers: {join: [server1.example.org], nomad: 1.10.5, consul: 1.22.2}
apt:
  sources:
    hashicorp: {uris: ["file://%s"], fingerprint: "%s"}
`

// set is packages that are measured: those of a profile, which is written anew each
// time with another file in it, and of a definition.
type set struct {
	title, definition, profile string
}

var sets = []set{
	{"a small host: systemd, cloud-init, sshd, dnsmasq, the kernel of clouds", "debian-12-cloud", `image:
  packages: [systemd, systemd-sysv, udev, dnsmasq, cloud-init, openssh-server, iproute2, dbus, ca-certificates]
  files: {/etc/bench.conf: {content: "%d\n"}}
`},
	{"alissandra: Nomad, Consul, kernel and firmware for bare metal", "debian-12", `extends: [alissandra]
image:
  files: {/etc/bench.conf: {content: "%d\n"}}
`},
}

// changing is the profile's name.
const changing = "changing"

func main() {
	repo := flag.String("hashicorp", "", "folder of the apt repository that scripts/hashicorp/packages.sh makes")
	flag.Parse()
	if err := run(*repo); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	dir, kiln string
	table     *tabwriter.Writer
	reference time.Duration // mmdebstrap's tree
}

func run(repo string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("images are built as root: run this as root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "kiln-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{dir: dir, kiln: filepath.Join(dir, "kiln"), table: tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)}
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.kiln, "./cmd/kiln").CombinedOutput(); err != nil {
		return fmt.Errorf("building kiln: %w: %s", err, out)
	}
	if err := b.site(repo); err != nil {
		return err
	}
	fmt.Printf("%d cores, %s/%s\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	for _, s := range sets {
		if err := b.measure(s); err != nil {
			return err
		}
	}
	return nil
}

// measure prints a table for one set of packages.
func (b *bench) measure(s set) error {
	if err := b.change(s, 0); err != nil {
		return err
	}
	say("resolving and fetching the packages of " + s.definition)
	if _, err := b.run("packages", "lock", "--profile", changing, "--image", s.definition); err != nil {
		return err
	}
	if _, err := b.run("packages", "cache", "export", filepath.Join(b.dir, "packages.tar")); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(b.dir, "packages.tar")); err != nil {
		return err
	}
	fmt.Fprintf(b.table, "\n%s\ttime\tto mmdebstrap\twanted\n", s.title)
	if err := errors.Join(b.others(), b.cold(s), b.warm(s)); err != nil {
		return err
	}
	return errors.Join(b.table.Flush(), os.RemoveAll(filepath.Join(b.dir, "one")), os.RemoveAll(filepath.Join(b.dir, "repository")), os.Remove(filepath.Join(b.dir, "site/kiln.lock")))
}

// change writes the profile with its n-th content.
func (b *bench) change(s set, n int) error {
	return b.write("site/profiles/"+changing+"/profile.yaml", fmt.Sprintf(s.profile, n))
}

func (b *bench) site(repo string) error {
	fingerprint, err := os.ReadFile(filepath.Join(repo, "fingerprint"))
	if err != nil {
		return fmt.Errorf("the packages of Nomad and Consul: %w: make packages makes them", err)
	}
	key, err := os.ReadFile(filepath.Join(repo, "key.asc"))
	if err != nil {
		return err
	}
	return errors.Join(
		b.write("site/site.yaml", fmt.Sprintf(site, repo, strings.TrimSpace(string(fingerprint)))),
		b.write("site/keys/hashicorp.asc", string(key)),
	)
}

func (b *bench) write(name, text string) error {
	path := filepath.Join(b.dir, name)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
}

// run runs kiln in the site, with a cache of its own, and tells how long it took.
func (b *bench) run(cache string, args ...string) (time.Duration, error) {
	_, took, err := b.output(cache, args...)
	return took, err
}

func (b *bench) output(cache string, args ...string) ([]byte, time.Duration, error) {
	cmd := exec.Command(b.kiln, args...)
	cmd.Dir = filepath.Join(b.dir, "site")
	cmd.Env = append(os.Environ(), "KILN_CACHE="+filepath.Join(b.dir, cache))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return out, took, fmt.Errorf("kiln %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, took, nil
}

func (b *bench) row(what string, took time.Duration, wanted string) {
	ratio := "-"
	if b.reference > 0 {
		ratio = fmt.Sprintf("%.2f", took.Seconds()/b.reference.Seconds())
	}
	fmt.Fprintf(b.table, "%s\t%.2f s\t%s\t%s\n", what, took.Seconds(), ratio, wanted)
}

// others are mmdebstrap and mkosi, from a repository of the very same packages.
func (b *bench) others() error {
	lock, err := images.ReadLock(filepath.Join(b.dir, "site"))
	if err != nil {
		return err
	}
	repository := filepath.Join(b.dir, "repository")
	if err := b.repository(lock, repository); err != nil {
		return err
	}
	say("mmdebstrap, a tree alone")
	set := lock.Sets[0]
	names := append(slices.Clone(set.Asked), "apt")
	for _, f := range set.Firmware {
		if set.Package(f) != nil { // the mirror has it
			names = append(names, f)
		}
	}
	took, err := timed(nil, "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--dpkgopt=force-unsafe-io", "--include="+strings.Join(names, ","),
		"--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount", "bookworm", filepath.Join(b.dir, "tree"), "deb [trusted=yes] file://"+repository+" ./")
	if err != nil {
		return err
	}
	b.reference = took
	b.row("mmdebstrap, a tree alone, without a disk", took, "")
	if _, err := exec.LookPath("mkosi"); err != nil {
		fmt.Fprintln(b.table, "mkosi\tnot installed\t-\t")
	}
	return os.RemoveAll(filepath.Join(b.dir, "tree"))
}

// repository makes an apt repository of what the lock has.
func (b *bench) repository(lock *images.Lock, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var index bytes.Buffer
	debs := filepath.Join(b.dir, "packages/build/debs")
	for _, p := range lock.Sets[0].Packages {
		control, err := os.ReadFile(filepath.Join(debs, p.SHA256+".control"))
		if err != nil {
			return err
		}
		fmt.Fprintf(&index, "%s\nFilename: ./%s.deb\nSize: %d\nSHA256: %s\n\n", bytes.TrimSpace(control), p.SHA256, p.Size, p.SHA256)
		if err := os.Link(filepath.Join(debs, p.SHA256+".deb"), filepath.Join(to, p.SHA256+".deb")); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(to, "Packages"), index.Bytes(), 0o644)
}

func timed(env []string, name string, args ...string) (time.Duration, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"), env...)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-2000):])
	}
	return time.Since(start), nil
}

// fresh gives a cache that has the packages, and nothing else.
func (b *bench) fresh(name string) error {
	return exec.Command("cp", "-al", filepath.Join(b.dir, "packages"), filepath.Join(b.dir, name)).Run()
}

// cold builds one image, and two where the set is of a profile that is close to
// another, from packages alone.
func (b *bench) cold(s set) error {
	if err := b.fresh("one"); err != nil {
		return err
	}
	say("kiln build, cold")
	one, err := b.run("one", "build", changing, "--image", s.definition, "--format", "raw")
	if err != nil {
		return err
	}
	b.row("kiln build, packages in the cache: a checked disk", one, "1.15 of mmdebstrap or less")
	if s.definition != "debian-12" {
		return nil
	}
	if err := b.fresh("two"); err != nil {
		return err
	}
	say("kiln build of two, cold")
	two, err := b.run("two", "build", "alissandra", "plain", "--format", "raw")
	if err != nil {
		return err
	}
	b.row("kiln build of two that differ in their files, likewise", two, fmt.Sprintf("1.1 of one: it is %.2f", two.Seconds()/one.Seconds()))
	if err := os.RemoveAll(filepath.Join(b.dir, "two")); err != nil {
		return err
	}
	return b.chunks()
}

// chunks compares the netboot sets of two profiles.
func (b *bench) chunks() error {
	var lists [2][]string
	for i, p := range []string{"alissandra", "plain"} {
		out, _, err := b.output("one", "build", p, "--format", "netboot", "--json")
		if err != nil {
			return err
		}
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		var last struct{ Image struct{ Directory string } }
		if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(last.Image.Directory, "netboot/chunks.json"))
		if err != nil {
			return err
		}
		var set struct{ Chunks []struct{ SHA256 string } }
		if err := json.Unmarshal(data, &set); err != nil {
			return err
		}
		for _, c := range set.Chunks {
			lists[i] = append(lists[i], c.SHA256)
		}
	}
	differ := 0
	for i, c := range lists[0] {
		if i >= len(lists[1]) || lists[1][i] != c {
			differ++
		}
	}
	fmt.Fprintf(b.table, "netboot chunks of plain that alissandra hasn't\t%d of %d\t\t1 %%: it is %.1f %%\n", differ, len(lists[0]), 100*float64(differ)/float64(len(lists[0])))
	return nil
}

// warm builds again: with one file changed, and with nothing.
func (b *bench) warm(s set) error {
	say("kiln build, warm")
	build := []string{"build", changing, "--image", s.definition, "--format", "raw"}
	const times = 5
	var changed, same []time.Duration
	for n := range times {
		if err := b.change(s, n+1); err != nil {
			return err
		}
		took, err := b.run("one", build...)
		if err != nil {
			return err
		}
		again, err := b.run("one", build...)
		if err != nil {
			return err
		}
		changed, same = append(changed, took), append(same, again)
	}
	b.row("kiln build, one file changed: a checked disk (median of 5)", median(changed), "1 s or less")
	b.row("kiln build, nothing changed (median of 5)", median(same), "0.2 s")
	return nil
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

func say(what string) { fmt.Fprintf(os.Stderr, "bench: %s …\n", what) }
