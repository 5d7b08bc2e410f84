package dashboard

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/status"
	"github.com/alisw/kiln/plan"
)

// What a page shows of the long things.
const (
	consoleLines = 400
	historyLines = 200
	seedBytes    = 256 << 10
	seedTime     = 5 * time.Second // that rendering a seed may take, its turn included
	seedsAtOnce  = 2               // since the server has installations to serve
)

// hostBody is what the template gets. It has no field for what must not be
// shown: the hashes of token and session.
type hostBody struct {
	Tile      tile
	Timeline  []milestone
	Facts     []fact
	Findings  []string
	History   []event
	Earlier   int // events that aren't shown
	Console   string
	Given     []givenFile
	GivenNote string
	HasGiven  bool
}

// milestone is a stage on the way, and when it was reached.
type milestone struct {
	step
	Class string
	Clock string // empty until it is reached
	Date  string // where it isn't today
	Since string // to the script, while it lasts
	Took  string
	Error string
}

type fact struct{ Name, Value, Full string }

type event struct {
	Clock, Word, Class, Text string
}

// host is the page of one host.
func (d *Dashboard) host(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	rec, ok, err := d.Records.Get(name)
	if err != nil {
		d.broken(w, r, err)
		return
	}
	if !ok {
		d.show(w, r, d.page("error", "No such host", "There is no installation of "+status.Clean(name)+" here. A host appears once it is armed: kiln arm NAME."), http.StatusNotFound)
		return
	}
	b := d.hostBody(&rec)
	if d.Given != nil && !fragment(r) {
		b.HasGiven = true
		b.Given, b.GivenNote = d.given(r.Context(), rec.Host)
	}
	p := d.page("host", status.Clean(rec.Host), b)
	p.Title = b.Tile.Name + ": " + b.Tile.Word
	if b.Tile.Moving {
		p.Title += fmt.Sprintf(" %d %%", b.Tile.Percent)
	}
	p.Title += " · Kiln"
	p.Alarm = rec.Stage == state.Failed
	d.show(w, r, p, http.StatusOK)
}

func (d *Dashboard) hostBody(r *state.Record) hostBody {
	b := hostBody{Tile: tileOf(r, d.now(), ""), Timeline: d.timeline(r), Facts: d.facts(r)}
	for _, f := range r.Findings {
		b.Findings = append(b.Findings, status.Clean(f))
	}
	lines := r.Console[max(0, len(r.Console)-consoleLines):]
	clean := make([]string, len(lines))
	for i, l := range lines {
		clean[i] = status.Clean(l)
	}
	b.Console = strings.Join(clean, "\n")
	for _, e := range slices.Backward(r.History) {
		if len(b.History) == historyLines {
			b.Earlier = len(r.History) - historyLines
			break
		}
		b.History = append(b.History, event{
			Clock: d.clock(e.Time).Format("2006-01-02 15:04:05"), Word: status.Clean(string(e.Stage)),
			Class: stageClass(&state.Record{Stage: e.Stage}), Text: status.Clean(e.Text),
		})
	}
	return b
}

// timeline is the way of the last installation: when each stage was reached, and
// how long it took.
func (d *Dashboard) timeline(r *state.Record) []milestone {
	reached, end := reachedAt(r)
	now := d.now()
	var way []milestone
	steps := stepsOf(r)
	for i, stage := range status.Stages {
		m := milestone{step: steps[i], Class: strings.ReplaceAll(string(stage), " ", "-")}
		at, ok := reached[stage]
		if !ok && m.State == "now" {
			at, ok = r.Since, !r.Since.IsZero()
		}
		if ok && m.State != "ahead" {
			m.Clock = d.clock(at).Format("15:04:05")
			if day := d.clock(at).Format("2 January 2006"); day != d.clock(now).Format("2 January 2006") {
				m.Date = day
			}
		}
		switch {
		case !ok || stage == state.Ready:
		case m.State == "now":
			m.Since, m.Took = at.UTC().Format(time.RFC3339), status.Duration(now.Sub(at))
		case m.State != "ahead":
			if next := after(reached, end, i); next.After(at) {
				m.Took = status.Duration(next.Sub(at))
			}
		}
		if m.State == "failed" {
			m.Error = status.Clean(r.Error)
		}
		way = append(way, m)
	}
	return way
}

