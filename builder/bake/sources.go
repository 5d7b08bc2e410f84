package bake

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// Mirror is where the distribution's packages come from.
type Mirror struct {
	// URI has the definition's suites, and Security those with security updates.
	// Where one is empty, the building machine's own is taken.
	URI      string
	Security string
	// Key is a file with the archive's keys; empty is the definition's keyring, as
	// the building machine has it.
	Key string
}

// source is one apt repository, with what its suites' release files said when
// the build began.
type source struct {
	name       string
	uri        string
	suites     []string
	components []string
	keyring    string // path of the keys in the image
	keyFile    string // where its keys were read from, if that is known
	key        []byte // its keys, for the build: armored, or a keyring's bytes
	releases   []release
	local      bool            // Kiln's own, of this build
	security   bool            // the distribution's security suites
	plan       *plan.AptSource // where it's one of the plan's
}

// release is what a suite's InRelease (or Release) file said.
type release struct {
	suite  string
	sha256 string
	text   []byte
}

// aptHelper is apt's own way to fetch, with the proxies and the credentials that
// the building machine's apt has.
const aptHelper = "/usr/lib/apt/apt-helper"

// sources are all repositories that the image is made from, as they are now. Their
// release files are fetched, so that a mirror that can't be reached, or that has
// changed, is known before anything is made.
func (b *builder) sources(ctx context.Context) ([]source, error) {
	list, err := b.sourceList(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if err := b.fetchReleases(ctx, &list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// sourceList are the distribution's repositories and the plan's, as they are
// written down.
func (b *builder) sourceList(ctx context.Context) ([]source, error) {
	list, err := b.archive(ctx)
	if err != nil {
		return nil, err
	}
	for i := range b.image.AptSources {
		s := &b.image.AptSources[i]
		for _, uri := range s.URIs {
			list = append(list, source{name: s.Name, uri: uri, suites: s.Suites, components: s.Components, key: s.Key, plan: s})
		}
	}
	for i := range list {
		if u, err := url.Parse(list[i].uri); err == nil && u.User != nil {
			return nil, fmt.Errorf("the address of the apt source %s has a user or a password in it, which each host of the image would show: leave them out, and have them in this machine's /etc/apt/auth.conf.d", list[i].name)
		}
	}
	return list, nil
}

// archive is the distribution's own sources, of the site's mirror or the building
// machine's.
func (b *builder) archive(ctx context.Context) ([]source, error) {
	d := &b.definition
	uri, security := b.mirror.URI, b.mirror.Security
	if uri == "" || security == "" && len(d.SecuritySuites) > 0 {
		own, err := b.ownMirrors(ctx)
		if err != nil {
			return nil, err
		}
		if uri == "" {
			uri = first(own, d.Suites)
		}
		if security == "" {
			// A mirror of the site's own may well have them, too.
			if security = first(own, d.SecuritySuites); security == "" {
				security = uri
			}
		}
	}
	if uri == "" {
		remedy := "name a mirror of it in site.yaml, as apt.mirror (and apt.security)"
		if _, err := os.Stat(d.Keyring); err != nil && b.mirror.Key == "" {
			remedy += fmt.Sprintf(", and put its archive's key into the site, as keys/%s.asc", d.Release.ID)
		}
		return nil, &machineError{fmt.Errorf("this machine's apt has no source of %s %s: %s", d.Release.ID, d.Release.Codename, remedy)}
	}
	key, file, err := b.archiveKey()
	if err != nil {
		return nil, err
	}
	keyring := d.Keyring
	if b.mirror.Key != "" {
		// The site's own is the one that its hosts need, too.
		keyring = siteKeyring(d, key)
	}
	list := []source{{name: d.Release.ID, uri: uri, suites: d.Suites, components: d.Components, keyring: keyring, keyFile: file, key: key}}
	if len(d.SecuritySuites) > 0 {
		list = append(list, source{name: d.Release.ID, uri: security, security: true, suites: d.SecuritySuites, components: d.Components, keyring: keyring, keyFile: file, key: key})
	}
	return list, nil
}

// siteKeyring is where an image has the archive's keys that are the site's. Apt
// tells armored ones from others by the file's name.
func siteKeyring(d *images.Definition, key []byte) string {
	return "/etc/apt/keyrings/" + d.Release.ID + keyExtension(key)
}

func keyExtension(key []byte) string {
	if bytes.HasPrefix(bytes.TrimSpace(key), []byte("-----BEGIN")) {
		return ".asc"
	}
	return ".gpg"
}

// archiveKey reads the keys that the distribution's archive is signed with.
func (b *builder) archiveKey() (key []byte, name string, err error) {
	d := &b.definition
	name = cmp.Or(b.mirror.Key, d.Keyring)
	key, err = os.ReadFile(name)
	switch {
	case err == nil:
	case errors.Is(err, os.ErrNotExist) && b.mirror.Key == "":
		return nil, "", &machineError{fmt.Errorf("this machine has no archive key of %s (%s): put it into the site as keys/%s.asc (%s's package %s has it), or install that package, where this machine's distribution has it too",
			d.Release.ID, name, d.Release.ID, d.Release.ID, d.KeyringPackage)}
	default:
		return nil, "", fmt.Errorf("reading the archive's key: %w", err)
	}
	if _, err := aptkey.Fingerprints(key); err != nil {
		return nil, "", fmt.Errorf("the archive's key %s: %w: put the public key of %s's archive there, or remove the file, so that this machine's own is taken", name, err, d.Release.ID)
	}
	return key, name, nil
}

// ownMirrors are the mirrors in this machine's apt configuration, by suite.
func (b *builder) ownMirrors(ctx context.Context) (map[string]string, error) {
	out, err := b.cache.remembered("own mirrors", []string{"/etc/apt", "/etc/apt/sources.list.d", "/etc/apt/apt.conf.d"}, func() ([]byte, error) {
		return b.run.Output(ctx, run.Command{Name: "apt-get", Args: []string{
			"indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages",
		}, Install: "the Debian package apt has it"})
	})
	if err != nil {
		return nil, fmt.Errorf("reading this machine's apt sources: %w", err)
	}
	own := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "main" && own[f[1]] == "" {
			own[f[1]] = strings.TrimSuffix(f[0], "/")
		}
	}
	return own, nil
}

func first(own map[string]string, suites []string) string {
	for _, s := range suites {
		if own[s] != "" {
			return own[s]
		}
	}
	return ""
}

// fetchReleases gets the release file of each suite, leaves out the components
// that the archive doesn't have, and suites that a mirror of the distribution may
// lack.
func (b *builder) fetchReleases(ctx context.Context, s *source) error {
	var suites []string
	for _, suite := range s.suites {
		text, err := b.fetchRelease(ctx, s.uri, suite)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			if saysFull(err.Error()) {
				return noSpace(b.cache.Dir, fetchError(err))
			}
			remedy := "is its address right, and can this machine reach it? site.yaml's apt.mirror and apt.security name others"
			if s.plan != nil {
				remedy = fmt.Sprintf("is its address right, and can this machine reach it? site.yaml's apt.sources.%s.uris names another", s.name)
			}
			err = fmt.Errorf("the apt source %s can't be had (suite %s of %s): %s: %w", s.name, suite, s.uri, remedy, fetchError(err))
			if s.plan == nil {
				return &machineError{err}
			}
			return fmt.Errorf("%s: %w", s.plan.Origin, err)
		}
		s.releases = append(s.releases, release{suite, hash(text), text})
		suites = append(suites, suite)
		if has := releaseField(text, "Components"); s.plan == nil && has != nil {
			s.components = slices.DeleteFunc(slices.Clone(s.components), func(c string) bool {
				// Debian-security writes updates/main.
				return !slices.ContainsFunc(has, func(h string) bool { return h == c || strings.HasSuffix(h, "/"+c) })
			})
		}
	}
	s.suites = suites
	return nil
}

// fetchRelease gets a suite's InRelease, or its Release.
func (b *builder) fetchRelease(ctx context.Context, uri, suite string) ([]byte, error) {
	dir, err := b.cache.Scratch("release")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Remove() }() // what is left is the next build's to remove
	base := strings.TrimSuffix(uri, "/") + "/dists/" + suite
	if strings.HasSuffix(suite, "/") {
		base = strings.TrimSuffix(uri, "/") + "/" + strings.TrimSuffix(suite, "/")
	}
	var firstErr error
	for _, name := range []string{"InRelease", "Release"} {
		to := filepath.Join(dir.Path, name)
		err := b.run.Run(ctx, run.Command{
			Name: aptHelper, Install: "the Debian package apt has it",
			Args: []string{"-oAPT::Sandbox::User=root", "-oAcquire::Retries=0", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20", "download-file", base + "/" + name, to},
		})
		if err == nil {
			return os.ReadFile(to)
		}
		if firstErr == nil {
			firstErr = err
		}
		if ctx.Err() != nil || !notFound(err) {
			break
		}
	}
	return nil, firstErr
}

// fetchError is what apt says of a file that it couldn't fetch, without how it was
// called.
func fetchError(err error) error {
	e, ok := errors.AsType[*run.Error](err)
	if !ok || e.ExitStatus() < 0 {
		return err
	}
	for _, line := range e.Stderr {
		if rest, ok := strings.CutPrefix(line, "E: Failed to fetch "); ok {
			if _, reason, ok := strings.Cut(rest, "  "); ok {
				return errors.New(strings.TrimSpace(reason))
			}
		}
	}
	return err
}

// notFound tells a file that a mirror doesn't have from a mirror that isn't there.
func notFound(err error) bool {
	return strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "File not found")
}

