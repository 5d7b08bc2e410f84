package dashboard

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/status"
)

// colors are the style sheet's variables, for light and dark.
func colors(t *testing.T) (light, dark map[string]string) {
	t.Helper()
	data, err := staticFiles.ReadFile("static/kiln.css")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(string(data), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of variables, want light and dark", len(blocks))
	}
	read := func(block string) map[string]string {
		m := map[string]string{}
		for _, v := range regexp.MustCompile(`--([\w-]+): (#[0-9a-f]{6});`).FindAllStringSubmatch(block, -1) {
			m[v[1]] = v[2]
		}
		return m
	}
	return read(blocks[0][1]), read(blocks[1][1])
}

// luminance is WCAG 2's.
func luminance(t *testing.T, color string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(color, "#"), 16, 32)
	if err != nil || len(color) != 7 {
		t.Fatalf("%q is no colour", color)
	}
	part := func(shift uint) float64 {
		v := float64(n>>shift&0xff) / 255
		if v <= 0.04045 {
			return v / 12.92
		}
		return math.Pow((v+0.055)/1.055, 2.4)
	}
	return 0.2126*part(16) + 0.7152*part(8) + 0.0722*part(0)
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	x, y := luminance(t, a), luminance(t, b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// Every text has the contrast of WCAG's level AA, 4.5:1, whatever its size: it is
// read from across a room.
func TestContrast(t *testing.T) {
	if got := contrast(t, "#000000", "#ffffff"); math.Abs(got-21) > 0.01 {
		t.Fatalf("black on white has %.2f", got)
	}
	if got := contrast(t, "#767676", "#ffffff"); got < 4.5 || got > 4.6 {
		t.Fatalf("the grey that just does has %.2f", got)
	}
	light, dark := colors(t)
	for name, c := range map[string]map[string]string{"light": light, "dark": dark} {
		check := func(text, ground string) {
			if got := contrast(t, c[text], c[ground]); got < 4.5 {
				t.Errorf("%s: %s on %s has %.2f, want 4.5", name, text, ground, got)
			}
		}
		for _, ground := range []string{"page", "surface"} {
			for text := range c {
				if strings.HasPrefix(text, "s-") || text == "text" || text == "quiet" || text == "link" {
					check(text, ground)
				}
			}
		}
		check("text", "raised")
		check("alarm-on", "alarm")
		check("mark-on", "mark")
		if len(c) < 20 {
			t.Errorf("%s: only %d colours", name, len(c))
		}
		// The bar against what is behind it: 3:1, as it has no text.
		if got := contrast(t, c["s-writing"], c["raised"]); got < 3 {
			t.Errorf("%s: the bar has %.2f", name, got)
		}
	}
	if len(light) != len(dark) {
		t.Errorf("%d colours are for light, %d for dark", len(light), len(dark))
	}
}

// Each stage has a colour, and a shape of its own: not only colour tells them apart.
func TestEveryStageHasAShape(t *testing.T) {
	css, err := staticFiles.ReadFile("static/kiln.css")
	if err != nil {
		t.Fatal(err)
	}
	layout, err := templateFiles.ReadFile("templates/layout.html")
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string]string{}
	classes := []string{"in-line"}
	for _, s := range append(status.Stages, state.Failed, state.Disarmed, "something new") {
		classes = append(classes, stageClass(&state.Record{Stage: s}))
	}
	for _, g := range status.Groups {
		classes = append(classes, classOf(g))
	}
	for _, class := range classes {
		if !strings.Contains(string(css), "."+class+" { --stage: var(--s-"+class+"); }") {
			t.Errorf("%s has no colour", class)
		}
		m := regexp.MustCompile(`<symbol id="s-` + class + `"[^>]*>(.*)</symbol>`).FindStringSubmatch(string(layout))
		if m == nil {
			t.Errorf("%s has no shape", class)
			continue
		}
		if other, ok := shapes[m[1]]; ok && other != class {
			t.Errorf("%s has the shape of %s", class, other)
		}
		shapes[m[1]] = class
	}
}