// reachedAt is when the last installation reached each stage; end is when it
// failed, if it did.
func reachedAt(r *state.Record) (reached map[state.Stage]time.Time, end time.Time) {
	reached = map[state.Stage]time.Time{}
	for _, e := range r.History {
		if e.Stage == state.Armed {
			clear(reached) // a new one
		}
		if _, ok := reached[e.Stage]; !ok {
			reached[e.Stage] = e.Time
		}
	}
	if r.Stage == state.Failed {
		end = r.Since
	}
	return reached, end
}

// after is when stage i was left: for the next that was reached, or at the end.
func after(reached map[state.Stage]time.Time, end time.Time, i int) time.Time {
	for _, s := range status.Stages[i+1:] {
		if t, ok := reached[s]; ok {
			return t
		}
	}
	return end
}

func (d *Dashboard) facts(r *state.Record) []fact {
	macs := make([]string, len(r.MACs))
	for i, m := range r.MACs {
		macs[i] = string(m)
	}
	when := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return d.clock(t).Format("2006-01-02 15:04:05 MST")
	}
	var facts []fact
	for _, f := range []fact{
		{"Image", status.ShortImage(r.Image), r.Image},
		{"Profile", r.Profile, ""},
		{"Disk rule", r.Disk, ""},
		{"Disk chosen", r.DiskFound, ""},
		{"MAC", strings.Join(macs, ", "), ""},
		{"Address", r.Address, ""},
		{"Redeemed", when(r.Redeemed), ""},
		{"Last heard of", when(r.Heard), ""},
		{"Armed by", r.By, ""},
		{"Installation", r.Install, ""},
	} {
		if f.Value != "" {
			facts = append(facts, fact{f.Name, status.Clean(f.Value), status.Clean(f.Full)})
		}
	}
	return facts
}

// givenFile is a file of a host's seed.
type givenFile struct {
	Name  string
	Size  string
	Parts []part
	Note  string // why it isn't shown whole
}

// part is a piece of a file: a reference to a secret, or what is between.
type part struct {
	Text      string
	Reference bool
}

// given is the seed of a host; note says why there is none.
func (d *Dashboard) given(ctx context.Context, host string) (files []givenFile, note string) {
	ctx, cancel := context.WithTimeout(ctx, seedTime)
	defer cancel()
	select {
	case d.seeds <- struct{}{}:
		defer func() { <-d.seeds }()
	case <-ctx.Done():
		return nil, "The server is busy with others' seeds: reload the page."
	}
	seed, err := d.Given(ctx, host)
	if err != nil {
		d.log().Warn("dashboard: a host's seed can't be rendered", "host", host, "error", err)
		return nil, "It can't be rendered: kiln check says why."
	}
	for _, f := range seed {
		files = append(files, givenOf(f))
	}
	return files, ""
}

func givenOf(f protocol.SeedFile) givenFile {
	g := givenFile{Name: status.Clean(f.Name), Size: status.Size(int64(len(f.Data)))}
	text, whole := cutText(f)
	if !utf8.ValidString(text) {
		g.Note = "It is no text."
		return g
	}
	if !whole {
		g.Note = "This is its beginning."
	}
	g.Parts = partsOf(text)
	return g
}

// cutText is as much of a file as is shown, up to a whole line.
func cutText(f protocol.SeedFile) (text string, whole bool) {
	if len(f.Data) <= seedBytes {
		return string(f.Data), true
	}
	text = string(f.Data[:seedBytes])
	return text[:strings.LastIndexByte(text, '\n')+1], false
}

// partsOf finds the references to secrets in a file that was rendered without
// them.
func partsOf(text string) []part {
	var parts []part
	for text != "" {
		at := strings.Index(text, plan.UnresolvedPrefix)
		if at < 0 {
			return append(parts, part{text, false})
		}
		if at > 0 {
			parts = append(parts, part{text[:at], false})
		}
		text = text[at:]
		// No character of a reference is a quote, a blank, or one of the shell's.
		end := strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || strings.ContainsRune("\"'`\\$%{}<>|;&*?()!,", r) })
		if end < 0 {
			end = len(text)
		}
		parts = append(parts, part{text[:end], true})
		text = text[end:]
	}
	return parts
}
