package bake

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/internal/run"
)

// resolver asks apt which packages an image comes to: with a configuration,
// sources and lists of its own, as on a machine that has no package yet.
type resolver struct {
	b       *builder
	dir     string // apt's root
	sources []source
	kept    []images.LockedPackage // to stay as they are
	apt     *aptProgress
}

// newResolver prepares apt's root in dir, and fetches the lists of the sources. Of
// the packages in keep, those that the cache has can be had, whatever became of
// them on the mirror.
func (b *builder) newResolver(ctx context.Context, dir string, sources []source, keep []images.LockedPackage) (*resolver, error) {
	r := &resolver{b: b, dir: dir, sources: sources, kept: keep, apt: &aptProgress{tell: func(Event) {}}}
	for _, d := range []string{"etc/apt/sources.list.d", "etc/apt/preferences.d", "var/lib/apt/lists/partial", "var/lib/dpkg", "var/cache/apt/archives/partial", "kept"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.configure(ctx); err != nil {
		return nil, err
	}
	if err := b.run.Run(ctx, r.command("apt-get", "update", "--error-on=any")); err != nil {
		return nil, b.explain(r.apt, dir, sources, err)
	}
	return r, nil
}

func (r *resolver) configure(ctx context.Context) error {
	at := func(p string) string { return filepath.Join(r.dir, p) }
	if err := r.b.aptSettings(ctx, at("apt.conf")); err != nil {
		return err
	}
	conf, err := os.OpenFile(at("apt.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	arch := r.b.definition.Release.Architecture
	_, err = fmt.Fprintf(conf, `Dir %q;
Dir::State::status %q;
Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";
Dir::Etc::netrc "/etc/apt/auth.conf";
APT::Architecture %q;
APT::Architectures { %q; };
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::GzipIndexes "false";
Acquire::ForceHash "SHA256";
`, r.dir+"/", at("var/lib/dpkg/status"), arch, arch)
	if err := errors.Join(err, conf.Close(), os.WriteFile(at("var/lib/dpkg/status"), nil, 0o644)); err != nil {
		return err
	}
	if _, err := r.b.buildSources(at("etc/apt/sources.list.d"), r.sources); err != nil {
		return err
	}
	return r.keep(ctx)
}

// keep has apt prefer the packages that stay as they are.
func (r *resolver) keep(ctx context.Context) error {
	var have []images.LockedPackage
	var pins strings.Builder
	for _, p := range r.kept {
		if r.b.packages.has(p) {
			have = append(have, p)
		}
		fmt.Fprintf(&pins, "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", p.Name, p.Version)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "etc/apt/preferences.d/kept"), []byte(pins.String()), 0o644); err != nil {
		return err
	}
	if len(have) == 0 {
		return nil
	}
	dir := filepath.Join(r.dir, "kept")
	if err := r.b.packages.repository(ctx, dir, r.b.definition.Release.Codename, have); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "etc/apt/sources.list.d/kept.sources"), []byte(localSource(dir)), 0o644)
}

func (r *resolver) command(program string, args ...string) run.Command {
	return run.Command{
		Name: program, Args: args, Install: "the Debian package apt has it",
		Env: []string{"APT_CONFIG=" + filepath.Join(r.dir, "apt.conf"), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, Stderr: r.apt.line,
	}
}

// essential is what each system has, and apt itself, as mmdebstrap chooses it.
func essential(release, architecture string) string {
	return fmt.Sprintf("?narrow(?or(?archive(^%s$),?codename(^%s$)),?architecture(%s),?essential)", release, release, architecture)
}

// resolve gives the packages, by name, and how apt came to them is apt's affair.
func (r *resolver) resolve(ctx context.Context, packages, firmware []string) ([]images.LockedPackage, error) {
	release := r.b.definition.Release
	args := append([]string{"-qq", "--yes", "--print-uris", "install", essential(release.Codename, release.Architecture), "apt"}, packages...)
	for _, f := range firmware {
		args = append(args, "?exact-name("+f+")")
	}
	out, err := r.b.run.Output(ctx, r.command("apt-get", args...))
	if err != nil {
		return nil, r.b.explain(r.apt, r.dir, r.sources, err)
	}
	var list []images.LockedPackage
	for line := range strings.Lines(string(out)) {
		p, err := r.packageOf(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b images.LockedPackage) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// packageOf reads a line of apt-get --print-uris:
//
//	'http://…/pool/main/a/acl/acl_2.3.1-3_amd64.deb' acl_2.3.1-3_amd64.deb 58544 SHA256:…
func (r *resolver) packageOf(line string) (images.LockedPackage, error) {
	unreadable := fmt.Errorf("apt lists a package in a way that Kiln doesn't know: %q", line)
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return images.LockedPackage{}, unreadable
	}
	uri := strings.Trim(fields[0], "'")
	// The name of the file in apt's cache, in which _ and : are escaped.
	parts := strings.Split(strings.TrimSuffix(fields[1], ".deb"), "_")
	size, err := strconv.ParseInt(fields[2], 10, 64)
	sum, sha256 := strings.CutPrefix(fields[3], "SHA256:")
	if len(parts) != 3 || err != nil || !sha256 {
		return images.LockedPackage{}, unreadable
	}
	version, err := url.PathUnescape(parts[1])
	if err != nil {
		return images.LockedPackage{}, unreadable
	}
	p := images.LockedPackage{Name: parts[0], Version: version, Architecture: parts[2], SHA256: sum, Size: size}
	for _, k := range r.kept {
		if k.Name == p.Name && k.SHA256 == sum {
			return k, nil
		}
		if k.Name == p.Name && k.Version == p.Version {
			return p, fmt.Errorf("the package %s isn't what was locked: %s has it with the SHA-256 %s, and %s says %s: if its maker made it anew, kiln lock --update %s takes the new one",
				&p, uri, sum, images.LockFile, k.SHA256, p.Name)
		}
	}
	if p.Source, p.Path = r.whence(uri); p.Source == "" {
		return images.LockedPackage{}, fmt.Errorf("apt takes the package %s from %s, which is no source of the image", p.Name, uri)
	}
	return p, nil
}

// whence is the source that an address is in, and the path in it.
func (r *resolver) whence(uri string) (name, below string) {
	longest := 0
	for i := range r.sources {
		base := strings.TrimSuffix(plainURI(r.sources[i].uri), "/") + "/"
		rest, ok := strings.CutPrefix(plainURI(uri), base)
		if !ok || len(base) <= longest {
			continue
		}
		if unescaped, err := url.PathUnescape(rest); err == nil {
			rest = unescaped
		}
		longest, name, below = len(base), r.sources[i].lockName(), path.Clean(rest)
	}
	return name, below
}

// plainURI is an address as apt prints it: local ones without slashes of a host.
func plainURI(uri string) string {
	if rest, ok := strings.CutPrefix(uri, "file://"); ok {
		return "file:" + rest
	}
	return uri
}

// lockName names a source in the lock. A distribution's security suites may have
// an address of their own.
func (s *source) lockName() string {
	if s.security {
		return s.name + "-security"
	}
	return s.name
}

// locked is what the lock says of a source.
func (s *source) locked() (images.LockedSource, error) {
	fingerprints, err := aptkey.Fingerprints(s.key)
	if err != nil {
		return images.LockedSource{}, fmt.Errorf("the key of the apt source %s: %w", s.name, err)
	}
	slices.Sort(fingerprints)
	return images.LockedSource{Name: s.lockName(), Suites: s.suites, Components: s.components, Fingerprints: fingerprints}, nil
}
