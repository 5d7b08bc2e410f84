package installer

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/plan"
)

// Boot is what the kernel's command line tells the installer.
type Boot struct {
	Server string // https://10.0.0.1:8443
	Pin    string
	Token  string
	MAC    plan.MAC
	Host   string // may be empty: it's for people
}

// ParseCommandLine reads the kernel's command line. Of a parameter that is there
// twice the last one counts, as with the kernel's own.
func ParseCommandLine(line string) (Boot, error) {
	values := map[string]string{}
	for _, word := range words(line) {
		if name, value, ok := strings.Cut(word, "="); ok {
			values[name] = value
		}
	}
	b := Boot{Server: strings.TrimRight(values[protocol.ParamServer], "/"), Pin: values[protocol.ParamPin], Token: values[protocol.ParamToken], Host: values[protocol.ParamHost]}
	for _, name := range []string{protocol.ParamServer, protocol.ParamPin, protocol.ParamToken, protocol.ParamMAC} {
		if values[name] == "" {
			return b, fmt.Errorf("the kernel's command line has no %s: this is kiln's installer, which kiln serve boots", name)
		}
	}
	u, err := url.Parse(b.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return b, fmt.Errorf("the kernel's command line has %s=%s, which is no https:// address of a server", protocol.ParamServer, b.Server)
	}
	if sum, err := hex.DecodeString(b.Pin); err != nil || len(sum) != 32 {
		return b, fmt.Errorf("the kernel's command line has %s=%s, which is no SHA-256", protocol.ParamPin, b.Pin)
	}
	if b.MAC, err = plan.ParseMAC(values[protocol.ParamMAC]); err != nil {
		return b, fmt.Errorf("the kernel's command line has a wrong %s: %w", protocol.ParamMAC, err)
	}
	return b, nil
}

// words splits a command line as the kernel does: at blanks that aren't between
// double quotes.
func words(line string) []string {
	var list []string
	var word strings.Builder
	quoted, begun := false, false
	for _, c := range line {
		switch {
		case c == '"':
			quoted, begun = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\n'):
			if begun {
				list = append(list, word.String())
			}
			word.Reset()
			begun = false
		default:
			begun = true
			word.WriteRune(c)
		}
	}
	if begun {
		list = append(list, word.String())
	}
	return list
}
