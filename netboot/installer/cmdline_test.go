package installer

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	aPin  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	aLine = "initrd=initramfs quiet kiln.server=https://10.0.0.1:8443/ kiln.pin=" + aPin + ` kiln.token=t=1 kiln.mac=52-54-00-AB-CD-EF kiln.host="a b"` + "\n"
)

func TestParseCommandLine(t *testing.T) {
	b, err := ParseCommandLine(aLine)
	if diff := cmp.Diff(Boot{Server: "https://10.0.0.1:8443", Pin: aPin, Token: "t=1", MAC: "52:54:00:ab:cd:ef", Host: "a b"}, b); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for change, want := range map[[2]string]string{
		{"kiln.token=t=1", ""}:                "has no kiln.token",
		{"kiln.token=t=1", "kiln.token="}:     "has no kiln.token",
		{"https://", "http://"}:               "no https:// address",
		{"https://", "https://u:p@"}:          "no https:// address",
		{aPin, aPin[1:]}:                      "no SHA-256",
		{"52-54-00-AB-CD-EF", "52-54"}:        "wrong kiln.mac",
		{"quiet", "kiln.host"}:                "",
		{"kiln.host", "kiln.mac=x kiln.host"}: "wrong kiln.mac",
	} {
		_, err := ParseCommandLine(strings.ReplaceAll(aLine, change[0], change[1]))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", change, err, want)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	f.Add(aLine)
	f.Add(`kiln.server="https://[::1]:1" "`)
	f.Fuzz(func(t *testing.T, line string) {
		b, err := ParseCommandLine(line)
		if err == nil && (b.Token == "" || len(b.Pin) != 64 || !strings.HasPrefix(b.Server, "https://")) {
			t.Errorf("%+v", b)
		}
	})
}