// releaseField is a field of a release file, as words.
func releaseField(text []byte, field string) []string {
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(field+":")); ok {
			return strings.Fields(string(rest))
		}
	}
	return nil
}

// deb822 is a source as sources.list(5) wants it. Signed-By is keyring, a path,
// unless that is empty: then it's the key itself.
func (s *source) deb822(keyring string) string {
	var b strings.Builder
	b.WriteString("Types: deb\nURIs: " + s.uri + "\nSuites: " + strings.Join(s.suites, " ") + "\n")
	if len(s.components) > 0 {
		b.WriteString("Components: " + strings.Join(s.components, " ") + "\n")
	}
	b.WriteString("Signed-By: " + keyring + "\n")
	return b.String()
}

// isLocal tells whether no host could use the source: it's a folder of the
// building machine.
func (s *source) isLocal() bool { return IsLocal(s.uri) }

// IsLocal tells whether an apt source is a folder of the machine that it is used
// on: hosts get it disabled.
func IsLocal(uri string) bool {
	u, err := url.Parse(uri)
	return err != nil || u.Scheme == "file" || u.Scheme == "copy" || u.Scheme == "cdrom"
}

// forBuildOnly stands before a source that no host could use. Left out
// altogether, nobody would see where the packages came from.
const forBuildOnly = `# For the build only: the packages came from a folder of the machine that made
# the image, which hosts don't have. For newer ones, put an address here that
# hosts can reach, and take Enabled out.
Enabled: no
`

