package boot

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"mime/multipart"
	"net/textproto"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/lazyregexp"
)

// Report is what came up, as the guest itself says once its boot is over and
// its units have settled.
type Report struct {
	// State is systemd's of the whole system: running, degraded…
	State string `json:"state"`
	// Failed are the units that failed.
	Failed []string `json:"failed"`
	// Units are those that were asked for.
	Units map[string]Unit `json:"units"`
	// Journals have the last lines of the failed units, and of the inactive ones
	// among those that were asked for.
	Journals  map[string][]string `json:"journals"`
	CloudInit CloudInit           `json:"cloudInit"`
	Hostname  string              `json:"hostname"`
	MachineID string              `json:"machineID"`
	// Addresses are each interface's, with their prefix's length, without those
	// of the link alone.
	Addresses map[string][]string `json:"addresses"`
	// RootSize is the root file system's, in bytes.
	RootSize   int64  `json:"rootSize"`
	Kernel     string `json:"kernel"`
	Firmware   string `json:"firmware"` // uefi or bios
	SecureBoot bool   `json:"secureBoot"`
}

// Unit is the state of a unit, in systemd's words.
type Unit struct {
	Load     string `json:"load"`
	Active   string `json:"active"`
	Sub      string `json:"sub"`
	Result   string `json:"result"`
	Type     string `json:"type"`
	Unmet    bool   `json:"unmet"` // a condition or an assertion kept it from starting
	Restarts int    `json:"restarts"`
	Ran      bool   `json:"ran"` // its program was started
}

// CloudInit is what became of cloud-init.
type CloudInit struct {
	Done       bool     `json:"done"` // it got to its end
	Datasource string   `json:"datasource"`
	Errors     []string `json:"errors"` // its warnings too: they tell of a part that was passed over
}

// problem says what is wrong with a unit that should have been started, or
// nothing.
func (u Unit) problem() string {
	switch {
	case u.Load == "not-found":
		return "there is no such unit"
	case u.Load != "" && u.Load != "loaded":
		return "it can't be started: " + u.Load
	case u.Active == "active" && u.Restarts > 0:
		return fmt.Sprintf("it runs now, but had to be started %d times", u.Restarts+1)
	case u.Active == "active":
		return ""
	case u.Active == "failed":
		return "it failed: " + u.Result
	case u.Unmet:
		return "it wasn't started: a condition isn't met"
	case u.Active == "inactive" && u.Type == "oneshot" && u.Ran && u.Result == "success":
		return ""
	case u.Active == "inactive" && u.Ran:
		return "it has ended: " + u.Result
	case u.Active == "inactive":
		return "it was never started"
	}
	return "it doesn't settle: it's " + u.Active + " (" + u.Sub + ")"
}

// Problems are what kept the guest from being as it should be; none where it
// is ready. They can be shown on a terminal as they are.
func (r *Report) Problems() []string {
	var found []string
	if !r.CloudInit.Done {
		found = append(found, "cloud-init didn't get to its end")
	}
	for _, e := range r.CloudInit.Errors {
		found = append(found, "cloud-init: "+e)
	}
	for _, name := range r.Failed {
		if _, asked := r.Units[name]; !asked {
			found = append(found, name+": failed")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Units)) {
		if p := r.Units[name].problem(); p != "" {
			found = append(found, name+": "+p)
		}
	}
	if r.State != "running" && r.State != "degraded" {
		found = append(found, "the system is "+r.State)
	}
	for i, p := range found {
		found[i] = printable(p)
	}
	return found
}

// Row is a unit as people are shown it, on a terminal as it is.
type Row struct{ Unit, State, Problem string }

// Rows are the units that were asked for, and those that failed, by name.
func (r *Report) Rows() []Row {
	var rows []Row
	for name, u := range r.Units {
		state := u.Active
		if u.Sub != "" && u.Sub != u.Active {
			state += " (" + u.Sub + ")"
		}
		if u.Active == "" {
			state = "absent"
		}
		rows = append(rows, Row{printable(name), printable(state), printable(u.problem())})
	}
	for _, name := range r.Failed {
		if _, asked := r.Units[name]; !asked {
			rows = append(rows, Row{printable(name), "failed", "it failed"})
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Unit, b.Unit) })
	return rows
}

// Waiting removes from the report the units that a condition keeps from being
// started, and gives their names. Without host data that is as it should be.
func (r *Report) Waiting() []string {
	var names []string
	for name, u := range r.Units {
		if u.Unmet {
			names = append(names, printable(name))
			delete(r.Units, name)
			delete(r.Journals, name)
		}
	}
	slices.Sort(names)
	return names
}

// Ready tells whether all came up as it should.
func (r *Report) Ready() bool { return len(r.Problems()) == 0 }

// Err is nil for a guest that is ready, else an error with all problems, each
// on a line of its own, and with the journals' last lines below.
func (r *Report) Err() error {
	problems := r.Problems()
	if len(problems) == 0 {
		return nil
	}
	name := printable(r.Hostname)
	if name == "" {
		name = "the guest"
	}
	text := name + " came up, but not as it should:\n    " + strings.Join(problems, "\n    ")
	for _, unit := range slices.Sorted(maps.Keys(r.Journals)) {
		lines := r.Journals[unit]
		if len(lines) == 0 {
			continue
		}
		text += "\n  the last that the journal has of " + printable(unit) + ":"
		for _, line := range lines[max(0, len(lines)-10):] {
			text += "\n    " + printable(line)
		}
	}
	return errors.New(text)
}

