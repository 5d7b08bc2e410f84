package check

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// found lists what is found in a text: forms and patterns by their numbers, and
// where each begins.
func (s *search) found(text string) []string {
	var list []string
	s.scan([]byte(text), func(h hit) { list = append(list, fmt.Sprintf("%d %d %d", h.form, h.pattern, h.start)) })
	slices.Sort(list)
	return slices.Compact(list)
}

// TestSearchEverywhere has a secret at each place of a text, and next to its ends.
func TestSearchEverywhere(t *testing.T) {
	s := newSearch([]Canary{secret("a", "8 bytes!"), secret("b", "8 bytes, and some more"), secret("c", strings.Repeat("long and longer ", 100))}, false)
	for n, f := range s.forms {
		for _, size := range []int{0, 1, 2, 3, 7, 64} {
			for before := range 12 {
				text := strings.Repeat("\x00", before) + f.text + strings.Repeat("-", size)
				if !slices.ContainsFunc(s.found(text), func(h string) bool { return strings.HasPrefix(h, fmt.Sprintf("%d -1 %d", n, before)) }) {
					t.Errorf("%.20q isn't found %d bytes into a text, %d bytes before its end", f.text, before, size)
				}
			}
			for cut := 1; cut < len(f.text); cut += 7 {
				text := f.text[:cut] + "\x00" + f.text[cut+1:]
				for _, h := range s.found(text) {
					if strings.HasPrefix(h, fmt.Sprintf("%d -1 0", n)) {
						t.Errorf("%.20q is found, and it isn't there", f.text)
					}
				}
			}
		}
	}
}

// TestNoPattern has what looks a bit like a secret.
func TestNoPattern(t *testing.T) {
	s := newSearch(nil, false)
	for _, text := range []string{
		"AKIAIOSFODNN7" + "EXAMPLE", "xAKIAY3MNPQ7RSTUV2WXY", "AKIAY3MNPQ7RSTUV2WXYZ", "AKIAABCDEFGHIJKLMNOP", "ASIA and AFRICA",
		"ghp_tooshort1A", "ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "glpat-x", "hvs.", "the hvs.valve-of-the-machine-that-is-there", "shvs.CAESIJa1B2c3D4e5F6g7H8i9J0k1",
		"NOMAD_" + "TOKEN=00000000-0000-0000-0000-000000000002", "CONSUL_HTTP_TOKEN=", "CONSUL_HTTP_TOKEN=$(cat token)", "token: {{ .token }}", "NOMAD_TOKEN=8f14e45f-ceea-467f-a9af-1d2c3b4a5d6",
		"encrypt = \"\"", "encrypt = \"kiln-secret:teigi://site/encrypt\"", "encrypt: aaaaaaaaaaaaaaaaaaaaaaaa", "SecretID",
		"-----BEGIN " + "PRIVATE KEY-----\x00", "-----BEGIN " + "PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----\n" + example(1)[28:], "PRIVATE KEY-----\n" + example(1)[28:],
		"PRIVATE KEY", "TOKEN", "token=", "AGE-SECRET-KEY-1", "-----BEGIN " + "PRIVATE KEY-----",
	} {
		if got := s.found(text); len(got) > 0 {
			t.Errorf("%q looks like %s", text, got)
		}
	}
	for _, text := range []string{strings.Replace(example(1), "PRIVATE KEY", "RSA PRIVATE KEY", 2), strings.Replace(example(1), "-\n", "-\r\n", 1), "  " + strings.ReplaceAll(example(1), "\n", "\n    "),
		strings.Replace(example(1), "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1), strings.Replace(example(1), "PRIVATE KEY", "PGP PRIVATE KEY BLOCK", 2)} {
		if got := s.found(text); len(got) == 0 {
			t.Errorf("%q isn't found", text)
		}
	}
}

// FuzzSearch compares the filter with a search of each form in all of the text.
func FuzzSearch(f *testing.F) {
	s := newSearch([]Canary{secret("a", "aaaaaaab"), secret("b", "\x00\x00\x00\x00\x00\x00\x00\x01")}, false)
	f.Add("aaaaaaaaaaab", 3)
	f.Add(example(1), 0)
	for _, p := range patterns {
		for _, a := range p.anchors {
			f.Add(a.text+"=\"aaaaaaab", len(a.text))
		}
	}
	f.Fuzz(func(t *testing.T, text string, at int) {
		for _, form := range s.forms[:2] {
			whole := text
			if at >= 0 && at < len(text) {
				whole = text[:at] + form.text + text[at:]
			}
			want := strings.Count(whole, form.text) > 0
			got := false
			s.scan([]byte(whole), func(h hit) {
				if h.start < 0 || h.end > len(whole) || h.start >= h.end {
					t.Errorf("a hit from %d to %d of %d", h.start, h.end, len(whole))
				}
				got = got || h.form >= 0 && s.forms[h.form].text == form.text
			})
			if got != want && !form.folded {
				t.Errorf("found: %v, there: %v", got, want)
			}
		}
	})
}

// TestNotShown has secrets where findings and errors have names from the disk.
func TestNotShown(t *testing.T) {
	const name = "a-secret-in-a-name"
	list := []Canary{secret("env://NAME", name)}
	i := newImage(t)
	i.file("var/log/"+name, "x", 0o666)
	i.file("etc/systemd/system/good.service.d/x.conf", "[Service]\nExecStart=\nExecStart=/"+name+"\n", 0o644)
	i.file("srv/\x1b[31m", name, 0o644)
	file := i.disk()
	found := findingsOf(t, file, Options{Canaries: list})
	if len(found) < 4 {
		t.Errorf("found only %v", found)
	}
	for _, f := range found {
		if s := fmt.Sprintf("%+v %s", f, f.String()); strings.Contains(s, name) || strings.Contains(f.String(), "\x1b") {
			t.Errorf("it is shown: %q", s)
		}
	}
	// A name that leads to an inode that isn't there.
	debugfs(t, file, "clri var/log/"+name)
	if _, err := Disk(t.Context(), file, Options{Canaries: list}); err == nil || strings.Contains(err.Error(), name) {
		t.Errorf("an error with the name: %v", err)
	}
}

// BenchmarkSearch prints how much faster the filter is than one search for each
// form.
func BenchmarkSearch(b *testing.B) {
	list := make([]Canary, 8)
	for i := range list {
		raw := make([]byte, 32)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(raw) // never fails
		list[i] = secret("x", base64.StdEncoding.EncodeToString(raw))
	}
	s := newSearch(list, false)
	// A program is much of what disks have: this one.
	name, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	n := 0
	for b.Loop() {
		s.scan(text, func(hit) {})
		n++
	}
	each := time.Since(start) / time.Duration(max(1, n))
	start = time.Now()
	for _, f := range s.forms {
		_ = bytes.Index(text, []byte(f.text))
	}
	b.SetBytes(int64(len(text)))
	b.ReportMetric(float64(time.Since(start))/float64(each), "times-one-by-one")
}
