// Package check looks for what no golden image may have, in the finished disk
// file: it mounts nothing, needs no root, and sees what is shipped, deleted
// files' blocks included. Whatever made the image, and whatever was meant to
// seal it.
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

// The checks. A finding has the name of one.
const (
	Identity      = "identity"
	Keys          = "keys"
	Logs          = "logs"
	Caches        = "caches"
	WorldWritable = "world-writable"
	Setuid        = "setuid"
	Units         = "units"
	Network       = "network"
	Leases        = "leases"
	Remains       = "remains"
	Passwords     = "passwords"
	Secrets       = "secrets"
	Canaries      = "canaries"
)

// Checks lists all checks, and what each of them looks for.
var Checks = []struct{ Name, What string }{
	{Identity, "what each host makes for itself: machine-id, random seeds, cloud-init's and the agents' state"},
	{Keys, "SSH host keys, private keys that no package brings"},
	{Logs, "logs of the build"},
	{Caches, "package lists and archives, caches"},
	{WorldWritable, "files that everybody can write, and folders where everybody can remove others' files"},
	{Setuid, "setuid and setgid programs, and ones with capabilities, that no package brings"},
	{Units, "enabled units that would fail: without a unit file, a program or a user"},
	{Network, "the building machine's resolvers, proxies and interfaces"},
	{Leases, "DHCP leases"},
	{Remains, "what else a build leaves: locks, backups, temporary files"},
	{Passwords, "users with a password, or with none to ask for"},
	{Secrets, "texts that look like a known kind of secret"},
	{Canaries, "the site's own secrets, anywhere on the disk"},
}

// Finding is something that an image may not have. It never shows a secret.
type Finding struct {
	Check  string `json:"check"`
	Path   string `json:"path"` // in the image, or a place on its disk
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

func (f *Finding) String() string {
	text := fmt.Sprintf("%s: %s: %s: %s", f.Check, f.Path, f.What, f.Remedy)
	// Names in an image are anybody's: a terminal takes no orders from them.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// Canary is a secret of the site's, which no image may have.
type Canary struct {
	Name  string // what findings call it: its reference, or its name in site.yaml
	Value plan.Secret
}

// LeastCanary is how long a secret has to be to be searched for, in bytes: a
// shorter one stands anywhere by chance.
const LeastCanary = 8

// TooShort are the names of those that aren't searched for.
func TooShort(canaries []Canary) []string {
	var names []string
	for _, c := range canaries {
		if len(c.text()) < LeastCanary {
			names = append(names, c.Name)
		}
	}
	return names
}

// Verdicts remember what was searched already and had nothing. Their methods are
// called from several goroutines.
type Verdicts interface {
	// Known tells whether the key was stored.
	Known(key string) bool
	// Store is told of content that has nothing. The key has the content's hash in
	// it, and one of all that was searched for.
	Store(key string)
}

// Options say what to look for. Their zero value is all that needs no site.
type Options struct {
	// Manifest is the image's. With Verdicts, what its hashes say of the disk's
	// blocks is believed, which is for whoever has just computed them.
	Manifest *images.Manifest
	Canaries []Canary
	// Allowed tells that the plan itself wants a path to be what the check is
	// about; nil allows nothing. Nobody can allow a canary.
	Allowed func(check, path string) bool
	// Verdicts save searching what was searched before; nil searches all.
	Verdicts Verdicts
	// Progress is told of bytes; nil is nobody. It is called by one goroutine at a
	// time.
	Progress func(done, total int64)
}

// Planned allows what the plan has at these paths: all but secrets and private
// keys, which no image half may have, whoever wrote them.
func Planned(paths map[string]bool) func(check, path string) bool {
	return func(check, name string) bool {
		return paths[name] && check != Secrets && (check != Keys || path.Base(name) == "authorized_keys" || path.Ext(name) == ".pub")
	}
}

// Disk checks a finished disk. Findings are in the order of the checks and of
// paths; an error is that the disk can't be read as one that Kiln makes.
func Disk(ctx context.Context, file string, o Options) ([]Finding, error) {
	findings, err := look(ctx, file, &o)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		// A name on the disk may be a secret, too.
		if shown := redact(err.Error(), formsOf(o.Canaries)); shown != err.Error() {
			err = errors.New(shown)
		}
		return nil, fmt.Errorf("checking the disk %s: %w", file, err)
	}
	return findings, nil
}

// redact takes secrets out of a text.
func redact(text string, forms []form) string {
	for i := range forms {
		text = strings.ReplaceAll(text, forms[i].text, "[redacted]")
	}
	return text
}

func look(ctx context.Context, file string, o *Options) ([]Finding, error) {
	d, err := openDisk(file)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	s, err := newScan(d, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// All blocks are searched while the tree is read.
	blocks := s.start(ctx, cancel)
	tree, err := readTree(ctx, d)
	if err == nil {
		err = s.files(ctx, cancel, tree)
	}
	if err != nil {
		cancel(err)
	}
	blocks.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c := &checker{tree: tree, allowed: o.Allowed}
	for _, step := range []func() error{c.paths, c.modes, c.identity, c.network, c.passwords, c.units, func() error { return c.content(s) }} {
		if err := step(); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return c.sorted(s.search.forms), nil
}

// checker collects findings.
type checker struct {
	tree     *tree
	allowed  func(check, path string) bool
	packages *packages
	findings []Finding
}

// found adds a finding, unless the plan wants it.
func (c *checker) found(check, path, what, remedy string) {
	if c.allowed != nil && check != Canaries && c.allowed(check, path) {
		return
	}
	c.findings = append(c.findings, Finding{check, path, what, remedy})
}

func (c *checker) sorted(forms []form) []Finding {
	for i := range c.findings {
		f := &c.findings[i]
		f.Path, f.What = redact(f.Path, forms), redact(f.What, forms)
	}
	order := map[string]int{}
	for i, k := range Checks {
		order[k.Name] = i
	}
	slices.SortFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order[a.Check], order[b.Check]), cmp.Compare(a.Path, b.Path), cmp.Compare(a.What, b.What))
	})
	return slices.Compact(c.findings)
}