// printable keeps what a guest says from moving a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, strings.ToValidUTF8(s, "·"))
}

//go:embed agent.py
var agentScript string

// ReportVendorData is the vendor-data that makes a guest report, whatever its
// user-data is: cloud-init runs it at each boot, of an image that needs nothing
// but cloud-init for it. What it starts runs beside the boot, as the unit
// kiln-boot-agent.service, since the last stage of cloud-init is itself a part
// of the boot. units are those whose states are of interest.
//
// Whoever holds the other end of the channel can run programs in the guest, as
// root: it belongs into the seeds of trials, not into those of real hosts.
func ReportVendorData(units []string) []byte {
	if units == nil {
		units = []string{}
	}
	names, err := json.Marshal(units)
	if err != nil {
		names = []byte("[]") // strings can always be written
	}
	return []byte("#cloud-boothook\n#!/bin/sh\n" +
		"# Has the guest tell what came up. See https://github.com/alisw/kiln\n" +
		"umask 077\n" +
		"cat >/run/kiln-boot-agent.py <<'KILN-END'\n" +
		strings.Replace(agentScript, "@UNITS@", string(names), 1) +
		"KILN-END\n" +
		"exec systemd-run --quiet --no-block --collect --unit=kiln-boot-agent python3 /run/kiln-boot-agent.py\n")
}

// emptyConfig is a user-data that wants nothing.
const emptyConfig = "#cloud-config\n{}\n"

// GuestFile is a file of root's that is laid into a guest.
type GuestFile struct {
	Path string
	Mode fs.FileMode // permission bits
	Data []byte
}

var guestPath = lazyregexp.New(`^(/[0-9A-Za-z_@+-][0-9A-Za-z_.@+-]*)+$`)

// laying is a script that makes the files, each by rename, early in the boot.
func laying(files []GuestFile) []byte {
	var b strings.Builder
	b.WriteString("#cloud-boothook\n#!/bin/sh\n# Files that whoever boots this guest lays into it.\nset -eu\numask 022\n")
	for _, f := range files {
		fmt.Fprintf(&b, "mkdir -p %s\n(umask 077 && base64 -d >%s.kiln-new) <<'KILN-END'\n", path.Dir(f.Path), f.Path)
		text := base64.StdEncoding.EncodeToString(f.Data)
		for ; len(text) > 76; text = text[76:] {
			b.WriteString(text[:76] + "\n")
		}
		fmt.Fprintf(&b, "%s\nKILN-END\nchmod %04o %[3]s.kiln-new\nmv -f %[3]s.kiln-new %[3]s\n", text, f.Mode.Perm(), f.Path)
	}
	return []byte(b.String())
}

// reporting is a seed with which a guest reports too, and gets the files. Where
// the seed has no files, it has only what cloud-init needs to take it for one.
func reporting(seed []render.NamedFile, units []string, files ...GuestFile) ([]render.NamedFile, error) {
	seed = slices.Clone(seed)
	has := func(name string) int {
		return slices.IndexFunc(seed, func(f render.NamedFile) bool { return f.Name == name })
	}
	i := has("vendor-data")
	if i < 0 {
		i = len(seed)
		seed = append(seed, render.NamedFile{Name: "vendor-data"})
	}
	parts := [][]byte{ReportVendorData(units)}
	if len(files) > 0 {
		parts = append([][]byte{laying(files)}, parts...)
	}
	if own := seed[i].Data; len(own) > 0 {
		parts = append([][]byte{own}, parts...)
	}
	seed[i].Data = parts[0]
	if len(parts) > 1 {
		all, err := multipartOf(parts...)
		if err != nil {
			return nil, fmt.Errorf("adding to a seed's vendor-data: %w", err)
		}
		seed[i].Data = all
	}
	if has("user-data") < 0 {
		seed = append(seed, render.NamedFile{Name: "user-data", Data: []byte(emptyConfig)})
	}
	if has("meta-data") < 0 {
		seed = append(seed, render.NamedFile{Name: "meta-data", Data: []byte("instance-id: kiln-boot\n")})
	}
	return seed, nil
}

// multipartOf joins parts into one MIME message; cloud-init finds out by their
// first lines what they are.
func multipartOf(parts ...[]byte) ([]byte, error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	if err := w.SetBoundary("kiln-boot-part"); err != nil {
		return nil, err
	}
	for _, p := range parts {
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Type": {"text/plain; charset=utf-8"}, "Content-Transfer-Encoding": {"8bit"}})
		if err != nil {
			return nil, err
		}
		if _, err := part.Write(p); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	head := "Content-Type: multipart/mixed; boundary=\"" + w.Boundary() + "\"\nMIME-Version: 1.0\n\n"
	return append([]byte(head), body.Bytes()...), nil
}
