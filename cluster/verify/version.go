package verify

import (
	"fmt"
	"strings"

	"golang.org/x/mod/semver"
)

// checkVersion wants the version that the lock has, and none that is newer than
// the oldest server's: HashiCorp supports servers that are newer than clients,
// not the other way round.
func checkVersion(r *results, c Check, program, found, locked string, servers []string) {
	if !r.wants(c) {
		return
	}
	if found == "" {
		r.add(Finding{Check: c, Status: Unknown, Expected: "a version", Found: "none is known",
			Fix: "is its " + program + " so old that it doesn't tell? then renew it"})
		return
	}
	if locked != "" && canonical(locked) != canonical(found) {
		r.add(Finding{Check: c, Object: "lock", Expected: canonical(locked), Found: canonical(found),
			Fix: "install the host anew from an image of this lock, or bring the lock to it with kiln lock --update " + strings.ToLower(program)})
	}
	oldest := ""
	for _, v := range servers {
		if v != "" && (oldest == "" || compare(v, oldest) < 0) {
			oldest = v
		}
	}
	if oldest != "" && compare(found, oldest) > 0 {
		r.add(Finding{Check: c, Object: "servers", Expected: "no newer than the servers, " + canonical(oldest), Found: canonical(found),
			Fix: fmt.Sprintf("renew %s on the servers first; until then, give the host %s", program, canonical(oldest))})
	}
}

// canonical is a version without what packages and builds add to it: Debian's
// epoch and revision, +ent and its like, a commit.
func canonical(v string) string {
	if _, after, ok := strings.Cut(v, ":"); ok && len(after) > 0 && after[0] >= '0' && after[0] <= '9' && strings.Contains(after, ".") {
		v = after // an epoch; Consul's agents put a commit behind a colon
	}
	v, _, _ = strings.Cut(v, ":")
	v, _, _ = strings.Cut(v, "+")
	// Debian's revision is digits alone; a prerelease has letters.
	if i := strings.LastIndexByte(v, '-'); i >= 0 && !strings.ContainsFunc(v[i+1:], func(c rune) bool { return c >= 'A' && c <= 'z' }) {
		v = v[:i]
	}
	v = strings.Replace(v, "~", "-", 1)
	return strings.TrimPrefix(v, "v")
}

func compare(a, b string) int { return semver.Compare("v"+canonical(a), "v"+canonical(b)) }
