package status

import (
	"flag"
	"math"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/netboot/state"
)

var update = flag.Bool("update", false, "write the golden files anew, and fail")

var now = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

const image = "3f2a91c0b7de4455aa3f2a91c0b7de4455aa3f2a91c0b7de4455aa3f2a91c0b7"

// some are records of every kind, in no order.
func some() []state.Record {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	const gib = 1 << 30
	return []state.Record{
		{Host: "build10.example.org", Image: image, Stage: state.Ready, Since: ago(50 * time.Hour)},
		{Host: "build9.example.org", Image: image, Stage: state.Ready, Since: ago(49 * time.Hour)},
		{Host: "build1.example.org", Image: image, Stage: state.Writing, Done: 62 * gib / 10, Total: 10 * gib, Step: "write", Since: ago(time.Minute), Heard: ago(time.Second)},
		{Host: "build2.example.org", Image: image, Stage: state.Booted, Step: "turn", Place: 2, Since: ago(90 * time.Second), Heard: ago(3 * time.Second)},
		{Host: "build3.example.org", Image: image, Stage: state.Booted, Step: "turn", Place: 1, Since: ago(95 * time.Second), Heard: ago(3 * time.Second)},
		{Host: "build4.example.org", Image: image, Stage: state.Failed, FailedAt: state.Writing, Done: 3 * gib, Total: 10 * gib, Since: ago(4 * time.Hour), Error: "write: chunk 17 of 2560: the server's hash is another\x1b[31m: /dev/sda may be broken\nor the server's store"},
		{Host: "build5.example.org", Image: image, Stage: state.Failed, FailedAt: state.Booted, Since: ago(12 * time.Minute), Error: "disk: 2 disks fit: S3X1, S3X2"},
		{Host: "build6.example.org", Image: image, Stage: state.Armed, Since: ago(15 * time.Minute)},
		{Host: "build60.example.org", Image: image, Stage: state.Armed, Since: ago(20 * time.Minute), Problem: "its image 3f2a91c0b7de is gone from /var/cache/kiln/images: kiln build alissandra --format netboot"},
		{Host: "build7.example.org", Image: image, Stage: state.FirstBoot, Since: ago(40 * time.Second), Findings: []string{"consul-node: no node of that name", "x"}},
		{Host: "build8.example.org", Image: image, Stage: state.Writing, Done: 1 * gib, Total: 10 * gib, Step: "write", Since: ago(3 * time.Minute), Heard: ago(50 * time.Second)},
		{Host: "old.example.org", Image: image, Stage: state.Disarmed, Since: ago(100 * 24 * time.Hour)},
		{Host: "build11.example.org", Image: image, Stage: state.Written, Since: ago(2 * time.Second)},
	}
}

func TestTable(t *testing.T) {
	for _, c := range []struct {
		golden string
		o      Options
	}{
		{"wide.txt", Options{}},
		{"120.txt", Options{Width: 120}},
		{"80.txt", Options{Width: 80}},
		{"short.txt", Options{Width: 80, Height: 12}},
		{"color.txt", Options{Width: 120, Color: true}},
	} {
		records := some()
		got := Table(records, now, c.o)
		if diff := cmp.Diff(some(), records); diff != "" {
			t.Errorf("%s: Table has changed its records: %s", c.golden, diff)
		}
		if again := Table(records, now, c.o); again != got {
			t.Errorf("%s: the second time it's another", c.golden)
		}
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); c.o.Width > 0 && !c.o.Color && n > c.o.Width {
				t.Errorf("%s: %d columns: %q", c.golden, n, line)
			}
		}
		if n := strings.Count(got, "\n"); c.o.Height > 0 && n > c.o.Height {
			t.Errorf("%s: %d lines", c.golden, n)
		}
		if !c.o.Color && strings.Contains(got, "\x1b") {
			t.Errorf("%s: escapes without being asked for", c.golden)
		}
		compare(t, "testdata/"+c.golden, strings.ReplaceAll(got, "\x1b", "␛"))
	}
}