func TestGroups(t *testing.T) {
	count := func(failed, writing, ready int) map[status.Group][]tile {
		return map[status.Group][]tile{
			status.Failed: make([]tile, failed), status.Installing: make([]tile, writing), status.Ready: make([]tile, ready),
		}
	}
	for _, c := range []struct {
		failed, writing, ready int
		want                   string
	}{
		{0, 0, 0, ""},
		{0, 1, 0, "all xl 1"},
		{1, 1, 1, "all l 3"},
		{1, 1, 11, "all m 13"},
		{1, 16, 483, "failed m 1, writing s 16, ready w8 many 483"},
		{0, 25, 0, "writing s 25"},
		{0, 0, 25, "ready w8 25"},
		{500, 0, 0, "failed s 500"},
	} {
		var got []string
		for _, g := range groupsOf(count(c.failed, c.writing, c.ready), c.failed+c.writing+c.ready) {
			got = append(got, g.Class+" "+g.Size+" "+strconv.Itoa(len(g.Tiles)))
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%d failed, %d writing, %d ready: %q, want %q", c.failed, c.writing, c.ready, s, c.want)
		}
	}
}

func TestTimeline(t *testing.T) {
	d := dashboard(newFake())
	show := func(r state.Record) string {
		var lines []string
		for _, m := range d.timeline(&r) {
			lines = append(lines, strings.TrimSpace(m.Name+" "+m.State+" "+m.Clock+" "+m.Took))
		}
		return strings.Join(lines, "\n")
	}
	again := record("a", state.Writing, nil)
	again.History = append([]state.Event{{Time: ago(99 * 3600e9), Stage: state.Armed}, {Time: ago(98 * 3600e9), Stage: state.Failed}}, again.History...)
	bare := state.Record{Host: "a", Stage: state.FirstBoot, Since: ago(60e9)}
	for name, c := range map[string]struct {
		r    state.Record
		want string
	}{
		"ready": {record("a", state.Ready, nil), "armed done 11:40:00 1 min 10 s\nbooted done 11:41:10 1 min 10 s\nwriting done 11:42:20 1 min 10 s\nwritten done 11:43:30 1 min 10 s\nfirst boot done 11:44:40 1 min 10 s\nready done 11:45:50"},
		"again": {again, "armed done 11:40:00 1 min 10 s\nbooted done 11:41:10 1 min 10 s\nwriting now 11:42:20 17 min\nwritten ahead\nfirst boot ahead\nready ahead"},
		"failed": {
			record("a", state.Failed, fail(state.Booted, "no")),
			"armed done 11:40:00 1 min 10 s\nbooted failed 11:41:10 14 min\nwriting ahead\nwritten ahead\nfirst boot ahead\nready ahead",
		},
		"without history": {bare, "armed done\nbooted done\nwriting done\nwritten done\nfirst boot now 11:59:00 1 min 00 s\nready ahead"},
	} {
		if diff := cmp.Diff(c.want, show(c.r)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestPartsOf(t *testing.T) {
	const ref = "kiln-secret:teigi://alibuild/consul_encrypt"
	for in, want := range map[string][]part{
		"":                      nil,
		"plain":                 {{"plain", false}},
		ref:                     {{ref, true}},
		`a = "` + ref + `", b`:  {{`a = "`, false}, {ref, true}, {`", b`, false}},
		ref + "\n" + ref + "\n": {{ref, true}, {"\n", false}, {ref, true}, {"\n", false}},
	} {
		if diff := cmp.Diff(want, partsOf(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

func FuzzPartsOf(f *testing.F) {
	f.Add(`x = "kiln-secret:env://A" kiln-secret:`)
	f.Fuzz(func(t *testing.T, s string) {
		var all strings.Builder
		for _, p := range partsOf(s) {
			if p.Text == "" {
				t.Fatalf("an empty part of %q", s)
			}
			all.WriteString(p.Text)
		}
		if all.String() != s {
			t.Errorf("%q became %q", s, all.String())
		}
	})
}
