package check

import (
	"bytes"
	"strings"
)

// searchVersion changes with what patterns find: verdicts of another are void.
const searchVersion = "1"

// pattern is a kind of secret that shows what it is.
type pattern struct {
	check string
	name  string
	// What it begins with, or has in it: the four bytes from at on are looked for,
	// the rarer the better.
	anchors []anchorText
	// verify tells whether it stands around an anchor in b, and where.
	verify func(b []byte, at int, anchor string) (start, end int, ok bool)
}

const anchorWindow = 4

type anchorText struct {
	text string
	at   int
}

var patterns = []pattern{
	{Keys, "a private key", []anchorText{{"PRIVATE KEY", 2}}, privateKey},
	{Secrets, "an AWS access key", []anchorText{{"AKIA", 0}, {"ASIA", 0}}, awsKey},
	{Secrets, "a GitHub token", []anchorText{{"ghp_", 0}, {"gho_", 0}, {"ghu_", 0}, {"ghs_", 0}, {"ghr_", 0}, {"github_pat_", 5}}, githubToken},
	{Secrets, "a GitLab token", []anchorText{{"glpat-", 2}}, prefixed(20, "-_")},
	{Secrets, "a Vault token", []anchorText{{"hvs.", 0}, {"hvb.", 0}, {"hvr.", 0}}, prefixed(24, "-_")},
	{Secrets, "an age identity", []anchorText{{"AGE-SECRET-KEY-1", 7}}, prefixed(50, "")},
	{Secrets, "a token of Nomad, Consul or Vault", []anchorText{
		{"_TOKEN", 2}, {"token", 0}, {"initial_management", 6}, {"SecretID", 4}, {"Secret ID", 5}, {"secret_id", 5},
	}, assignedToken},
	{Secrets, "a gossip key", []anchorText{{"encrypt", 2}}, gossipKey},
}

func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isAlnum(c byte) bool { return isUpper(c) || isLower(c) || isDigit(c) }

// run is how many bytes from at on are letters, digits or one of more.
func runOf(b []byte, at int, more string) int {
	n := at
	for n < len(b) && (isAlnum(b[n]) || strings.IndexByte(more, b[n]) >= 0) {
		n++
	}
	return n - at
}

// before tells whether a word goes on to the left of at.
func wordBefore(b []byte, at int) bool { return at > 0 && (isAlnum(b[at-1]) || b[at-1] == '_') }

// random tells whether a text looks like one that was drawn: capitals, small
// letters and digits are in it.
func random(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return r < 128 && isUpper(byte(r)) }) &&
		bytes.ContainsFunc(b, func(r rune) bool { return r < 128 && isLower(byte(r)) }) &&
		bytes.ContainsAny(b, "0123456789")
}

// prefixed is an anchor at the beginning of a word, and least characters behind it.
func prefixed(least int, more string) func([]byte, int, string) (int, int, bool) {
	return func(b []byte, at int, anchor string) (int, int, bool) {
		from := at + len(anchor)
		n := runOf(b, from, more)
		if wordBefore(b, at) || n < least {
			return 0, 0, false
		}
		drawn := random(b[from:from+n]) || more == "" // age has capitals alone
		return at, from + n, drawn
	}
}

func awsKey(b []byte, at int, _ string) (int, int, bool) {
	const length = 20
	if wordBefore(b, at) || runOf(b, at, "_") != length || bytes.HasSuffix(b[at:at+length], []byte("EXAMPLE")) {
		return 0, 0, false
	}
	for _, c := range b[at+4 : at+length] {
		if !isUpper(c) && (c < '2' || c > '7') {
			return 0, 0, false
		}
	}
	return at, at + length, bytes.ContainsAny(b[at+4:at+length], "234567")
}

func githubToken(b []byte, at int, anchor string) (int, int, bool) {
	from := at + len(anchor)
	n := runOf(b, from, "_")
	if wordBefore(b, at) || anchor == "github_pat_" && n < 60 || anchor != "github_pat_" && (n != 36 || runOf(b, from, "") != n) {
		return 0, 0, false
	}
	return at, from + n, random(b[from : from+n])
}

// privateKey is one in PEM's or OpenSSH's form, encrypted ones included: words
// between dashes, and behind them the key. Programs have the words alone.
func privateKey(b []byte, at int, anchor string) (int, int, bool) {
	const begin = "-----BEGIN "
	start := at
	for start > 0 && at-start < 30 && (isUpper(b[start-1]) || isDigit(b[start-1]) || b[start-1] == ' ') {
		start--
	}
	// The run above has taken the word BEGIN.
	i := bytes.LastIndex(b[max(0, start-len(begin)):at], []byte(begin))
	if i < 0 {
		return 0, 0, false
	}
	start = max(0, start-len(begin)) + i
	rest := bytes.TrimPrefix(b[at+len(anchor):min(len(b), at+keyContext)], []byte(" BLOCK"))
	rest, ok := bytes.CutPrefix(rest, []byte("-----"))
	if !ok {
		return 0, 0, false
	}
	for range 10 {
		rest = bytes.TrimLeft(rest, " \t\r\n\"+',")
		for bytes.HasPrefix(rest, []byte(`\n`)) || bytes.HasPrefix(rest, []byte(`\r`)) {
			rest = rest[2:] // as JSON and YAML write it
		}
		n := runOf(rest, 0, "+/=")
		if n >= 40 {
			end := at + keyContext
			return start, min(len(b), end), random(rest[:n])
		}
		// A header, such as DEK-Info, or a short line.
		line, more, ok := bytes.Cut(rest, []byte("\n"))
		if !ok || len(line) > 200 || bytes.IndexByte(line, 0) >= 0 {
			return 0, 0, false
		}
		rest = more
	}
	return 0, 0, false
}

// keyContext is how much behind its first words says that a key is one.
const keyContext = 768

// assigned skips what stands between a name and its value: quotes, spaces, = or :.
func assigned(b []byte, at int) (value int, ok bool) {
	for n := 0; n < 24 && at < len(b); n, at = n+1, at+1 {
		switch c := b[at]; {
		case c == '=' || c == ':':
			ok = true
		case c == ' ' || c == '\t' || c == '"' || c == '\'' || c == '\\':
		default:
			return at, ok
		}
	}
	return at, false
}

func assignedToken(b []byte, at int, anchor string) (int, int, bool) {
	value, ok := assigned(b, at+len(anchor))
	if !ok {
		return 0, 0, false
	}
	const uuid, legacy = 36, 26
	n := runOf(b, value, "-.")
	switch v := b[value : value+n]; {
	case n == uuid && isUUID(v):
	case n == legacy && bytes.HasPrefix(v, []byte("s.")) && runOf(b, value+2, "") == legacy-2 && random(v):
	default:
		return 0, 0, false
	}
	return at, value + n, true
}

// isUUID tells whether b is one, but for those that name nobody.
func isUUID(b []byte) bool {
	zeros := 0
	for i, c := range b {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c == '0':
			zeros++
		case !isDigit(c) && (c < 'a' || c > 'f') && (c < 'A' || c > 'F'):
			return false
		}
	}
	return len(b) == 36 && zeros < 24
}

// gossipKey is Consul's or Nomad's setting encrypt: 16, 24 or 32 bytes in base64.
func gossipKey(b []byte, at int, anchor string) (int, int, bool) {
	value, ok := assigned(b, at+len(anchor))
	if !ok {
		return 0, 0, false
	}
	n := runOf(b, value, "+/=")
	if n != 24 && n != 32 && n != 44 || n != 32 && b[value+n-1] != '=' {
		return 0, 0, false
	}
	return at, value + n, random(b[value : value+n])
}