func compare(t *testing.T, path, got string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err == nil && string(want) == got {
		return
	}
	t.Errorf("%s (%v) differs; look at it after: go test ./netboot/status -update\n%s", path, err, cmp.Diff(string(want), got))
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever the width, no line is wider, and all hosts are there.
func TestTableAnyWidth(t *testing.T) {
	records := append(some(), state.Record{Host: "漢字漢字漢字", Stage: state.Failed, Error: strings.Repeat("漢字", 60)})
	for w := 1; w < 220; w++ {
		got := Table(records, now, Options{Width: w})
		if n := strings.Count(got, "\n"); n < len(records)+3 {
			t.Fatalf("width %d: %d lines", w, n)
		}
		for line := range strings.Lines(got) {
			if n := wide(strings.TrimSuffix(line, "\n")); n > w {
				t.Fatalf("width %d: %d columns: %q", w, n, line)
			}
		}
	}
	if got := Table(nil, now, Options{}); got != "no host has been armed yet\n" {
		t.Errorf("nothing: %q", got)
	}
	for h := 1; h < 20; h++ {
		if got := strings.Count(Table(records, now, Options{Width: 80, Height: h}), "\n"); got > max(h, 8) {
			t.Errorf("height %d: %d lines", h, got)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		r    state.Record
		want int
		ok   bool
	}{
		{state.Record{Stage: state.Writing, Done: 0, Total: 10}, 0, true},
		{state.Record{Stage: state.Writing, Done: 9999, Total: 10000}, 99, true},
		{state.Record{Stage: state.Writing, Done: 10, Total: 10}, 100, true},
		{state.Record{Stage: state.Writing, Done: 20, Total: 10}, 100, true},
		{state.Record{Stage: state.Writing, Done: -1, Total: 10}, 0, true},
		{state.Record{Stage: state.Writing, Done: math.MaxInt64 - 1, Total: math.MaxInt64}, 100, true},
		{state.Record{Stage: state.Writing, Done: math.MaxInt64 / 2, Total: math.MaxInt64}, 50, true},
		{state.Record{Stage: state.Writing}, 0, false},
		{state.Record{Stage: state.Writing, Done: 1, Total: 10, Place: 3}, 0, false},
		{state.Record{Stage: state.Booted, Done: 1, Total: 10}, 0, false},
		{state.Record{Stage: state.Failed, FailedAt: state.Writing, Done: 1, Total: 10}, 10, true},
		{state.Record{Stage: state.Failed, FailedAt: state.FirstBoot, Done: 1, Total: 10}, 0, false},
	} {
		if got, ok := Percent(&c.r); got != c.want || ok != c.ok {
			t.Errorf("Percent(%+v) = %d, %v, want %d, %v", c.r, got, ok, c.want, c.ok)
		}
	}
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Duration(-time.Hour), "0 s"},
		{Duration(59*time.Second + 999*time.Millisecond), "59 s"},
		{Duration(60 * time.Second), "1 min 00 s"},
		{Duration(59 * time.Minute), "59 min"},
		{Duration(61 * time.Minute), "1 h 01 min"},
		{Duration(49 * time.Hour), "2 d 1 h"},
		{Size(0), "0 B"},
		{Size(-5), "0 B"},
		{Size(1023), "1023 B"},
		{Size(1024), "1.0 KiB"},
		{Size(10 << 30), "10 GiB"},
		{Size(1<<30 - 1), "1.0 GiB"},
		{Size(math.MaxInt64), "8.0 EiB"},
		{Clean("plain é"), "plain é"},
		{Clean("\x1b[1;31mred\x1b[0m\x1b]0;title\x07 a\tb\x00c\r\n"), "red a b�c"},
		{Clean("\x1b[1"), "�[1"},
		{Clean("a\xffb\u202Ec"), "a�b�c"},
		{ShortImage(image), "3f2a91c0b7de"},
		{ShortImage("abc"), "abc"},
		{Word(&state.Record{Stage: "new\x1b[1m"}), "new"},
		{Bar(99, 10), "█████████░"},
		{Bar(-1, 4), "░░░░"},
		{Bar(200, 4), "████"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestNatural(t *testing.T) {
	order := []string{"", "a", "a1", "a01", "a2", "a2b", "a10", "a10.x", "b"}
	for i := range order {
		for j := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := Natural(order[i], order[j]); got != want {
				t.Errorf("Natural(%q, %q) = %d, want %d", order[i], order[j], got, want)
			}
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31mred\x1b]0;x\x1b\\ \x9b1m \u202e")
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if strings.ContainsAny(got, "\x1b\n\r\t\x00\u202e\u009b") || !utf8.ValidString(got) {
			t.Errorf("Clean(%q) = %q", s, got)
		}
		if again := Clean(got); again != got {
			t.Errorf("Clean(%q) = %q, and that gives %q", s, got, again)
		}
	})
}
