package importing

import (
	"bytes"
	"path"
	"regexp"
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
)

// secretShapes are what secrets look like by themselves.
var secretShapes = []struct {
	what string
	re   func() *regexp.Regexp
}{
	{"a private key", lazyregexp.New(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY`)},
	{"an age key", lazyregexp.New(`\bAGE-SECRET-KEY-1[0-9A-Z]{20}`)},
	{"a Vault token", lazyregexp.New(`\bhv[sbr]\.[A-Za-z0-9_-]{20}`)},
	{"a Vault token", lazyregexp.New(`(?:^|[^A-Za-z0-9_.])[sbr]\.[A-Za-z0-9]{24}(?:[^A-Za-z0-9]|$)`)},
	{"an AWS key", lazyregexp.New(`\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`)},
	{"a GitHub or GitLab token", lazyregexp.New(`\b(?:gh[pousr]_[A-Za-z0-9]{30}|github_pat_[A-Za-z0-9_]{30}|glpat-[A-Za-z0-9_-]{20})`)},
	{"a password in a URL", lazyregexp.New(`\b[a-z][a-z0-9+.-]*://[^/\s:@"'<%{]*:[^/\s:@"'<%{$]+@`)},
}

var (
	// setting is NAME = "VALUE", "NAME": "VALUE" or NAME='VALUE'.
	setting = lazyregexp.New(`(?i)["']?([a-z0-9_.-]+)["']?\s*[=:]\s*(?:"([^"\n]*)"|'([^'\n]*)')`)
	// bareSetting is NAME=VALUE, or NAME: VALUE.
	bareSetting = lazyregexp.New(`(?i)^\s*(?:export\s+|-\s+)?([a-z0-9_.-]+)\s*(?:=|:\s)\s*([^\s"'#]+)\s*$`)
	secretName  = lazyregexp.New(`(?i)(?:^|[_.-])(?:encrypt|tokens?|secret|secret[_-]?id|passw(?:or)?d|passphrase|psk|(?:api|access|private|encryption|gossip|secret)[_-]?key)$`)
	secretTable = lazyregexp.New(`(?i)^(?:agent|default|master|initial_management|replication|agent_recovery|agent_master|config_file_service_registration|dns)$`)
	uuid        = lazyregexp.New(`^[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
)

// literalSecrets lists the lines of a file that look as if a secret stood in
// them, without ever repeating it.
func literalSecrets(name string, content []byte) problem.List {
	var found problem.List
	for i, line := range bytes.Split(content, []byte("\n")) {
		if what := secretIn(string(line)); what != "" {
			found.Addf(problem.Position{File: name, Line: i + 1}, secretFix(name, what), "%s stands here as literal text", what)
		}
	}
	return found
}

// secretIn says what kind of secret the line seems to hold.
func secretIn(line string) string {
	for _, s := range secretShapes {
		if s.re().MatchString(line) {
			return s.what
		}
	}
	for _, m := range setting().FindAllStringSubmatch(line, -1) {
		if isSecretSetting(m[1], m[2]+m[3]) {
			return "what looks like the secret " + m[1]
		}
	}
	if m := bareSetting().FindStringSubmatch(line); m != nil && isSecretSetting(m[1], m[2]) {
		return "what looks like the secret " + m[1]
	}
	return ""
}

func isSecretSetting(name, value string) bool {
	switch {
	case value == "", strings.HasPrefix(value, "/"), strings.ContainsAny(value, "<{$"), teigi().MatchString(value),
		strings.HasPrefix(value, "kiln-secret:"), strings.EqualFold(value, "true"), strings.EqualFold(value, "false"):
		return false
	}
	return secretName().MatchString(name) || secretTable().MatchString(name) && uuid().MatchString(value)
}

func secretFix(name, what string) string {
	target := strings.TrimSuffix(path.Base(name), ".erb")
	f, ok := quote.FormatOf(target)
	if !ok {
		f = quote.FormatRaw
	}
	if strings.Contains(what, "private key") || strings.Contains(what, "age key") {
		return "keep it out of the profile: let what issues it bring it to the host, or name the file under site.yaml's secrets and write {{ secret \"NAME\" | " + string(f) + " }}"
	}
	return "write {{ secret \"NAME\" | " + string(f) + " }} for it, without quotes around, in " + strings.TrimSuffix(target, ".tmpl") + ".tmpl, and say in site.yaml where it is to be found (secrets: {NAME: teigi://HOSTGROUP/KEY}); whoever reads the file has read it, so change it too"
}
