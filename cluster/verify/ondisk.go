package verify

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// checkOnHost judges what a host shows of itself; err is that it couldn't be
// asked.
func checkOnHost(r *results, t *Target, e *expected, on *onHost, err error, now time.Time, expires time.Duration) {
	if err != nil {
		first, rest, _ := strings.Cut(sayError(err), "\n")
		r.add(Finding{Check: CheckSSH, Status: Unknown, Expected: "a look at the host", Found: first,
			Fix:     "log in as kiln does (ssh " + e.host + "), as root or somebody who may use sudo without a password; without --ssh, the cluster alone is asked",
			Details: lines(rest, 8)})
		return
	}
	r.wants(CheckSSH)
	checkUnits(r, e.units, on)
	switch {
	case t.Files == nil || slices.Contains(r.skip, CheckFile):
	case !on.kiln:
		r.note("Kiln hasn't set this host up, so that its files aren't compared with the plan's")
	default:
		for i := range t.Files {
			checkFile(r, &t.Files[i], on.files[t.Files[i].Path])
		}
	}
	for _, path := range e.certificates() {
		if !r.wants(CheckCertificate) {
			break
		}
		cert, err := firstCertificate(on.certs[path])
		if err != nil {
			r.add(Finding{Check: CheckCertificate, Object: path, Expected: "a certificate", Found: err.Error(), Fix: "bring the host's certificate there; its agents start when it is there"})
			continue
		}
		checkCertificate(r, path, cert, now, expires)
	}
	if e.forward && r.wants(CheckDNS) && on.names[consulName] == "" {
		r.add(Finding{Check: CheckDNS, Object: consulName, Expected: "the addresses of Consul's servers", Found: "no answer",
			Fix: "does dnsmasq run there, does /etc/resolv.conf lead to it, and do the servers of dns: {consul: …} in site.yaml answer it? With ACLs, names need a token that may read nodes and services"})
	}
}

// sayError is an error without the command that was run: who asks knows it.
func sayError(err error) string {
	if e, ok := errors.AsType[*run.Error](err); ok && len(e.Stderr) > 0 {
		text := strings.Join(e.Stderr, "\n")
		if _, after, found := strings.Cut(err.Error(), e.Error()); found {
			text += after
		}
		return text
	}
	return err.Error()
}

// checkUnits judges the states of units.
func checkUnits(r *results, units []plan.Unit, on *onHost) {
	for _, u := range units {
		if !r.wants(CheckUnit) {
			return
		}
		is := on.units[u.Name]
		if !on.kiln && strings.HasPrefix(u.Name, "kiln-") && is["LoadState"] == "not-found" {
			continue // Kiln's own machinery, on a host that others set up
		}
		expected, found := unitState(u, is, on.unmet[u.Name])
		if found == "" {
			continue
		}
		fix := fmt.Sprintf("systemctl start %s, or journalctl -u %[1]s, which says why it doesn't run", u.Name)
		switch {
		case is["LoadState"] == "not-found":
			fix = "install what brings it, or bring the host to the plan with kiln apply"
		case u.State == plan.UnitDisabled:
			fix = "systemctl disable --now " + u.Name
		case u.State == plan.UnitMasked:
			fix = "systemctl mask --now " + u.Name
		case expected == "enabled":
			fix = "systemctl enable " + u.Name
		case len(on.unmet[u.Name]) > 0:
			fix = "bring what it waits for; it starts then, or with systemctl start " + u.Name
		}
		f := Finding{Check: CheckUnit, Object: u.Name, Expected: expected, Found: found, Fix: fix}
		if expected == "running" {
			for _, line := range on.journal[u.Name] {
				f.Details = append(f.Details, scrub(line))
			}
		}
		r.add(f)
	}
}

// unitState is what of a unit isn't as it should be; found is empty where all is.
func unitState(u plan.Unit, is map[string]string, unmet []string) (expected, found string) {
	load, file, active := is["LoadState"], is["UnitFileState"], is["ActiveState"]
	switch u.State {
	case plan.UnitMasked:
		if load != "masked" {
			return "masked", load
		}
		return "", ""
	case plan.UnitDisabled:
		if file == "enabled" {
			return "disabled", file
		}
		return "", ""
	}
	switch {
	case load != "loaded":
		return "loaded", orUnknown(load)
	case file == "disabled" || strings.HasPrefix(file, "masked"):
		return "enabled", file
	case active == "failed":
		return "running", "failed: " + is["Result"]
	case active == "activating" && is["SubState"] == "auto-restart":
		return "running", "failing and restarted, " + is["NRestarts"] + " times so far"
	case active != "inactive":
		return "", ""
	case is["ConditionResult"] == "no" && waits(unmet) != "":
		return "running", "not started: " + waits(unmet)
	case is["ConditionResult"] == "no", is["Type"] == "oneshot" && is["RemainAfterExit"] != "yes":
		return "", "" // it isn't for a host like this, or it has done its work
	}
	return "running", "stopped"
}

// waits is the first unmet condition that somebody can bring about: whether the
// host is a container, or a laptop, is for good.
func waits(unmet []string) string {
	for _, c := range unmet {
		if strings.HasPrefix(c, "ConditionPath") || strings.HasPrefix(c, "ConditionFile") || strings.HasPrefix(c, "ConditionDirectory") {
			return c
		}
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown to systemd"
	}
	return s
}

// secretsInText are what journals and configurations call secrets, and what
// stands behind.
var secretsInText = regexp.MustCompile(`(?i)((?:token|secret|password|passwd|encrypt|accessor)[a-z_-]*["']?\s*[:=]\s*["']?)[^\s"',;]+`)

