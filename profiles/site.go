// Package profiles turns what an operator wrote (a site, its profiles, its
// inventory) into plans. It reads strictly, finds every problem at once with
// its file, line and column, and never guesses which half a thing belongs to.
package profiles

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// Site is an opened site directory: all but its inventory, which is read as a
// stream.
type Site struct {
	Dir  string
	File SiteFile

	unreadable  bool // site.yaml isn't YAML: nothing is known of what it says
	definitions map[string]images.Definition
	profiles    map[string]*profile
	data        map[string]any // what templates see as .site
	secrets     map[string]reference
	advertise   advertise

	mu       sync.Mutex
	prepared map[preparedKey]*prepared
}

// reference is a named secret, and where the name was given to it.
type reference struct {
	ref plan.Ref
	pos problem.Position
}

// Open reads the site in dir. Problems are what is wrong with its files; the
// error is for a directory that is no site, or can't be read.
func Open(dir string) (*Site, problem.List, error) {
	s := &Site{Dir: dir, prepared: map[preparedKey]*prepared{}}
	var problems problem.List
	name := filepath.Join(dir, "site.yaml")
	data, err := regular.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s is no site: there is no %s: make one with kiln init DIR, or name one with --site DIR", dir, name)
	} else if err != nil {
		return nil, nil, fmt.Errorf("reading the site: %w", err)
	}
	s.unreadable = !strictyaml.Decode(data, name, 0, &s.File, &problems) && len(problems) > 0
	if s.definitions, err = images.Load(filepath.Join(dir, "images"), &problems); err != nil {
		return nil, nil, err
	}
	if s.profiles, err = loadProfiles(dir, &problems); err != nil {
		return nil, nil, err
	}
	s.check(&problems)
	problems.Sort()
	return s, problems, nil
}

// Definition is the image definition of that name.
func (s *Site) Definition(name string) (images.Definition, bool) {
	d, ok := s.definitions[name]
	return d, ok
}

// Definitions lists the names of the image definitions.
func (s *Site) Definitions() []string { return images.Names(s.definitions) }

// check validates site.yaml and makes the data that templates see of it.
func (s *Site) check(problems *problem.List) {
	f := &s.File
	if f.Domain.Set() && !validDomain(f.Domain.V) {
		problems.Addf(f.Domain.Pos, "write it as cern.ch, in lower case", "the domain %q is no DNS name", f.Domain.V)
	}
	for what, v := range map[string]text{"datacenter": f.Datacenter, "region": f.Region} {
		if v.Set() && (len(v.V) > 63 || !label().MatchString(v.V)) {
			problems.Addf(v.Pos, "use lower-case letters, digits and dashes", "%q can't name a %s", v.V, what)
		}
	}
	for _, v := range []text{f.Servers.Nomad, f.Servers.Consul, f.Servers.Vault} {
		if v.Set() && !version().MatchString(v.V) {
			problems.Addf(v.Pos, "write it as 1.9.7", "%q is no version", v.V)
		}
	}
	for _, v := range f.Servers.Join {
		if _, err := netip.ParseAddr(v.V); err != nil && !validDomain(v.V) {
			problems.Addf(v.Pos, "write a name or an address of a server", "%q is neither a host's name nor an address", v.V)
		}
	}
	for _, v := range append(f.DNS.Consul[:len(f.DNS.Consul):len(f.DNS.Consul)], f.DNS.Upstream...) {
		if !validResolver(v.V) {
			problems.Addf(v.Pos, "write an address, or address#port; a name can't be looked up before DNS works", "%q is no address of a DNS server", v.V)
		}
	}
	for _, v := range f.TimeServers {
		if _, err := netip.ParseAddr(v.V); err != nil && !validDomain(v.V) {
			problems.Addf(v.Pos, "write its name or address", "%q is no time server", v.V)
		}
	}
	for _, v := range []text{f.Apt.Mirror, f.Apt.Security} {
		if v.Set() && !uriPattern().MatchString(v.V) {
			problems.Addf(v.Pos, "write it as https://HOST/PATH or file:///PATH", "%q is no address of a mirror", v.V)
		}
	}
	if u, err := url.Parse(f.VaultAddress.V); f.VaultAddress.V != "" && (err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		problems.Addf(f.VaultAddress.Pos, "write it as https://vault.service.consul:8200", "%q is no address of a Vault", f.VaultAddress.V)
	}
	s.secrets = checkSecrets(f.Secrets, problems)
	s.advertise = checkAdvertise(f.Advertise, problems)
	checkAdmins(f.Admins, problems)
	s.data = s.templateData(problems)
}

