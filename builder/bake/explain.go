package bake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

var (
	newlyInstalled = lazyregexp.New(`^\d+ upgraded, (\d+) newly installed`)
	needToGet      = lazyregexp.New(`^Need to get (?:[\d.]+ [kMG]?B/)?([\d.]+) ([kMG]?)B of archives`)
	gotPackage     = lazyregexp.New(`^Get:\d+ .* \[([\d.]+) ([kMG]?)B\]$`)
	dpkgError      = lazyregexp.New(`^dpkg: error processing (?:package|archive) (\S+)`)
	unknownPackage = lazyregexp.New(`Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate|Couldn't find any package by .* '([^']+)'`)
	badSignature   = lazyregexp.New(`NO_PUBKEY|EXPKEYSIG|REVKEYSIG|BADSIG|is not signed|were invalid|couldn't be verified|unsupported filetype`)
	expired        = lazyregexp.New(`Release file for (\S+) is (expired|not valid yet)`)
)

// aptProgress reads what mmdebstrap prints: how far it is, and what it complains
// about.
type aptProgress struct {
	tell func(Event)

	done, total     int64 // packages, unpacked and set up
	bytes, allBytes int64 // being fetched; allBytes is 0 when that isn't going on
	complaints      []string
	recent          []string // the last lines, of whatever runs
	failed          string   // the package that dpkg first failed at
	said            []string // what came before that
	more            int      // how many lines are still dpkg's reasons
}

const (
	mostComplaints = 40
	mostRecent     = 12
)

func (p *aptProgress) line(line string) {
	line = strings.TrimSpace(line)
	if m := dpkgError().FindStringSubmatch(line); m != nil && p.failed == "" {
		p.failed, p.said, p.more = packageOfArchive(m[1]), slices.Clone(p.recent), 1
	} else if p.more > 0 {
		p.more--
		p.said = append(p.said, line)
	}
	p.complain(line)
	p.advance(line)
	switch {
	case line == "", strings.HasPrefix(line, "I: "), strings.HasPrefix(line, "Processing triggers "):
	case strings.HasPrefix(line, "Setting up "), strings.HasPrefix(line, "Preparing to unpack "):
		p.recent = p.recent[:0] // the next package speaks
	default:
		p.recent = append(p.recent[max(0, len(p.recent)-mostRecent+1):], line)
	}
}

// complain keeps what is wrong.
func (p *aptProgress) complain(line string) {
	for _, start := range []string{"E: ", "W: ", "Err:", "dpkg: error"} {
		if strings.HasPrefix(line, start) && len(p.complaints) < mostComplaints {
			p.complaints = append(p.complaints, line)
			return
		}
	}
	for _, part := range []string{"unmet dependencies", " : Depends: ", " : PreDepends: ", "subprocess returned error", "trying to overwrite"} {
		if strings.Contains(line, part) && len(p.complaints) < mostComplaints {
			p.complaints = append(p.complaints, line)
			return
		}
	}
	if saysFull(line) {
		p.complaints = append(p.complaints, line)
	}
}

// advance tells how far it is.
func (p *aptProgress) advance(line string) {
	switch {
	case strings.HasPrefix(line, "Unpacking "), strings.HasPrefix(line, "Setting up "):
		p.done++
		p.allBytes = 0
		name, _, _ := strings.Cut(line, " (")
		p.tell(Event{Step: stepBase, State: StateProgress, Done: p.done, Total: max(p.total, p.done), Message: strings.ToLower(name[:1]) + name[1:]})
	case strings.HasPrefix(line, "update-initramfs: Generating "):
		p.tell(Event{Step: stepBase, State: StateProgress, Message: "making the initramfs"})
	case newlyInstalled().MatchString(line):
		n, _ := strconv.ParseInt(newlyInstalled().FindStringSubmatch(line)[1], 10, 64)
		p.total += 2 * n
	case needToGet().MatchString(line):
		m := needToGet().FindStringSubmatch(line)
		p.bytes, p.allBytes = 0, size(m[1], m[2])
	case p.allBytes > 0 && gotPackage().MatchString(line):
		m := gotPackage().FindStringSubmatch(line)
		p.bytes += size(m[1], m[2])
		p.tell(Event{Step: stepBase, State: StateProgress, Done: min(p.bytes, p.allBytes), Total: p.allBytes, Unit: unitBytes, Message: "fetching packages"})
	}
}

// size is a number of bytes as apt writes it.
func size(number, unit string) int64 {
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0
	}
	return int64(f * map[string]float64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit])
}

