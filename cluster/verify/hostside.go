package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed" // the script
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"mvdan.cc/sh/v3/syntax"

	"github.com/alisw/kiln/plan"
)

// File is a file, a symbolic link or a directory that a plan has on its host's
// disk. Where its content still waits for secrets, whatever stands in their
// places on the host is taken for them.
type File struct {
	plan.File
	Dir bool
}

// onHost is what a host shows of itself.
type onHost struct {
	kiln    bool // it has what Kiln delivers to a host
	units   map[string]map[string]string
	unmet   map[string][]string // conditions, by unit
	journal map[string][]string // the end of it, by unit
	files   map[string]found
	certs   map[string][]byte // nil: it can't be read
	names   map[string]string // addresses, by name
}

// found is what a host has at a path.
type found struct {
	kind    string // file, link, directory, missing, other
	target  string // of a link
	mode    fs.FileMode
	owner   string
	group   string
	hash    string
	content []byte // nil where the hash is the expected one
}

// lookTime is how long a host may take to show all that.
const lookTime = time.Minute

//go:embed look.sh
var lookScript []byte

// asRoot runs a script from standard input, with all rights: some files of a
// host's are for root alone.
const asRoot = `[ "$(id -u)" = 0 ] && exec sh -s; exec sudo -n -- sh -s`

// consulName is one that each Consul has.
const consulName = "consul.service.consul"

// onHost asks the host itself: everything in one go.
func (v *Verifier) onHost(ctx context.Context, t *Target, e *expected) (*onHost, error) {
	script, err := script(t, e, v.Skip)
	if err != nil {
		return nil, err
	}
	host, err := v.SSH.Dial(e.host)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	out, err := host.Run(ctx, bytes.NewReader(script), "sh", "-c", asRoot)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

// script is what a host is told to look at.
func script(t *Target, e *expected, skip []Check) ([]byte, error) {
	b := bytes.NewBuffer(slices.Clone(lookScript))
	b.WriteString("mark\n")
	var err error
	call := func(function string, args ...string) {
		b.WriteString(function)
		for _, a := range args {
			word, quoteErr := syntax.Quote(a, syntax.LangPOSIX)
			err = cmp.Or(err, quoteErr)
			b.WriteString(" " + word)
		}
		b.WriteByte('\n')
	}
	if !slices.Contains(skip, CheckUnit) {
		for _, u := range e.units {
			call("unit", u.Name)
		}
	}
	if !slices.Contains(skip, CheckFile) {
		for i := range t.Files {
			hash, hashErr := t.Files[i].hash()
			err = cmp.Or(err, hashErr)
			call("file", t.Files[i].Path, hash)
		}
	}
	if !slices.Contains(skip, CheckCertificate) {
		for _, path := range e.certificates() {
			call("certificate", path)
		}
	}
	if e.forward && !slices.Contains(skip, CheckDNS) {
		call("name", consulName)
	}
	b.WriteString("echo end\n")
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", e.host, err)
	}
	return b.Bytes(), nil
}

// certificates are the files of those that the agents use.
func (e *expected) certificates() []string {
	var out []string
	if e.nomad != nil && e.nomad.cert != "" {
		out = append(out, e.nomad.cert)
	}
	if e.consul != nil && e.consul.cert != "" && !slices.Contains(out, e.consul.cert) {
		out = append(out, e.consul.cert)
	}
	return out
}

// hash is the SHA-256 of a file's content; a dash where there is none to compare
// with.
func (f *File) hash() (string, error) {
	if f.Dir || f.Target != "" || len(f.Content.Unresolved()) > 0 {
		return "-", nil
	}
	text, err := f.Content.Bytes()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// parse reads what the script writes.
func parse(out []byte) (*onHost, error) {
	o := &onHost{
		units: map[string]map[string]string{}, unmet: map[string][]string{}, journal: map[string][]string{},
		files: map[string]found{}, certs: map[string][]byte{}, names: map[string]string{},
	}
	ended := false
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 5)
		switch {
		case f[0] == "end":
			ended = true
		case len(f) == 2 && f[0] == "kiln":
			o.kiln = f[1] == "yes"
		case len(f) >= 3 && f[0] == "unit":
			if o.units[f[1]] == nil {
				o.units[f[1]] = map[string]string{}
			}
			key, value, _ := strings.Cut(f[2], "=")
			o.units[f[1]][key] = value
		case len(f) >= 3 && f[0] == "unmet":
			o.unmet[f[1]] = append(o.unmet[f[1]], f[2])
		case len(f) >= 3 && f[0] == "journal":
			o.journal[f[1]] = append(o.journal[f[1]], strings.Join(f[2:], " "))
		case len(f) == 3 && f[0] == "name":
			o.names[f[1]] = f[2]
		case len(f) == 3 && f[0] == "certificate":
			o.certs[f[1]], _ = base64.StdEncoding.DecodeString(f[2])
		case len(f) >= 2:
			file, err := parseFound(f)
			if err != nil {
				return nil, err
			}
			o.files[f[1]] = file
		default:
			return nil, fmt.Errorf("it answers %q, which nobody asked for: does a login there print something?", line)
		}
	}
	if !ended {
		return nil, fmt.Errorf("its answer breaks off after %d bytes: is its shell or its disk broken?", len(out))
	}
	return o, nil
}

func parseFound(f []string) (found, error) {
	out := found{kind: f[0]}
	switch {
	case f[0] == "missing" && len(f) == 2, f[0] == "other" && len(f) == 3:
		return out, nil
	case f[0] == "link" && len(f) == 3:
		out.target = f[2]
		return out, nil
	case f[0] == "directory" && len(f) == 3, f[0] == "file" && len(f) == 5:
		words := strings.Fields(f[2])
		if len(words) != 3 {
			break
		}
		mode, err := strconv.ParseUint(words[0], 8, 32)
		if err != nil {
			break
		}
		out.mode, out.owner, out.group = fs.FileMode(mode), words[1], words[2]
		if f[0] == "directory" {
			return out, nil
		}
		out.hash = f[3]
		if out.content, err = base64.StdEncoding.DecodeString(f[4]); err != nil {
			break
		}
		return out, nil
	}
	return found{}, fmt.Errorf("what it says of %s can't be read: are its stat and base64 those of coreutils?", f[1])
}