// scrub takes what looks like a secret out of a line of a host's.
func scrub(line string) string { return secretsInText.ReplaceAllString(line, "${1}[redacted]") }

// most lines of a diff that are shown.
const mostDiff = 40

// checkFile compares a file with the plan's.
func checkFile(r *results, want *File, have found) {
	const fix = "kiln apply brings it back; or take what is better there into the profile"
	add := func(expected, found string, details ...string) {
		r.add(Finding{Check: CheckFile, Object: want.Path, Expected: expected, Found: found, Fix: fix, Details: details})
	}
	kind := "file"
	switch {
	case want.Dir:
		kind = "directory"
	case want.Target != "":
		kind = "link"
	}
	switch {
	case !r.wants(CheckFile):
		return
	case have.kind != kind:
		add("a "+kind, orUnknownKind(have.kind))
		return
	case kind == "link":
		if have.target != want.Target {
			add("a link to "+want.Target, "one to "+have.target)
		}
		return
	}
	if a, b := rights(uint32(want.Mode), want.Owner, want.Group), rights(uint32(have.mode), have.owner, have.group); a != b {
		add(a, b)
	}
	if kind == "directory" {
		return
	}
	same, waiting, err := sameContent(want, have)
	switch {
	case err != nil:
		r.add(Finding{Check: CheckFile, Status: Unknown, Object: want.Path, Expected: "the plan's content", Found: err.Error(), Fix: "mend it in the profile"})
	case waiting != "":
		add("its secrets", "it still waits for "+string(waiting))
	case !same:
		add("the plan's content", "another", contentDiff(want, have)...)
	}
}

func rights(mode uint32, owner, group string) string {
	return fmt.Sprintf("%04o %s:%s", mode, owner, group)
}

func orUnknownKind(kind string) string {
	switch kind {
	case "missing", "":
		return "nothing"
	case "other":
		return "something that is neither file nor directory"
	}
	return "a " + kind
}

// sameContent tells whether the host's content is the plan's. waiting is a
// reference that no secret was put in the place of.
func sameContent(want *File, have found) (same bool, waiting plan.Ref, err error) {
	if hash, err := want.hash(); err != nil || hash == have.hash {
		return err == nil, "", err
	}
	unresolved := want.Content.Unresolved()
	if len(unresolved) == 0 {
		return false, "", nil
	}
	for _, u := range unresolved {
		if bytes.Contains(have.content, []byte(u.Ref.Unresolved())) {
			return false, u.Ref, nil
		}
	}
	text, err := want.Content.Bytes()
	if err != nil {
		return false, "", err
	}
	pattern, err := masked(string(text), unresolved)
	if err != nil {
		return false, "", err
	}
	return pattern.Match(have.content), "", nil
}

// masked matches a text, whatever stands in the places of secrets. None has a
// newline: what was put between the lines is no secret.
func masked(text string, unresolved []plan.Reference) (*regexp.Regexp, error) {
	refs := make([]string, len(unresolved))
	for i, u := range unresolved {
		refs[i] = regexp.QuoteMeta(u.Ref.Unresolved())
	}
	// A reference may be the beginning of another: the longest counts.
	slices.SortFunc(refs, func(a, b string) int { return len(b) - len(a) })
	places, err := regexp.Compile(strings.Join(refs, "|"))
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(`\A`)
	last := 0
	for _, at := range places.FindAllStringIndex(text, -1) {
		b.WriteString(regexp.QuoteMeta(text[last:at[0]]) + `[^\n]+`)
		last = at[1]
	}
	b.WriteString(regexp.QuoteMeta(text[last:]) + `\z`)
	return regexp.Compile(b.String())
}

// contentDiff shows what differs. Of a file that not everybody may read, the
// host's lines aren't shown: whatever the plan says, a secret may be in one.
func contentDiff(want *File, have found) []string {
	switch {
	case len(have.content) == 0:
		return nil // empty, or too long to look at
	case bytes.IndexByte(have.content, 0) >= 0:
		return []string{"it is no text"}
	}
	private := want.Content.HoldsSecrets() || len(want.Content.Unresolved()) > 0 || want.Mode&0o004 == 0 || have.mode&0o004 == 0
	var out []string
	text := string(diff.Diff("plan", []byte(want.Content.Redacted()), "host", bySecrets(want, have)))
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case i == 0: // diff a b
			continue
		case private && strings.HasPrefix(line, "+") && !strings.HasPrefix(line, "+++"):
			line = "+[a line of the host's, not shown: this file isn't for everybody]"
		case strings.HasPrefix(line, "+"):
			line = scrub(line) // all others are the plan's, with references
		}
		if len(out) == mostDiff {
			return append(out, "…")
		}
		out = append(out, line)
	}
	return out
}

// bySecrets is the host's content, with each line that is the plan's but for its
// secret as the plan has it.
func bySecrets(want *File, have found) []byte {
	unresolved := want.Content.Unresolved()
	if len(unresolved) == 0 {
		return have.content
	}
	text, err := want.Content.Bytes()
	if err != nil {
		return have.content
	}
	lines := strings.Split(string(have.content), "\n")
	redacted := strings.Split(want.Content.Redacted(), "\n")
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.Contains(line, plan.UnresolvedPrefix) || i >= len(redacted) {
			continue
		}
		pattern, err := masked(line, unresolved)
		if err != nil {
			continue
		}
		if at := slices.IndexFunc(lines, pattern.MatchString); at >= 0 {
			lines[at] = redacted[i]
		}
	}
	return []byte(strings.Join(lines, "\n"))
}