// packageOfArchive is the package that dpkg means, by its name, its name and
// architecture, or its file.
func packageOfArchive(s string) string {
	name, _, _ := strings.Cut(filepath.Base(s), "_")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// explain says what to do about a failure of mmdebstrap's, from what it and apt
// complained about. The tree is what it has left.
func (b *builder) explain(p *aptProgress, tree string, sources []source, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, line := range p.complaints {
		if saysFull(line) {
			return &fullError{b.cache.Dir, errors.New(line)}
		}
	}
	if m := unknownPackage().FindStringSubmatch(strings.Join(p.complaints, "\n")); m != nil {
		return b.explainUnknown(m[1]+m[2]+m[3], tree)
	}
	for _, line := range p.complaints {
		line = strings.TrimPrefix(strings.TrimPrefix(line, "W: "), "E: ")
		if m := expired().FindStringSubmatch(line); m != nil {
			return &machineError{fmt.Errorf("the release file %s is %s: does nobody update this mirror any more, or is this machine's clock wrong?", m[1], m[2])}
		}
		if badSignature().MatchString(line) {
			return explainSignature(line, sources)
		}
	}
	if p.failed != "" {
		return b.explainFailed(p)
	}
	last := p.recent
	if len(p.complaints) > 0 {
		last = p.complaints[:min(mostRecent, len(p.complaints))]
	}
	if len(last) > 0 {
		return fmt.Errorf("the packages couldn't be installed:\n    %s", strings.Join(last, "\n    "))
	}
	return err
}

// explainUnknown is about a package that no source has.
func (b *builder) explainUnknown(name, tree string) error {
	remedy := "is its name right, or is an apt source missing (kiln profiles show lists those of a profile)?"
	if guess := strictyaml.DidYouMean(name, packagesIn(tree)); strings.HasPrefix(guess, "did you mean") {
		remedy = guess
	}
	return fmt.Errorf("%sno source of the image has a package %s: %s", b.whoWants(name), name, remedy)
}

// packagesIn lists what the sources of a tree have.
func packagesIn(tree string) []string {
	lists, _ := filepath.Glob(filepath.Join(tree, "var/lib/apt/lists/*_Packages"))
	var names []string
	for _, l := range lists {
		// It's for a guess: a list that can't be read has nothing to say.
		_ = eachField(l, func(key, value string) {
			if key == "Package" {
				names = append(names, value)
			}
		})
	}
	return names
}

// explainFailed is about a package that is there, and can't be installed.
func (b *builder) explainFailed(p *aptProgress) error {
	origin := b.whoWants(p.failed)
	if origin == "" {
		origin = "a package that others depend on: "
	}
	return fmt.Errorf("%sinstalling %s failed; the last that was said of it:\n    %s\nmend the package, or leave it out of the image", origin, p.failed, strings.Join(p.said, "\n    "))
}

// explainSignature is about a source whose signature apt doesn't accept.
func explainSignature(line string, sources []source) error {
	what, trusted, remedy := "a source", "the key that it's trusted through", "compare the fingerprint with the one that its owner publishes, and get the key again"
	for i := range sources {
		s := &sources[i]
		uri := strings.TrimPrefix(strings.TrimPrefix(s.uri, "file://"), "file:")
		if !strings.Contains(line, strings.TrimSuffix(uri, "/")+" ") && !strings.Contains(line, strings.TrimSuffix(uri, "/")+"/") {
			continue
		}
		what = "the apt source " + s.name
		if s.keyFile != "" {
			trusted += " (" + s.keyFile + ")"
		}
		if list, err := aptkey.Fingerprints(s.key); err == nil && len(list) < 4 {
			trusted += ", " + strings.Join(list, ", ")
		}
		if s.plan != nil {
			remedy += " (kiln keys fetch)"
		} else {
			remedy += ", or ask whoever runs the mirror"
		}
		break
	}
	return fmt.Errorf("%s isn't signed with %s: %s: apt says: %s", what, trusted, remedy, line)
}

// whoWants is where a package is asked for, as the beginning of an error; empty
// where nobody has written its name.
func (b *builder) whoWants(name string) string {
	if origin := packageOrigin(&b.image, name); origin != "" {
		return origin + ": "
	}
	d := &b.definition
	if slices.Contains(d.Packages, name) || d.Kernel == name || slices.Contains(d.Firmware, name) {
		return cmp.Or(d.Pos.File, "the image definition "+d.Name) + ": "
	}
	return ""
}

// packageOrigin is where the plan names a package, empty where it doesn't.
func packageOrigin(image *plan.Image, name string) string {
	for _, p := range image.Packages {
		if p.Name == name {
			return p.Origin.String()
		}
	}
	return ""
}