func checkSecrets(m strictyaml.Map[text], problems *problem.List) map[string]reference {
	refs := make(map[string]reference, len(m))
	for _, e := range m {
		if !secretName().MatchString(e.Key) {
			problems.Addf(e.Pos, "use letters, digits, dots, dashes and _", "%q can't name a secret", e.Key)
		}
		ref, err := plan.ParseRef(e.Value.V)
		if err != nil && e.Value.Set() {
			problems.Addf(e.Value.Pos, "", "the secret %s: %s", e.Key, err)
		}
		refs[e.Key] = reference{ref, e.Value.Pos}
	}
	return refs
}

func checkAdmins(admins []AdminFile, problems *problem.List) {
	seen := map[string]problem.Position{}
	for _, a := range admins {
		checkUserName(a.Name, a.Pos, problems)
		if first, twice := seen[a.Name.V]; twice {
			problems.Addf(a.Pos, "keep one of the two", "the admin %s stands here twice: see %s", a.Name.V, first)
		}
		seen[a.Name.V] = a.Pos
		checkSSHKeys(a.SSHKeys, problems)
		if a.Shell.Set() && !cleanPath(a.Shell.V) {
			problems.Addf(a.Shell.Pos, "write an absolute path", "%q is no shell", a.Shell.V)
		}
		if len(a.SSHKeys) == 0 && a.Name.Set() {
			problems.Warnf(a.Pos, "give ssh_keys", "the admin %s can't log in: no user has a password", a.Name.V)
		}
	}
}

// templateData is what templates see as .site.
func (s *Site) templateData(problems *problem.List) map[string]any {
	f := &s.File
	data := map[string]any{
		"domain": f.Domain.V, "datacenter": f.Datacenter.Or("dc1"), "region": f.Region.Or("global"),
		"servers": map[string]any{
			"join": texts(f.Servers.Join), "nomad": f.Servers.Nomad.V, "consul": f.Servers.Consul.V, "vault": f.Servers.Vault.V,
		},
		"vault_address": f.VaultAddress.Or("https://vault.service.consul:8200"),
		"dns":           map[string]any{"consul": texts(f.DNS.Consul), "upstream": texts(f.DNS.Upstream)},
		"time_servers":  texts(f.TimeServers),
		"tls":           nil,
	}
	if f.TLS != nil {
		data["tls"] = tlsData(f.TLS, problems)
	}
	return data
}

// tlsData is what templates see as .site.tls, with absolute paths. They go into
// settings of systemd's that know no quotes: the paths must be plain.
func tlsData(t *TLSFile, problems *problem.List) map[string]any {
	dir := t.Directory.Or("/etc/grid-security")
	absolute := func(v text, otherwise string) string {
		name := v.Or(otherwise)
		if !path.IsAbs(name) {
			name = path.Join(dir, name)
		}
		if !cleanPath(name) || strings.ContainsAny(name, " \"'\\%$") {
			problems.Addf(v.Pos, "write a plain path, absolute or within the directory", "%q is no path of a certificate's file", v.V)
		}
		return name
	}
	if !cleanPath(dir) || strings.ContainsAny(dir, " \"'\\%$") {
		problems.Addf(t.Directory.Pos, "write a plain absolute path", "%q is no folder of certificates", dir)
		dir = "/etc/grid-security"
	}
	return map[string]any{
		"directory": dir, "ca": absolute(t.CA, "ca.pem"), "cert": absolute(t.Cert, "hostcert.pem"), "key": absolute(t.Key, "hostkey.pem"),
		"verify_server_hostname": t.VerifyServerHostname,
	}
}

func texts(l []text) []string {
	out := make([]string, len(l))
	for i, t := range l {
		out[i] = t.V
	}
	return out
}

var (
	label      = lazyregexp.New(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	version    = lazyregexp.New(`^[0-9]+\.[0-9]+(\.[0-9]+)?([-+][0-9A-Za-z.+-]+)?$`)
	secretName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// validDomain tells whether s is a DNS name in lower case, without a root dot.
func validDomain(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !validLabel(l) {
			return false
		}
	}
	return true
}

func validLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func validResolver(s string) bool {
	addr, port, hasPort := strings.Cut(s, "#")
	if hasPort {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return false
		}
	}
	a, err := netip.ParseAddr(addr)
	return err == nil && a.Zone() == ""
}

// fullName is the host's name with the site's domain behind it, unless it has
// one of its own.
func (s *Site) fullName(name string) string {
	if strings.Contains(name, ".") || s.File.Domain.V == "" {
		return name
	}
	return name + "." + s.File.Domain.V
}