// disableLocal has hosts leave the plan's sources alone that are only folders of
// the building machine: apt-get update would fail.
func disableLocal(files []plan.File, sources []plan.AptSource) error {
	for i := range sources {
		if slices.ContainsFunc(sources[i].URIs, func(uri string) bool { return !IsLocal(uri) }) {
			continue
		}
		path := "/etc/apt/sources.list.d/" + sources[i].Name + ".sources"
		j := slices.IndexFunc(files, func(f plan.File) bool { return f.Path == path })
		if j < 0 {
			continue
		}
		text, err := files[j].Content.Bytes()
		if err != nil {
			return fmt.Errorf("the content of %s: %w", path, err)
		}
		files[j].Content = plan.Literal(append([]byte(forBuildOnly), text...))
	}
	return nil
}

// packagesOf are those that the image is made of: the definition's and the
// plan's; firmware is what only some mirrors have.
func packagesOf(d *images.Definition, image *plan.Image) (packages, firmware []string) {
	packages = append(packages, d.Packages...)
	if d.Kernel != "" {
		packages = append(packages, d.Kernel)
	}
	for _, p := range image.Packages {
		packages = append(packages, p.Name)
	}
	firmware = slices.Clone(d.Firmware)
	slices.Sort(packages)
	slices.Sort(firmware)
	return slices.Compact(packages), slices.Compact(firmware)
}
